"""Collapse and its measures on sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from medform.metrics.representation import effective_rank


def test_effective_rank_counts_equal_directions_and_ignores_an_offset() -> None:
    vectors = np.zeros((10, 64))
    vectors[np.arange(10), np.arange(10) % 5] = np.r_[np.ones(5), -np.ones(5)]
    assert effective_rank(vectors) == pytest.approx(5)
    assert effective_rank(vectors + 1000) == pytest.approx(5, rel=1e-4)


def test_collapsed_vectors_have_rank_zero_or_one(random: np.random.Generator) -> None:
    assert effective_rank(np.full((8, 16), 3.14159)) == 0.0
    line = np.outer(random.normal(size=20), random.normal(size=16)) + 7
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
