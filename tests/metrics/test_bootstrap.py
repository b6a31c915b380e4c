"""Intervals against slow twins, textbook formulas, published values, and (soak) how often they cover."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from medform.metrics.bootstrap import (
    auroc_interval,
    auroc_resamples,
    delong_covariance,
    newcombe_interval,
    paired_auroc,
    percentile_interval,
    quadratic_resamples,
    resample,
    resample_counts,
    sign_p_value,
    weighted_medians,
)
from medform.metrics.ranking import Concordance, concordance, stratified_auroc


def cohort(random: np.random.Generator, positives: int, negatives: int, gap: float, folds: int) -> tuple:
    y = np.r_[np.ones(positives), np.zeros(negatives)]
    fold = np.concatenate([random.permutation(np.arange(size) % folds) for size in (positives, negatives)])
    shift = random.normal(size=folds)
    score = np.round(random.normal(size=len(y)) + gap * y + shift[fold], 1)  # rounded: with ties
    return y, score, fold


def slow_stratified(y: np.ndarray, score: np.ndarray, fold: np.ndarray) -> float:
    top = bottom = 0.0
    for i in np.flatnonzero(y == 1):
        for j in np.flatnonzero(y == 0):
            if fold[i] == fold[j]:
                top += 1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0
                bottom += 1
    return top / bottom if bottom else np.nan


@pytest.mark.proves("A.tests", "A6.1")
@pytest.mark.parametrize("folds", [1, 4])
def test_kernel_and_matrix_product_equal_a_loop_over_the_same_resamples(
    folds: int, random: np.random.Generator
) -> None:
    y, score, fold = cohort(random, 7, 9, 0.8, folds)
    counts = resample(7, 9, 25, 3)
    scores = stratified_auroc(y, score, fold)
    fast = auroc_resamples(scores, counts)
    np.testing.assert_allclose(fast, auroc_resamples(replace(scores, ranking=None), counts), rtol=1e-12)
    for draw in range(25):
        times = np.r_[counts.positive[draw], counts.negative[draw]].astype(int)
        chosen = np.repeat(np.arange(16), times)
        assert fast[draw] == pytest.approx(slow_stratified(y[chosen], score[chosen], fold[chosen]), nan_ok=True)
        if folds == 1:
            assert fast[draw] == pytest.approx(roc_auc_score(y[chosen], score[chosen]))


def test_resamples_keep_the_number_of_each_class_and_come_again_from_their_seed() -> None:
    first, second = resample(6, 11, 500, 1), resample(6, 11, 500, 1)
    np.testing.assert_array_equal(first.positive, second.positive)
    assert (first.positive.sum(1) == 6).all() and (first.negative.sum(1) == 11).all()
    assert not np.array_equal(first.positive, resample(6, 11, 500, 2).positive)
    np.testing.assert_allclose(first.positive.mean(0), 1, atol=0.2)
    assert resample_counts(0, 4, np.random.default_rng(0)).shape == (4, 0)


def slow_delong(first: np.ndarray, second: np.ndarray) -> float:
    """Covariance by the structural components of DeLong et al., written out."""
    positives, negatives = first.shape
    sums = [0.0, 0.0]
    for i in range(positives):
        v10 = [sum(c[i][j] for j in range(negatives)) / negatives for c in (first, second)]
        sums[0] += (v10[0] - first.mean()) * (v10[1] - second.mean())
    for j in range(negatives):
        v01 = [sum(c[i][j] for i in range(positives)) / positives for c in (first, second)]
        sums[1] += (v01[0] - first.mean()) * (v01[1] - second.mean())
    return sums[0] / (positives - 1) / positives + sums[1] / (negatives - 1) / negatives


@pytest.mark.proves("A.tests")
def test_delong_equals_a_slow_one(random: np.random.Generator) -> None:
    scores = [concordance(np.round(random.normal(1, 1, 8), 1), np.round(random.normal(0, 1, 11), 1)) for _ in "ab"]
    first, second = (Concordance(matrix, np.ones_like(matrix)) for matrix in scores)
    assert delong_covariance(first, second) == pytest.approx(slow_delong(*scores), rel=1e-12)
    assert delong_covariance(first, first) == pytest.approx(slow_delong(scores[0], scores[0]), rel=1e-12)


def test_stratified_delong_is_close_to_the_bootstrap(random: np.random.Generator) -> None:
    scores = stratified_auroc(*cohort(random, 60, 80, 1.0, 5))
    variance = delong_covariance(scores, scores)
    assert variance is not None
    drawn = auroc_resamples(scores, resample(60, 80, 4000, 0)).std()
    assert np.sqrt(variance) == pytest.approx(drawn, rel=0.1)


@pytest.mark.proves("A6.1")
def test_newcombe_gives_the_published_interval() -> None:
    found = newcombe_interval(1.0, np.ones((10, 10)))
    assert (round(found.low, 2), found.high) == (0.80, 1.0)
    mirrored = newcombe_interval(0.0, np.ones((10, 10)))
    assert (mirrored.low, mirrored.high) == (0.0, pytest.approx(1 - found.low))
    inside = newcombe_interval(0.7, np.ones((12, 20)))
    for limit in (inside.low, inside.high):  # the defining equation of a score interval
        mean = 15.0
        spread = 1 + mean * (1 - limit) / (2 - limit) + mean * limit / (1 + limit)
        variance = limit * (1 - limit) * spread / 240
        assert abs(limit - 0.7) == pytest.approx(norm.ppf(0.975) * np.sqrt(variance), rel=1e-6)


@pytest.mark.proves("A6.1")
def test_newcombe_counts_the_pairs_that_folds_leave() -> None:
    """One pair a fold is a proportion, whose score interval is Wilson's; fewer pairs never make it narrower."""
    z = norm.ppf(0.975)
    found = newcombe_interval(1.0, np.eye(5))
    assert (found.low, found.high) == (pytest.approx(5 / (5 + z**2)), 1.0)
    folds = np.kron(np.eye(5), np.ones((2, 2)))
    lonely = np.hstack([folds, np.zeros((10, 8))])  # negatives of folds without a positive are in no pair
    lows = [newcombe_interval(1.0, pairs).low for pairs in (np.ones((10, 10)), folds, np.eye(10))]
    assert lows == sorted(lows, reverse=True) and newcombe_interval(1.0, lonely).low == lows[1]


@pytest.mark.proves("A6.1")
def test_each_case_gets_the_interval_that_is_meant_for_it(random: np.random.Generator) -> None:
    y, score, fold = cohort(random, 20, 30, 0.7, 5)
    common = stratified_auroc(y, score, fold)
    found = auroc_interval(common, resample(20, 30, 2000, 0))
    assert found is not None and found.method == "bootstrap"
    assert common.value is not None and found.low < common.value < found.high
    few = stratified_auroc([1, 1, 1, 0, 0, 0, 0, 0], [3, 1, 5, 0, 2, 4, 1, 0], np.zeros(8))
    rare = auroc_interval(few, resample(3, 5, 100, 0))
    assert rare is not None and rare.method == "delong_logit" and 0 < rare.low < rare.high < 1
    perfect = stratified_auroc(y, y, fold)
    extreme = auroc_interval(perfect, resample(20, 30, 100, 0))
    assert extreme is not None and extreme.method == "newcombe" and extreme.low < 1
    single = stratified_auroc([1, 0, 0], [1.0, 0.0, 2.0], np.zeros(3))
    alone = auroc_interval(single, resample(1, 2, 100, 0))
    assert alone is not None and alone.method == "newcombe"
    assert auroc_interval(stratified_auroc([1, 1], [0, 1], [0, 0]), resample(2, 0, 100, 0)) is None


def test_paired_difference_uses_the_same_patients_for_both(random: np.random.Generator) -> None:
    y, score, fold = cohort(random, 30, 30, 1.0, 5)
    first = stratified_auroc(y, score + 0.5 * y, fold)
    second = stratified_auroc(y, score, fold)
    counts = resample(30, 30, 2000, 0)
    found = paired_auroc(first, second, counts)
    assert found is not None and found.interval is not None and found.p_value is not None
    assert first.value is not None and second.value is not None
    assert found.value == pytest.approx(first.value - second.value)
    drawn = auroc_resamples(first, counts) - auroc_resamples(second, counts)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    unpaired = auroc_resamples(first, counts) - auroc_resamples(second, resample(30, 30, 2000, 9))
    assert drawn.std() < 0.6 * unpaired.std()  # a pairing that were lost would show here
    same = paired_auroc(first, first, counts)
    assert same is not None and same.value == 0 and same.interval is None and same.p_value is None
    few = paired_auroc(
        stratified_auroc([1, 1, 1, 0, 0, 0, 0], [3, 1, 5, 0, 2, 4, 1], np.zeros(7)),
        stratified_auroc([1, 1, 1, 0, 0, 0, 0], [0, 1, 2, 0, 2, 4, 1], np.zeros(7)),
        resample(3, 4, 100, 0),
    )
    assert few is not None and few.interval is not None and few.interval.method == "delong"


def test_p_value_counts_the_smaller_side() -> None:
    assert sign_p_value([1.0] * 97 + [-1.0] * 2) == pytest.approx(2 * 3 / 100)
    assert sign_p_value([0.0, 0.0]) == 1.0
    assert sign_p_value([np.nan]) is None
    assert percentile_interval([np.nan]) is None


def test_slices_are_resampled_by_patient(random: np.random.Generator) -> None:
    """The quadratic form over patients equals an AUROC over the slices of the resampled patients."""
    patient = np.repeat(np.arange(6), 4)
    y = random.integers(0, 2, 24)
    score = np.round(random.normal(size=24), 1)
    pairs = np.zeros((6, 6))
    top = np.zeros((6, 6))
    for i in np.flatnonzero(y == 1):
        for j in np.flatnonzero(y == 0):
            pairs[patient[i], patient[j]] += 1
            top[patient[i], patient[j]] += (score[i] > score[j]) + 0.5 * (score[i] == score[j])
    counts = resample_counts(6, 20, random)
    fast = quadratic_resamples(top, pairs, counts)
    for draw in range(20):
        weight = counts[draw][patient]
        assert fast[draw] == pytest.approx(roc_auc_score(y, score, sample_weight=weight))


@pytest.mark.soak
@pytest.mark.proves("A6.1")
@pytest.mark.parametrize("gap", [0.3, 0.8])
def test_intervals_cover_the_truth(gap: float) -> None:
    """30 + 46 patients in five folds whose scores lie on five scales; the truth is the binormal AUROC."""
    random = np.random.default_rng(0)
    truth = norm.cdf(gap / np.sqrt(2))
    covered = 0
    for number in range(3000):
        y = np.r_[np.ones(30), np.zeros(46)]
        fold = np.concatenate([random.permutation(np.arange(size) % 5) for size in (30, 46)])
        score = random.normal(size=76) + gap * y + 3 * random.normal(size=5)[fold]
        found = auroc_interval(stratified_auroc(y, score, fold), resample(30, 46, 500, number))
        assert found is not None
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 3000 <= 0.97


def test_paired_test_keeps_its_level() -> None:
    random = np.random.default_rng(1)
    y = np.r_[np.ones(30), np.zeros(46)]
    rejected = 0
    for number in range(600):
        fold = np.concatenate([random.permutation(np.arange(size) % 5) for size in (30, 46)])
        shared = random.normal(size=76) + 0.8 * y
        first, second = (stratified_auroc(y, shared + random.normal(size=76), fold) for _ in "ab")
        found = paired_auroc(first, second, resample(30, 46, 500, number))
        assert found is not None and found.p_value is not None
        rejected += found.p_value < 0.05
    assert rejected / 600 <= 0.08


def test_a_patient_drawn_twice_counts_twice_in_the_median() -> None:
    values = np.array([3.0, 1.0, 2.0, 9.0])
    counts = np.array([[1, 1, 1, 1], [2, 0, 0, 2], [0, 3, 1, 0], [1, 1, 1, 0]], dtype=float)
    expected = [np.median(np.repeat(values, row.astype(int))) for row in counts]
    np.testing.assert_allclose(weighted_medians(values, counts), expected)
