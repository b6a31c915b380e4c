"""A slice with its neighbours, and its mask: moved by one row, never across series, the same in any batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from medform.cohort.store import Cohort
from medform.config import parse
from medform.errors import InputError
from medform.inputs.augment import (
    COLUMNS,
    AugmentConfig,
    augment,
    augment_tensor,
    geometry_only,
    parameter_table,
    still_table,
)
from medform.inputs.masks import MaskStore
from medform.inputs.slices import SliceStore, working_slices
from medform.inputs.stacks import (
    PatientSlicesConfig,
    SegmentationInputConfig,
    StackAugmentConfig,
    mask_views,
    plain_stacks,
    stack_table,
    stack_views,
)

Make = Callable[..., Cohort]


@pytest.fixture
def store(make_cohort: Make, chests: dict[str, list[np.ndarray]]) -> SliceStore:
    return working_slices(make_cohort(chests, intercept=-1024.0), 40)


def table_of(config: StackAugmentConfig, count: int, seed: int = 3, epoch: int = 2) -> np.ndarray:
    return stack_table(config, np.arange(count) * 977, np.arange(count) % 2, epoch, seed)


def plain(size: int, **changes: Any) -> SegmentationInputConfig:
    return SegmentationInputConfig(size=size, source=size, **changes)


def only(**changes: Any) -> StackAugmentConfig:
    """Nothing but ``changes``."""
    still = {"flip": 0, "rotate_deg": 0, "scale": (1, 1), "aspect": (1, 1), "shift": 0, "contrast": (1, 1),
             "gamma": (1, 1), "noise_sd": 0}  # fmt: skip
    return StackAugmentConfig.model_validate(still | changes)


@pytest.mark.proves("G4.1")
@pytest.mark.parametrize("channels", [1, 3, 5, 7])
def test_neighbours_are_those_of_the_series_and_its_ends_repeat(store: SliceStore, channels: int) -> None:
    rows = np.random.default_rng(0).permutation(len(store))
    around = store.neighbours(rows, channels)
    assert around.shape == (15, channels) and np.array_equal(around[:, channels // 2], rows)
    assert np.array_equal(store.series[around], np.repeat(store.series[rows][:, None], channels, axis=1))
    last = {code: store.index[store.series == code].max() for code in np.unique(store.series)}
    for row, found in zip(rows, around, strict=True):
        wanted = store.index[row] + np.arange(channels) - channels // 2
        assert store.index[found].tolist() == wanted.clip(0, last[store.series[row]]).tolist()
    views = plain_stacks(store, rows, SegmentationInputConfig(size=40, source=40, channels=channels))
    assert np.allclose(views, store.images(around.ravel()).reshape(views.shape), atol=1e-6)


def test_an_even_number_of_neighbours_has_no_middle(store: SliceStore) -> None:
    with pytest.raises(ValueError, match="middle"):
        store.neighbours(np.arange(3), 2)


def test_a_still_row_is_the_slice_and_at_half_size_its_area_mean(store: SliceStore) -> None:
    rows = np.arange(len(store))
    half = plain_stacks(store, rows, SegmentationInputConfig(size=20, source=40))
    unclipped = store.pixels.astype(np.float32) * store.scale.to_unit[0] + store.scale.to_unit[1]
    inside = unclipped.reshape(15, 20, 2, 20, 2).mean(axis=(2, 4)).clip(0, 1)
    assert np.allclose(half[:, 0], inside, atol=1e-5)


@pytest.mark.proves("G4.1", "A4.1")
def test_image_and_mask_are_moved_by_the_same_row() -> None:
    random = np.random.default_rng(1)
    pixels = np.kron(random.integers(0, 256, (16, 8, 8)), np.ones((8, 8))).astype(np.uint8)
    table = table_of(StackAugmentConfig(), 16)
    moved = geometry_only(table)
    still = augment(pixels, np.arange(16), moved, (1 / 255, 0.0), 48)
    # the image without its intensities is the mask, bit for bit, and with them its tone alone differs
    config = only(flip=0.5, rotate_deg=15, scale=(0.85, 1.15), aspect=(0.93, 1.07), shift=0.04)
    assert np.array_equal(table_of(config, 16)[:, :6], table[:, :6])
    assert np.array_equal(still, augment(pixels, np.arange(16), table_of(config, 16), (1 / 255, 0.0), 48))
    full = augment(pixels, np.arange(16), table, (1 / 255, 0.0), 48)
    for before, after in zip(still[:, 0], full[:, 0], strict=True):
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.97
    twin = augment_tensor(torch.from_numpy(pixels), table, (1 / 255, 0.0), 48).numpy()
    assert abs(full - twin).max() < 1e-3
    soft = augment_tensor(torch.from_numpy(pixels), moved, (1 / 255, 0.0), 48).numpy()
    assert abs(still - soft).max() < 1e-3


@pytest.mark.proves("G4.1")
def test_a_mask_follows_its_lesion_and_stays_soft(store: SliceStore) -> None:
    pixels = np.zeros((len(store), 64, 64), np.uint8)
    pixels[:, 20:36, 10:30] = 255
    bright = SliceStore(**{**vars(store), "pixels": pixels, "scale": type(store.scale)(1.0, 0.0, (0.0, 255.0))})
    masks = MaskStore(pixels, np.ones(len(store), bool), np.full(len(store), 320), "none")
    rows, table = np.arange(len(store)), table_of(only(flip=0.5, rotate_deg=15, shift=0.04), len(store))
    image = stack_views(bright, rows, table, plain(64))
    mask = mask_views(masks, rows, table, 64)
    assert mask.shape == image.shape and np.array_equal(mask, image)
    assert mask.min() >= 0 and mask.max() <= 1 and ((mask > 0.01) & (mask < 0.99)).any()
    assert abs(mask.sum(axis=(1, 2, 3)) / 320 - 1).max() < 0.1


def test_all_channels_move_alike_and_their_noise_is_their_own(store: SliceStore) -> None:
    flat = SliceStore(**{**vars(store), "pixels": np.zeros((15, 40, 40), np.int16) - 300})
    rows = np.arange(15)
    noisy = only(noise_sd=0.04)
    table = table_of(noisy, 15)
    table[:, COLUMNS.index("noise")] = 0.04
    noise = stack_views(flat, rows, table, plain(40, channels=3)) - 0.5
    between = [abs(np.corrcoef(view.reshape(3, -1))[np.triu_indices(3, 1)]).max() for view in noise]
    assert max(between) < 0.15 and abs(noise.std() - 0.04) < 0.002
    moved = table_of(only(rotate_deg=15, scale=(0.85, 1.15)), 15)
    views = stack_views(store, rows, moved, plain(32, channels=3))
    assert np.array_equal(views[:, 1], stack_views(store, rows, moved, plain(32))[:, 0])
    again = stack_views(store, rows[::-1].copy(), moved[::-1].copy(), plain(32, channels=3), threads=2)
    assert np.array_equal(again[::-1], views)


@pytest.mark.proves("G6.2")
def test_a_scan_at_its_own_brightness_is_seen_alike_whatever_its_scanner_multiplied_by(store: SliceStore) -> None:
    rows, table = np.arange(len(store)), table_of(only(contrast=(0.8, 1.2), rotate_deg=15), len(store))
    scale = type(store.scale)(1.0, 0.0, (0.0, 4000.0))
    grey = np.random.default_rng(4).integers(0, 900, (len(store), 40, 40), np.int16)
    grey[:, :, 30:] = 0  # air
    factor = np.where(store.series == store.series[0], 4, 1).astype(np.int16)[:, None, None]
    dark, mixed = (SliceStore(**{**vars(store), "pixels": one, "scale": scale}) for one in (grey, grey * factor))
    own, cohort = plain(40, intensity="scan"), plain(40)
    assert np.allclose(stack_views(mixed, rows, table, own), stack_views(dark, rows, table, own), atol=1e-5)
    assert not np.allclose(stack_views(mixed, rows, table, cohort), stack_views(dark, rows, table, cohort), atol=0.1)
    for one in np.unique(store.series):  # the median of what is no air, by hand
        seen = plain_stacks(dark, rows[store.series == one], own)
        whole = grey[store.series == one][:, ::2, ::2]
        assert abs(np.median(seen[:, 0, ::2, ::2][whole > whole.mean()]) - 0.35) < 1e-3
    one_grey = SliceStore(**{**vars(store), "pixels": np.full_like(grey, 7), "scale": scale})
    assert np.isfinite(plain_stacks(one_grey, rows, own)).all()


def test_a_stage_at_the_brightness_of_the_cohort_is_written_as_before_there_was_a_choice() -> None:
    assert "intensity" not in SegmentationInputConfig().model_dump()
    assert SegmentationInputConfig(intensity="scan").model_dump()["intensity"] == "scan"


def test_parameters_have_the_ranges_of_the_pilot_and_their_own_rows() -> None:
    config = StackAugmentConfig()
    table = table_of(config, 4000)
    p = dict(zip(COLUMNS, table.astype(float).T, strict=True))
    width, height = abs(p["extent_x"]), p["extent_y"]
    zoom, aspect = 1 / np.sqrt(width * height), width / height
    assert zoom.min() >= 0.8499 and zoom.max() <= 1.1501 and zoom.std() > 0.08
    assert aspect.min() >= 0.9299 and aspect.max() <= 1.0701
    for centre in (p["centre_x"], p["centre_y"]):
        assert abs(centre - 0.5).max() <= 0.0401 and centre.std() > 0.02
    assert np.rad2deg(np.arcsin(p["sine"])).max() <= 15.001 and height.min() > 0
    assert p["gain"].min() >= 0.8199 and p["gain"].max() <= 1.2201
    assert np.allclose(0.5 * p["gain"] + p["bias"], 0.5, atol=1e-6), "contrast turns about mid grey"
    assert p["noise"].max() <= 0.04 and not p["blur"].any() and not p["cut_x1"].any()
    assert abs((p["extent_x"] < 0).mean() - 0.5) < 0.03
    some = np.array([5, 700, 31])
    assert np.array_equal(stack_table(config, some * 977, some % 2, 2, 3), table[some])
    assert not np.array_equal(table_of(config, 9, epoch=3), table[:9])
    assert np.array_equal(stack_table(None, some, some, 2, 3), still_table(3))


def test_rows_of_the_spine_are_the_very_ones_they_were() -> None:
    """Drawn before masks existed: a run that goes on must see the same views."""
    table = parameter_table(AugmentConfig(), np.array([7, 977]), np.array([0, 1]), 3, 11)
    before = [
        [
            *(0.55530256, 0.52502173, -0.7890593, 0.814904, 0.9987164, 0.05065104, 0.9521046, 0.11774603),
            *(0.22730576, 0.0, 0.010363425, 8123386.0, 0.20992725, 0.157014, 0.40965712, 0.35674387),
        ],
        [
            *(0.5523692, 0.49619517, -0.715644, 0.7741156, 0.9802827, 0.19760019, 1.0659403, 0.019348916),
            *(0.21148019, 0.49061632, 0.009508794, 11561705.0, 0.5916639, 0.26304793, 0.9061355, 0.57751954),
        ],
    ]
    assert np.allclose(table, before, rtol=1e-6, atol=0)


@pytest.mark.proves("G.input")
@pytest.mark.parametrize(
    ("kind", "tree", "said"),
    [
        (SegmentationInputConfig, {"channels": 2}, "1, 3, 5 or 7"),
        (SegmentationInputConfig, {"channels": 9}, "1, 3, 5 or 7"),
        (SegmentationInputConfig, {"size": 64, "source": 256}, "between size 64 and twice"),
        (SegmentationInputConfig, {"lesion_share": 0}, "greater than 0"),
        (PatientSlicesConfig, {"intensity": "scan"}, "only a segmentation"),
        (SegmentationInputConfig, {"intensity": "zscore"}, "cohort"),
        (PatientSlicesConfig, {"slices": 0}, "greater than or equal to 1"),
        (StackAugmentConfig, {"scale": [0.1, 1]}, r"\[0.5, 2\]"),
        (StackAugmentConfig, {"gamma": [0.1, 1]}, r"\[0.42, 2\]"),
        (StackAugmentConfig, {"aspect": [0, 1]}, "aspect must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type, tree: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(kind, tree)


def test_settings_are_read_from_text() -> None:
    found = parse(SegmentationInputConfig, {"kind": "segmentation", "channels": "3", "augment": None})
    assert found.channels == 3 and found.augment is None
