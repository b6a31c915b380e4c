"""Splits: by patient, stratified, from a seed alone; one that leaks cannot be built or read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medform.cohort.split import Fold, Split, inner_folds, make_split, patient_order, stratified_share
from medform.cohort.split_file import read_own_split
from medform.errors import InputError


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[dict[str, float], int, int]:
    """Ids with labels 1, 0 or missing; a number of folds that fits; a seed."""
    folds = draw(st.integers(2, 6))
    ids = draw(st.sets(st.text("abc019-é ", min_size=1, max_size=6), min_size=folds, max_size=60))
    labels = draw(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=len(ids), max_size=len(ids)))
    return dict(zip(sorted(ids), labels, strict=True)), folds, draw(st.integers(0, 5))


def _stratum(label: float) -> str:
    return "missing" if np.isnan(label) else str(label)


@pytest.mark.proves("A3.4", "R32", "A.tests")
@settings(max_examples=60, deadline=None)
@given(cohorts())
def test_folds_are_disjoint_cover_everybody_and_are_stratified(
    cohort: tuple[dict[str, float], int, int],
) -> None:
    labels, k, seed = cohort
    split = make_split(labels, pd.Series(labels), k, 0.2, seed)
    tested = [one for fold in split.folds for one in fold.test]
    assert sorted(tested) == sorted(labels)
    for fold in split.folds:
        parts = [set(fold.train), set(fold.validation), set(fold.test)]
        assert set.union(*parts) == set(labels) and sum(map(len, parts)) == len(labels)
    sizes = [len(fold.test) for fold in split.folds]
    assert max(sizes) - min(sizes) <= 1
    for stratum in {_stratum(label) for label in labels.values()}:
        counts = [sum(_stratum(labels[one]) == stratum for one in fold.test) for fold in split.folds]
        assert max(counts) - min(counts) <= 1


@pytest.mark.proves("A3.4", "D33", "R49")
@settings(max_examples=30, deadline=None)
@given(cohorts(), st.randoms(use_true_random=False))
def test_order_of_ids_and_strata_leaves_no_trace(cohort: tuple[dict[str, float], int, int], shuffle) -> None:
    labels, k, seed = cohort
    shuffled = list(labels)
    shuffle.shuffle(shuffled)
    there = pd.Series(labels)
    assert make_split(labels, there, k, 0.2, seed) == make_split(shuffled, there.reindex(shuffled), k, 0.2, seed)
    folds = inner_folds(list(labels), list(labels.values()), 3, seed)
    assert folds == inner_folds(shuffled, [labels[one] for one in shuffled], 3, seed)
    share = stratified_share(list(labels), there, 0.7, seed)
    assert share == stratified_share(shuffled, there, 0.7, seed)


@pytest.mark.proves("A3.4")
@settings(max_examples=60, deadline=None)
@given(cohorts(), st.floats(0.0, 0.95))
def test_a_share_is_within_one_patient_of_exact_in_every_stratum(
    cohort: tuple[dict[str, float], int, int], share: float
) -> None:
    labels, _, seed = cohort
    drawn = set(stratified_share(list(labels), pd.Series(labels), share, seed))
    assert len(drawn) == int(np.floor(share * len(labels) + 0.5))
    for stratum in {_stratum(label) for label in labels.values()}:
        members = [one for one, label in labels.items() if _stratum(label) == stratum]
        assert abs(len(drawn & set(members)) - share * len(members)) <= 1 + 1e-9


@pytest.mark.proves("A3.4")
def test_ids_sorted_by_diagnosis_end_up_mixed() -> None:
    labels = pd.Series({f"P{number:03d}": float(number < 50) for number in range(100)})
    order = patient_order(labels.index, 7)
    place = {one: number for number, one in enumerate(order)}
    sick = np.mean([place[one] for one in labels.index if labels[one] == 1])
    assert abs(sick - 49.5) < 15  # 4 standard errors of the mean place of 50 of 100 are 11.5
    split = make_split(labels.index, labels, 5, 0.15, 7)
    assert all(labels[list(fold.test)].mean() == 0.5 for fold in split.folds)
    assert all(5 <= labels[list(fold.validation)].sum() <= 7 for fold in split.folds)


@pytest.mark.proves("A3.4", "R33")
def test_a_person_under_two_ids_stays_on_one_side() -> None:
    ids = [f"P{number}" for number in range(24)]
    groups = {"P0": "g", "P7": "g", "P19": "g", "P3": "h", "P4": "h"}
    for seed in range(20):
        for fold in make_split(ids, None, 4, 0.3, seed, groups=groups).folds:
            part = fold.part_of()
            assert len({part["P0"], part["P7"], part["P19"]}) == 1 and part["P3"] == part["P4"]


@pytest.mark.proves("R32")
def test_rows_of_one_patient_never_stand_on_both_sides_for_any_of_100_seeds() -> None:
    rows = [f"P{number // 10}" for number in range(40)]
    for seed in range(100):
        fold = make_split(rows, None, 2, 0.25, seed).folds[0]
        assert not set(fold.train) & set(fold.test) and len(set(fold.train + fold.validation + fold.test)) == 4


@pytest.mark.proves("A.tests", "R32", "A.input")
def test_a_poisoned_split_is_refused_at_construction_and_at_reading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"P2.*train and test"):
        Fold(("P1", "P2"), (), ("P2", "P3"))
    with pytest.raises(InputError, match=r"P1.*tested in fold 0 and 1"):
        Split("main", (Fold(("P2",), (), ("P1",)), Fold(("P3",), (), ("P1",))))
    good = make_split([f"P{number}" for number in range(6)], None, 2, 0.2, 0)
    assert Split.from_json(good.to_json()) == good
    poisoned = good.to_json().replace(good.folds[0].train[0], good.folds[0].test[0], 1)
    path = tmp_path / "split.json"
    path.write_text(poisoned)
    with pytest.raises(InputError, match="train and"):
        Split.read(path)
    path.write_text(good.to_json().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(InputError, match="schema version 2"):
        Split.read(path)


@pytest.mark.proves("A.input", "A3.4")
def test_an_own_split_from_csv_is_read_or_refused_with_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("patient_id,fold,part\na,0,train\nb,0,test\nc,0,validation\nb,1,train\na,1,test\n")
    split = read_own_split(path, "main", ["a", "b", "c", "d"])
    assert split.folds == (Fold(("a",), ("c",), ("b",)), Fold(("b",), (), ("a",)))
    path.write_text("patient_id,fold,part\na,0,training\nb,one,test\nc,0,train\n")
    with pytest.raises(InputError) as caught:
        read_own_split(path, "main", ["a", "b", "c"])
    assert "row 2, column 'part': 'training'" in str(caught.value) and "row 3, column 'fold'" in str(caught.value)
    path.write_bytes("patient_id;fold;part\nMüller;0;train\nb;0;test\n".encode("cp1252"))
    assert read_own_split(path, "main", ["Müller", "b"]).folds == (Fold(("Müller",), (), ("b",)),)
    path.write_text("patient_id,fold,part\nP01,0,train\nP2,0,test\n")
    with pytest.raises(InputError, match="Did you mean 'P001'"):
        read_own_split(path, "main", ["P001", "P2"])


@pytest.mark.proves("R53", "A.input")
@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_fewer_patients_than_folds_say_what_would_work(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} patients cannot be divided into 5 folds") as caught:
        make_split([f"P{number}" for number in range(count)], None, 5)
    assert (f"splits.folds: {count}" in str(caught.value)) == (count >= 2)


def test_a_rare_class_is_not_lost_to_rounding() -> None:
    labels = pd.Series({f"P{number}": float(number < 3) for number in range(20)})
    for seed in range(10):
        drawn = stratified_share(list(labels.index), labels, 0.15, seed)
        assert len(drawn) == 3 and labels[drawn].sum() == 1


def test_declared_groups_stay_together_and_validation_still_has_its_share() -> None:
    """Families of five: no more than one member each is drawn by patient, so that groups have to be drawn."""
    ids = [f"P{number:03d}" for number in range(200)]
    labels = pd.Series({one: float(number // 5 % 2) for number, one in enumerate(ids)})
    groups = {one: f"family {number // 5}" for number, one in enumerate(ids)}
    for seed in range(5):
        split = make_split(ids, labels, 5, 0.15, seed, groups=groups, draw_groups=True)
        assert sorted(one for fold in split.folds for one in fold.test) == ids
        for fold in split.folds:
            part = fold.part_of()
            assert all(len({part[one] for one in ids[at : at + 5]}) == 1 for at in range(0, 200, 5))
            assert 15 <= len(fold.validation) <= 30 and set(labels[list(fold.validation)]) == {0.0, 1.0}
            assert len(fold.test) == 40 and labels[list(fold.test)].mean() == 0.5
    with pytest.raises(InputError, match="40 groups of patients cannot be divided into 41 folds"):
        make_split(ids, None, 41, groups=groups, draw_groups=True)
    few = make_split(ids[:10], None, 2, 0.9, 0, groups=groups, draw_groups=True)
    assert all(fold.train and not fold.validation for fold in few.folds)
    assert not any(fold.validation for fold in make_split(ids, None, 2, 0.0, 0, groups=groups, draw_groups=True).folds)
