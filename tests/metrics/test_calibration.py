"""Platt scaling against its objective solved independently; thresholds against all of them."""

from __future__ import annotations

import numpy as np
import pytest
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
