"""Typing one cell: a value, or what is wrong with it and what to do. Pure functions; nothing is guessed in silence."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medform.cohort.cohort_file import ColumnSpec
from medform.errors import nearest

__all__ = [
    "Fault",
    "Number",
    "decimal_of",
    "proves_point",
    "read_boolean",
    "read_date",
    "read_level",
    "read_number",
    "read_set",
    "trimmed",
]

PLAIN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
COMMA = re.compile(r"[+-]?\d+,\d+")
GROUPED = re.compile(r"[+-]?\d{1,3}([,. '])\d{3}(\1\d{3})*")
CENSORED = re.compile(r"(?P<sign><=|>=|<|>|≤|≥)\s*(?P<limit>.+)|(?P<floor>.+)\+")
SIGNS = {"≤": "<=", "≥": ">=", None: ">="}
"""How a sign is kept; None is that of '5+', five or more."""
SUFFIXED = re.compile(r"([+-]?[\d.,]*\d)\s*(/?[^\W\d_][^<>]*|[%‰°][^<>]*)")
"""A number and its unit: a word, a word after a slash, or a sign. So no '2024-02-01', '10-15' or '3/4'."""
POINTED = re.compile(r"\d[\d.]*\.[\d.]*|\.\d+")
THOUSANDS = re.compile(r"[1-9]\d{0,2}(\.\d{3})+")
LOOKALIKE = str.maketrans("oOlIS", "00115")
BLANKS = " \t\r\n\u00a0\u2007\u202f\u200b\ufeff"
TRUE_WORDS = ("1", "true", "yes", "y", "t")
FALSE_WORDS = ("0", "false", "no", "n", "f")
DAY_TOKENS = (
    ("YYYY", "%Y"),
    ("MM", "%m"),
    ("DD", "%d"),
    ("YY", "%y"),
    ("hh", "%H"),
    ("mm", "%M"),
    ("ss", "%S"),
)
EXCEL_EPOCH = datetime.date(1899, 12, 30)
SERIALS = range(10_000, 80_000)
"""Excel day numbers of the years 1927 to 2119."""


@dataclass(frozen=True)
class Fault:
    """Why a cell has no value of its column's type."""

    problem: str
    suggestion: str


@dataclass(frozen=True)
class Number:
    """A number, and the sign ('<', '<=', '>' or '>=') where the cell only gave a limit."""

    value: float
    sign: str | None = None


def trimmed(text: str) -> str:
    """Without blanks around it, no-break and zero-width ones included."""
    return text.strip(BLANKS)


def decimal_of(cells: Sequence[str]) -> str | None:
    """',' where a column can only be read with a decimal comma, else None.

    Every cell with a comma must be digits, comma, digits; no cell may hold a point; and at least one must not
    look like thousands (three digits after the comma and no leading zero).
    """
    commas = [cell for cell in cells if "," in cell]
    if not commas or any("." in cell for cell in cells) or not all(COMMA.fullmatch(cell) for cell in commas):
        return None
    telling = any(len(cell.split(",")[1]) != 3 or cell.lstrip("+-").startswith("0") for cell in commas)
    return "," if telling else None


def proves_point(cells: Sequence[str]) -> bool:
    """Whether a column has a point that can only be a decimal one: not 1.200, but 1.25 or 0.125."""
    return any(not THOUSANDS.fullmatch(number) for cell in cells for number in POINTED.findall(cell))


def read_number(text: str, spec: ColumnSpec, name: str, decimal: str | None = None) -> Number | Fault:
    """Read a trimmed, non-empty cell of a number column; ``decimal``: the sign declared or found for it."""
    sign = spec.decimal or decimal or "."
    value = _plain(text, sign, spec.thousands)
    if value is not None:
        return Number(value) if math.isfinite(value) else Fault("not a finite number.", "Correct the cell.")
    if match := CENSORED.fullmatch(text):
        limit = read_number(trimmed(match["limit"] or match["floor"]), spec, name, decimal)
        if isinstance(limit, Number) and limit.sign is None:
            if spec.censored == "limit":
                return Number(limit.value, SIGNS.get(match["sign"], match["sign"]))
            hint = f"Set columns.{name}.censored: limit to read the limit and keep the sign beside it."
            return Fault("a limit, not a value.", hint)
    if suffix := SUFFIXED.fullmatch(text):
        number, unit = suffix[1], trimmed(suffix[2])
        value = _plain(number, sign, spec.thousands)
        if value is not None and not unit.translate(LOOKALIKE).isdigit():
            return _with_unit(value, unit, spec, name)
    return _no_number(text, name)


def _plain(text: str, decimal: str, thousands: str | None) -> float | None:
    text = text.replace("\u2212", "-")
    if thousands and (match := re.fullmatch(rf"([+-]?\d{{1,3}}(?:{re.escape(thousands)}\d{{3}})+)(\D\d+)?", text)):
        text = match[1].replace(thousands, "") + (match[2] or "")
    if decimal == ",":
        if "." in text and re.fullmatch(r"[+-]?\d{1,3}\.\d{3}", text):
            return None  # 1.234 beside decimal commas may be one thousand or one and a bit
        text = text.replace(",", ".") if text.count(",") == 1 and "." not in text else text
    return float(text) if PLAIN.fullmatch(text) else None


def _with_unit(value: float, unit: str, spec: ColumnSpec, name: str) -> Number | Fault:
    if spec.cell_unit is None:
        hint = f"If all cells have it, set columns.{name}.cell_unit: '{unit}'; otherwise convert the cells."
        return Fault(f"a number with the unit '{unit}'.", hint)
    if "".join(unit.split()) != "".join(spec.cell_unit.split()):
        hint = f"Convert the cell to {spec.cell_unit}."
        return Fault(f"the unit is '{unit}', but columns.{name}.cell_unit is '{spec.cell_unit}'.", hint)
    return Number(value)


def _no_number(text: str, name: str) -> Fault:
    if COMMA.fullmatch(text) or GROUPED.fullmatch(text):
        hint = f"Set columns.{name}.decimal or columns.{name}.thousands to ',' or '.', whichever is meant."
        return Fault("a comma or point that may be decimal or thousands.", hint)
    lookalike = text.translate(LOOKALIKE)
    if lookalike != text and PLAIN.fullmatch(lookalike):
        return Fault("not a number.", f"Did you mean {lookalike}? Correct the cell.")
    hint = f"Correct the cell, or add it to columns.{name}.missing to read it as missing."
    return Fault("not a number.", hint)


def read_boolean(text: str, spec: ColumnSpec, name: str) -> bool | Fault:
    """Read 1/true/yes/y/t and 0/false/no/n/f (any case), and the column's own ``true_words`` and ``false_words``."""
    word = text.casefold()
    if word in {one.casefold() for one in spec.true_words}:
        return True
    if word in {one.casefold() for one in spec.false_words}:
        return False
    if word in TRUE_WORDS or word in FALSE_WORDS:
        return word in TRUE_WORDS
    hint = f"Add it to columns.{name}.true_words, false_words or missing, or make the column a category."
    return Fault("neither true nor false.", hint)


def date_format(declared: str | None) -> str:
    """A ``strptime`` format from 'DD.MM.YYYY', '%d.%m.%Y' or None (ISO, YYYY-MM-DD)."""
    if declared is None:
        return "%Y-%m-%d"
    if "%" in declared:
        return declared
    for token, directive in DAY_TOKENS:
        declared = declared.replace(token, directive)
    return declared


def read_date(text: str, spec: ColumnSpec, name: str) -> str | Fault:
    """Read a date as YYYY-MM-DD: by the column's ``format``; ISO dates always; 'excel' stands for day numbers."""
    serial = int(text) if text.isdecimal() and int(text) in SERIALS else None
    if spec.format == "excel" and serial is not None:
        return (EXCEL_EPOCH + datetime.timedelta(days=serial)).isoformat()
    for pattern in ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S", date_format(spec.format)):
        try:
            return datetime.datetime.strptime(text, pattern).date().isoformat()
        except ValueError:
            continue
    if serial is not None:
        day = (EXCEL_EPOCH + datetime.timedelta(days=serial)).isoformat()
        return Fault("looks like a day number of Excel.", f"If {day} is meant, set columns.{name}.format: excel.")
    if spec.format is None:
        hint = f"Say how dates are written, for example columns.{name}.format: DD.MM.YYYY."
        return Fault("not YYYY-MM-DD; day and month may be either way round.", hint)
    return Fault(f"not a date of the form {spec.format}.", "Correct the cell.")


def read_level(text: str, spec: ColumnSpec, name: str) -> str | Fault:
    """Read one level of an ordinal."""
    levels = spec.levels or []
    if text in levels:
        return text
    close = nearest(text, levels)
    meant = f"Did you mean '{close[0]}'? " if close else ""
    return Fault(
        f"not among the levels {', '.join(levels)}.",
        f"{meant}Correct it, or add it to columns.{name}.levels (lowest first) or columns.{name}.missing.",
    )


def read_set(text: str, spec: ColumnSpec) -> str:
    """The members of a set, each once, sorted, joined by the column's separator."""
    members = {trimmed(member) for member in text.split(spec.separator)}
    return spec.separator.join(sorted(members - {""}))
