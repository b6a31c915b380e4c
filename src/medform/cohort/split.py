"""Patient-grouped, stratified splits: made from a seed, never from an order; a split that leaks cannot be built.

Patients are ordered by a hash of (seed, id) before anything is drawn, so that neither file order nor id order
(in some hospitals ids are sorted by diagnosis) reaches a fold.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from medform.errors import InputError, Problem

__all__ = [
    "Fold",
    "Part",
    "Split",
    "inner_folds",
    "make_split",
    "patient_order",
    "stratified_share",
]

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
Labels = pd.Series | Mapping[str, Hashable] | Sequence[Hashable] | np.ndarray | None
MISSING = "missing"
SCHEMA_VERSION = 1


def patient_order(ids: Iterable[str], seed: int | str) -> list[str]:
    """The distinct ids, ordered by SHA-256 of ``"{seed}:{id}"``."""
    return sorted(set(ids), key=lambda one: (hashlib.sha256(f"{seed}:{one}".encode()).hexdigest(), one))


@dataclass(frozen=True)
class Fold:
    """Patient ids of the three parts of one fold. Construction fails where a patient stands in two parts."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        for left, right in combinations(PARTS, 2):
            if shared := sorted(set(self.part(left)) & set(self.part(right))):
                raise InputError(
                    f"{len(shared)} patients are in {left} and in {right}.",
                    consequence="Such a split leaks and is not used.",
                    fix="leave each patient in one part of a fold.",
                    problems=[Problem(f"in {left} and {right}.", column="patient_id", value=one) for one in shared],
                )

    def part(self, name: Part) -> tuple[str, ...]:
        """Ids of one part."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def part_of(self) -> dict[str, Part]:
        """Patient id -> part."""
        return {one: name for name in PARTS for one in self.part(name)}


@dataclass(frozen=True)
class Split:
    """Folds of patients; none is tested twice. ``certificate`` counts what the parts share (see `certificate`)."""

    name: str
    folds: tuple[Fold, ...]
    certificate: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.folds:
            raise InputError(f"split '{self.name}' has no fold.", fix="give at least one fold.")
        tested: dict[str, int] = {}
        problems = []
        for number, fold in enumerate(self.folds):
            for one in fold.test:
                if one in tested:
                    problems.append(Problem(f"tested in fold {tested[one]} and {number}.", value=one))
                tested[one] = number
        if problems:
            raise InputError(
                f"{len(problems)} patients are tested in two folds of split '{self.name}'.",
                consequence="Scores over folds would count them twice.",
                fix="leave each patient in the test part of one fold.",
                problems=problems,
            )

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Every patient of the split, sorted."""
        return tuple(sorted({one for fold in self.folds for name in PARTS for one in fold.part(name)}))

    def test_fold(self) -> pd.Series:
        """Patient id -> number of the fold that tests the patient."""
        number = {one: k for k, fold in enumerate(self.folds) for one in fold.test}
        return pd.Series(number, name="fold", dtype="int64")

    def select(self, ids: Iterable[str]) -> Split:
        """The same folds with the patients of ``ids`` only."""
        kept = set(ids)
        folds = (Fold(*(tuple(one for one in fold.part(p) if one in kept) for p in PARTS)) for fold in self.folds)
        return replace(self, folds=tuple(folds))

    def to_json(self) -> str:
        """The split as the text of ``splits/<name>.json``."""
        tree = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "settings": dict(self.settings),
            "folds": [{part: list(fold.part(part)) for part in PARTS} for fold in self.folds],
            "certificate": dict(self.certificate),
        }
        return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "split") -> Split:
        """Read `to_json`'s text; the checks of construction run again. `InputError` names what is wrong with it."""
        try:
            tree = json.loads(text)
            version = tree["schema_version"]
            folds = tuple(Fold(*(tuple(map(str, fold[part])) for part in PARTS)) for fold in tree["folds"])
            name, certificate, settings = str(tree["name"]), tree["certificate"], tree["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"not a split file ({type(error).__name__}: {error}).",
                where=where,
                fix='write {"schema_version": 1, "name": ..., "settings": {}, "certificate": {}, "folds": '
                '[{"train": [], "validation": [], "test": []}, ...]}, or a CSV: patient_id, fold, part.',
            ) from None
        if version != SCHEMA_VERSION:
            raise InputError(
                f"this split has schema version {version}; this medform reads version {SCHEMA_VERSION}.",
                where=where,
                fix="use the version of medform that wrote it, or remove the file to make the split anew.",
            )
        return cls(name, folds, certificate, settings)

    @classmethod
    def read(cls, path: Path) -> Split:
        """Read a split file that `to_json` made."""
        return cls.from_json(path.read_text(encoding="utf-8-sig"), str(path))


def make_split(
    patients: Iterable[str],
    strata: pd.DataFrame | Labels = None,
    folds: int = 5,
    validation: float = 0.15,
    seed: int = 7,
    *,
    groups: Mapping[str, str] | None = None,
    draw_groups: bool = False,
    name: str = "main",
) -> Split:
    """Divide patients into ``folds`` folds of (train, validation, test).

    ``strata`` (indexed by patient id; several columns are crossed) are spread evenly: in each fold the count
    of a stratum differs by at most one between the test parts, as does the count of all patients. A patient
    without a label belongs to a stratum of its own. ``groups`` (id -> group) are people under several ids; a
    group stays on one side. ``validation`` is a share of a fold's training patients; with ``draw_groups`` it is
    drawn group by group, as is needed where most patients have a group. Raises `InputError` where there are fewer
    groups than folds.
    """
    given = list(dict.fromkeys(patients))
    key = _strata(given, strata)
    ids = patient_order(given, seed)
    members: dict[str, list[str]] = {}
    for one in ids:
        members.setdefault((groups or {}).get(one, one), []).append(one)
    if len(members) < folds:
        raise InputError(
            f"{len(members)} {'groups of ' if draw_groups else ''}patients cannot be divided into {folds} folds.",
            where=f"split '{name}'",
            consequence="Nothing was started.",
            fix=f"set splits.folds: {len(members)}." if len(members) >= 2 else "bring at least two patients.",
        )
    fold_of = _deal(list(members.values()), key, folds)
    made = []
    for number in range(folds):
        test = [one for one in ids if fold_of[one] == number]
        rest = [one for one in ids if fold_of[one] != number]
        held = (_validation_groups if draw_groups else _validation)(
            rest, key, validation, f"{seed}:validation:{number}", groups or {}
        )
        made.append(
            Fold(
                tuple(one for one in rest if one not in held),
                tuple(o for o in rest if o in held),
                tuple(test),
            )
        )
    settings = {"folds": folds, "validation": validation, "seed": seed}
    return Split(name, tuple(made), settings=settings)


def inner_folds(ids: Sequence[str], labels: Labels = None, k: int = 5, seed: int | str = 0) -> dict[str, int]:
    """Patient id -> inner fold (0..k-1), stratified by ``labels``; with fewer than k patients some folds stay empty."""
    key = _strata(ids, labels)
    return _deal([[one] for one in patient_order(ids, f"{seed}:inner")], key, k)


def stratified_share(ids: Sequence[str], labels: Labels = None, share: float = 0.5, seed: int | str = 0) -> list[str]:
    """A stratified draw of ``round(share * n)`` patients, in hash order.

    Each stratum gives its share to within one patient; a stratum of three or more whose share rounds to
    nobody takes a place from a larger one where that keeps to this bound, so that a rare class is not lost to
    rounding.
    """
    key = _strata(ids, labels)
    order = patient_order(ids, f"{seed}:share")
    strata: dict[str, list[str]] = {}
    for one in order:
        strata.setdefault(key[one], []).append(one)
    exact = {name: share * len(members) for name, members in strata.items()}
    taken = {name: int(np.floor(value + 1e-9)) for name, value in exact.items()}
    wanted = int(np.floor(share * len(order) + 0.5))
    for name in sorted(strata, key=lambda s: (taken[s] - exact[s], s))[: wanted - sum(taken.values())]:
        taken[name] += 1
    for name in sorted(strata):
        givers = [s for s in strata if taken[s] >= 2 and taken[s] > exact[s] + 1e-9]
        if taken[name] == 0 and exact[name] > 0 and len(strata[name]) >= 3 and givers:
            taken[max(givers, key=lambda s: (taken[s] - exact[s], s))] -= 1
            taken[name] = 1
    chosen = {one for name, members in strata.items() for one in members[: taken[name]]}
    return [one for one in order if one in chosen]


def _strata(ids: Sequence[str], labels: pd.DataFrame | Labels) -> dict[str, str]:
    """Patient id -> name of its stratum; an array has one entry for each of ``ids``."""
    if labels is None:
        return dict.fromkeys(ids, "")
    if isinstance(labels, pd.DataFrame):
        columns = [_strata(ids, labels[column]) for column in labels.columns]
        return {one: "|".join(column[one] for column in columns) for one in ids}
    given = labels.items() if isinstance(labels, pd.Series | Mapping) else zip(ids, labels, strict=True)
    lookup = dict(given)
    return {one: MISSING if _absent(lookup.get(one)) else str(lookup[one]) for one in ids}


def _absent(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _deal(units: list[list[str]], key: Mapping[str, str], folds: int) -> dict[str, int]:
    """Give each unit (patients who stay together) to the fold that has fewest of its stratum, then fewest patients.

    Large units first, then stratum by stratum: for single patients both counts stay within one of each other.
    """
    of_stratum: dict[str, list[int]] = {name: [0] * folds for name in set(key.values())}
    total = [0] * folds
    fold_of: dict[str, int] = {}
    for unit in sorted(units, key=lambda members: (-len(members), min(key[one] for one in members))):
        names = [key[one] for one in unit]
        best = min(range(folds), key=lambda k: (sum(of_stratum[name][k] for name in names), total[k], k))
        for one, name in zip(unit, names, strict=True):
            fold_of[one] = best
            of_stratum[name][best] += 1
            total[best] += 1
    return fold_of


def _validation(
    ids: Sequence[str], key: Mapping[str, str], share: float, seed: str, groups: Mapping[str, str]
) -> set[str]:
    """Validation patients: a stratified share, then whole groups on one side (the side of most members)."""
    if share <= 0.0:
        return set()
    held = set(stratified_share(ids, key, share, seed))
    if not held and len(ids) >= 3:
        held = {patient_order(ids, seed)[0]}
    of_group: dict[str, list[str]] = {}
    for one in ids:
        of_group.setdefault(groups.get(one, one), []).append(one)
    for members in of_group.values():
        inside = [one for one in members if one in held]
        if inside and len(inside) < len(members):
            held = held | set(members) if 2 * len(inside) > len(members) else held - set(members)
    return held


def _validation_groups(
    ids: Sequence[str], key: Mapping[str, str], share: float, seed: str, groups: Mapping[str, str]
) -> set[str]:
    """Validation patients as whole groups, in hash order: one is taken where the strata come nearer to their share.

    At least one group is taken of two or more where the share is not 0, and at least one left.
    """
    of_group: dict[str, list[str]] = {}
    for one in patient_order(ids, f"{seed}:share"):
        of_group.setdefault(groups.get(one, one), []).append(one)
    short: dict[str, float] = {}
    for one in ids:
        short[key[one]] = short.get(key[one], 0.0) + share
    held: list[list[str]] = []
    for members in of_group.values():
        counts = Counter(key[one] for one in members)
        gain = sum(short[name] ** 2 - (short[name] - count) ** 2 for name, count in counts.items())
        if gain > 0 and len(held) < len(of_group) - 1:
            held.append(members)
            for name, count in counts.items():
                short[name] -= count
    if not held and share > 0.0 and len(of_group) >= 2:
        held = [min(of_group.values(), key=len)]
    return {one for members in held for one in members}
