"""Platt scaling against its objective solved independently; thresholds against all of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from medform.metrics.calibration import best_threshold, fit_calibrator


def test_platt_scaling_equals_weighted_logistic_regression(random: np.random.Generator) -> None:
    """A smoothed target t is a row of label 1 with weight t and one of label 0 with weight 1 - t."""
    y = random.integers(0, 2, 40)
    score = 50 * (random.normal(size=40) + y)
    found = fit_calibrator(y, score)
    assert found is not None
    target = np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))
    reference = LogisticRegression(C=1e10, tol=1e-10, solver="newton-cholesky").fit(
        np.r_[score, score][:, None], np.r_[np.ones(40), np.zeros(40)], np.r_[target, 1 - target]
    )
    np.testing.assert_allclose(found.probability(score), reference.predict_proba(score[:, None])[:, 1], atol=1e-5)


def test_separated_scores_keep_a_finite_slope() -> None:
    found = fit_calibrator([0, 0, 0, 1, 1, 1], [-3, -2, -1, 1, 2, 3])
    assert found is not None and 0 < found.slope < 10
    assert 0.5 < found.probability([3.0])[0] < 1


def test_scores_against_the_label_give_the_prevalence_and_never_turn_the_order_round(
    random: np.random.Generator,
) -> None:
    """In closed form, and as an optimiser finds it that may not take a negative slope."""
    y = np.r_[np.ones(7), np.zeros(13)]
    score = random.normal(size=20) - 2 * y
    found = fit_calibrator(y, score)
    assert found is not None and found.slope == 0 and not found.follows
    mean = (7 * 8 / 9 + 13 / 15) / 20  # of the targets (n1 + 1) / (n1 + 2) and 1 / (n0 + 2)
    np.testing.assert_allclose(found.probability(score), mean, rtol=1e-12)
    target = np.where(y == 1, 8 / 9, 1 / 15)

    def loss(parameters: np.ndarray) -> float:
        f = parameters[0] * score + parameters[1]
        return float((np.logaddexp(0, f) - target * f).sum())

    best = minimize(loss, [0.5, 0.0], method="L-BFGS-B", bounds=[(0, None), (None, None)])
    assert best.x[0] == pytest.approx(0, abs=1e-6) and best.x[1] == pytest.approx(found.offset, abs=1e-4)
    turned = fit_calibrator(y, -score)
    assert turned is not None and turned.follows and (np.diff(turned.probability(np.sort(-score))) > 0).all()


@pytest.mark.parametrize("score", [0.0, 3.0, -2.0])
def test_scores_that_are_all_the_same_give_the_prevalence(score: float) -> None:
    found = fit_calibrator([1, 0, 0, 0], [score] * 4)
    assert found is not None and (found.slope, found.follows) == (0, False)
    assert found.probability([score])[0] == pytest.approx((2 / 3 + 3 / 5) / 4)


@pytest.mark.proves("R50")
def test_one_class_has_neither_calibrator_nor_threshold() -> None:
    assert fit_calibrator([1, 1], [0.1, 0.2]) is None
    assert best_threshold([0, 0], [0.1, 0.2]) is None


def test_threshold_is_the_best_of_all(random: np.random.Generator) -> None:
    y = random.integers(0, 2, 30)
    probability = np.round(random.random(30) * 0.6 + 0.3 * y, 1)
    found = best_threshold(y, probability)
    assert found is not None
    mine = balanced_accuracy_score(y, probability >= found)
    every = [balanced_accuracy_score(y, probability >= one) for one in np.linspace(0, 1, 201)]
    assert mine == pytest.approx(max(every))
