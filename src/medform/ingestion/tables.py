"""Clinical tables: text first, then typed by the cohort file, every problem of every cell in one go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from medform.cohort.cohort_file import CohortFile, ColumnSpec, TableSpec
from medform.cohort.labels import CENSORED
from medform.errors import InputError, Problem, nearest
from medform.ingestion.cells import (
    Fault,
    Number,
    decimal_of,
    proves_point,
    read_boolean,
    read_date,
    read_level,
    read_number,
    read_set,
    trimmed,
)
from medform.ingestion.raw_table import RawTable, read_table
from medform.ingestion.suspects import suspected_sentinels

__all__ = ["RawTable", "read_clinical", "read_table", "refuse_problems", "type_table", "undeclared_columns"]

Typed = tuple[list[Any], list[Problem]]


def read_clinical(file: CohortFile) -> RawTable:
    """Read the clinical table of a cohort file as text; `InputError` where the cohort has none."""
    table = file.clinical
    if table is None:
        raise InputError(
            "the cohort has no clinical table.",
            where=f"cohort '{file.name}'",
            fix="set tables.clinical.path.",
        )
    return read_table(
        file.path(table.path),
        table.sheet,
        encoding=table.encoding,
        separator=table.separator,
        header_row=table.header_row,
        skip_rows=table.skip_rows,
    )


def type_table(
    raw: RawTable, table: TableSpec, columns: Mapping[str, ColumnSpec]
) -> tuple[pd.DataFrame, list[Problem]]:
    """Type the declared columns; returns the frame and every problem (with any, the frame is not to be used).

    Frame: index ``patient_id`` (text, unchanged); numbers float64 with NaN, booleans ``boolean``, all else
    ``string`` with NA (dates YYYY-MM-DD, sets sorted and joined by their separator); ``<name>.censored``
    holds '<', '<=', '>' or '>=' where a column reads limits. One row a patient: rows that agree in all declared columns
    are one; others need ``visit``.
    """
    problems = list(raw.problems)
    present = [name for name in columns if name in raw.frame.columns]
    for name in [table.patient_id, *columns]:
        if name not in raw.frame.columns:
            problems.append(_no_column(raw, name))
    if table.patient_id not in raw.frame.columns:
        return pd.DataFrame(index=pd.Index([], name="patient_id", dtype=object)), problems
    ids, faults = _identifiers(raw, table)
    problems += faults
    frame = pd.DataFrame(index=pd.Index(ids, name="patient_id", dtype=object))
    decimals = _decimals(raw, table, {name: columns[name] for name in present})
    for name in present:
        if name != table.patient_id:
            typed, faults = _typed(raw, table, name, columns[name], decimals.get(name))
            problems += faults
            for column, values in typed.items():
                frame[column] = values.to_numpy() if values.dtype == np.float64 else values.array
    if problems:
        return frame, sorted(set(problems), key=_order)
    return _one_row_each(raw, table, frame)


def undeclared_columns(raw: RawTable, table: TableSpec, columns: Mapping[str, ColumnSpec]) -> list[str]:
    """Columns of the table without a role: they are ignored, and listed."""
    return [name for name in raw.frame.columns if name not in columns and name != table.patient_id]


def refuse_problems(problems: Sequence[Problem], where: str) -> None:
    """Raise one `InputError` with all problems, if there are any."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise InputError(
            f"{count} in the table.",
            where=where,
            consequence="Nothing was written.",
            problems=problems,
        )


def _order(problem: Problem) -> tuple[int, str, str]:
    return (problem.row or 0, problem.column or "", problem.problem)


def _no_column(raw: RawTable, name: str) -> Problem:
    close = nearest(name, list(raw.frame.columns))
    hint = f"Did you mean '{close[0]}'?" if close else f"Columns there: {', '.join(raw.frame.columns)}."
    return raw.problem("the table has no such column.", raw.header_row, name, suggestion=hint)


def _identifiers(raw: RawTable, table: TableSpec) -> tuple[list[str], list[Problem]]:
    problems = []
    ids = [text for _, text in raw.cells(table.patient_id)]
    for row, text in raw.cells(table.patient_id):
        if not trimmed(text):
            hint = "Give the row its patient id, or remove it."
            problems.append(raw.problem("this row has no patient id.", row, table.patient_id, suggestion=hint))
    return ids, problems


def _cells(raw: RawTable, table: TableSpec, name: str, spec: ColumnSpec) -> list[tuple[int, str]]:
    """Row and text of each cell of a column, '' where there is no value."""
    missing = {*table.missing, *spec.missing, ""}
    cells = [(row, trimmed(text)) for row, text in raw.cells(name)]
    return [(row, "" if text in missing else text) for row, text in cells]


def _decimals(raw: RawTable, table: TableSpec, columns: Mapping[str, ColumnSpec]) -> dict[str, str | None]:
    """Decimal sign of every number column, None where nothing tells it.

    Declared, or found in its cells. Where another column has decimal commas, one that shows no sign of its own has
    them too: 1.200 may be a thousand there, and is asked about instead of read as a fraction.
    """
    found: dict[str, str | None] = {}
    unsaid = []
    for name, spec in columns.items():
        if spec.type != "number":
            continue
        written = [text for row, text in _cells(raw, table, name, spec) if text and (row, name) not in raw.numbers]
        found[name] = spec.decimal or table.decimal or decimal_of(written)
        told = found[name] or spec.thousands or proves_point(written) or any("," in text for text in written)
        unsaid += [] if told else [name]
    return found | dict.fromkeys(unsaid, ",") if "," in found.values() else found


def _typed(
    raw: RawTable, table: TableSpec, name: str, spec: ColumnSpec, decimal: str | None
) -> tuple[dict[str, pd.Series], list[Problem]]:
    """A column's typed values (numbers: with its ``.censored`` companion) and the problems of its cells."""
    cells = _cells(raw, table, name, spec)
    if spec.type == "number":
        return _numbers(raw, name, spec, cells, decimal)
    if spec.type == "boolean":
        values, problems = _each(raw, name, cells, lambda text: read_boolean(text, spec, name))
        return {name: pd.Series(values, dtype="boolean")}, problems
    readers: dict[str, Callable[[str], str | Fault]] = {
        "date": lambda text: read_date(text, spec, name),
        "ordinal": lambda text: read_level(text, spec, name),
        "set": lambda text: read_set(text, spec),
    }
    values, problems = _each(raw, name, cells, readers.get(spec.type, lambda text: text))
    return {name: pd.Series(values, dtype="string")}, problems


def _each(raw: RawTable, name: str, cells: Sequence[tuple[int, str]], read: Callable[[str], Any]) -> Typed:
    values, problems = [], []
    for row, text in cells:
        value = read(text) if text else None
        if isinstance(value, Fault):
            problems.append(raw.problem(value.problem, row, name, value=text, suggestion=value.suggestion))
            value = None
        values.append(value)
    return values, problems


def _numbers(
    raw: RawTable, name: str, spec: ColumnSpec, cells: Sequence[tuple[int, str]], decimal: str | None
) -> tuple[dict[str, pd.Series], list[Problem]]:
    sentinels = set(spec.sentinels or [])
    values, problems = np.full(len(cells), np.nan), []
    signs: list[str | None] = [None] * len(cells)
    stored = ColumnSpec(role=spec.role, type="number")  # a spreadsheet's own number has a decimal point, always
    for place, (row, text) in enumerate(cells):
        if not text:
            continue
        kept = stored if (row, name) in raw.numbers else spec
        found = read_number(text, kept, name, None if kept is stored else decimal)
        if isinstance(found, Number):
            values[place] = np.nan if found.value in sentinels else found.value
            signs[place] = found.sign
        else:
            problems.append(raw.problem(found.problem, row, name, value=text, suggestion=found.suggestion))
    if spec.sentinels is None:
        suspects = suspected_sentinels(values)
        for suspect in suspects:
            problems += _suspect_problems(raw, name, cells, values, suspect, suspects)
    typed = {name: pd.Series(values, dtype="float64")}
    if spec.censored:
        typed[name + CENSORED] = pd.Series(signs, dtype="string")
    return typed, problems


def _suspect_problems(
    raw: RawTable, name: str, cells: Sequence[tuple[int, str]], values: np.ndarray, suspect: float,
    suspects: Sequence[float],
) -> list[Problem]:  # fmt: skip
    at = np.flatnonzero(values == suspect).tolist()
    listed = ", ".join(f"{one:g}" for one in suspects)  # all of them: where one is declared none is suspected any more
    hint = f"Set columns.{name}.sentinels: [{listed}] to read it as missing, or [] if it is a value."
    text = f"looks like a code for 'unknown' ({len(at)} cell{'s' if len(at) > 1 else ''})."
    return [raw.problem(text, cells[place][0], name, value=cells[place][1], suggestion=hint) for place in at]


def _one_row_each(raw: RawTable, table: TableSpec, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """One row a patient: equal rows are one, several visits follow the declared rule, anything else is a problem."""
    places: dict[str, list[int]] = {}
    for place, one in enumerate(frame.index):
        places.setdefault(str(one), []).append(place)
    kept, problems = [], []
    for one, mine in places.items():
        if len(mine) > 1 and table.visit is not None and table.visit.by in frame.columns:
            chosen, faults = _visit(raw, table, frame, one, mine)
            problems += faults
            kept.append(chosen)
            continue
        kept.append(mine[0])
        for other in mine[1:]:
            differing = _differing(frame, mine[0], other)
            if differing:
                problems.append(_conflict(raw, table, one, mine[0], other, differing))
    return frame.iloc[sorted(kept)], problems


def _differing(frame: pd.DataFrame, left: int, right: int) -> list[str]:
    first, second = frame.iloc[left], frame.iloc[right]
    same = [
        (pd.isna(a) and pd.isna(b)) or (not pd.isna(a) and not pd.isna(b) and bool(a == b))
        for a, b in zip(first, second, strict=True)
    ]
    return [str(name) for name, equal in zip(frame.columns, same, strict=True) if not equal]


def _conflict(raw: RawTable, table: TableSpec, one: str, left: int, right: int, differing: Sequence[str]) -> Problem:
    shown = ", ".join(differing[:5]) + (" ..." if len(differing) > 5 else "")
    text = f"this patient stands in row {raw.rows[left]} too, with other values of {shown}."
    hint = "Correct one row, or say which visit counts: tables.clinical.visit: {by: <date column>, keep: first}."
    return raw.problem(text, raw.rows[right], table.patient_id, value=one, suggestion=hint)


def _visit(
    raw: RawTable, table: TableSpec, frame: pd.DataFrame, one: str, places: Sequence[int]
) -> tuple[int, list[Problem]]:
    """The row of the first (last) visit of a patient; a missing date or a tie with other values is a problem."""
    assert table.visit is not None
    when = {place: frame[table.visit.by].iloc[place] for place in places}
    rows = ", ".join(str(raw.rows[place]) for place in places)
    if any(pd.isna(value) for value in when.values()):
        text = f"rows {rows} are of one patient, and one of them has no {table.visit.by}."
        hint = "Fill it in, so that the visits can be ordered."
        return places[0], [raw.problem(text, raw.rows[places[0]], table.visit.by, value=one, suggestion=hint)]
    best = (min if table.visit.keep == "first" else max)(when.values())
    chosen = [place for place in places if when[place] == best]
    for other in chosen[1:]:
        if differing := _differing(frame, chosen[0], other):
            return chosen[0], [_conflict(raw, table, one, chosen[0], other, differing)]
    return chosen[0], []
