"""An expression matrix as text, plain or gz, read in blocks of bytes: ids as text, values as float32, no text frame."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medform.errors import InputError, Problem
from medform.ingestion.cells import BLANKS, PLAIN

__all__ = [
    "Block",
    "Faults",
    "Head",
    "TextMatrix",
    "cell_value",
    "first_lines",
    "open_bytes",
    "read_head",
    "split_line",
]

BYTES, PEEKED = 1 << 18, 1 << 16
"""Bytes that are parsed at once, more where a single line is longer; and that are read at once to see a header."""
LONGEST_ID = 4096
CELLS = 1 << 16
"""Values of a block, at most."""
ODD = 1 << 12
SHOWN = 40
NEWLINE = 10
IGNORED, TEXT = -1, -2
LARGEST = float(np.finfo(np.float32).max)
SEPARATORS = "\t,;|"
GZIP, BOM, UTF16 = b"\x1f\x8b", b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
BINARY = {b"PK\x03\x04": "a workbook or zip archive", b"\x89HDF": "an HDF5 file", b"BZh": "a bz2 archive"}


def open_bytes(path: Path) -> Any:
    """A stream of a file's bytes, unpacked where it is gz (by its first bytes, not its name).

    Raises `InputError` where it is missing, empty, or of another kind.
    """
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}.", where=str(path), fix="check the path.") from None
    if not start:
        raise InputError("the file is empty.", where=str(path), fix="give a table with a header and rows.")
    for magic, what in BINARY.items():
        if start.startswith(magic):
            raise InputError(f"this is {what}, not text.", where=str(path), fix="save it as CSV or TSV, plain or gz.")
    if start.startswith(UTF16):
        raise InputError("this is UTF-16 text.", where=str(path), fix="save the file as UTF-8.")
    stream = pa.OSFile(str(path), "rb")
    return pa.CompressedInputStream(stream, "gzip") if start.startswith(GZIP) else stream


def first_lines(path: Path, count: int) -> list[str]:
    """The first lines of a text file without their ends; fewer where it is shorter.

    Raises `InputError` where the bytes are not UTF-8 or the gz stream is damaged.
    """
    return list(itertools.islice(_text_lines(path), count))


@dataclass(frozen=True)
class Head:
    """The header line and what follows it.

    ``names`` are those of the header, with an empty one in front where rows have a field more, as R writes row names.
    ``skip`` lines come before the first row; ``ids`` are the first fields of the first rows.
    """

    names: tuple[str, ...]
    separator: str
    skip: int
    ids: tuple[str, ...]


def read_head(path: Path, rows: int) -> Head:
    """The header, after lines that are empty or begin with ``#``, and the ids of the first ``rows`` rows.

    Raises `InputError` as `first_lines`, where there is no header, and where rows end in a separator that it lacks: the
    field that they have more is none of row names, and every value would be taken for its neighbour's.
    """
    names: list[str] = []
    separator, skip, width, ended, ids = "", 0, 0, 0, []
    for number, line in enumerate(_text_lines(path), start=1):
        if not line.strip() or (not names and line.startswith("#")):
            continue
        if not names:
            names, separator = split_line(line)
            skip = number
            continue
        if not ids:
            width = len(split_line(line, separator)[0])
        ids.append(split_line(line[:LONGEST_ID], separator)[0][0])
        ended += line.endswith(separator)
        if len(ids) == rows:
            break
    if not names:
        raise InputError("the file is empty.", where=str(path), fix="give a table with a header and rows.")
    if width == len(names) + 1:
        if ended == len(ids):
            raise InputError(
                "every row ends in a separator that the header does not end in.",
                where=f"{path}:{skip + 1}",
                consequence="Nothing was read: values could be taken for those of the next column.",
                fix="remove the separator at the end of the rows; write a value that is missing as NA.",
            )
        names = ["", *names]
    return Head(tuple(names), separator, skip, tuple(ids))


def _text_lines(path: Path) -> Iterator[str]:
    rest, number = b"", 0
    with open_bytes(path) as stream:
        while more := _read(stream, path, PEEKED):
            *lines, rest = (rest + more).split(b"\n")
            for line in lines:
                number += 1
                yield _decoded(line, path, number)
    if rest:
        yield _decoded(rest, path, number + 1)


def _read(stream: Any, path: Path, size: int) -> bytes:
    try:
        return stream.read(size)
    except OSError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: OSError) -> InputError:
    return InputError(
        f"the file is damaged or cut short ({error}).",
        where=str(path),
        consequence="Nothing was written.",
        fix="copy or download it again.",
    )


def _decoded(line: bytes, path: Path, number: int) -> str:
    if number == 1:
        line = line.removeprefix(BOM)
    try:
        return line.rstrip(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text.", where=f"{path}:{number}", fix="save the file as UTF-8.") from None


def split_line(line: str, separator: str | None = None) -> tuple[list[str], str]:
    """Fields of one line, without quotes and blanks around them, and the separator.

    The separator is the given one, else the sign that stands there most often.
    """
    sign = separator or max(SEPARATORS, key=line.count)
    csv.field_size_limit(1 << 24)
    fields = next(csv.reader(io.StringIO(line), delimiter=sign), [])
    return [one.strip(BLANKS) for one in fields], sign


def cell_value(text: str, missing: Sequence[str], point: str = ".") -> float | None:
    """The float32 value of a cell, NaN for a word of ``missing``, None where it is no finite number.

    The plain twin of the compiled pass, which leaves to it what it does not read itself: many digits, large
    exponents.
    """
    bare = text.strip(BLANKS)
    if len(bare) > 1 and bare[0] == bare[-1] == '"':
        bare = bare[1:-1].strip(BLANKS)
    if bare in missing:
        return float("nan")
    if point != ".":
        bare = bare.replace(".", "x").replace(point, ".")
    if not PLAIN.fullmatch(bare):
        return None
    value = float(bare)
    return float(np.float32(value)) if abs(value) <= LARGEST else None


@dataclass
class Faults:
    """What is wrong with cells and rows of one file, gathered while it is read."""

    file: str
    names: Sequence[str]
    ragged: list[tuple[int, int]] = field(default_factory=list)
    cells: list[tuple[int, int, str]] = field(default_factory=list)
    by_field: dict[int, int] = field(default_factory=dict)
    rows: int = 0

    def add_cell(self, line: int, place: int, text: str) -> None:
        """A cell (line of the file, number of its field) that holds no number."""
        count = self.by_field.get(place, 0)
        self.by_field[place] = count + 1
        if count < SHOWN:
            self.cells.append((line, place, text))

    def problems(self) -> list[Problem]:
        """Every fault; a column that holds text throughout is one."""
        width = len(self.names)
        hint = "Add the missing separators, so that no value slips into another column."
        found = [
            Problem(f"{got} fields for {width} columns.", file=self.file, row=line, suggestion=hint)
            for line, got in self.ragged[:SHOWN]
        ]
        whole = {place for place, count in self.by_field.items() if count == self.rows and self.rows > 1}
        for place in sorted(whole):
            text = next(text for _, where, text in self.cells if where == place)
            hint = "If it is no gene, list it under genes.ignore."
            found.append(
                Problem("no cell of this column is a number.", self.file, None, None, self.names[place], text, hint)
            )
        single = [cell for cell in self.cells if cell[1] not in whole]
        hint = "Mend the cell; if the word means 'no value', add it to genes.missing."
        for line, place, text in single[:SHOWN]:
            found.append(Problem("not a number.", self.file, None, line, self.names[place], text, hint))
        for total, shown, what in (
            (sum(count for place, count in self.by_field.items() if place not in whole), len(single[:SHOWN]), "cells"),
            (len(self.ragged), len(self.ragged[:SHOWN]), "rows"),
        ):
            if total > shown:
                found.append(Problem(f"{total - shown} more {what} like these.", file=self.file))
        return found


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive rows: ``lines`` of the file (from 1), ``texts`` per text field, ``values`` (R, C) float32."""

    lines: NDArray[np.int64]
    texts: list[list[str]]
    values: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TextMatrix:
    """Where a matrix lies in its file: ``skip`` lines, then rows of ``len(names)`` fields.

    ``roles`` (F,) says what each field is: c >= 0 column c of the values, -1 nothing, -2 - t text t.
    """

    path: Path
    separator: str
    names: tuple[str, ...]
    roles: NDArray[np.int64]
    skip: int
    missing: tuple[str, ...]
    point: str = "."

    def blocks(self, faults: Faults) -> Iterator[Block]:
        """Read the rows once, a block of about a megabyte at a time; faults are noted, and their cells are NaN.

        Raises `InputError` where the gz stream is cut short.
        """
        line = self.skip + 1
        for data in self._pieces():
            place = 0
            while place < len(data):
                block, used, lines = self._parse(data[place:], line, faults)
                place, line = place + used, line + lines
                yield block

    def _pieces(self) -> Iterator[NDArray[np.uint8]]:
        """Whole lines after the skipped ones, in pieces that are valid until the next one is asked for."""
        room, held, skipping = bytearray(BYTES), 0, self.skip
        with open_bytes(self.path) as stream:
            while True:
                try:
                    got = stream.readinto(memoryview(room)[held : len(room) - 1])
                except OSError as error:
                    raise _damaged(self.path, error) from None
                held += got
                if not got and held and room[held - 1] != NEWLINE:
                    room[held] = NEWLINE
                    held += 1
                end = room.rfind(b"\n", 0, held) + 1
                if not end and got:
                    room = room + bytearray(len(room))
                    continue
                start = 0
                while skipping and start < end:
                    start, skipping = room.index(b"\n", start) + 1, skipping - 1
                if end > start:
                    yield np.frombuffer(room, np.uint8)[start:end]
                if not got:
                    return
                room[: held - end] = room[end:held]
                held -= end

    def _parse(self, data: NDArray[np.uint8], line: int, faults: Faults) -> tuple[Block, int, int]:
        """One call of the compiled pass over whole lines, the first of them number ``line`` of the file.

        Returns the block, and how many bytes and lines it takes.
        """
        from medform.ingestion.expression_kernel import parse_rows

        columns, texts = int(self.roles.max(initial=-1)) + 1, int((-1 - self.roles).max(initial=0))
        rows = max(1, min(CELLS // max(columns, 1), len(data) // len(self.roles) + 1))
        values = np.empty((rows, columns), np.float32)
        spans, shape = np.zeros((rows, texts, 2), np.int64), np.empty((rows, 2), np.int64)
        odd = np.empty((max(ODD, len(self.roles)), 4), np.int64)
        words = [word.encode() for word in self.missing]
        done, used, lines, odds = parse_rows(
            data,
            len(data),
            ord(self.separator),
            ord(self.point),
            self.roles,
            np.frombuffer(b"".join(words), np.uint8),
            np.cumsum([len(word) for word in words], dtype=np.int64),
            values,
            spans,
            shape,
            odd,
        )
        raw = data.data
        at = line + shape[:done, 0]
        values = values[:done]
        faults.rows += done
        for row, field_, start, end in odd[:odds].tolist():
            text = str(raw[start:end], "utf-8", "replace")
            value = cell_value(text, self.missing, self.point)
            if value is None:
                faults.add_cell(int(at[row]), field_, text.strip(BLANKS))
            else:
                values[row, self.roles[field_]] = value
        for row in np.flatnonzero(shape[:done, 1] != len(self.names)).tolist():
            faults.ragged.append((int(at[row]), int(shape[row, 1])))
            values[row] = np.nan
        found = [
            [_text(str(raw[start:end], "utf-8", "replace")) for start, end in spans[:done, number].tolist()]
            for number in range(texts)
        ]
        return Block(at, found, values), used, lines


def _text(raw: str) -> str:
    """A field of ids as text: no quotes, no blanks around it."""
    text = raw.strip(BLANKS)
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = re.sub('""', '"', text[1:-1]).strip(BLANKS)
    return text
