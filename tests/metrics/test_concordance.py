"""Harrell's and Uno's C: by hand, against lifelines and torchsurv, within folds, under resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medform.metrics.bootstrap import quadratic_resamples, resample_counts
from medform.metrics.concordance import (
    censoring_survival,
    harrell_c,
    harrell_pairs,
    mean_pairs,
    uno_c,
    uno_pairs,
)

Patients = tuple[np.ndarray, np.ndarray, np.ndarray]


def patients(seed: int, n: int = 40, tied: bool = False) -> Patients:
    random = np.random.default_rng(seed)
    risk = random.normal(size=n)
    death, leaving = random.exponential(np.exp(-risk)), random.exponential(1.5, n)
    time = np.minimum(death, leaving)
    if tied:
        time, risk = np.ceil(time * 4), np.round(risk)
    return time, (death <= leaving).astype(float), risk


@pytest.mark.proves("G6.3")
def test_four_patients_by_hand() -> None:
    time, event, risk = [1, 2, 3, 4], [1, 0, 1, 0], [4, 3, 1, 2]
    # pairs: 1 before 2, 3 and 4 (all right), 3 before 4 (wrong); nobody is known to come after 2
    assert harrell_c(time, event, risk) == pytest.approx(3 / 4)
    # G is 1 until 2, then 2/3: the pair (3, 4) counts (3/2)^2 times
    assert uno_c(time, event, risk) == pytest.approx(3 / (3 + 9 / 4))
    assert uno_c(time, event, risk, limit=3) == 1.0
    assert harrell_c(time, event, [1, 1, 1, 1]) == 0.5


def test_ties_of_time_and_risk() -> None:
    assert harrell_c([2, 2], [1, 1], [1, 0]) is None, "two events at one time have no order"
    assert harrell_c([2, 2], [1, 0], [1, 0]) == 1.0, "who left at the time of the event outlived it"
    assert harrell_c([1, 2], [1, 0], [5, 5]) == 0.5
    assert harrell_c([], [], []) is None and uno_c([1, 2], [0, 0], [1, 2]) is None


@pytest.mark.proves("G6.3")
@pytest.mark.parametrize("tied", [False, True])
def test_harrell_equals_torchsurv_and_a_loop_over_pairs(tied: bool) -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("torchsurv.metrics.cindex")
    for seed in range(4):
        time, event, risk = patients(seed, tied=tied)
        right = total = 0.0
        for i in range(len(time)):
            for j in range(len(time)):
                if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                    total += 1
                    right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
        assert harrell_c(time, event, risk) == pytest.approx(right / total)
        theirs = metrics.ConcordanceIndex()(torch.tensor(risk), torch.tensor(event).bool(), torch.tensor(time))
        assert harrell_c(time, event, risk) == pytest.approx(theirs.item(), abs=1e-5)


@pytest.mark.proves("G6.3")
def test_uno_equals_torchsurv() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("torchsurv.metrics.cindex")
    ipcw = pytest.importorskip("torchsurv.stats.ipcw")
    for seed in range(4):
        time, event, risk = patients(seed)
        times, events, risks = torch.tensor(time), torch.tensor(event).bool(), torch.tensor(risk)
        weight = ipcw.get_ipcw(events, times).double()
        for limit in (None, float(np.quantile(time, 0.8))):
            tmax = None if limit is None else torch.tensor(limit, dtype=torch.float64)
            theirs = metrics.ConcordanceIndex()(risks, events, times, weight=weight, tmax=tmax).item()
            assert uno_c(time, event, risk, limit=limit) == pytest.approx(theirs, abs=1e-5)


def test_the_chance_of_staying_falls_at_each_patient_who_left() -> None:
    # one of 5 leaves at 1, one of the 2 who are still there at 3 (the event at 3 comes first), nobody after
    chance = censoring_survival([1, 2, 3, 3, 4], [0, 1, 0, 1, 1], [0.5, 1, 2, 3, 9])
    assert chance == pytest.approx([1, 4 / 5, 4 / 5, 4 / 5 * 1 / 2, 4 / 5 * 1 / 2])


@pytest.mark.proves("G6.3")
@given(st.integers(0, 1000))
def test_only_patients_of_one_fold_are_compared(seed: int) -> None:
    time, event, risk = patients(seed, 24)
    fold = np.arange(24) % 3
    pairs = harrell_pairs(time, event, risk, fold)
    parts = [harrell_pairs(time[fold == k], event[fold == k], risk[fold == k]) for k in range(3)]
    assert pairs.value == pytest.approx(sum(p.right.sum() for p in parts) / sum(p.weight.sum() for p in parts))
    shifted = harrell_pairs(time, event, risk + 100 * fold, fold)
    assert shifted.value == pairs.value, "the scale of a fold's risks does not matter"
    assert uno_c(time, event, risk, fold) == pytest.approx(uno_c(time, event, np.exp(risk), fold))


def test_a_resample_is_the_figure_of_the_patients_drawn() -> None:
    time, event, risk = patients(1, 20)
    pairs = harrell_pairs(time, event, risk)
    counts = resample_counts(20, 50, np.random.default_rng(0))
    values = quadratic_resamples(pairs.right, pairs.weight, counts)
    for row, value in zip(counts, values, strict=True):
        drawn = np.repeat(np.arange(20), row.astype(int))
        assert value == pytest.approx(harrell_c(time[drawn], event[drawn], risk[drawn]))


def test_several_seeds_count_by_their_mean() -> None:
    time, event, risk = patients(1, 20)
    both = [uno_pairs(time, event, one) for one in (risk, -risk)]
    assert mean_pairs(both).value == pytest.approx(0.5)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        harrell_c([1, 2], [1, 0], [0, np.nan])
    with pytest.raises(ValueError, match="0 or 1"):
        harrell_c([1, 2], [1, 2], [0, 1])
    with pytest.raises(ValueError, match="alike"):
        uno_c([1, 2, 3], [1, 0], [0, 1])
