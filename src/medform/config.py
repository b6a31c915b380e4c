"""Strict configuration: YAML read as text, typed by its model; every fault at once with file, line and nearest key."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medform.errors import InputError, Problem, nearest

__all__ = ["Config", "digest", "dump", "load", "merge", "own_class", "parse", "read_text", "read_yaml", "set_key"]

Tree = dict[str, Any]
T = TypeVar("T", bound=BaseModel)


class Config(BaseModel):
    """Base of every configuration model: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _TextLoader(yaml.SafeLoader):
    """Every scalar stays the text that was written; only an unquoted empty value, ``~`` and ``null`` are None.

    So ``Yes``, ``0123``, ``2020-01-02`` and ``NA`` arrive unchanged and the field's type converts them.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag == "tag:yaml.org,2002:null"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _refuse_duplicates(loader: _TextLoader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(key_node.value)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
        seen.add(key)
    return {
        str(loader.construct_object(key, deep=True)): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


_TextLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _refuse_duplicates)


def read_yaml(text: str, where: str = "<text>") -> Any:
    """Parse YAML with every scalar as text; raises `InputError` with the line of a syntax error."""
    try:
        return yaml.load(text, Loader=_TextLoader)  # noqa: S506 - a SafeLoader: builds text, lists and mappings only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"{where}:{mark.line + 1}" if mark else where
        raise InputError(f"{error.problem or error}.", where=line, fix="mend the YAML on that line.") from None


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Line number (from 1) of every key path of a YAML text."""
    found: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node | None, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                child = (*path, str(key.value))
                found[child] = key.start_mark.line + 1
                walk(value, child)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                child = (*path, str(index))
                found[child] = value.start_mark.line + 1
                walk(value, child)

    walk(yaml.compose(text, Loader=_TextLoader), ())
    return found


def _known_keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Keys allowed where ``path`` points, as far as the model's annotations tell."""
    import types
    import typing

    here: list[type[BaseModel]] = [model]
    for step in path:
        following: list[type[BaseModel]] = []
        for candidate in here:
            if candidate.__name__ == step:
                following.append(candidate)  # pydantic names the chosen member of a union in the path
                continue
            if step not in candidate.model_fields:
                continue
            queue: list[Any] = [candidate.model_fields[step].annotation]
            while queue:
                annotation = queue.pop()
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    following.append(annotation)
                elif typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
                    queue.extend(a for a in typing.get_args(annotation) if a is not type(None))
        here = following or here
    return sorted({key for candidate in here for key in candidate.model_fields})


def parse(model: type[T], tree: Any, where: str = "configuration", text: str | None = None) -> T:
    """Validate ``tree``; all faults in one `InputError`, each with ``where:line`` and the nearest key."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = _lines(text) if text else {}
        problems = []
        for fault in error.errors():
            path = tuple(str(part) for part in fault["loc"])
            known_path = path
            while known_path and known_path not in lines:
                known_path = known_path[:-1]
            place = f"{where}:{lines[known_path]}" if known_path in lines else where
            suggestion = None
            message = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                known = _known_keys(model, path[:-1])
                close = nearest(path[-1], known)
                message = "unknown key."
                listed = ", ".join(known)
                suggestion = f"Did you mean '{close[0]}'?" if close else (f"Known here: {listed}." if known else None)
                value = None
            elif fault["type"] == "missing":
                message, value = "this key is required.", None
            else:
                given = fault.get("input")
                value = None if isinstance(given, dict | list) else str(given)
            problems.append(
                Problem(message, file=place, column=".".join(path) or None, value=value, suggestion=suggestion)
            )
        raise InputError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the configuration.",
            where=where,
            consequence="Nothing was started.",
            problems=problems,
        ) from None


def read_text(path: Path, wanted: str = "a YAML file") -> str:
    """The text of a configuration file; ``wanted`` says which file was meant where it is a folder.

    Raises `InputError` where there is no such file, where it is a folder, or where it is not UTF-8 (with the line).
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("no such file.", where=str(path), fix="check the path.") from None
    except IsADirectoryError:
        raise InputError("this is a folder.", where=str(path), fix=f"give {wanted}.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError("not UTF-8 text.", where=f"{path}:{line}", fix="save the file as UTF-8.") from None


def load(model: type[T], path: Path) -> T:
    """Read and validate a YAML file; `InputError` as of `read_text` and `parse`."""
    # only a cohort file is asked for by hand here, so the fix for a folder can name what drafts one
    text = read_text(path, "the cohort file that `medform init` drafts")
    return parse(model, read_yaml(text, str(path)) or {}, where=str(path), text=text)


def merge(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Tree:
    """``tree`` with dotted ``overrides`` applied; a mapping replaces the whole part. Neither is changed."""
    result: Tree = json.loads(json.dumps(tree))
    for dotted, value in overrides.items():
        set_key(result, dotted, value)
    return result


def set_key(tree: Tree, dotted: str, value: Any) -> None:
    """Set ``a.b.c`` in place; the last key may be new (its model judges it), a parent must exist."""
    *parents, last = dotted.split(".")
    here: Any = tree
    for depth, key in enumerate(parents):
        if not isinstance(here, dict) or here.get(key) is None:
            known = sorted(here) if isinstance(here, dict) else []
            close = nearest(key, known)
            hint = f"Did you mean '{close[0]}'?" if close else f"Known here: {', '.join(known)}."
            raise InputError(f"no key '{'.'.join(parents[: depth + 1])}' to set. {hint}", where=dotted)
        here = here[key]
    if not isinstance(here, dict):
        raise InputError("this key holds a single value and has no keys below it.", where=dotted)
    here[last] = value


def dump(config: BaseModel) -> str:
    """YAML of a model, every default included; reads back to an equal model."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def digest(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able value with sorted keys: equal settings give equal digests."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def own_class(path: str) -> type:
    """The class that ``package.module:Name`` names; raises `InputError` saying which half could not be found."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # it is not our code, and may raise anything
        said = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"module '{module_name}' cannot be imported ({said}).",
            where=path,
            fix="use `python -m medform` from the folder that holds it, or install it into this environment.",
        ) from error
    if not isinstance(found := getattr(module, name, None), type):
        close = nearest(name, [key for key, value in vars(module).items() if isinstance(value, type)])
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise InputError(f"module '{module_name}' has no class '{name}'.{hint}", where=path)
    return found
