"""Table one: the columns of the cohort by group of patients, with what is missing (`table_one.json`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medform.cohort.files import column
from medform.reporting.documents import read_document, write_document

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cell", "TableOne", "TableOneColumn", "read_table_one", "summarise", "write_table_one"]

MOST_LEVELS = 6  # the most frequent ones; further ones are counted together


@dataclass(frozen=True)
class Cell:
    """One column in one group: ``missing`` of its patients have no value; the rest are summed up.

    Numbers carry ``median``, ``q1``, ``q3``; categories and booleans carry ``levels`` (level, patients), in
    the same order in every group, the most frequent of all groups together first, and ``others``, how many
    further levels and how many patients with them; anything else (dates, text, levels of one patient each)
    carries only ``distinct``, the number of different values.
    """

    missing: int
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    levels: tuple[tuple[str, int], ...] | None = None
    distinct: int | None = None
    others: tuple[int, int] | None = None

    @property
    def known(self) -> int:
        """The patients with a value, of whom ``levels`` and ``others`` are shares."""
        return sum(count for _, count in self.levels or ()) + (self.others[1] if self.others else 0)


@dataclass(frozen=True)
class TableOneColumn:
    """One column of the table: ``type`` and ``role`` in the cohort file's words, a cell for every group."""

    name: str
    type: str
    role: str
    cells: dict[str, Cell]
    unit: str | None = None


@dataclass(frozen=True)
class TableOne:
    """``groups`` maps a group's name to its number of patients, in the order to be shown.

    In cross-validation every patient is a test patient once, so the usual groups are "all", then "test of
    fold 1" and so on; a run of one fold has "training", "validation", "test".
    """

    groups: dict[str, int]
    columns: tuple[TableOneColumn, ...] = field(default_factory=tuple)


def write_table_one(run: Path, table: TableOne) -> None:
    """Write ``RUN/table_one.json``."""
    write_document(run / "table_one.json", table)


def read_table_one(run: Path) -> TableOne | None:
    """Read ``RUN/table_one.json``; None where it is not there."""
    return read_document(run / "table_one.json", TableOne)


def summarise(
    table: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    roles: Mapping[str, str],
    units: Mapping[str, str | None] | None = None,
    types: Mapping[str, str] | None = None,
) -> TableOne:
    """Sum up a typed table (index: patient id) by groups of patient ids.

    Only the columns named in ``roles`` are summed up, in that order, and never an `id`. A patient of a group
    who has no row in the table counts as missing in every column. No value of a text or date column is
    written.
    """
    columns = []
    for name, role in roles.items():
        if role in ("id", "ignore") or name not in table:
            continue
        values = column(table, name)
        kind = (types or {}).get(name) or _kind(values)
        named = None
        if kind in ("category", "ordinal", "boolean"):
            values = values.map({True: "yes", False: "no"}) if kind == "boolean" else values.astype("string")
            named = _named_levels(values.reindex(sorted({one for ids in groups.values() for one in ids})))
        cells = {group: _cell(values, ids, kind, named) for group, ids in groups.items()}
        columns.append(TableOneColumn(name, kind, role, cells, (units or {}).get(name)))
    return TableOne({group: len(ids) for group, ids in groups.items()}, tuple(columns))


def _kind(values: pd.Series) -> str:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if is_bool_dtype(values.dtype):
        return "boolean"
    return "number" if is_numeric_dtype(values.dtype) else "category"


def _named_levels(values: pd.Series) -> list[str]:
    """The levels that every group names, most frequent first: all of them where they are few.

    A level of one patient says who it is as a name would; where levels are many (postcodes, names of places)
    it is counted among the others.
    """
    found = sorted(values.dropna().value_counts().items(), key=lambda pair: (-pair[1], pair[0]))
    if len(found) <= MOST_LEVELS + 1:  # a single further level takes no more room than the line that counts it
        return [str(level) for level, _ in found]
    return [str(level) for level, count in found[:MOST_LEVELS] if count > 1]


def _cell(whole: pd.Series, ids: Sequence[str], kind: str, named: Sequence[str] | None) -> Cell:
    values = whole.reindex(list(ids)).dropna()
    missing = len(ids) - len(values)
    if values.empty:
        return Cell(missing)
    if kind == "number":
        q1, median, q3 = (float(value) for value in values.astype(float).quantile([0.25, 0.5, 0.75]))
        return Cell(missing, median, q1, q3)
    if named:
        found = {str(level): int(count) for level, count in values.value_counts().items()}
        others = [count for level, count in found.items() if level not in named]
        levels = tuple((level, found[level]) for level in named if level in found)
        return Cell(missing, levels=levels, others=(len(others), sum(others)) if others else None)
    return Cell(missing, distinct=int(values.nunique()))
