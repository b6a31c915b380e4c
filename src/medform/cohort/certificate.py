"""What the parts of a split share: patients, studies, images, files, near-copies, and groups where some are declared.

And who is one person under two ids.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from medform.cohort.cohort_file import CohortFile
from medform.cohort.files import column as column_of
from medform.cohort.fingerprint import FEWEST_BITS, near_pairs
from medform.cohort.split import PARTS, Part, Split
from medform.errors import InputError, Problem

__all__ = ["certify", "declared_groups", "linked_patients", "refuse_leaking"]

Carriers = dict[str, dict[Hashable, set[str]]]
"""Kind of evidence (study, file, ...) -> its value -> the patients that carry it; only what several carry
is kept."""


def declared_groups(file: CohortFile, clinical: pd.DataFrame | None) -> dict[str, str] | None:
    """Patient id -> value of the column ``splits.group`` in a typed table, of those who have one; None without it."""
    if file.splits.group is None:
        return None
    if clinical is None:
        return {}
    values = column_of(clinical, file.splits.group).dropna()
    return {str(one): str(value) for one, value in values.items()}


def _carriers(series: pd.DataFrame, slices: pd.DataFrame, groups: Mapping[str, str] | None = None) -> Carriers:
    """Evidence that two patient ids share. An almost empty slice is equal in everybody and is no evidence.

    With ``groups`` (patient id -> group), those are one kind more.
    """
    telling = slices[[bin(int(one, 16)).count("1") >= FEWEST_BITS for one in slices["fingerprint"]]]
    shown = series[series["series_id"].isin(list(telling["series_id"]))]
    columns = {
        "studies": (series, "study"),
        "people": (series, "person"),
        "series": (shown, "sha256"),
        "instances": (telling, "source"),
        "files": (telling, "file_digest"),
    }
    found: Carriers = {}
    for kind, (frame, column) in columns.items():
        carriers: dict[Hashable, set[str]] = {}
        for value, patient in zip(frame[column], frame["patient_id"], strict=True):
            if isinstance(value, str) and value:
                carriers.setdefault(value, set()).add(str(patient))
        found[kind] = {value: people for value, people in carriers.items() if len(people) > 1}
    patient = telling["patient_id"].astype(str).tolist()
    pairs = near_pairs(telling["fingerprint"].tolist())
    found["near_duplicates"] = {
        pair: {patient[i] for i in pair} for pair in pairs if patient[pair[0]] != patient[pair[1]]
    }
    if groups is not None:
        members: dict[Hashable, set[str]] = {}
        for one, value in groups.items():
            members.setdefault(value, set()).add(one)
        found["groups"] = {value: people for value, people in members.items() if len(people) > 1}
    return found


def linked_patients(
    series: pd.DataFrame, slices: pd.DataFrame, groups: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Patient id -> name of its group, for ids that look like one person: a study, file, image or near-copy in common.

    ``series`` needs patient_id, series_id, study, person, sha256; ``slices`` patient_id, series_id, source,
    file_digest, fingerprint. Patients of one of ``groups`` (`declared_groups`) are linked, too. Ids that stand alone
    are left out; a group is named by its first id.
    """
    group: dict[str, str] = {}

    def first(one: str) -> str:
        while group.get(one, one) != one:
            one = group[one]
        return one

    for carriers in _carriers(series, slices, groups).values():
        for people in carriers.values():
            roots = sorted({first(one) for one in people})
            for one in roots:
                group[one] = roots[0]
            for one in people:
                group.setdefault(one, roots[0])
    return {one: first(one) for one in sorted(group)}


def certify(
    split: Split, series: pd.DataFrame, slices: pd.DataFrame, declared: Mapping[str, str] | None = None
) -> dict[str, object]:
    """The certificate of ``split``: for each fold and pair of parts, how much of each kind both parts hold.

    ``declared``: patient id -> group (`declared_groups`), counted as one kind more.

    ``{"clean": bool, "compared": {kind: count}, "folds": [{"train-test": {"patients": 0, "studies": 0,
    ...}}], "same_person": [[ids]]}``; ``clean`` means that every count is 0.
    """
    carriers = _carriers(series, slices, declared)
    folds = []
    for fold in split.folds:
        part_of = fold.part_of()
        pairs = {}
        for left, right in combinations(PARTS, 2):
            counts = _shared(carriers, part_of, left, right)
            pairs[f"{left}-{right}"] = {**counts, "patients": len(set(fold.part(left)) & set(fold.part(right)))}
        folds.append(pairs)
    groups: dict[str, list[str]] = {}
    for one, group in linked_patients(series, slices).items():
        groups.setdefault(group, []).append(one)
    clean = not any(count for pairs in folds for counts in pairs.values() for count in counts.values())
    compared = {
        "patients": len(split.patient_ids),
        "studies": len(set(series["study"].dropna())),
        "series": len(series),
        "slices": len(slices),
    }
    return {"clean": clean, "compared": compared, "folds": folds, "same_person": list(groups.values())}


def _shared(carriers: Carriers, part_of: Mapping[str, Part], left: Part, right: Part) -> dict[str, int]:
    def both(people: Iterable[str]) -> bool:
        return {left, right} <= {part_of[one] for one in people if one in part_of}

    return {kind: int(np.sum([both(people) for people in of.values()])) for kind, of in carriers.items()}


def refuse_leaking(
    split: Split, series: pd.DataFrame, slices: pd.DataFrame, where: str, groups: Mapping[str, str] | None = None
) -> None:
    """Raise `InputError` naming the patients where two parts of a fold share a study, file, image or near-copy.

    So it does where they share one of ``groups`` (`declared_groups`).
    """
    carriers = _carriers(series, slices, groups)
    problems: dict[str, Problem] = {}
    for number, fold in enumerate(split.folds):
        part_of = fold.part_of()
        for kind, of in carriers.items():
            for people in of.values():
                here = sorted(one for one in people if one in part_of)
                parts = sorted({part_of[one] for one in here})
                if len(parts) > 1:
                    text = f"share {kind.replace('_', '-')} but are in {' and '.join(parts)} of fold {number}."
                    problem = Problem(text, column="patient_id", value=", ".join(here))
                    problems.setdefault(str(problem), problem)
    if problems:
        raise InputError(
            f"this split leaks: {len(problems)} overlaps between its parts.",
            where=where,
            consequence="It is not used and nothing was written.",
            fix=f"leave ids of one person{' or group' if groups else ''} in one part of each fold.",
            problems=list(problems.values()),
        )
