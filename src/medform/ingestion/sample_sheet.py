"""Tables that say whose each sample is: cBioPortal's clinical samples, a GDC sample sheet, or two named columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medform.errors import InputError, Problem
from medform.ingestion.raw_table import RawTable, read_table

__all__ = ["SheetRow", "read_sheet"]

SAMPLE = ("sample_id", "sample")
PATIENT = ("patient_id", "case_id", "patient")
KIND = ("sample_type", "tissue_type")
FOLDER, FILE = ("file_id",), ("file_name",)


@dataclass(frozen=True)
class SheetRow:
    """One sample: its patient, its type in words ('' where not said), its file where the sheet names files."""

    sample_id: str
    patient_id: str
    kind: str = ""
    file: str = ""
    folder: str = ""
    row: int = 0


def read_sheet(path: Path, *, files: bool = False) -> list[SheetRow]:
    """The rows of a sample sheet, in the order of the file; with ``files`` each must name its file.

    Column names are compared without regard to case, blanks and underscores; lines that begin with ``#`` are
    comments, as cBioPortal writes them. Raises `InputError` with every fault: columns that are missing, empty
    cells, a sample (or file) that stands twice.
    """
    raw = read_table(path, header_row=_comments(path) + 1)
    problems = list(raw.problems)
    names = {_plain(name): name for name in raw.frame.columns}
    found: dict[tuple[str, ...], str | None] = {
        key: next((names[one] for one in key if one in names), None) for key in (SAMPLE, PATIENT, KIND, FILE, FOLDER)
    }
    needed = {SAMPLE: "sample_id", PATIENT: "patient_id", **({FILE: "file_name"} if files else {})}
    for key, word in needed.items():
        if found[key] is None:
            hint = f"Columns there: {', '.join(map(str, raw.frame.columns[:12]))}."
            problems.append(raw.problem("the sample sheet has no such column.", raw.header_row, word, suggestion=hint))
    rows = [] if problems else _rows(raw, found, files=files, problems=problems)
    if problems:
        raise InputError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the sample sheet.",
            where=str(path),
            consequence="Nothing was written.",
            problems=problems,
        )
    return rows


def _rows(
    raw: RawTable, found: dict[tuple[str, ...], str | None], *, files: bool, problems: list[Problem]
) -> list[SheetRow]:
    def cells(key: tuple[str, ...]) -> list[str]:
        name = found[key]
        return [""] * len(raw.frame) if name is None else [text.strip() for text in raw.frame[name]]

    rows, seen = [], {}
    table = zip(raw.rows, cells(SAMPLE), cells(PATIENT), cells(KIND), cells(FILE), cells(FOLDER), strict=True)
    for line, sample, patient, kind, file, folder in table:
        for text, word in ((sample, "sample_id"), (patient, "patient_id"), (file or not files, "file_name")):
            if not text:
                problems.append(raw.problem("this cell is empty.", line, word, suggestion="Fill it in."))
        key = f"{folder}/{file}" if files else sample
        if key in seen:
            problems.append(raw.problem(f"stands in row {seen[key]} too.", line, value=key, suggestion="Keep one row."))
        seen.setdefault(key, line)
        rows.append(SheetRow(sample, patient, kind, file, folder, line))
    return rows


def _plain(name: object) -> str:
    return "_".join(str(name).strip().casefold().split())


def _comments(path: Path) -> int:
    """Lines at the top that begin with ``#``."""
    count = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.startswith(b"#"):
                break
            count += 1
    return count
