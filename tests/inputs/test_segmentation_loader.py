"""Batches of slices and masks: so many of each kind, patients in turn, a pure function of (seed, step)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medform.errors import InputError
from medform.inputs.loader import RowSource
from medform.inputs.masks import MaskStore
from medform.inputs.segmentation_loader import SegmentationLoader
from medform.inputs.slices import Scale, SliceStore
from medform.inputs.stacks import SegmentationInputConfig

SIDE = 24
CONFIG = SegmentationInputConfig(size=SIDE, source=SIDE)
PLAIN = SegmentationInputConfig(size=SIDE, source=SIDE, augment=None)


def stores(patients: int = 9, slices: int = 6, without: tuple[int, ...] = ()) -> tuple[SliceStore, MaskStore]:
    """Patient p has a lesion on its slices 1 to 1 + p % 3; those in ``without`` have no mask; p = 7 has no lesion."""
    random = np.random.default_rng(0)
    count = patients * slices
    patient, index = np.repeat(np.arange(patients), slices), np.tile(np.arange(slices), patients)
    lesion = (index >= 1) & (index <= 1 + patient % 3) & (patient != 7)
    present = ~np.isin(patient, without)
    share = np.zeros((count, SIDE, SIDE), np.uint8)
    share[lesion & present, 6:14, 8:12] = 255
    pixels = random.integers(0, 200, (count, SIDE, SIDE)).astype(np.uint8) // 4 + share // 2
    store = SliceStore(
        pixels=pixels,
        scale=Scale(1.0, 0.0, (0.0, 255.0)),
        slice_ids=tuple(f"s{row}" for row in range(count)),
        patient_ids=tuple(f"p{one}" for one in range(patients)),
        patient=patient,
        series=patient.copy(),
        index=index,
        z_mm=np.full(count, np.nan, np.float32),
        key=np.arange(count) * 7919,
        digest="d",
    )
    return store, MaskStore(share, present, np.where(lesion & present, 32, 0), "m")


def loader(
    batch: int = 16, seed: int = 0, config: SegmentationInputConfig = CONFIG, **more: object
) -> SegmentationLoader:
    store, masks = stores()
    return SegmentationLoader(store, masks, np.arange(len(store)), config, batch, seed, **more)  # pyright: ignore[reportArgumentType]


@pytest.mark.proves("G4.1")
def test_a_batch_holds_eleven_lesions_of_patients_in_turn_and_five_empty_slices() -> None:
    found = loader()
    assert (found.drawn, found.rest) == (11, 5)
    lesions: Counter[int] = Counter()
    empties: Counter[int] = Counter()
    pixels = found.masks.lesion_pixels
    for step in range(40):
        rows = found.slices(step)
        assert (pixels[rows[:11]] > 0).all() and (pixels[rows[11:]] == 0).all() and len(rows) == 16
        lesions.update(found.store.patient[rows[:11]].tolist())
        empties.update(rows[11:].tolist())
    assert set(lesions) == set(range(9)) - {7} and max(lesions.values()) - min(lesions.values()) <= 1
    assert set(empties) == set(found.empty.tolist()) and max(empties.values()) - min(empties.values()) <= 1
    drawn = {int(row) for step in range(40) for row in found.slices(step)[:11]}
    assert drawn == set(np.flatnonzero(pixels > 0).tolist()), "in time every lesion slice comes"


@pytest.mark.proves("G4.1", "A5.3")
def test_a_batch_is_a_function_of_seed_and_step() -> None:
    first = {step: loader().batch(step) for step in (5, 0, 17)}
    again = loader(threads=2)
    for step in (0, 17, 5):
        batch = again.batch(step)
        for name in ("image", "mask"):
            assert torch.equal(batch[name].value[name], first[step][name].value[name])
            assert torch.equal(batch[name].item, first[step][name].item)
    assert not torch.equal(loader(seed=1).batch(5)["image"].item, first[5]["image"].item)


@pytest.mark.proves("G4.1")
def test_image_and_mask_stand_in_one_order_and_are_moved_alike() -> None:
    batch = loader().batch(3)
    image, mask = batch["image"], batch["mask"]
    assert image.value["image"].shape == mask.value["mask"].shape == (16, 1, SIDE, SIDE)
    assert torch.equal(image.item, mask.item) and torch.equal(image.patient, mask.patient)
    for picture, target in zip(image.value["image"][:11, 0], mask.value["mask"][:11, 0], strict=True):
        assert picture[target > 0.99].mean() > picture[target < 0.01].mean() + 0.15
    assert not mask.value["mask"][11:].any() and mask.value["mask"].max() <= 1


def test_a_slice_that_comes_twice_in_a_batch_has_two_views() -> None:
    store, masks = stores(patients=1)
    found = SegmentationLoader(store, masks, np.arange(len(store)), CONFIG, 4, 0)
    batch = found.batch(0)["image"]
    assert len(set(batch.item[: found.drawn].tolist())) == 1
    assert not torch.equal(batch.value["image"][0], batch.value["image"][1])


@pytest.mark.proves("G3.1", "G4.1")
def test_genes_come_once_a_patient_that_has_them_and_can_be_shuffled() -> None:
    codes = np.array([0, 1, 2, 4, 5, 6, 8])
    genes = RowSource(codes[:, None].astype(np.float32), codes, name="expression")
    matched = loader(genes=genes)
    block = matched.batch(2)["genes"]
    there = set(matched.batch(2)["image"].patient.tolist()) & set(codes.tolist())
    assert block.patient.tolist() == sorted(there) and len(block) < 16
    assert block.value["expression"][:, 0].tolist() == block.patient.tolist()
    shuffled = loader(genes=genes, pairing="shuffled")
    other = shuffled.whole()["genes"]
    assert other.patient.tolist() == codes.tolist() and set(other.value["expression"][:, 0].tolist()) == set(
        codes.tolist()
    )
    assert (other.value["expression"][:, 0] != other.patient).all(), "nobody keeps the own genes"
    assert torch.equal(shuffled.batch(2)["image"].value["image"], matched.batch(2)["image"].value["image"])
    nobody = loader(genes=RowSource(np.zeros((1, 1), np.float32), np.array([99])))
    assert set(nobody.batch(0)) == {"image", "mask"}


@pytest.mark.proves("G.input")
def test_slices_without_a_mask_are_not_learnt_as_empty() -> None:
    store, masks = stores(without=(1, 2, 3))
    found = SegmentationLoader(store, masks, np.arange(len(store)), PLAIN, 16, 0)
    assert not set(store.patient[found.rows].tolist()) & {1, 2, 3}
    assert len(found.whole()["image"]) == 36 and found.steps_per_epoch == 3
    everything = found.whole()
    assert np.allclose(everything["mask"].value["mask"].numpy(), masks.share[found.rows][:, None] / 255, atol=1e-6)
    assert np.allclose(everything["image"].value["image"].numpy(), store.images(found.rows), atol=1e-6)


@given(st.integers(1, 40), st.floats(0.05, 1.0))
def test_any_batch_and_share_keeps_its_size(batch: int, share: float) -> None:
    config = SegmentationInputConfig(size=SIDE, source=SIDE, lesion_share=share)
    found = loader(batch, config=config)
    assert len(found.slices(3)) == batch and found.drawn >= 1 and abs(found.drawn - batch * share) <= 1


def test_patients_with_lesions_on_every_slice_fill_the_batch() -> None:
    store, masks = stores()
    rows = np.flatnonzero(masks.lesion_pixels > 0)
    assert len(SegmentationLoader(store, masks, rows, CONFIG, 16, 0).slices(0)) == 16


@pytest.mark.proves("G.input")
def test_nothing_to_segment_is_said() -> None:
    store, masks = stores()
    with pytest.raises(InputError, match="no training slice shows a lesion"):
        SegmentationLoader(store, masks, np.flatnonzero(store.patient == 7), CONFIG, 16, 0)
    with pytest.raises(InputError, match="batch of 0"):
        loader(batch=0)
    small = MaskStore(masks.share[:, :12, :12], masks.present, masks.lesion_pixels, "m")
    with pytest.raises(ValueError, match="are not those of"):
        SegmentationLoader(store, small, np.arange(len(store)), CONFIG, 16, 0)
