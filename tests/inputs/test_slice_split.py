"""The leak on purpose: as many slices of either kind as before, half of each test series among them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medform.inputs.slice_split import SliceSplit, split_by_slice

Slices = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@st.composite
def cohorts(draw: st.DrawFn) -> Slices:
    """Slices by part (0: training, 1: validation, 2: test), which show a lesion, and series, in any mixture."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    parts = draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    series, part = np.repeat(np.arange(len(sizes)), sizes), np.repeat(parts, sizes)
    lesion = np.array(draw(st.lists(st.booleans(), min_size=len(series), max_size=len(series))))
    return np.flatnonzero(part == 0), np.flatnonzero(part == 2), lesion, series


def halves(split: SliceSplit, test: np.ndarray, series: np.ndarray, kind: np.ndarray) -> dict[int, tuple[int, int]]:
    """Test series -> how many of its slices of a kind are learnt from, and how many there are."""
    theirs = test[kind[test]]
    return {
        int(one): (int(np.isin(split.train, theirs[series[theirs] == one]).sum()), int((series[theirs] == one).sum()))
        for one in np.unique(series[theirs])
    }


@pytest.mark.proves("G5")
@given(cohorts(), st.integers(0, 5))
def test_as_many_slices_of_either_kind_are_learnt_from_and_none_of_them_is_judged(slices: Slices, seed: int) -> None:
    train, test, lesion, series = slices
    split = split_by_slice(train, test, lesion, series, seed)
    assert len(split.train) == len(np.unique(split.train)) == len(train)
    assert lesion[split.train].sum() == lesion[train].sum(), "as many with lesion"
    assert not np.isin(split.train, split.unseen).any()
    assert np.isin(split.train, np.union1d(train, test)).all(), "nobody else's slices, hence none of validation"
    assert np.array_equal(np.union1d(split.unseen, np.intersect1d(split.train, test)), test)
    for kind in (lesion, ~lesion):
        assert all(seen <= count // 2 for seen, count in halves(split, test, series, kind).values())
    again = split_by_slice(train, test, lesion, series, seed)
    assert np.array_equal(again.train, split.train)
    assert np.array_equal(again.unseen, split.unseen)


@pytest.mark.proves("G5")
def test_with_slices_enough_every_test_series_gives_half_of_its_lesion_and_of_its_other_slices() -> None:
    series = np.repeat(np.arange(12), 11)
    lesion = np.tile(np.arange(11) < 5, 12)
    train, test = np.flatnonzero(series < 8), np.flatnonzero(series >= 10)
    split = split_by_slice(train, test, lesion, series, 0)
    assert set(halves(split, test, series, lesion).values()) == {(2, 5)}
    assert set(halves(split, test, series, ~lesion).values()) == {(3, 6)}
    other = split_by_slice(train, test, lesion, series, 1)
    assert not np.array_equal(other.unseen, split.unseen), "another seed, other halves"
