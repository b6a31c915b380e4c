"""The detectable difference against simulation and its own definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from medform.metrics.power import auroc_variance, detectable_difference, detectable_from_error


def test_variance_is_hanley_and_mcneils() -> None:
    """Their table for AUROC 0.893, 51 diseased and 58 normal: standard error about 0.032."""
    assert np.sqrt(auroc_variance(0.893, 51, 58)) == pytest.approx(0.032, abs=0.001)


@pytest.mark.proves("A6.3")
def test_detectable_difference_solves_its_equation_and_shrinks_with_n_and_pairing() -> None:
    found = detectable_difference(30, 46, correlation=0.5, auroc=0.7)
    assert found is not None and 0.10 < found < 0.25
    first, second = auroc_variance(0.7, 30, 46), auroc_variance(0.7 + found, 30, 46)
    error = np.sqrt(first + second - np.sqrt(first * second))
    assert found == pytest.approx(detectable_from_error(error), abs=1e-6)
    more, closer = detectable_difference(300, 460), detectable_difference(30, 46, correlation=0.8)
    assert more is not None and closer is not None and more < 0.06 and closer < found
    assert detectable_from_error(0.05) == pytest.approx(0.05 * (1.959964 + 0.841621), rel=1e-5)


@pytest.mark.proves("A6.3", "R50")
def test_too_few_patients_can_show_nothing() -> None:
    assert detectable_difference(2, 5) is None
    assert detectable_difference(0, 50) is None


@pytest.mark.proves("A6.3")
def test_four_of_five_cohorts_show_the_detectable_difference() -> None:
    """Two binormal models whose scores are correlated; a paired DeLong test finds the difference in 80 % of
    cohorts.
    """
    from medform.metrics.bootstrap import paired_auroc, resample
    from medform.metrics.ranking import stratified_auroc

    random = np.random.default_rng(0)
    positives, negatives, within = 60, 90, 0.5
    # the correlation of two AUROCs is a little below that of their scores
    size = detectable_difference(positives, negatives, correlation=0.47, auroc=0.7)
    assert size is not None
    gaps = [np.sqrt(2) * norm.ppf(value) for value in (0.7, 0.7 + size)]
    y = np.r_[np.ones(positives), np.zeros(negatives)]
    found = 0
    for number in range(400):
        noise = random.multivariate_normal([0, 0], [[1, within], [within, 1]], len(y))
        first, second = (stratified_auroc(y, noise[:, k] + gaps[k] * y, np.zeros(len(y))) for k in (0, 1))
        paired = paired_auroc(second, first, resample(positives, negatives, 400, number))
        assert paired is not None
        found += paired.p_value is not None and paired.p_value < 0.05
    assert 0.72 <= found / 400 <= 0.88
