"""The drawn curve is the curve of the printed AUROC."""

from __future__ import annotations

import numpy as np
import pytest

from medform.evaluation.curves import GRID, roc_curve
from medform.metrics.ranking import stratified_auroc


@pytest.mark.proves("U7")
def test_the_area_is_the_stratified_auroc_also_where_folds_are_unlike() -> None:
    """A fold of 1 + 2 patients in disorder and one of 1 + 10 in order: the second holds most of the pairs."""
    y = np.array([1, 0, 0, 1, *[0] * 10])
    score = np.array([0.0, 1.0, 2.0, 9.0, *np.linspace(-5, -1, 10)])
    found = stratified_auroc(y, score, np.array([0] * 3 + [1] * 11))
    assert found.value == pytest.approx(10 / 12)
    (curve,) = roc_curve(found.matrix, found.pairs, np.ones((1, 2)), np.ones((1, 12)))
    # it steps at multiples of a half and a tenth only, which the grid holds
    assert (curve[:-1] * np.diff(GRID)).sum() == pytest.approx(found.value)
    twice = roc_curve(found.matrix, found.pairs, np.array([[2.0, 1.0]]), np.ones((1, 12)))[0]
    assert (twice[:-1] * np.diff(GRID)).sum() == pytest.approx(10 / 14), "a patient who is drawn twice counts twice"
