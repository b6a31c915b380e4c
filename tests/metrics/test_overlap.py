"""Dice, IoU, HD95 and NSD: by hand, against MONAI, and what empty masks give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medform.metrics.overlap import (
    Overlap,
    dice,
    hd95,
    iou,
    nsd,
    overlap,
    pooled,
    remove_small,
    surface_distances,
)


def square(side: int, top: int, left: int, size: int = 32) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def blobs(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    field = gaussian_filter(random.normal(size=shape), 2.0)
    other = gaussian_filter(field + 0.02 * random.normal(size=shape), 0.7)
    return field > np.quantile(field, 0.8), other > np.quantile(field, 0.85)


@pytest.mark.proves("G4.3", "G.tests")
def test_squares_by_hand() -> None:
    first, second = square(4, 0, 0), square(4, 2, 2)
    assert dice(first, second) == 2 * 4 / 32 and iou(first, second) == 4 / 28
    assert dice(first, first) == iou(first, first) == 1.0
    # a 4 x 4 square moved by 3 to the right: its surface has 12 pixels
    moved = square(4, 0, 3)
    distances = surface_distances(first, moved)
    assert len(distances.of_prediction) == len(distances.of_truth) == 12
    assert sorted(np.unique(distances.of_prediction)) == [0.0, 1.0, 2.0, 3.0]
    assert hd95(first, moved) == pytest.approx(3.0)
    assert hd95(first, moved, (1.0, 0.5)) == pytest.approx(1.5)
    # on either side 4 points lie in the column that both share, 2 touch it, 2 are 2 and 4 are 3 columns away
    assert [nsd(first, moved, tolerance) for tolerance in (0, 1, 2, 3)] == [4 / 12, 6 / 12, 8 / 12, 1.0]
    assert nsd(first, first, 0.0) == 1.0 and hd95(first, first) == 0.0


@pytest.mark.proves("G4.3", "G.tests")
def test_empty_masks_have_their_rule() -> None:
    empty, lesion = np.zeros((32, 32), bool), square(4, 8, 8)
    assert dice(empty, empty) is iou(empty, empty) is hd95(empty, empty) is nsd(empty, empty, 1.0) is None
    for prediction, truth in ((empty, lesion), (lesion, empty)):
        assert dice(prediction, truth) == iou(prediction, truth) == nsd(prediction, truth, 1.0) == 0.0
        assert hd95(prediction, truth) == pytest.approx(32 * 2**0.5)
        assert hd95(prediction, truth, (0.5, 0.5)) == pytest.approx(16 * 2**0.5)


@pytest.mark.proves("G4.3", "G.tests")
@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
def test_figures_equal_monai() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    cases = [((48, 40), None), ((48, 40), (0.7, 0.9)), ((12, 28, 24), (3.0, 0.7, 0.9))]
    for seed, (shape, spacing) in enumerate(cases * 2):
        masks = blobs(seed, shape)
        found, wanted = (torch.from_numpy(mask)[None, None].float() for mask in masks)
        theirs = metrics.compute_dice(found, wanted).item(), metrics.compute_iou(found, wanted).item()
        assert (dice(*masks), iou(*masks)) == pytest.approx(theirs, abs=1e-6)
        step = None if spacing is None else list(spacing)
        distance = metrics.compute_hausdorff_distance(found, wanted, percentile=95, spacing=step).item()
        assert hd95(*masks, spacing) == pytest.approx(distance, rel=1e-5)
        if spacing is None:  # with a spacing MONAI measures areas between pixels, without it counts pixels as we do
            for tolerance in (0.5, 1.0, 2.0):
                share = metrics.compute_surface_dice(found, wanted, [tolerance]).item()
                assert nsd(*masks, tolerance) == pytest.approx(share, abs=1e-6)


@given(st.integers(0, 50), st.integers(0, 9))
def test_the_box_around_the_masks_changes_nothing(seed: int, margin: int) -> None:
    first, second = blobs(seed, (20, 24))
    near, far = ([np.pad(mask, width) for mask in (first, second)] for width in (1, margin + 1))
    ours, theirs = surface_distances(near[0], near[1]), surface_distances(far[0], far[1])
    assert np.allclose(theirs.of_prediction, ours.of_prediction) and np.allclose(theirs.of_truth, ours.of_truth)
    assert dice(first, second) == dice(far[0], far[1]) == dice(second, first)


@pytest.mark.proves("G4.3")
def test_without_a_spacing_between_slices_a_volume_is_measured_slice_by_slice() -> None:
    truth = np.stack([square(4, 8, 8), square(4, 8, 8), np.zeros((32, 32), bool)])
    prediction = np.stack([square(4, 8, 9), np.zeros((32, 32), bool), np.zeros((32, 32), bool)])
    pixels = surface_distances(prediction, truth)
    one = surface_distances(prediction[0], truth[0])
    assert len(pixels.of_prediction) == 12 and len(pixels.of_truth) == 24
    assert np.array_equal(pixels.of_truth[:12], one.of_truth) and np.all(pixels.of_truth[12:] == 32 * np.sqrt(2))
    assert pixels.hd95 == pytest.approx(32 * 2**0.5), "a missed slice is not passed over"
    in_mm = surface_distances(prediction, truth, (0.5, 0.5))
    assert np.allclose(in_mm.of_truth, pixels.of_truth / 2)
    whole = surface_distances(prediction, truth, (1.0, 1.0, 1.0))
    assert whole.of_truth.max() <= np.sqrt(2) + 1e-9, "with a spacing the next slice is one step away"


def test_scans_of_one_patient_are_added() -> None:
    first, second = overlap(square(4, 0, 0), square(4, 0, 0)), overlap(square(4, 0, 0), np.zeros((32, 32), bool))
    assert first + second == Overlap(16, 32, 16) and (first + second).dice == 32 / 48
    parts = [surface_distances(square(4, 0, 0), square(4, 0, 1)), surface_distances(square(3, 0, 0), square(3, 0, 0))]
    assert len(pooled(parts).of_truth) == 12 + 8 and pooled([]).hd95 is None


@pytest.mark.proves("G4.3")
def test_small_parts_are_removed_in_three_dimensions() -> None:
    mask = np.zeros((4, 16, 16), bool)
    mask[:, 0:5, 0:5] = True  # 100 pixels, joined through the slices
    mask[0, 10:13, 10:13] = True
    mask[0, 13, 13] = True  # touches by a corner only: a part of its own
    kept = remove_small(mask, 100)
    assert kept.sum() == 100 and kept[:, 0:5, 0:5].all()
    assert remove_small(mask, 101).sum() == 0 and remove_small(mask, 9).sum() == 109
    assert np.array_equal(remove_small(mask, 1), mask) and not remove_small(np.zeros((2, 4, 4), bool), 5).any()
    before = mask.copy()
    remove_small(mask, 100)
    assert np.array_equal(mask, before)


def test_what_is_no_pair_of_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="boolean"):
        dice(np.ones((4, 4)), np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="cannot be compared"):
        dice(np.ones((4, 4), bool), np.ones((4, 5), bool))
    with pytest.raises(ValueError, match="spacing"):
        hd95(square(4, 0, 0), square(4, 0, 0), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="boolean"):
        remove_small(np.ones((4, 4)), 3)
