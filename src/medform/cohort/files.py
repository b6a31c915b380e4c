"""How a store's files are written and read: whole or not at all, with digests, the same bytes from the same content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medform.errors import InputError

__all__ = [
    "PARTIAL",
    "column",
    "file_sha256",
    "file_stem",
    "read_frame",
    "write_bytes",
    "write_frame",
    "write_json",
    "writing",
]

PARTIAL = ".partial"
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
DTYPES = {pa.string(): pd.StringDtype(), pa.bool_(): pd.BooleanDtype()}


def file_stem(identifier: str) -> str:
    """A file name for a series or patient id, distinct for distinct ids: the id itself where it is plain."""
    if PLAIN.fullmatch(identifier) and not identifier.endswith((".", PARTIAL)):
        return identifier
    short = hashlib.sha256(identifier.encode()).hexdigest()[:12]
    return f"{quote(identifier, safe='')[:80].replace('%', '_')}-{short}"


@contextmanager
def writing(path: Path) -> Generator[IO[bytes]]:
    """Write ``path`` through a temporary name beside it: flushed, fsynced and renamed at the end, removed on failure.

    A full disk or a forbidden folder becomes an `InputError` that says so; what stood under ``path`` before
    is untouched.
    """
    temporary = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        _discard(temporary)
        full = error.errno in NO_ROOM
        raise InputError(
            "the disk is full." if full else f"cannot be written: {error.strerror or error}.",
            where=str(path),
            consequence="What was finished before is kept.",
            fix=("free some space" if full else "choose a folder you may write to") + ", then run the command again.",
        ) from error
    except BaseException:
        _discard(temporary)
        raise


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the next start removes what is called *.partial


def write_bytes(path: Path, content: bytes) -> str:
    """Write ``content`` whole; returns its SHA-256."""
    with writing(path) as stream:
        stream.write(content)
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, tree: Any) -> str:
    """Write JSON (UTF-8, keys in the given order, no NaN); returns the SHA-256 of the file."""
    return write_bytes(path, (json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_frame(path: Path, frame: pd.DataFrame, schema: pa.Schema) -> str:
    """Write a frame as parquet with exactly ``schema`` (no index, no pandas metadata); returns the file's SHA-256."""
    arrays = [
        pa.array(frame[name], type=kind, from_pandas=True)
        for name, kind in zip(schema.names, schema.types, strict=True)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    return write_bytes(path, sink.getvalue().to_pybytes())


def read_frame(path: Path) -> pd.DataFrame:
    """Read a parquet file: text as ``string``, truth values as ``boolean`` (both with NA), numbers as float64/int64."""
    return pq.read_table(path).to_pandas(types_mapper=DTYPES.get)


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """One column of a frame whose names are distinct."""
    values = frame[name]
    if not isinstance(values, pd.Series):
        raise KeyError(f"column '{name}' stands twice")
    return values


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces of 1 MiB."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
