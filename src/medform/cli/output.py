"""What a verb shows of its result: lines for people, or one JSON object; and the exit code that follows from it.

A public verb returns any of: a path; a list of mappings (the checks of `doctor`); or an object. An object may
have ``as_json()`` (a JSON-able mapping; a dataclass needs none), ``lines()`` (what a person is told),
``exclusions`` (how many things were left out: exit 3 under --strict) and ``exit_code`` (where the result
itself decides). A pandas frame has ``lines``, ``exclusions`` and ``left_out`` (lines) in its ``attrs``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["exit_code", "prepare", "show", "simple"]


class _Messages(logging.Handler):
    """Prints a message to what stderr is at that moment: a progress bar takes it over while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def prepare(debug: bool) -> None:
    """Send the package's messages to stderr, and let no console's encoding stop a result from being shown."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    logger = logging.getLogger("medform")
    logger.handlers = [_Messages()]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


def simple(value: Any) -> Any:
    """``value`` as what JSON knows; NaN and infinity become null."""
    if hasattr(value, "as_json"):
        return simple(value.as_json())
    if isinstance(value, Mapping):
        return {str(key): simple(item) for key, item in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_dict"):  # a pandas frame
        return simple(value.to_dict("records"))
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return simple(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: simple(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Sequence | set | frozenset):
        return [simple(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return str(value)


def show(result: Any, as_json: bool) -> None:
    """Print a result on stdout; nothing else is printed there."""
    if as_json:
        tree = simple(result)
        if isinstance(result, Path):
            tree = {"path": tree}
        elif isinstance(tree, list):
            tree = {"checks" if _are_checks(result) else "rows": tree}
            left_out = _attrs(result).get("left_out")
            tree |= {} if left_out is None else {"left_out": left_out}
        print(json.dumps(tree, indent=1))
    elif hasattr(result, "lines"):
        print("\n".join(result.lines()))
    elif "lines" in _attrs(result):
        print("\n".join(_attrs(result)["lines"]))
    elif _are_checks(result):
        print("\n".join(_check_lines(result)))
    elif result is not None:
        print(result)


def _attrs(result: Any) -> Mapping[str, Any]:
    """What a pandas frame carries beside its columns; nothing of any other result."""
    found = getattr(result, "attrs", None)
    return found if isinstance(found, Mapping) else {}


def _are_checks(result: Any) -> bool:
    return isinstance(result, list) and bool(result) and isinstance(result[0], Mapping) and "status" in result[0]


def _check_lines(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    width = max(len(check["name"]) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check['status']:<4}  {check['name']:<{width}}  {check['value']}")
        if check.get("fix"):
            lines.append(f"{'':<6}{'':<{width}}  fix: {check['fix']}")
    return lines


def exit_code(result: Any, strict: bool) -> int:
    """0; 2 where a check failed; the result's own code; 3 where something was left out under ``strict``."""
    if _are_checks(result):
        return 2 if any(check["status"] == "FAIL" for check in result) else 0
    own = int(getattr(result, "exit_code", 0) or 0)
    left_out = _attrs(result).get("exclusions", getattr(result, "exclusions", 0))
    count = left_out if isinstance(left_out, int) else len(left_out or ())
    return own or (3 if strict and count else 0)
