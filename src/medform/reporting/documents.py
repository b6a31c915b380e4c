"""The small JSON files that a report is made from, each with its `schema_version` (see flow, table_one, montage)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from medform.errors import InputError
from medform.runs.folder import read_json, write_json

__all__ = ["SCHEMA_VERSION", "read_document", "write_document"]

T = TypeVar("T")

SCHEMA_VERSION = 1


def write_document(path: Path, document: Any) -> None:
    """Write a dataclass as JSON with its ``schema_version`` first."""
    write_json(path, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(document)})


def read_document(path: Path, kind: type[T]) -> T | None:
    """Read a dataclass back; None where the file is not there.

    Raises `InputError` that names the file where it is of a newer version or is not what ``kind`` describes.
    """
    if not path.is_file():
        return None
    tree = read_json(path)
    version = tree.pop("schema_version", None) if isinstance(tree, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"schema_version is {version!r}; this medform reads {SCHEMA_VERSION}.",
            where=str(path),
            fix="use the medform version that wrote it (run.json names it).",
        )
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()[:5]
        )
        raise InputError(f"not a valid {kind.__name__}: {faults}.", where=str(path)) from None
