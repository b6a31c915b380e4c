"""Views: the kernel equals its twin, a view is its own whatever surrounds it, and a CT stays a CT."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medform.config import parse
from medform.errors import InputError
from medform.inputs.augment import (
    COLUMNS,
    AugmentConfig,
    augment,
    augment_tensor,
    parameter_table,
)

HU = (1 / 1400, 1000 / 1400)  # window [-1000, 400]
STILL = AugmentConfig(
    crop=(1, 1),
    aspect=(1, 1),
    flip=0,
    rotate_deg=0,
    window_jitter=0,
    gamma=(1, 1),
    blur=0,
    noise_sd=0,
    cutout=0,
)


def smooth_slices(count: int, side: int, kind: type = np.int16) -> np.ndarray:
    random = np.random.default_rng(5)
    coarse = random.uniform(-1000, 400, (count, side // 8, side // 8))
    fine = np.kron(coarse, np.ones((8, 8)))
    return (fine if kind is np.int16 else (fine + 1000) * 255 / 1400).astype(kind)


def table_of(config: AugmentConfig, count: int = 16, seed: int = 3, epoch: int = 2) -> np.ndarray:
    return parameter_table(config, np.arange(count) * 977, np.arange(count) % 2, epoch, seed)


@pytest.mark.proves("A4.1")
@pytest.mark.parametrize("kind", [np.int16, np.uint8])
@pytest.mark.parametrize(("side", "size"), [(64, 48), (48, 64), (96, 48)])
def test_the_kernel_equals_its_twin(kind: type, side: int, size: int) -> None:
    pixels, rows = smooth_slices(8, side, kind), np.arange(16) % 8
    to_unit = HU if kind is np.int16 else (1 / 255, 0.0)
    table = table_of(AugmentConfig(blur=0.7, cutout=0.7))
    fast = augment(pixels, rows, table, to_unit, size)
    plain = augment_tensor(torch.from_numpy(pixels[rows]), table, to_unit, size).numpy()
    difference = abs(fast - plain)
    assert fast.shape == (16, 1, size, size) and fast.dtype == np.float32
    assert difference.max() < 1e-3 and np.median(difference) < 1e-6
    assert fast.min() >= 0 and fast.max() <= 1 and fast.std() > 0.1


@pytest.mark.proves("A4.1")
@given(st.permutations(range(12)), st.integers(1, 12), st.integers(1, 3))
def test_a_view_depends_on_seed_epoch_sample_and_view_only(order: list[int], count: int, threads: int) -> None:
    pixels, chosen = smooth_slices(12, 32), np.array(order[:count])
    config = AugmentConfig()
    whole = parameter_table(config, np.arange(12), np.arange(12) % 2, 4, 9)
    part = parameter_table(config, chosen, chosen % 2, np.full(count, 4), 9)
    assert np.array_equal(part, whole[chosen])
    everything = augment(pixels, np.arange(12), whole, HU, 24)
    assert np.array_equal(augment(pixels, chosen, part, HU, 24, threads=threads), everything[chosen])


def test_seed_epoch_sample_and_view_each_change_the_row() -> None:
    rows = [
        parameter_table(AugmentConfig(), np.array([sample]), np.array([view]), epoch, seed)[0]
        for sample, view, epoch, seed in [
            (1, 0, 0, 0),
            (2, 0, 0, 0),
            (1, 1, 0, 0),
            (1, 0, 1, 0),
            (1, 0, 0, 1),
        ]
    ]
    assert len({row.tobytes() for row in rows}) == 5


def test_parameters_have_their_declared_ranges_and_are_independent() -> None:
    config = AugmentConfig()
    table = dict(zip(COLUMNS, table_of(config, 4000).astype(float).T, strict=True))
    width, height = abs(table["extent_x"]), table["extent_y"]
    area = width * height
    assert area.min() > 0.44 and area.max() <= 1 and abs(area.mean() - 0.75) < 0.02
    for centre, extent in ((table["centre_x"], width), (table["centre_y"], height)):
        assert (centre - extent / 2).min() >= -1e-6 and (centre + extent / 2).max() <= 1 + 1e-6
    assert height.min() > 0, "no up-down flip: a patient does not lie on the head"
    assert abs((table["extent_x"] < 0).mean() - 0.5) < 0.03
    assert np.rad2deg(np.arctan2(table["sine"], table["cosine"])).max() <= 15.001
    assert 0.5 + table["bend"].min() / 4 >= 0.5**1.25 and 0.5 + table["bend"].max() / 4 <= 0.5**0.8 + 1e-6
    assert table["noise"].max() <= 0.02 and abs((table["blur"] > 0).mean() - 0.5) < 0.03
    correlations = np.corrcoef(np.stack([area, table["centre_x"], table["sine"], table["bend"], table["noise"]]))
    assert abs(correlations - np.eye(5)).max() < 0.06


def test_without_any_change_the_view_is_the_slice() -> None:
    pixels = smooth_slices(4, 32)
    view = augment(pixels, np.arange(4), table_of(STILL, 4), HU, 32)
    assert np.allclose(view[:, 0], np.clip((pixels + 1000.0) / 1400, 0, 1), atol=1e-5)


def test_a_flip_mirrors_left_and_right() -> None:
    pixels = smooth_slices(4, 32)
    still = augment(pixels, np.arange(4), table_of(STILL, 4), HU, 32)
    flipped = augment(pixels, np.arange(4), table_of(STILL.model_copy(update={"flip": 1}), 4), HU, 32)
    assert np.allclose(flipped, still[..., ::-1], atol=1e-5)


def test_window_jitter_is_that_of_another_window() -> None:
    pixels = smooth_slices(64, 32)
    table = table_of(STILL.model_copy(update={"window_jitter": 0.1}), 64)
    p = dict(zip(COLUMNS, table.astype(float).T, strict=True))
    width = 1 / p["gain"]
    centre = (0.5 - p["bias"]) / p["gain"]
    assert abs(width - 1).max() <= 0.1001 and abs(centre - 0.5).max() <= 0.1001 and width.std() > 0.04
    low, high = (centre - width / 2) * 1400 - 1000, (centre + width / 2) * 1400 - 1000
    expected = (pixels - low[:, None, None]) / (high - low)[:, None, None]
    view = augment(pixels, np.arange(64), table, HU, 32)
    assert np.allclose(view[:, 0], expected.clip(0, 1), atol=1e-4)


def test_noise_is_independent_between_rows_of_pixels_and_views() -> None:
    pixels = np.full((4, 64, 64), -300, np.int16)
    table = table_of(STILL.model_copy(update={"noise_sd": 0.05}), 4)
    table[:, COLUMNS.index("noise")] = 0.05
    noise = augment(pixels, np.arange(4), table, HU, 64)[:, 0] - 0.5
    assert abs(noise.std() - 0.05) < 0.002
    rows = noise.reshape(-1, 64)
    correlations = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert abs(correlations).max() < 0.7 and abs(correlations.std() - 1 / 8) < 0.02


def test_a_cut_out_is_a_square_of_air() -> None:
    pixels = np.full((8, 32, 32), 0, np.int16)
    config = STILL.model_copy(update={"cutout": 1.0, "cutout_area": (0.06, 0.06)})
    view = augment(pixels, np.arange(8), table_of(config, 8), HU, 32)[:, 0]
    for image in view:
        hole = image == 0
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns) and 6 <= len(rows) <= 9 and 6 <= len(columns) <= 9


@pytest.mark.proves("A.input")
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("crop", [0, 1], r"crop must lie in \(0, 1\]"),
        ("gamma", [1.5, 0.5], "the first bound is larger"),
        ("blur_sd_px", [1, 9], "must not exceed 2"),
        ("flip", 1.5, "less than or equal to 1"),
        ("vertical_flip", 0.5, "unknown key"),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(AugmentConfig, {key: value})
