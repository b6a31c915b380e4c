"""The clinical table of a cohort file: typed, joined to the patients with images, and checked.

All of it before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from medform.cohort.cohort_file import CohortFile
from medform.cohort.files import column, file_sha256
from medform.cohort.labels import limits, task_label
from medform.cohort.survival import survival_faults, survival_notes
from medform.errors import InputError, Problem
from medform.ingestion.identifiers import IdMatch, match_ids, read_id_map, refuse_strangers
from medform.ingestion.leaks import find_leaks, refuse_leaks
from medform.ingestion.suspects import table_notes
from medform.ingestion.tables import RawTable, read_clinical, refuse_problems, type_table, undeclared_columns

__all__ = ["Clinical", "read_join"]


@dataclass(frozen=True, eq=False)
class Clinical:
    """The typed table, indexed by image ids where they matched; None without a table.

    ``undeclared`` are columns without a role, ``notes`` what was read or joined by a rule and what looks
    odd, ``digest`` the SHA-256 of the table's file and id map.
    """

    frame: pd.DataFrame | None = None
    undeclared: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str = ""


def read_join(file: CohortFile, imaged: Iterable[str]) -> Clinical:
    """Read, type and join the clinical table of ``file`` to the patients that have images.

    Raises `InputError` with every fault of the cells; where no id matches (with examples and
    suggestions); where a label cannot be made binary, or follow-up read; where a feature restates a label.
    """
    table = file.clinical
    assert table is not None
    where = str(file.path(table.path))
    raw = read_clinical(file)
    frame, problems = type_table(raw, table, file.columns)
    refuse_problems(problems, where)
    id_map = read_id_map(file.path(table.id_map)) if table.id_map else None
    match = match_ids(imaged, frame.index.astype(str), table.id_rules, id_map)
    refuse_problems(match.problems, where)
    refuse_strangers(match, where)
    refuse_problems(_survival_problems(raw, file, frame), where)
    _refuse_labels(file, frame, where)
    leaks = find_leaks(file, frame)
    refuse_leaks(leaks, where)
    frame = frame.rename(index=match.matched)
    frame.index = frame.index.rename("patient_id")
    notes = [str(note) for note in table_notes(raw, table, file.columns)]
    notes += [*_limit_notes(file, frame), *survival_notes(file, frame)]
    notes += [f"{leak.column}: {leak.message}" for leak in leaks if leak.verdict != "refused"]
    digest = file_sha256(file.path(table.path))
    if table.id_map:
        digest += file_sha256(file.path(table.id_map))
    return Clinical(
        frame=frame,
        undeclared=tuple(undeclared_columns(raw, table, file.columns)),
        notes=(*notes, *_join_notes(match)),
        digest=digest,
    )


def _join_notes(match: IdMatch) -> list[str]:
    """What was joined by a rule, and who is left over on either side."""
    notes = [f"row '{row}' joined to images '{image}' by rule." for row, image in sorted(match.by_rule.items())]
    for ids, what in ((match.only_images, "images but no row"), (match.only_table, "a row but no images")):
        if ids:
            notes.append(f"{len(ids)} patients have {what} (first: {', '.join(map(repr, ids[:5]))}).")
    notes += [
        f"'{one.table_id}' and '{one.image_id}' look alike; not joined (tables.clinical.id_rules or id_map)."
        for one in match.suggestions
    ]
    return notes


def _survival_problems(raw: RawTable, file: CohortFile, frame: pd.DataFrame) -> list[Problem]:
    """Faults of follow-up times and events, with their rows where a patient has one row only."""
    assert file.clinical is not None
    rows: dict[str, list[int]] = {}
    for row, one in raw.cells(file.clinical.patient_id):
        rows.setdefault(one, []).append(row)
    problems = []
    for fault in survival_faults(file, frame):
        mine = rows.get(fault.patient_id or "", [])
        row = mine[0] if len(mine) == 1 else None
        text = fault.problem if row or fault.patient_id is None else f"patient '{fault.patient_id}': {fault.problem}"
        problems.append(raw.problem(text, row, fault.column, value=fault.value, suggestion=fault.suggestion))
    return problems


def _limit_notes(file: CohortFile, frame: pd.DataFrame) -> list[str]:
    """How many patients have no label because only a limit is known of them, a line for each task that has some."""
    notes = []
    for task in file.tasks:
        signs = limits(frame, task.column, spec := file.columns[task.column])
        if signs is None:
            continue
        left_out = signs.notna() & column(frame, task.column).notna() & task_label(task, frame, spec).isna()
        if count := int(left_out.sum()):
            notes.append(
                f"task '{task.name}': {count} patients have no label; a limit in '{task.column}' leaves it open."
            )
    return notes


def _refuse_labels(file: CohortFile, frame: pd.DataFrame, where: str) -> None:
    """Raise one `InputError` for every task whose label cannot be made binary."""
    problems = []
    for task in file.tasks:
        try:
            task_label(task, frame, file.columns[task.column])
        except InputError as error:
            problems.append(Problem(error.what, column=error.where, suggestion=error.fix))
    if problems:
        raise InputError(
            f"{len(problems)} label{'s' if len(problems) > 1 else ''} cannot be used.",
            where=where,
            consequence="Nothing was written.",
            problems=problems,
        )
