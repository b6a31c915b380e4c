"""A table as it was handed over: every cell as text, with the row it stands in. Nothing is converted here."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medform.cohort.table_text import read_rows
from medform.errors import InputError, Problem

__all__ = ["EXCEL", "RawTable", "filled_sheets", "layout_rows", "read_table"]

EXCEL = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods")
MAGIC = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
EXACT_DIGITS = 15
"""Excel keeps this many digits of a number; a longer id stored as a number has lost its tail."""


@dataclass(frozen=True, eq=False)
class RawTable:
    """Cells as text (an empty cell is ``""``; blanks are kept), one frame column a table column.

    ``rows`` gives the row of the file or sheet for each line of ``frame`` (the header's is ``header_row``);
    ``numbers`` are the (row, column) of cells that a spreadsheet holds as numbers. ``problems`` are faults of
    the shape.
    """

    file: str
    sheet: str | None
    frame: pd.DataFrame
    rows: tuple[int, ...]
    header_row: int = 1
    encoding: str | None = None
    separator: str | None = None
    numbers: frozenset[tuple[int, str]] = frozenset()
    problems: tuple[Problem, ...] = field(default=())

    def problem(self, text: str, row: int | None = None, column: str | None = None, **more: str | None) -> Problem:
        """A `Problem` addressed to this table."""
        return Problem(text, file=self.file, sheet=self.sheet, row=row, column=column, **more)

    def cells(self, column: str) -> list[tuple[int, str]]:
        """(row, text) of every cell of a column."""
        return list(zip(self.rows, self.frame[column].tolist(), strict=True))


@dataclass(frozen=True)
class _Grid:
    rows: list[list[str]]
    lines: list[int]
    sheet: str | None = None
    encoding: str | None = None
    separator: str | None = None
    numbers: frozenset[tuple[int, int]] = frozenset()


def read_table(
    path: Path,
    sheet: str | None = None,
    *,
    encoding: str | None = None,
    separator: str | None = None,
    header_row: int = 1,
    skip_rows: Sequence[int] = (),
) -> RawTable:
    """Read CSV, TSV or Excel as text; no word means "missing" here and no id loses a zero.

    ``header_row`` and ``skip_rows`` count rows of the file or sheet from 1. Faults of the shape (ragged rows,
    doubled or nameless columns) are collected in ``problems``; raises `InputError` where there is no table to
    read.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such file.", where=str(path), fix="check the path of the table.") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}.", where=str(path), fix="close it elsewhere.") from None
    if content.startswith(MAGIC) or path.suffix.lower() in EXCEL:
        grid = _excel(path, sheet)
    else:
        if sheet is not None:
            raise InputError("a text table has no sheets.", where=str(path), fix="leave tables.clinical.sheet out.")
        text = read_rows(content, str(path), encoding, separator)
        grid = _Grid(text.rows, text.lines, None, text.encoding, text.separator)
    return _table(path.name, grid, header_row, set(skip_rows))


def layout_rows(header_row: int, skip_rows: Sequence[int]) -> list[int]:
    """Those of ``skip_rows`` that belong to the layout of a table, so that other tables of its kind have them too.

    They stand before the header, or between it and the first row that is kept (a row of units). A row further down is
    one of that table's own: a footnote there is a patient elsewhere.
    """
    skip = set(skip_rows)
    line = header_row
    for _ in ("header", "first row"):
        while line in skip:
            line += 1
        line += 1
    return [row for row in skip_rows if row < line]


def filled_sheets(path: Path) -> list[str]:
    """Names of the sheets of a workbook that hold data; none for a text table. `InputError` where it is unreadable."""
    try:
        with path.open("rb") as file:
            start = file.read(max(map(len, MAGIC)))
    except OSError:
        return []  # `read_table` says why
    return list(_sheets(path, None)) if start.startswith(MAGIC) or path.suffix.lower() in EXCEL else []


def _sheets(path: Path, sheet: str | None) -> dict[str, list[list[Any]]]:
    """Cells of the sheet called ``sheet``, or of all, by name; those without data are left out."""
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        book = CalamineWorkbook.from_path(path)
        names = list(book.sheet_names)
        if sheet is not None and sheet not in names:
            raise InputError(f"no sheet '{sheet}'.", where=str(path), fix=f"use one of: {', '.join(names)}.")
        wanted = [sheet] if sheet is not None else names
        filled = {name: book.get_sheet_by_name(name).to_python(skip_empty_area=False) for name in wanted}
    except CalamineError as error:
        raise InputError(
            f"not a readable workbook: {error}.", where=str(path), fix="save it as .xlsx or .csv."
        ) from None
    return {name: rows for name, rows in filled.items() if any(cell != "" for row in rows for cell in row)}


def _excel(path: Path, sheet: str | None) -> _Grid:
    filled = _sheets(path, sheet)
    if len(filled) > 1:
        raise InputError(
            f"{len(filled)} sheets hold data: {', '.join(filled)}.",
            where=str(path),
            fix="say which one with --sheet, or with tables.clinical.sheet in the cohort file.",
        )
    if not filled:
        raise InputError("the workbook is empty.", where=str(path), fix="give a table with a header and rows.")
    name, values = next(iter(filled.items()))
    rows, lines, numbers = [], [], set()
    for line, cells in enumerate(values, start=1):
        if any(cell != "" for cell in cells):
            rows.append([_text(cell) for cell in cells])
            lines.append(line)
            numbers |= {(line, place) for place, cell in enumerate(cells) if isinstance(cell, float)}
    return _Grid(rows, lines, name, numbers=frozenset(numbers))


def _text(cell: Any) -> str:
    """A spreadsheet cell as text: whole numbers without a point, dates as YYYY-MM-DD, truth values as TRUE or FALSE."""
    if isinstance(cell, bool):
        return "TRUE" if cell else "FALSE"
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 10**EXACT_DIGITS else repr(cell)
    if isinstance(cell, datetime.datetime):
        midnight = cell.time() == datetime.time(0)
        return cell.date().isoformat() if midnight else cell.isoformat(sep=" ")
    return str(cell)


def _table(file: str, grid: _Grid, header_row: int, skip: set[int]) -> RawTable:
    kept = [(line, row) for line, row in zip(grid.lines, grid.rows, strict=True) if line not in skip]
    header_line, header = next(((line, row) for line, row in kept if line >= header_row), (0, []))
    body = [(line, row) for line, row in kept if line > header_line]
    if not header:
        raise InputError("the table is empty.", where=file, fix="give a table with a header and rows.")
    if not body:
        raise InputError("the table has a header but no row.", where=file, fix="give a table with patients in rows.")

    def problem(text: str, row: int, suggestion: str, column: str | None = None, value: str | None = None) -> Problem:
        return Problem(text, file, grid.sheet, row, column, value, suggestion)

    names = [name.strip() for name in header]
    while names and not names[-1] and all(len(row) < len(names) or not row[len(names) - 1].strip() for _, row in body):
        names.pop()
    problems = []
    if sum(map(bool, names)) <= 1 < max(len([f for f in row if f.strip()]) for _, row in body):
        hint = "If the names stand further down, say so with --header-row, or tables.clinical.header_row."
        problems.append(problem("this row does not look like the header.", header_line, hint))
    for place, name in enumerate(names, start=1):
        if not name and not problems:
            hint = "Name it; in a sheet with merged header cells, unmerge them."
            problems.append(problem(f"column {place} has no name.", header_line, hint))
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            hint = "Rename or remove all but one."
            problems.append(problem(f"{count} columns have this name.", header_line, hint, column=name))
    body, ragged = _square(body, len(names), problem, header_line)
    frame = pd.DataFrame([row for _, row in body], columns=_distinct(names), dtype=object)
    numbers = {
        (line, frame.columns[place]) for line, place in grid.numbers if place < len(names) and line > header_line
    }
    return RawTable(
        file=file,
        sheet=grid.sheet,
        frame=frame,
        rows=tuple(line for line, _ in body),
        header_row=header_line,
        encoding=grid.encoding,
        separator=grid.separator,
        numbers=frozenset(numbers),
        problems=tuple(problems + ragged),
    )


def _square(body: list[tuple[int, list[str]]], width: int, problem: Any, header_line: int) -> tuple[Any, list[Problem]]:
    """Rows of exactly ``width`` fields, and what is wrong with those that had more or fewer."""
    extra = [line for line, row in body if any(field.strip() for field in row[width:])]
    short = [(line, len(row)) for line, row in body if len(row) < width]
    problems = []
    if len(extra) == len(body) > 1:
        hint = "Give every column a name: the values would stand under the wrong ones."
        problems.append(problem(f"every row has more fields than the header's {width}.", header_line, hint))
    else:
        rows = dict(body)
        for line in extra:
            count = len(rows[line])
            value = rows[line][width]
            hint = "Put a field that holds the separator into quotes, or remove the extra one."
            problems.append(problem(f"{count} fields for {width} columns.", line, hint, value=value))
    for line, count in short:
        hint = "Add the missing separators, so that no value slips into another column."
        problems.append(problem(f"{count} fields for {width} columns.", line, hint))
    return [(line, (row + [""] * width)[:width]) for line, row in body], problems


def _distinct(names: list[str]) -> list[str]:
    """Names that can be looked up; a doubled or empty one is already a problem, and gets its place as a suffix."""
    seen: Counter[str] = Counter()
    result = []
    for place, name in enumerate(names, start=1):
        seen[name] += 1
        result.append(name if name and seen[name] == 1 else f"{name}#{place}")
    return result
