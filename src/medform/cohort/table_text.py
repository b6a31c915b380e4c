"""From the bytes of a text table to its fields: encoding and separator, declared or found, never half-guessed."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medform.errors import InputError, Problem

__all__ = ["TextRows", "decode", "looks_like_date", "read_columns", "read_rows"]

SEPARATORS = (",", ";", "\t", "|")
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
SNIFFED_LINES = 200
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@dataclass(frozen=True)
class TextRows:
    """Fields of a text table, each row with the line it starts on (from 1); blank lines are left out."""

    rows: list[list[str]]
    lines: list[int]
    encoding: str
    separator: str


def decode(content: bytes, where: str, declared: str | None = None) -> tuple[str, str]:
    """Text and name of its encoding.

    A byte-order mark decides; then UTF-8, strictly. Otherwise Korean (cp949) or Japanese (cp932) where the
    bytes read strictly as that script, else cp1252. Raises `InputError`, naming line and column, where lines
    mix encodings.
    """
    if declared is not None:
        try:
            return content.decode(declared), declared
        except LookupError:
            raise InputError(f"unknown encoding '{declared}'.", where=where, fix="use a name such as cp949.") from None
        except UnicodeDecodeError as error:
            raise _undecodable(content, error, where, declared) from None
    for mark, name in BOMS:
        if content.startswith(mark):
            return content.decode(name), name
    if b"\0" in content[:4096]:
        return _decode_wide(content, where)
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        if _mixed(content):
            raise _undecodable(content, error, where, "utf-8") from None
    name = _script(content)
    try:
        return content.decode(name), name
    except UnicodeDecodeError as error:
        raise _undecodable(content, error, where, name) from None


def _decode_wide(content: bytes, where: str) -> tuple[str, str]:
    """Text of two bytes a letter without a mark."""
    name = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    try:
        return content.decode(name), name
    except UnicodeDecodeError:
        raise InputError("not a text table.", where=where, fix="give a CSV, TSV or Excel file.") from None


def _undecodable(content: bytes, error: UnicodeDecodeError, where: str, name: str) -> InputError:
    before = content[: error.start]
    line = before.count(b"\n") + 1
    column = error.start - (before.rfind(b"\n") + 1) + 1
    return InputError(
        f"line {line}, byte {column}: not {name} text, as other lines are.",
        where=where,
        consequence="The table was not read.",
        fix="save the file in one encoding (UTF-8), or declare it: tables.clinical.encoding.",
        problems=[Problem(f"byte {content[error.start]:#04x} is not {name}.", file=where, row=line)],
    )


def _mixed(content: bytes) -> bool:
    """Whether some lines hold UTF-8 beyond ASCII although the file as a whole is not UTF-8."""
    for line in content.split(b"\n"):
        try:
            if not line.isascii() and line.decode("utf-8"):
                return True
        except UnicodeDecodeError:
            continue
    return False


def _script(content: bytes) -> str:
    """cp949, cp932 or cp1252, by which two-byte characters the bytes make.

    Common Hangul has both bytes from 0xA1 up; kana of cp932 begin with 0x82 or 0x83; Western text has single
    high bytes.
    """
    for name, first, last in (("cp949", "\uac00", "\ud7a3"), ("cp932", "\u3041", "\u30ff")):
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        beyond = [sign for sign in text if ord(sign) > 127]
        script = [sign for sign in beyond if first <= sign <= last]
        common = [sign for sign in script if min(sign.encode(name)) >= 0xA1] if name == "cp949" else script
        if common and 2 * len(common) >= len(beyond):
            return name
    return "cp1252"


def _rows(text: str, separator: str, where: str | None = None) -> tuple[list[list[str]], list[int]]:
    """Rows and the lines they start on; `InputError` for quotes at fault where ``where`` names the table.

    Without it, as for a head that may end inside a quoted field, faulty quotes are read as they can be.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=where is not None)
    rows, lines, before = [], [], 0
    try:
        for row in reader:
            if any(field.strip() for field in row):
                rows.append(row)
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        if where is None:
            return rows, lines
        raise _unreadable(before + 1, str(error), where) from None
    return rows, lines


def _unreadable(line: int, reason: str, where: str) -> InputError:
    """Why the row that starts on ``line`` cannot be told from those that follow it."""
    if "unexpected end" in reason:
        fault = "a quote is opened in this row and never closed"
    elif "expected after" in reason:
        fault = "text stands behind a closing quote, or a quote is never closed"
    else:
        fault = f"this row cannot be read ({reason})"
    return InputError(
        f"line {line}: {fault}.",
        where=where,
        consequence="The table was not read.",
        fix="close or remove the lone quote; inside a quoted field a quote is written twice.",
        problems=[Problem(f"{fault}.", file=where, row=line)],
    )


def _separator(text: str) -> str:
    """The separator under which most of the first lines have one and the same number (> 1) of fields."""
    head = "\n".join(text.splitlines()[:SNIFFED_LINES])
    best, score = ",", (0.0, 0)
    for separator in SEPARATORS:
        rows, _ = _rows(head, separator)
        counts = Counter(len(row) for row in rows if len(row) > 1)
        if counts:
            width, times = max(counts.items(), key=lambda item: (item[1], item[0]))
            if (found := (times / len(rows), width)) > score:
                best, score = separator, found
    return best


def read_rows(content: bytes, where: str, encoding: str | None = None, separator: str | None = None) -> TextRows:
    """All fields of a text table as text.

    Raises `InputError` where it cannot be decoded, and, naming the line on which the row starts, where a quote is
    never closed or something stands behind a closing one: the rows that follow would be swallowed.
    """
    csv.field_size_limit(1 << 24)
    text, name = decode(content, where, encoding)
    named = {"\\t": "\t", "tab": "\t", "comma": ",", "semicolon": ";"}
    sign = named.get(separator, separator) if separator else _separator(text)
    if len(sign) != 1:
        raise InputError(f"a separator is one sign, not '{sign}'.", where=where, fix="set tables.clinical.separator.")
    rows, lines = _rows(text, sign, where)
    return TextRows(rows, lines, name, sign)


def read_columns(path: Path, names: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Named columns of a small text table (an id map, a split): (line, fields in the order of ``names``), as written.

    A field that a line lacks is empty. Raises `InputError` where the file cannot be read as text or a column is
    missing.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot be read: {(error.strerror or 'no reason given').lower()}.", where=str(path), fix="give a CSV file."
        ) from None
    text = read_rows(content, str(path))
    header = [name.strip() for name in text.rows[0]] if text.rows else []
    if missing := [name for name in names if name not in header]:
        found = f" (found: {', '.join(header[:12])}; separator: {NAMES[text.separator]})" if header else ""
        raise InputError(
            f"no column {', '.join(map(repr, missing))}{found}.",
            where=str(path),
            consequence="Nothing was written.",
            fix=f"name the columns {', '.join(names)} in the first line.",
        )
    places = [header.index(name) for name in names]
    return [
        (line, [row[place] if place < len(row) else "" for place in places])
        for line, row in zip(text.lines[1:], text.rows[1:], strict=True)
    ]


def looks_like_date(text: str) -> bool:
    """Whether a spreadsheet may have turned a gene name into this (``1-Mar``, ``Sep-02``)."""
    return bool(
        re.fullmatch(r"(?i)\d{1,2}-(mar|sep|dec|apr|oct|nov)[a-z]*|(mar|sep|dec|apr|oct|nov)[a-z]*-\d{1,2}", text)
    )
