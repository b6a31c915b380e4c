"""A table that lists slice images: whose each is, its place in the stack, its labels and its mask."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path, PurePosixPath

from medform.cohort.cohort_file import CohortFile, Index
from medform.errors import InputError, Problem, nearest
from medform.ingestion.discover import FoundFile
from medform.ingestion.found_series import Finding, FoundSeries, SliceSource
from medform.ingestion.layouts.place import A_MASK
from medform.ingestion.slices import picture_series
from medform.ingestion.tables import RawTable, read_table

__all__ = ["index_series"]


def index_series(file: CohortFile, root: Path, files: dict[str, FoundFile]) -> list[FoundSeries]:
    """One series a patient from ``images.index``; pictures that it does not name are a quarantined series.

    ``root`` is the folder of the images and ``files`` what lies there, by path; masks change their kind
    in it to ``other``. Raises `InputError` with every fault of the index: missing columns, orders that
    are no numbers or stand twice, no file found at all.
    """
    assert file.images.index is not None
    table = read_table(file.path(file.images.index))
    base = _below(root, file.root or Path())
    rows = _rows(table, file.index, base)
    by_patient: dict[str, list[tuple[float, int, SliceSource]]] = defaultdict(list)
    for patient, order, line, source in rows:
        by_patient[patient].append((order, line, source))
    named = {source.file for _, _, _, source in rows}
    if not named & set(files):
        raise InputError(
            f"none of the {len(named)} files of the index exists (first: '{min(named)}').",
            where=str(root),
            consequence="Nothing was written.",
            fix=f"make column '{file.index.file}' hold paths relative to the root, or set images.path.",
        )
    masks = {source.mask for _, _, _, source in rows if source.mask}
    for mask in masks & set(files):
        files[mask] = replace(files[mask], kind="other", reason=A_MASK)
    found = [
        _patient_series(root, patient, [source for *_, source in sorted(mine, key=lambda one: one[:2])], files, file)
        for patient, mine in sorted(by_patient.items())
    ]
    return found + _unnamed(files, named, file)


def _below(root: Path, cohort_root: Path) -> PurePosixPath:
    """The image folder relative to the cohort's root: index paths are relative to the root."""
    inside, outside = root.resolve(), cohort_root.resolve()
    return PurePosixPath(inside.relative_to(outside).as_posix() if inside.is_relative_to(outside) else ".")


def _rows(table: RawTable, index: Index, base: PurePosixPath) -> list[tuple[str, float, int, SliceSource]]:
    """(patient, order, line of the file, source) of every row; all faults of the index in one `InputError`."""
    wanted = [index.patient, index.order, index.file, *([index.mask] if index.mask else [])]
    problems = [*table.problems, *_missing_columns(table, wanted)]
    if problems:
        raise _faulty(problems, table.file)
    labels = [name for name in table.frame.columns if name not in wanted]
    rows: list[tuple[str, float, int, SliceSource]] = []
    seen: dict[tuple[str, float], int] = {}
    columns = {name: table.frame[name].tolist() for name in table.frame.columns}
    for at, line in enumerate(table.rows):
        patient, order_text = columns[index.patient][at].strip(), columns[index.order][at].strip()
        order = _number(order_text)
        if not patient or not columns[index.file][at].strip():
            column = index.file if patient else index.patient
            problems.append(table.problem("this cell is empty.", line, column, suggestion="Fill it in."))
            continue
        if math.isnan(order):
            hint = "The order of a slice is a number."
            problems.append(table.problem("not a number.", line, index.order, value=order_text, suggestion=hint))
            continue
        if (patient, order) in seen:
            text = f"patient '{patient}' has this order in row {seen[patient, order]} too."
            problems.append(table.problem(text, line, index.order, value=order_text))
            continue
        seen[patient, order] = line
        name = _relative(columns[index.file][at], base)
        mask = columns[index.mask][at].strip() if index.mask else ""
        source = SliceSource(
            file=name,
            instance=name,
            labels=tuple((label, columns[label][at].strip()) for label in labels),
            mask=_relative(mask, base) if mask else None,
        )
        rows.append((patient, order, line, source))
    if problems:
        raise _faulty(problems, table.file)
    return rows


def _relative(cell: str, base: PurePosixPath) -> str:
    """A path of the index, relative to the image folder; either slash is taken."""
    path = PurePosixPath(cell.strip().replace("\\", "/"))
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _missing_columns(table: RawTable, wanted: list[str]) -> list[Problem]:
    known = list(table.frame.columns)
    found = []
    for name in wanted:
        if name not in known:
            close = nearest(name, known)
            hint = f"Did you mean '{close[0]}'?" if close else f"Columns there: {', '.join(known)}."
            found.append(table.problem("the index has no such column.", table.header_row, name, suggestion=hint))
    return found


def _faulty(problems: list[Problem], where: str) -> InputError:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return InputError(
        f"{count} in the index of slices.", where=where, consequence="Nothing was written.", problems=problems
    )


def _patient_series(
    root: Path, patient: str, sources: list[SliceSource], files: dict[str, FoundFile], file: CohortFile
) -> FoundSeries:
    """A patient's series; refused, naming them, where files of the index are not there or are no pictures."""
    absent = [source for source in sources if source.file not in files or files[source.file].kind != "picture"]
    if not absent:
        return picture_series(root, patient, patient, sources, file.images.unit)
    first = absent[0].file
    reason = files[first].reason or "not a picture" if first in files else "not there"
    more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
    finding = Finding("file_missing", "quarantine", f"named by the index, {reason}{more}.", first, file.images.index)
    present = tuple(source.file for source in sources if source.file in files)
    return FoundSeries(
        patient, patient, "picture", "", file.images.unit, tuple(sources), (len(sources), 0, 0), "uint8",
        tuple(sorted(set(present))), findings=(finding,),
    )  # fmt: skip


def _unnamed(files: dict[str, FoundFile], named: set[str], file: CohortFile) -> list[FoundSeries]:
    """Images in the folder that the index does not name: listed as one quarantined series."""
    kinds = ("picture", "dicom", "nifti")
    extra = [name for name, found in sorted(files.items()) if found.kind in kinds and name not in named]
    if not extra:
        return []
    reason = f"{len(extra)} image file{'s' if len(extra) > 1 else ''} of the folder that the index does not name."
    finding = Finding("not_in_index", "quarantine", reason, extra[0], file.images.index)
    sources = tuple(SliceSource(name, name) for name in extra)
    return [
        FoundSeries(
            "#not_in_index", "", "picture", "", file.images.unit, sources, (len(extra), 0, 0), "uint8",
            tuple(extra), findings=(finding,),
        )
    ]  # fmt: skip
