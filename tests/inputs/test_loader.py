"""Batches: a pure function of (seed, step), every item once an epoch, never a lonely pair."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.inputs.bags import BagSource
from medform.inputs.genes import GeneSource
from medform.inputs.loader import EpochSampler, PatientLoader, RowSource, SliceLoader, SlicePatientLoader, mismatch
from medform.inputs.slices import SliceInputConfig, SliceStore, working_slices
from medform.inputs.stacks import PatientSlicesConfig

Make = Callable[..., Cohort]


@pytest.mark.proves("D18", "D23", "A5.3")
@given(st.integers(1, 40), st.integers(2, 50), st.integers(1, 2), st.integers(0, 5))
def test_an_epoch_holds_every_item_once_in_batches_that_are_never_alone(
    n: int, batch: int, least: int, epoch: int
) -> None:
    sampler = EpochSampler(n, batch, seed=3, least=least)
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    batches = [sampler.at(step) for step in steps]
    assert {found for found, _ in batches} == {epoch}
    sizes = [len(items) for _, items in batches]
    seen = np.concatenate([items for _, items in batches])
    assert len(set(seen)) == len(seen) == sampler.used >= n - 1 and set(seen) <= set(range(n))
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(least, n)
    if (n % 2 == 0 or batch > 2) and n >= least:
        assert sampler.used == n


def test_epochs_differ_and_steps_do_not_depend_on_what_was_asked_before() -> None:
    sampler = EpochSampler(20, 6, seed=1)
    forward = [sampler.at(step)[1].tolist() for step in range(12)]
    assert [EpochSampler(20, 6, seed=1).at(step)[1].tolist() for step in reversed(range(12))] == forward[::-1]
    assert forward[:4] != forward[4:8] and EpochSampler(20, 6, seed=2).at(0)[1].tolist() != forward[0]


@pytest.mark.proves("D23")
def test_a_batch_of_one_patient_is_refused_and_nothing_to_train_on_too() -> None:
    with pytest.raises(InputError, match="batch of 1 cannot be learnt from"):
        EpochSampler(10, 1, 0, least=2)
    with pytest.raises(InputError, match="nothing to train on"):
        EpochSampler(0, 4, 0)


@pytest.fixture
def store(make_cohort: Make, chests: dict[str, list[np.ndarray]], tmp_path: Path) -> SliceStore:
    return working_slices(make_cohort(chests, intercept=-1024.0), 32, tmp_path / "cache")


def slice_loader(store: SliceStore, rows: np.ndarray, batch: int = 4, seed: int = 0, **more: int) -> SliceLoader:
    return SliceLoader(store, rows, SliceInputConfig(size=24, source=32), batch, seed, **more)


def test_a_block_of_slices_knows_scan_and_height(store: SliceStore) -> None:
    block = SliceLoader(store, np.arange(len(store)), SliceInputConfig(size=16, source=32), 4, seed=1).batch(0)["image"]
    rows = block.item.numpy()
    assert block.value["series"].tolist() == store.series[rows].tolist()
    for row, height in zip(rows, block.value["height"].tolist(), strict=True):
        places = store.index[store.series == store.series[row]]
        span = places.max() - places.min()
        assert height == pytest.approx((store.index[row] - places.min()) / span if span else 0.5)


def test_two_views_of_a_slice_share_its_item_and_differ(store: SliceStore) -> None:
    loader = slice_loader(store, np.arange(len(store)))
    block = loader.batch(0)["image"]
    half = len(block) // 2
    assert block.value["image"].shape == (2 * half, 1, 24, 24) and block.value["image"].dtype == torch.float32
    assert torch.equal(block.item[:half], block.item[half:]) and len(set(block.item.tolist())) == half
    assert not torch.equal(block.value["image"][:half], block.value["image"][half:])
    assert block.patient.tolist() == store.patient[block.item].tolist() and block.z_mm is not None


def test_a_slice_has_the_same_view_whatever_it_is_trained_with(store: SliceStore) -> None:
    """Batches of one cohort and of a part of it: the views of a slice in an epoch are its own."""

    def views(loader: SliceLoader) -> dict[str, torch.Tensor]:
        found = {}
        for step in range(loader.steps_per_epoch):
            block = loader.batch(step)["image"]
            for row in range(len(block) // 2):
                found[store.slice_ids[int(block.item[row])]] = block.value["image"][row]
        return found

    everyone, some = (
        views(slice_loader(store, np.arange(15))),
        views(slice_loader(store, np.arange(4, 15), batch=3)),
    )
    assert len(everyone) == 15 and len(some) == 11
    assert all(torch.equal(everyone[name], image) for name, image in some.items())


@pytest.mark.proves("D33", "A.tests")
def test_batches_are_the_same_in_any_process(store: SliceStore) -> None:
    loaders = [slice_loader(store, np.arange(15), threads=threads) for threads in (1, 2)]
    for step in (7, 2, 0):
        first, second = (loader.batch(step)["image"].value["image"] for loader in loaders)
        assert torch.equal(first, second)
    program = (
        "from medform.inputs.loader import EpochSampler, mismatch; import numpy as np, hashlib;"
        "s = EpochSampler(50, 8, 3); m = mismatch(np.arange(9), 4);"
        "print(hashlib.sha256(repr([s.at(i)[1].tolist() for i in range(20)] + [m]).encode()).hexdigest())"
    )
    sampler = EpochSampler(50, 8, 3)
    here = repr([sampler.at(i)[1].tolist() for i in range(20)] + [mismatch(np.arange(9), 4)])
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    there = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


@pytest.mark.proves("A5.3", "A4.4")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_two_or_three_slices_and_a_batch_larger_than_that(store: SliceStore, count: int) -> None:
    loader = slice_loader(store, np.arange(count), batch=64)
    assert loader.steps_per_epoch == 1
    assert len(loader.batch(0)["image"]) == len(loader.batch(9)["image"]) == 2 * count


def sources(patients: int) -> dict[str, BagSource | RowSource]:
    """Patient 1 has no table row, patient 2 no image."""
    codes = np.arange(patients)
    imaged = np.repeat(codes[codes != 2], 3)
    rowed = codes[codes != 1]
    feature = imaged[:, None].astype(np.float32)
    return {
        "image": BagSource(feature, imaged, np.tile(np.arange(3), len(imaged) // 3), np.zeros(len(imaged), np.float32)),
        "clinical": RowSource(rowed[:, None].astype(np.float32), rowed),
        "label": RowSource(rowed[:, None].astype(np.float32), rowed, name="label"),
    }


@pytest.mark.proves("A5.3")
@pytest.mark.parametrize("patients", [1, 2, 3, 8])
def test_a_patient_without_a_modality_has_no_row_in_it_and_is_still_there(patients: int) -> None:
    loader = PatientLoader(sources(patients), np.arange(patients), batch=64, seed=0)
    batch = loader.batch(0)
    assert set(batch["image"].patient.tolist()) == set(range(patients)) - {2}
    assert set(batch["clinical"].patient.tolist()) == set(range(patients)) - {1}
    whole = loader.whole()
    assert whole["image"].patient.tolist() == [code for code in range(patients) if code != 2]
    for block in (batch["clinical"], whole["clinical"]):
        assert block.value["table"][:, 0].tolist() == block.patient.tolist()


def test_a_patient_without_any_modality_is_in_no_batch() -> None:
    nobody = PatientLoader(sources(4), np.array([0, 3, 77]), batch=2, seed=0)
    assert nobody.patients.tolist() == [0, 3] and nobody.steps_per_epoch == 1
    with pytest.raises(InputError, match="nothing to train on"):
        PatientLoader(sources(4), np.array([77]), batch=2, seed=0)


def test_a_modality_that_nobody_of_the_batch_has_is_left_out() -> None:
    loader = PatientLoader(sources(4), np.array([1]), batch=4, seed=0)
    assert set(loader.batch(0)) == {"image"}


@pytest.mark.proves("A6.1")
def test_shuffled_pairs_are_no_true_pairs_and_labels_stay() -> None:
    loader = PatientLoader(sources(12), np.arange(3, 12), batch=64, seed=5, pairing="shuffled")
    block, again = loader.whole()["clinical"], loader.batch(3)["clinical"]
    rows = dict(zip(block.patient.tolist(), block.value["table"][:, 0].tolist(), strict=True))
    assert set(rows) == set(rows.values()) == set(range(3, 12)) and all(p != row for p, row in rows.items())
    assert rows == dict(zip(again.patient.tolist(), again.value["table"][:, 0].tolist(), strict=True))
    label = loader.whole()["label"]
    assert label.value["label"][:, 0].tolist() == label.patient.tolist()


@given(st.integers(1, 30), st.integers(0, 1000))
def test_a_mismatch_is_one_cycle(n: int, seed: int) -> None:
    given_ = mismatch(np.arange(n), seed)
    seen, at = [], 0
    for _ in range(n):
        seen.append(at)
        at = given_[at]
    assert sorted(seen) == list(range(n)) and at == 0


def patient_slices(store: SliceStore, seed: int = 0, batch: int = 8, **more: object) -> SlicePatientLoader:
    """Patient 0 has no genes, patient 90 genes only."""
    config = PatientSlicesConfig.model_validate({"size": 32, "source": 32} | more)
    codes = np.array([1, 2, 3, 4, 90])
    genes = RowSource(codes[:, None].astype(np.float32), codes, name="expression")
    everybody = np.array([0, 1, 2, 3, 4, 90, 91])
    lesion = np.where(store.index == 1, 5, 0)
    return SlicePatientLoader(store, everybody, config, batch, seed, {"genes": genes}, lesion_pixels=lesion)


@pytest.mark.proves("G3.1")
def test_some_slices_of_each_patient_meet_one_row_of_genes(store: SliceStore) -> None:
    loader = patient_slices(store, slices=2)
    batch = loader.batch(0)
    image, genes = batch["image"], batch["genes"]
    assert loader.patients.tolist() == [0, 1, 2, 3, 4, 90] and loader.steps_per_epoch == 1
    counts = {code: image.patient.tolist().count(code) for code in range(5)}
    true = {code: min(2, int((store.patient == code).sum())) for code in range(5)}
    assert counts == true and 90 not in image.patient.tolist() and len(set(image.item.tolist())) == len(image)
    assert sorted(genes.patient.tolist()) == [1, 2, 3, 4, 90], "one row a patient, those without an image too"
    whole = loader.whole()
    assert len(whole["image"]) == len(store) and len(whole["genes"]) == 5
    assert np.allclose(whole["image"].value["image"], store.images(whole["image"].item.numpy()), atol=1e-6)


@pytest.mark.proves("G3.1")
def test_in_strict_mode_no_two_slices_of_a_patient_meet(store: SliceStore) -> None:
    loader = patient_slices(store, slices=1, batch=4)
    seen = set()
    for step in range(40):
        patients = loader.batch(step)["image"].patient.tolist() if "image" in loader.batch(step) else []
        assert len(patients) == len(set(patients))
        seen |= set(loader.batch(step)["image"].item.tolist())
    assert seen == set(range(len(store))), "in time every slice comes"


@pytest.mark.proves("G3.1", "A5.3")
def test_slices_of_patients_are_a_function_of_seed_and_step(store: SliceStore) -> None:
    first, again = patient_slices(store), patient_slices(store)
    for step in (3, 0):
        one, other = first.batch(step)["image"], again.batch(step)["image"]
        assert torch.equal(one.value["image"], other.value["image"]) and torch.equal(one.item, other.item)
    assert not torch.equal(first.batch(0)["image"].item, first.batch(1)["image"].item)
    plain = patient_slices(store, augment=None).batch(0)["image"]
    assert np.allclose(plain.value["image"], store.images(plain.item.numpy()), atol=1e-6)
    with pytest.raises(ValueError, match="only a segmentation takes neighbouring slices"):
        patient_slices(store, channels=3)


def test_slices_with_a_lesion_can_come_more_often(store: SliceStore) -> None:
    def share(weight: float) -> float:
        loader = patient_slices(store, slices=1, lesion_weight=weight, batch=8)
        drawn = np.concatenate([loader.batch(step)["image"].item.numpy() for step in range(60)])
        several = drawn[np.isin(store.patient[drawn], np.flatnonzero(np.bincount(store.patient) >= 3))]
        return float((store.index[several] == 1).mean())

    assert abs(share(1.0) - 47 / 180) < 0.1 and share(20.0) > 0.75
    with pytest.raises(InputError, match="lesion_weight needs masks"):
        SlicePatientLoader(store, np.arange(5), PatientSlicesConfig(size=32, source=32, lesion_weight=2.0), 4, 0, {})


@pytest.mark.proves("G3.1", "G5")
def test_genes_of_the_shuffled_control_are_those_of_others(store: SliceStore) -> None:
    codes = np.arange(5)
    genes = GeneSource(codes[:, None].astype(np.float32), np.ones((5, 1), bool), codes)
    config = PatientSlicesConfig(size=32, source=32)
    loader = SlicePatientLoader(store, codes, config, 8, 0, {"genes": genes}, pairing="shuffled")
    block = loader.whole()["genes"]
    assert (block.value["expression"][:, 0] != block.patient).all() and len(block) == 5
    pairs = PatientLoader({"genes": genes}, codes, batch=8, seed=0, pairing="shuffled").whole()["genes"]
    assert (pairs.value["expression"][:, 0] != pairs.patient).all()


@pytest.mark.proves("G3.2")
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 1000))
def test_no_two_modalities_of_the_shuffled_control_are_of_one_patient(n: int, first: int, seed: int) -> None:
    rows = np.arange(n)
    genes = np.arange(first % n, n)  # some have no genes
    sources = {
        "clinical": RowSource(rows[:, None].astype(np.float32), rows),
        "genes": GeneSource(genes[:, None].astype(np.float32), np.ones((len(genes), 1), bool), genes),
    }
    given_ = PatientLoader(sources, rows, batch=4, seed=seed, pairing="shuffled").whole()
    table = dict(
        zip(given_["clinical"].patient.tolist(), given_["clinical"].value["table"][:, 0].tolist(), strict=True)
    )
    other = dict(zip(given_["genes"].patient.tolist(), given_["genes"].value["expression"][:, 0].tolist(), strict=True))
    assert set(table.values()) == set(rows) and set(other.values()) == set(genes)
    if len(genes) > 1:
        assert all(one != row for one, row in other.items())
    if len(genes) > 2:
        assert all(table[one] != row for one, row in other.items())
