"""Is there a table in the folder that lists its slice images?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medform.errors import InputError
from medform.ingestion.plan import Plan
from medform.ingestion.table_drafts import guess_patient_column
from medform.ingestion.tables import RawTable, read_table

__all__ = ["FoundIndex", "find_index"]

LISTED_SHARE = 0.5
"""A column names the images if it holds at least this share of the pictures of the folder."""
LARGEST_TABLE = 64 << 20


@dataclass(frozen=True)
class FoundIndex:
    """An index: its path below the root, its columns for patient, order and file, and those that hold 0 and 1."""

    path: str
    patient: str
    order: str
    file: str
    binary: tuple[str, ...]


def find_index(plan: Plan, root: Path) -> FoundIndex | None:
    """The first CSV or TSV under the folder that names at least half of its pictures; None without one."""
    pictures = {file.path for file in plan.files if file.kind == "picture"}
    if not pictures:
        return None
    below = PurePosixPath(plan.root.resolve().relative_to(root).as_posix())
    named = {(below / picture).as_posix() for picture in pictures}
    for file in plan.files:
        if not file.path.lower().endswith((".csv", ".tsv")) or file.size > LARGEST_TABLE:
            continue
        try:
            table = read_table(plan.root / file.path)
        except InputError:
            continue
        found = _columns(table, (below / file.path).as_posix(), named)
        if found is not None:
            return found
    return None


def _columns(table: RawTable, path: str, pictures: set[str]) -> FoundIndex | None:
    """The roles of the columns, if one of them names the pictures."""
    if table.problems:
        return None
    cells = {name: [text.strip() for text in table.frame[name]] for name in table.frame.columns}
    listed = {name: len(pictures & set(values)) for name, values in cells.items()}
    file = max(listed, key=lambda name: listed[name])
    if listed[file] < LISTED_SHARE * len(pictures):
        return None
    patient = guess_patient_column(table)
    order = _order(cells, patient, file)
    if patient is None or order is None:
        return None
    binary = tuple(name for name, values in cells.items() if set(values) == {"0", "1"} and name != order)
    return FoundIndex(path, patient, order, file, binary)


def _order(cells: dict[str, list[str]], patient: str | None, file: str) -> str | None:
    """The first column of whole numbers that never repeats within a patient."""
    if patient is None:
        return None
    for name, values in cells.items():
        if name in (patient, file) or not all(value.lstrip("-").isdecimal() for value in values):
            continue
        pairs = list(zip(cells[patient], values, strict=True))
        if len(set(pairs)) == len(pairs):
            return name
    return None
