"""Types of fields that several parts of the cohort file use."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

__all__ = ["IdRule", "Pattern", "Words"]

IdRule = Literal["blanks", "case", "separators", "zeros"]


def _pattern(text: Any) -> Any:
    try:
        re.compile(str(text))
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}.") from None
    return text


def _words(value: Any) -> Any:
    """A single scalar stands for a list of one; an empty YAML value inside a list is the empty cell."""
    if isinstance(value, str | int | float | bool):
        value = [value]
    if isinstance(value, list | tuple):
        return ["" if item is None else str(item) for item in value]
    return value


Pattern = Annotated[str, BeforeValidator(_pattern)]
Words = Annotated[list[str], BeforeValidator(_words)]
