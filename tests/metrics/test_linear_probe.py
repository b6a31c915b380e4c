"""The batched readouts against scikit-learn at a tolerance where both are exact, and against plain loops."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from medform.metrics.linear_probe import (
    centroid_scores,
    fit_logistic,
    fit_scaler,
    logistic_scores,
    solve_dual,
    solve_primal,
)


def reference(x: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-8, solver="newton-cholesky", max_iter=1000).fit(x, y)


def rows(random: np.random.Generator, n: int, d: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    y = (np.arange(n) % 2).astype(float)
    x = random.normal(size=(n, d)) + gap * y[:, None]
    return fit_scaler(x, "norm").transform(x), y


@pytest.mark.proves("A6.2", "D39")
@pytest.mark.parametrize(("n", "d"), [(60, 5), (20, 300), (30, 30), (4, 100), (2, 3)])
@pytest.mark.parametrize("gap", [0.3, 8.0], ids=["overlapping", "separable"])
@pytest.mark.parametrize("c", [0.01, 1.0, 30.0, 1000.0])
def test_one_fit_equals_scikit_learn(n: int, d: int, gap: float, c: float, random: np.random.Generator) -> None:
    x, y = rows(random, n, d, gap)
    new = random.normal(size=(5, d))
    fitted, expected = fit_logistic(x, y, c), reference(x, y, c)
    np.testing.assert_allclose(fitted.decision(new), expected.decision_function(new), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fitted.probability(new), expected.predict_proba(new)[:, 1], atol=1e-6)


def test_lbfgs_of_scikit_learn_agrees_too(random: np.random.Generator) -> None:
    x, y = rows(random, 40, 6, 0.5)
    expected = LogisticRegression(C=30, tol=1e-8, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(fit_logistic(x, y, 30).decision(x), expected.decision_function(x), atol=1e-4)


@pytest.mark.proves("A6.2")
@pytest.mark.parametrize("d", [4, 64], ids=["primal", "dual"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_many_draws_at_once_equal_a_loop_of_scikit_learn(d: int, k: int, random: np.random.Generator) -> None:
    pool, y = rows(random, 40, d, 0.4)
    queries = random.normal(size=(7, d))
    negative, positive = np.flatnonzero(y == 0), np.flatnonzero(y == 1)
    supports = np.stack(
        [np.r_[random.choice(negative, k, False), random.choice(positive, k, False)] for _ in range(12)]
    )
    scores = logistic_scores(pool, queries, supports, y[supports], 30.0)
    for draw, chosen in enumerate(supports):
        expected = reference(pool[chosen], y[chosen], 30.0).decision_function(queries)
        np.testing.assert_allclose(scores[draw], expected, rtol=1e-5, atol=1e-5)


def test_a_fit_does_not_depend_on_the_others_of_its_batch(random: np.random.Generator) -> None:
    pool, y = rows(random, 30, 50, 1.0)
    supports = np.stack([np.r_[random.choice(15, 4, False) * 2, random.choice(15, 4, False) * 2 + 1] for _ in range(6)])
    together = logistic_scores(pool, pool, supports, y[supports], 30.0)
    alone = logistic_scores(pool, pool, supports[3:4], y[supports[3:4]], 30.0)
    np.testing.assert_allclose(together[3:4], alone, rtol=1e-13)  # the last bit is the BLAS


def test_shared_rows_with_many_labellings_equal_separate_fits(random: np.random.Generator) -> None:
    for d in (5, 80):
        pool, y = rows(random, 30, d, 0.5)
        labels = np.stack([random.permutation(y) for _ in range(5)])
        scores = logistic_scores(pool, pool, np.arange(30)[None], labels, 30.0)
        for row, labelling in zip(scores, labels, strict=True):
            np.testing.assert_allclose(row, fit_logistic(pool, labelling, 30.0).decision(pool), atol=1e-7)


@given(
    n=st.integers(2, 14),
    d=st.integers(1, 30),
    seed=st.integers(0, 10_000),
    c=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    size=st.sampled_from([1e-4, 1.0, 50.0]),
)
@settings(max_examples=60, deadline=None)
def test_primal_and_dual_are_one_optimum(n: int, d: int, seed: int, c: float, size: float) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(-2, 3, size=(n, d)) * size  # repeated and collinear rows on purpose
    y = np.r_[0.0, 1.0, random.integers(0, 2, n - 2)]
    weight, bias = solve_primal(x[None].astype(float), y[None], c)
    decision = x @ weight[0] + bias[0]
    probability = expit(decision)
    scale = c * max(1.0, float(np.abs(x).max())) * n
    np.testing.assert_allclose(weight[0] + c * x.T @ (probability - y), 0, atol=1e-7 * scale)
    assert abs(c * (probability - y).sum()) < 1e-7 * scale
    if d <= n:
        return  # readouts take the primal here; a kernel of rank below n with c size^2 of 1e7 is beyond float64
    coefficients, dual_bias = solve_dual((x @ x.T)[None].astype(float), y[None], c)
    np.testing.assert_allclose(coefficients[0] @ x @ x.T + dual_bias[0], decision, rtol=1e-4, atol=1e-4)


def test_far_from_the_optimum_newton_is_damped() -> None:
    """One far row on the wrong side sends an undamped Newton step to infinity."""
    x = np.array([[1.0], [1.1], [-1.0], [-1.2], [400.0]])
    y = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit_logistic(x, y, 1e4)
    expected = LogisticRegression(C=1e4, tol=1e-10, max_iter=100_000).fit(x, y)
    np.testing.assert_allclose(fitted.decision(x), expected.decision_function(x), rtol=1e-3)


def test_nearest_class_mean_equals_scikit_learn(random: np.random.Generator) -> None:
    pool, y = rows(random, 20, 6, 0.7)
    queries = random.normal(size=(9, 6))
    supports = np.stack([np.r_[0, 2, 4, 1, 3, 5], np.r_[6, 8, 10, 7, 9, 11]])
    scores = centroid_scores(pool, queries, supports, y[supports])
    for row, chosen in zip(scores, supports, strict=True):
        expected = NearestCentroid().fit(pool[chosen], y[chosen]).predict(queries)
        np.testing.assert_array_equal(row > 0, expected == 1)
        means = [pool[chosen][y[chosen] == label].mean(0) for label in (0, 1)]
        distance = [((queries - mean) ** 2).sum(1) for mean in means]
        np.testing.assert_allclose(row, (distance[0] - distance[1]) / (pool**2).sum(1).mean(), atol=1e-10)
    assert not centroid_scores(0 * pool, 0 * queries, supports, y[supports]).any()


def test_class_means_rank_alike_however_many_columns_there_are(random: np.random.Generator) -> None:
    """Probabilities are stored as float32: without a unit the far half of the queries would tie at 1."""
    pool, y = rows(random, 40, 200, 1.0)
    scores = centroid_scores(pool, 3 * pool, np.arange(40)[None], y[None])[0]
    assert len(np.unique(expit(scores).astype(np.float32))) == 40


@pytest.mark.proves("R50", "D39")
@pytest.mark.parametrize(
    ("y", "said"),
    [([1.0, 1.0, 1.0], "both classes"), ([0.0, 1.0, 2.0], "0 or 1"), ([0.0, 1.0, np.nan], "0 or 1")],
)
def test_labels_that_cannot_be_fitted_are_refused(y: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_logistic(np.eye(3), y, 1.0)
    with pytest.raises(ValueError, match="not finite"):
        fit_logistic(np.full((3, 2), np.inf), [0.0, 1.0, 1.0], 1.0)


def test_scalers_do_what_their_names_say(random: np.random.Generator) -> None:
    x = random.normal(size=(30, 4)) * [1, 10, 100, 0] + [5, 5, 5, 1e6]
    scaled = fit_scaler(x, "norm").transform(x)
    assert (scaled**2).sum(1).mean() == pytest.approx(1)
    columns = fit_scaler(x, "columns").transform(x)
    np.testing.assert_allclose(columns.std(0), [1, 1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(columns.mean(0), 0, atol=1e-9)
