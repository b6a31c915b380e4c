"""Collapse and its measures on sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from medform.metrics.representation import alignment, effective_rank, uniformity


def test_effective_rank_counts_equal_directions_and_ignores_an_offset() -> None:
    vectors = np.zeros((10, 64))
    vectors[np.arange(10), np.arange(10) % 5] = np.r_[np.ones(5), -np.ones(5)]
    assert effective_rank(vectors) == pytest.approx(5)
    assert effective_rank(vectors + 1000) == pytest.approx(5, rel=1e-4)


def test_collapsed_vectors_have_rank_zero_or_one(random: np.random.Generator) -> None:
    assert effective_rank(np.full((8, 16), 3.14159)) == 0.0
    line = np.outer(random.normal(size=20), random.normal(size=16)) + 7
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)


def test_alignment_and_uniformity_have_their_closed_forms(random: np.random.Generator) -> None:
    x = random.normal(size=(30, 8))
    assert alignment(x, 3 * x) == pytest.approx(0)
    assert alignment(x, -x) == pytest.approx(4)
    assert uniformity(np.eye(6)) == pytest.approx(-4)  # every pair at squared distance 2, t = 2
    assert uniformity(np.ones((5, 3))) == pytest.approx(0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(30) for j in range(i)]
    assert uniformity(x) == pytest.approx(np.log(np.mean(pairs)))
