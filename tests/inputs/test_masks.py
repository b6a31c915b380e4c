"""Working masks: soft, beside their slices, counted in full, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medform.cohort.store import Cohort
from medform.config import parse
from medform.errors import InputError
from medform.inputs.masks import MaskInputConfig, lesion_of, working_masks
from medform.inputs.slices import shrink, working_slices

Make = Callable[..., Cohort]
Slices = dict[str, list[np.ndarray]]


@pytest.fixture
def labels(chests: Slices) -> Slices:
    """Masks of P2 to P5: values 1 and 2 in a corner of every second slice; P1 has none."""

    def mask(index: int) -> np.ndarray:
        found = np.zeros((40, 40), np.uint8)
        if index % 2 == 0:
            found[3 : 10 + index, 5:12] = 1
            found[3:5, 5:7] = 2
        return found

    return {name: [mask(i) for i in range(len(images))] for name, images in chests.items() if name != "P1"}


@pytest.mark.proves("G4.1")
def test_masks_are_shrunk_as_their_images_and_stand_beside_them(
    make_cohort: Make, chests: Slices, labels: Slices
) -> None:
    cohort = make_cohort(chests, masks=labels)
    slices, masks = working_slices(cohort, 20), working_masks(cohort, 20)
    assert masks.share.shape == slices.pixels.shape and masks.share.dtype == np.uint8 and masks.size == 20
    for row, code in enumerate(slices.patient):
        patient, index = slices.patient_ids[code], int(slices.index[row])
        assert masks.present[row] == (patient != "P1")
        full = labels[patient][index] > 0 if patient in labels else np.zeros((40, 40), bool)
        assert masks.lesion_pixels[row] == full.sum()
        soft = shrink(full.astype(np.float32), 20, 0.0)
        assert abs(masks.share[row] / 255 - soft).max() <= 0.5 / 255 + 1e-6
    assert masks.share.max() > 0 and len(np.unique(masks.share)) > 3, "edges stay soft"


def test_only_the_values_asked_for_are_lesion(make_cohort: Make, chests: Slices, labels: Slices) -> None:
    cohort = make_cohort(chests, masks=labels)
    everything, second = working_masks(cohort, 20), working_masks(cohort, 20, values=(2,))
    assert set(second.lesion_pixels[second.lesion_pixels > 0]) == {4}
    assert np.array_equal(second.present, everything.present) and second.digest != everything.digest
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    assert lesion_of(mask, None).tolist() == [[False, True], [True, True]]
    assert lesion_of(mask, [1, 3]).tolist() == [[False, True], [False, True]]


def test_an_oblong_mask_lies_where_its_image_lies(make_cohort: Make) -> None:
    image = np.zeros((20, 40), np.int16)
    image[4:12, 10:20] = 100
    cohort = make_cohort({"A": [image]}, masks={"A": [(image > 0).astype(np.uint8)]}, window=(0.0, 100.0))
    slices, masks = working_slices(cohort, 20), working_masks(cohort, 20)
    assert np.allclose(slices.images(np.array([0])), masks.share[:1, None] / 255, atol=0.01)


@pytest.mark.proves("G4.1")
def test_masks_are_made_once_and_named_by_what_is_in_them(
    make_cohort: Make, chests: Slices, labels: Slices, tmp_path: Path
) -> None:
    cohort, cache = make_cohort(chests, masks=labels), tmp_path / "cache"
    seen: list[tuple[int, int]] = []
    first = working_masks(cohort, 20, cache=cache, progress=lambda *done: seen.append(done))
    again = working_masks(cohort, 20, cache=cache, progress=lambda *done: seen.append(done))
    assert len(seen) == 15 and seen[-1] == (15, 15) and first.digest == again.digest
    plain = working_masks(cohort, 20)
    for found in (first, again):
        assert np.array_equal(found.share, plain.share) and np.array_equal(found.lesion_pixels, plain.lesion_pixels)
    assert len(list(cache.iterdir())) == 2
    working_masks(cohort, 24, cache=cache)
    working_masks(cohort, 20, values=(1,), cache=cache)
    assert len(list(cache.iterdir())) == 6


@pytest.mark.proves("G.input")
def test_no_masks_and_values_that_are_not_there_are_said(make_cohort: Make, chests: Slices, labels: Slices) -> None:
    with pytest.raises(InputError, match="no mask holds any of the values 7, 9") as caught:
        working_masks(make_cohort(chests, masks=labels), 20, values=(7, 9))
    assert "0, 1, 2" in str(caught.value)
    with pytest.raises(InputError, match="no series has a mask"):
        working_masks(make_cohort(chests), 20)


@pytest.mark.proves("G.input")
def test_masks_of_another_size_than_their_images_are_all_named(
    make_cohort: Make, chests: Slices, labels: Slices
) -> None:
    cohort = make_cohort(chests, masks=labels)
    wrong = replace(cohort, series=cohort.series.assign(rows=41))
    with pytest.raises(InputError, match="4 masks do not fit") as caught:
        working_masks(wrong, 20)
    assert "series-P3" in str(caught.value) and "3 x 40 x 40" in str(caught.value)


def test_a_mask_input_names_its_values() -> None:
    assert parse(MaskInputConfig, {"kind": "masks"}).values is None
    assert parse(MaskInputConfig, {"values": ["1", "3"], "size": "64"}).values == [1, 3]
    for values in ([], [0], [256]):
        with pytest.raises(InputError):
            parse(MaskInputConfig, {"values": values})
