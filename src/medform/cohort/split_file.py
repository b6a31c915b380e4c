"""A user's own split: JSON as we write it, or a CSV with patient_id, fold (from 0) and part, a line a patient."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medform.cohort.split import PARTS, Fold, Split
from medform.cohort.table_text import read_columns
from medform.errors import InputError, Problem, nearest

__all__ = ["read_own_split"]

COLUMNS = ("patient_id", "fold", "part")


def read_own_split(path: Path, name: str, patients: Iterable[str]) -> Split:
    """Read a split that a user brings and check it against the cohort's patients.

    A patient that stands in no fold is allowed (it is left out everywhere); an id that the cohort does not
    have is not. Raises `InputError` with every fault: unknown ids, unknown parts, patients in two parts (see
    `Fold`, `Split`).
    """
    if not path.is_file():
        raise InputError("no such file.", where=str(path), fix="check splits.file in the cohort file.")
    split = Split.read(path) if path.suffix.lower() == ".json" else _from_csv(path, name)
    known = set(patients)
    problems = []
    for one in split.patient_ids:
        if one not in known:
            close = nearest(one, sorted(known))
            hint = f"Did you mean '{close[0]}'?" if close else None
            problems.append(Problem("no such patient in the cohort.", value=one, column="patient_id", suggestion=hint))
    if problems:
        raise InputError(
            f"{len(problems)} patients of the split are not in the cohort.",
            where=str(path),
            consequence="The split is not used.",
            fix="remove them or mend their ids.",
            problems=problems,
        )
    return Split(name, split.folds, settings={"file": path.name})


def _from_csv(path: Path, name: str) -> Split:
    rows = [
        (line, dict(zip(COLUMNS, (field.strip() for field in fields), strict=True)))
        for line, fields in read_columns(path, COLUMNS)
    ]
    problems = []
    members: dict[int, dict[str, list[str]]] = {}
    for line, row in rows:
        if row["part"] not in PARTS:
            hint = f"Use one of {', '.join(PARTS)}."
            problems.append(
                Problem("not a part.", str(path), row=line, column="part", value=row["part"], suggestion=hint)
            )
        elif not row["fold"].isdecimal():
            problems.append(
                Problem("a fold is a number from 0.", str(path), row=line, column="fold", value=row["fold"])
            )
        else:
            parts = members.setdefault(int(row["fold"]), {part: [] for part in PARTS})
            parts[row["part"]].append(row["patient_id"])
    if problems:
        raise InputError("the split cannot be read.", where=str(path), fix="mend these lines.", problems=problems)
    if sorted(members) != list(range(len(members))):
        raise InputError(
            f"folds are numbered {', '.join(map(str, sorted(members)))}.",
            where=str(path),
            fix="number them 0, 1, 2, ...",
        )
    return Split(
        name,
        tuple(Fold(*(tuple(dict.fromkeys(members[k][part])) for part in PARTS)) for k in sorted(members)),
    )
