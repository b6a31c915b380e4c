"""Write docs/cohort_file.md: every key of the cohort file with what it takes, made from the schema that reads it."""

from __future__ import annotations

import argparse
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from medform.cohort.cohort_file import CohortFile
from medform.config import Config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cohort_file.md"
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "folder"}
MANY = {"text": "texts", "whole number": "whole numbers", "number": "numbers", "keys below": "mappings, see below"}
TABLE = ("| key | takes | default |", "| --- | --- | --- |")
HEAD = """# The cohort file

Made by `python tools/cohort_file.py` from the schema that reads the file. `medform init` drafts one from your folder
and table; [your own folder](first_cohort.md) says what is to be decided in it. A key that is not listed here is
refused, with the nearest one that is.
"""


def parts(model: type[Config], key: str = "") -> list[tuple[str, type[Config]]]:
    """(dotted key, model) of the file and of every part below it, in the order of the schema."""
    found = [(key, model)]
    for name, field in model.model_fields.items():
        below = {list: "[]", dict: ".NAME"}.get(typing.get_origin(_bare(field.annotation)[0]), "")
        for one in _models(field.annotation):
            found += parts(one, f"{key}.{name}".lstrip(".") + below)
    return found


def _bare(annotation: Any) -> list[Any]:
    """The alternatives of a type, without None and without what only validates."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _bare(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [one for some in typing.get_args(annotation) for one in _bare(some) if one is not type(None)]
    return [annotation]


def _models(annotation: Any) -> list[type[Config]]:
    found: list[type[Config]] = []
    for one in _bare(annotation):
        if inspect.isclass(one) and issubclass(one, Config):
            found.append(one)
        elif typing.get_origin(one) in (list, dict):
            found += [model for inner in typing.get_args(one) for model in _models(inner)]
    return found


def said(annotation: Any) -> str:
    """What a key takes, in words."""
    words = []
    for one in _bare(annotation):
        origin, inner = typing.get_origin(one), typing.get_args(one)
        if origin is typing.Literal:
            words += [f"`{value}`" for value in inner]
        elif origin is list:
            each = said(inner[0])
            words.append(f"list of {MANY.get(each, each)}")
        elif origin is tuple:
            words.append("[low, high]")
        elif origin is dict:
            words.append(f"a name, then {said(inner[1])}")
        else:
            words.append(PLAIN.get(one, "keys below"))
    return ", ".join(words)


def default(field: Any) -> str:
    """The default as it would be written; nothing for a part of its own and for what is not set."""
    value = field.default
    if value is PydanticUndefined:
        return "**required**"
    if value is None or value in ([], {}) or isinstance(value, Config):
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def page() -> str:
    """The whole page."""
    text = [HEAD]
    for key, model in parts(CohortFile):
        about = inspect.cleandoc(model.__doc__ or "").replace("``", "`")
        text += [f"## {f'`{key}`' if key else 'Top level'}", "", about, "", *TABLE]
        text += [f"| `{name}` | {said(one.annotation)} | {default(one)} |" for name, one in model.model_fields.items()]
        text.append("")
    return "\n".join(text).rstrip() + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
