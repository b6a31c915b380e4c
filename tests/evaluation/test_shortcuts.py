"""Vectors without anatomy: known images, other shapes, nothing there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import skew

from medform.evaluation.shortcuts import (
    INTENSITY_NAMES,
    intensity_statistics,
    position_vectors,
    slice_statistics,
    thumbnail,
)


@pytest.mark.proves("A6.1")
def test_ten_statistics_and_the_bag_size(random: np.random.Generator) -> None:
    stack = [random.gamma(2, 100, size=(8, 9)) - 1000 for _ in range(4)]
    found = dict(zip(INTENSITY_NAMES, intensity_statistics(iter(stack)), strict=True))
    assert len(found) == 11
    assert found["n_slices"] == 4
    assert found["mean"] == pytest.approx(np.mean(stack))
    assert found["skewness"] == pytest.approx(np.mean([skew(one.ravel()) for one in stack]))
    assert found["p50"] == pytest.approx(np.mean([np.median(one) for one in stack]))
    np.testing.assert_allclose(intensity_statistics(stack[::-1]), list(found.values()))


def test_flat_and_empty_slices_give_numbers() -> None:
    flat = slice_statistics(np.full((4, 4), -1024.0))
    assert flat.tolist() == [-1024, 0, 0, *[-1024] * 7]
    assert slice_statistics(np.full((2, 2), np.nan)).tolist() == [0.0] * 10
    with pytest.raises(ValueError, match="at least one slice"):
        intensity_statistics([])


def test_position_is_relative_to_the_patients_own_stack() -> None:
    found = position_vectors(["a", "b", "a", "a", "b", "c"], [10, 0, 20, 15, 1, 4])
    np.testing.assert_allclose(found[:, 0], [0, 0, 1, 0.5, 1, 0.5])
    np.testing.assert_allclose(found[:, 2], found[:, 0] ** 3)


@pytest.mark.parametrize("shape", [(32, 48), (17, 50), (8, 8), (512, 512)])
def test_thumbnail_keeps_the_mean_of_any_shape(shape: tuple[int, int], random: np.random.Generator) -> None:
    image = random.normal(size=shape)
    small = thumbnail(image)
    assert small.shape == (256,)
    assert small.mean() == pytest.approx(image.mean())
    if shape == (32, 48):
        np.testing.assert_allclose(small.reshape(16, 16)[3, 5], image[6:8, 15:18].mean())
