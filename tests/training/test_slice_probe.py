"""The slice probe of the training log: fixed training slices, whole patients apart, nothing changed by looking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from medform.inputs.slices import Scale, SliceStore
from medform.interfaces import Block, Encoded, Tower
from medform.training.slice_probe import MOST_SLICES, SliceProbeMonitor, together

PATIENTS, EACH = 12, 6


class MeanTower(Tower):
    """Two numbers a slice: its mean and the mean of its upper half."""

    width = 2

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, block: Block) -> Encoded:
        image = block.value["image"]
        upper = image[:, :, : image.shape[2] // 2]
        return Encoded(self.dropout(torch.stack([image.mean((1, 2, 3)), upper.mean((1, 2, 3))], dim=1)))


class Looked(nn.Module):
    """Stands in for an objective: all that a monitor may look at is its towers."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({"image": MeanTower()})


def make_store(bright: np.ndarray, size: int = 8) -> SliceStore:
    """A slice of grey noise for each entry, ``bright`` ones lighter."""
    random = np.random.default_rng(0)
    count = len(bright)
    pixels = random.integers(80, 120, (count, size, size)).astype(np.uint8)
    pixels[bright == 1] += 40
    patient = np.arange(count) // EACH
    return SliceStore(
        pixels=pixels, scale=Scale(1.0, 0.0, (0.0, 255.0)), slice_ids=tuple(f"s{n}" for n in range(count)),
        patient_ids=tuple(f"p{n}" for n in range(patient.max() + 1)), patient=patient, series=patient,
        index=np.arange(count) % EACH, z_mm=np.zeros(count, np.float32), key=np.arange(count), digest="made up",
    )  # fmt: skip


@pytest.fixture
def bright() -> np.ndarray:
    return (np.random.default_rng(1).random(PATIENTS * EACH) < 0.4).astype(float)


def look(monitor: SliceProbeMonitor) -> Mapping[str, float]:
    objective: Any = Looked().train()
    found = monitor(objective)
    assert objective.training and objective.towers["image"].training
    return found


@pytest.mark.proves("A4.2")
def test_a_finding_is_seen_and_noise_is_not(bright: np.ndarray) -> None:
    noise = np.random.default_rng(2).permutation(bright)
    store = make_store(bright)
    found = look(SliceProbeMonitor.over(store, np.arange(len(store)), {"bright": bright, "noise": noise}))
    assert found["slice_probe.bright"] > 0.99 and abs(found["slice_probe.noise"] - 0.5) < 0.2


@pytest.mark.proves("A4.2")
def test_the_figure_is_scikit_learn_s_with_whole_patients_apart(bright: np.ndarray) -> None:
    flipped = np.abs(bright - (np.random.default_rng(3).random(len(bright)) < 0.3))  # so that it is no 1.0
    store = make_store(bright)
    monitor = SliceProbeMonitor.over(store, np.arange(len(store)), {"task": flipped})
    for code in range(PATIENTS):
        assert len(set(monitor.parts[store.patient[monitor.rows] == code])) == 1
    assert sorted(set(monitor.parts)) == [0, 1, 2]
    images = store.images(monitor.rows)
    vectors = np.stack([images.mean((1, 2, 3)), images[:, :, :4].mean((1, 2, 3))], axis=1).astype(float)
    top = bottom = 0.0
    for part in range(3):
        test, fit = monitor.parts == part, monitor.parts != part
        centred = vectors - vectors[fit].mean(0)
        scaled = centred / np.sqrt((centred[fit] ** 2).sum(1).mean())
        plain = LogisticRegression(C=30.0, tol=1e-10, max_iter=1000).fit(scaled[fit], flipped[fit])
        pairs = flipped[test].sum() * (1 - flipped[test]).sum()
        top += pairs * float(roc_auc_score(flipped[test], plain.decision_function(scaled[test])))
        bottom += pairs
    assert look(monitor)["slice_probe.task"] == pytest.approx(top / bottom, abs=1e-6)


@pytest.mark.proves("A4.2", "L1")
def test_only_labelled_training_slices_are_looked_at_and_at_most_so_many(bright: np.ndarray) -> None:
    store = make_store(np.tile(bright, 6))
    train = np.arange(0, len(store), 1)[: -2 * EACH]
    labels = np.tile(bright, 6)
    labels[:EACH] = np.nan
    monitor = SliceProbeMonitor.over(store, train, {"task": labels})
    assert len(monitor.rows) == MOST_SLICES and len(set(monitor.rows.tolist())) == MOST_SLICES
    assert set(monitor.rows.tolist()) <= set(train.tolist()) - set(range(EACH))
    poisoned = replace(store, pixels=store.pixels.copy())
    poisoned.pixels[-2 * EACH :] = 255
    other = labels.copy()
    other[-2 * EACH :] = 1 - other[-2 * EACH :]
    assert look(SliceProbeMonitor.over(poisoned, train, {"task": other})) == look(monitor)


@pytest.mark.proves("A4.2")
def test_looking_draws_nothing_and_gives_the_same_number_again(bright: np.ndarray) -> None:
    store = make_store(bright, size=200)  # averaged down before it is looked at
    monitor = SliceProbeMonitor.over(store, np.arange(len(store)), {"task": bright})
    before = torch.get_rng_state()
    assert look(monitor) == look(monitor)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.proves("R50")
@pytest.mark.parametrize("values", [np.nan, 0.0, 1.0])
def test_labels_of_one_class_or_none_give_no_figure(bright: np.ndarray, values: float) -> None:
    store = make_store(bright)
    alike = np.full(len(store), values)
    assert look(SliceProbeMonitor.over(store, np.arange(len(store)), {"alike": alike})) == {}
    assert look(SliceProbeMonitor.over(store, np.arange(0), {"task": bright})) == {}
    assert look(SliceProbeMonitor.over(store, np.arange(len(store)), {})) == {}


def test_one_positive_patient_cannot_be_probed(bright: np.ndarray) -> None:
    store = make_store(bright)
    rare = np.zeros(len(store))
    rare[:2] = 1.0
    assert look(SliceProbeMonitor.over(store, np.arange(len(store)), {"rare": rare})) == {}


def test_monitors_together_log_what_each_logs() -> None:
    both = together(lambda _: {"effective_rank": 3.0}, lambda _: {"slice_probe.task": 0.6})
    assert both(Looked()) == {"effective_rank": 3.0, "slice_probe.task": 0.6}  # type: ignore[arg-type]
