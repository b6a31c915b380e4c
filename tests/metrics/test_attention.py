"""Entropy of weights: its known values, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from medform.metrics.attention import entropy_ratio


def test_entropy_ratio_has_its_known_values() -> None:
    assert entropy_ratio(np.full(9, 1 / 9)) == pytest.approx(1)
    assert entropy_ratio([1.0, 0.0, 0.0]) == 0
    assert entropy_ratio([0.5, 0.5, 0, 0]) == pytest.approx(0.5)
    assert entropy_ratio([1.0]) is None


@pytest.mark.parametrize("weight", [[0.4, 0.4], [1.5, -0.5]])
def test_weights_that_are_none_are_refused(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        entropy_ratio(weight)
