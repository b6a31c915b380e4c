"""The frozen pass changes nothing, gives each slice its own vector, and remembers what it computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medform.compute.seed import generator
from medform.inputs.bags import BagSource
from medform.inputs.loader import RowSource
from medform.interfaces import Block, Encoded, Tower
from medform.metrics.representation import effective_rank
from medform.models.image import ModuleConfig, TimmConfig
from medform.models.vit import VitConfig
from medform.training.infer import (
    RankMonitor,
    bag_embeddings,
    segment_slices,
    shrunk,
    slice_features,
    weights_digest,
)

LAYERS = (2, "head")


class MeanTower(Tower):
    """Mean bag with even weights, in as many heads as asked for."""

    width = 2

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(0.9)

    def forward(self, block: Block) -> Encoded:
        assert block.offset is not None
        lengths = block.offset.diff()
        weight = self.dropout((1 / lengths).repeat_interleave(lengths))
        row = torch.arange(len(block)).repeat_interleave(lengths)
        bag = torch.zeros(len(block), 2).index_add(0, row, weight[:, None] * block.value["feature"])
        return Encoded(bag, weight=weight if self.heads == 1 else weight[:, None].expand(-1, self.heads))


@pytest.mark.proves("D14")
def test_batched_vectors_equal_single_ones_and_the_module_is_as_it_was(store: Any, simclr: Callable[[], Any]) -> None:
    tower = simclr().towers["image"].train()
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    features = slice_features(tower, store, LAYERS, batch=7)
    assert features.shape == (24, 12) and features.dtype == np.float32
    assert np.allclose(features, slice_features(tower, store, LAYERS, batch=1), atol=1e-5)
    tower.eval()
    image = torch.from_numpy(store.images(np.array([5])))
    assert np.allclose(features[5], tower.slice_vector(image, LAYERS)[0].detach(), atol=1e-5)
    tower.train()
    slice_features(tower, store, LAYERS)
    assert tower.training and all(torch.equal(before[name], t) for name, t in tower.state_dict().items())


def test_features_are_cached_by_weights_layers_and_pixels(
    store: Any, simclr: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = simclr().towers["image"]
    calls: list[int] = []
    vectors = type(tower).slice_vector

    def counted(self: Any, image: Tensor, layers: Any) -> Tensor:
        calls.append(len(image))
        return vectors(self, image, layers)

    monkeypatch.setattr(type(tower), "slice_vector", counted)
    first = slice_features(tower, store, LAYERS, cache=tmp_path)
    assert np.array_equal(slice_features(tower, store, LAYERS, cache=tmp_path), first) and sum(calls) == 24
    slice_features(tower, store, ("head",), cache=tmp_path)
    with torch.no_grad():
        tower.conv.bias[0] += 1e-6
    assert not np.array_equal(slice_features(tower, store, LAYERS, cache=tmp_path), first)
    assert sum(calls) == 3 * 24 and len(list(tmp_path.iterdir())) == 3


def test_networks_that_pool_differently_do_not_share_cached_features(store: Any, tmp_path: Path) -> None:
    average, largest = (TimmConfig(model="resnet10t", pool=pool).build(generator(0)) for pool in ("avg", "max"))
    largest.load_state_dict(average.state_dict())
    assert weights_digest(average) == weights_digest(largest)
    store = replace(store, pixels=np.random.default_rng(1).integers(-1000, 400, (24, 64, 64)).astype(np.int16))
    apart = slice_features(largest, store, ("head",))
    first = slice_features(average, store, ("head",), cache=tmp_path)
    assert np.array_equal(slice_features(largest, store, ("head",), cache=tmp_path), apart)
    assert not np.allclose(first, apart)


@pytest.mark.parametrize(
    ("config", "size", "seen"),
    [
        (VitConfig(model="vit_tiny_patch16_224", image_size=112, patch=14), 112, 84),
        (VitConfig(model="vit_tiny_patch16_224", image_size=128, patch=16), 128, 96),
        (TimmConfig(model="resnet10t"), 128, 96),
        (TimmConfig(model="resnet10t"), 64, 64),
    ],
)
def test_a_look_during_training_is_small_and_of_whole_patches(config: Any, size: int, seen: int) -> None:
    tower = config.build(generator(0))
    image = shrunk(torch.rand(2, 1, size, size), tower, 96)
    assert image.shape[-1] == seen and tower.slice_vector(image, ("head",)).isfinite().all()


def test_a_network_of_one_size_is_looked_at_in_its_own(store: Any) -> None:
    fixed = nn.Identity()
    fixed.config = ModuleConfig.model_construct(kind="module")  # type: ignore[assignment]
    assert shrunk(torch.rand(2, 1, 150, 150), fixed, 96).shape[-1] == 150


def test_the_digest_of_weights_changes_with_any_of_them(simclr: Callable[[], Any]) -> None:
    network = simclr()
    digests = {weights_digest(network)}
    for tensor in network.state_dict().values():
        with torch.no_grad():
            tensor.view(-1)[0] += 1
        digests.add(weights_digest(network))
    assert len(digests) == 1 + len(network.state_dict())


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_has_a_weight_a_slice_that_sums_to_one_over_a_bag(heads: int) -> None:
    patient = np.repeat(np.arange(3), (4, 1, 2))
    feature = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    block = BagSource(feature, patient, np.arange(7), np.zeros(7, np.float32)).block(np.array([2, 0, 1]))
    vectors, weight = bag_embeddings(MeanTower(heads).train(), block)
    assert weight is not None and weight.shape == (7,)
    assert np.allclose([weight[:2].sum(), weight[2:6].sum(), weight[6:].sum()], 1)
    assert np.allclose(vectors, [feature[patient == code].mean(0) for code in (2, 0, 1)], atol=1e-6)


def test_the_monitor_watches_the_same_slices_spread_over_all(store: Any, simclr: Callable[[], Any]) -> None:
    monitor = RankMonitor.over(store, np.arange(24), count=9)
    assert monitor.rows.tolist() == [0, 3, 6, 9, 12, 14, 17, 20, 23]
    objective = simclr().train()
    found = monitor(objective)
    objective.eval()
    images = torch.from_numpy(store.images(monitor.rows))
    block = Block({"image": images}, torch.zeros(9, dtype=torch.int64), torch.arange(9))
    with torch.no_grad():
        vectors = objective.towers["image"](block).pooled.numpy()
    assert found == {"effective_rank": pytest.approx(effective_rank(vectors), rel=1e-4)}
    assert RankMonitor.over(store, np.arange(7))(objective) == {}, "too few slices to tell"


class Threshold(nn.Module):
    """Logits: the pixel, plus the patient's number where it has one; 10 where batch statistics are in use."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.asked: list[tuple[int, ...]] = []

    def logits(self, image: Block, genes: Block | None = None, *, use_ema: bool = True, flip: bool = True) -> Tensor:
        self.asked.append(tuple(image.value["image"].shape))
        shift = 0.0
        if genes is not None and len(genes):
            assert genes.patient.tolist() == image.patient[:1].tolist()
            shift = float(genes.value["table"][0, 0])
        ramp = 0.0 if flip else torch.linspace(0, 1, image.value["image"].shape[-1])
        return self.gain * image.value["image"].mean(1, keepdim=True) + shift + 10 * self.training + ramp + use_ema


@pytest.mark.proves("G4.1")
def test_masks_are_those_of_single_slices_in_the_order_asked(store: Any) -> None:
    model = Threshold().train()
    rows = np.array([23, 0, 7, 1, 22])
    found = segment_slices(model, store, rows, batch=2)
    wanted = torch.sigmoid(2 * torch.from_numpy(store.images(rows)) + 1)[:, 0]
    assert found.dtype == np.float16 and found.shape == (5, 32, 32)
    assert np.allclose(found, wanted, atol=1e-3)
    assert model.training and [shape[0] for shape in model.asked] == [2, 2, 1]


@pytest.mark.proves("G4.1", "G5")
def test_each_patient_is_drawn_with_its_own_genes_or_none(store: Any) -> None:
    genes = RowSource(np.array([[3.0], [-4.0]], np.float32), np.array([7, 2]))
    rows = np.array([0, 6, 21, 22])
    found = segment_slices(Threshold(), store, rows, genes)
    shift = torch.tensor([0.0, -4.0, 3.0, 3.0])[:, None, None]
    wanted = torch.sigmoid(2 * torch.from_numpy(store.images(rows))[:, 0] + 1 + shift)
    assert np.allclose(found, wanted, atol=1e-3)
    null = segment_slices(Threshold(), store, rows, use_ema=False)
    assert np.allclose(null, torch.sigmoid(2 * torch.from_numpy(store.images(rows))[:, 0]), atol=1e-3)


@pytest.mark.proves("G4.1")
def test_masks_come_at_another_size_and_slices_with_their_neighbours(store: Any) -> None:
    rows = np.array([3, 4])

    def neighbours(asked: np.ndarray) -> np.ndarray:
        return np.concatenate([store.images(asked - 1), store.images(asked), store.images(asked + 1)], axis=1)

    model = Threshold()
    found = segment_slices(model, store, rows, images=neighbours, side=64)
    assert found.shape == (2, 64, 64) and model.asked == [(2, 3, 32, 32)]
    logit = 2 * torch.from_numpy(neighbours(rows)).mean(1, keepdim=True) + 1
    wanted = nn.functional.interpolate(logit, (64, 64), mode="bilinear").sigmoid()[:, 0]
    assert np.allclose(found, wanted, atol=1e-3)
    done: list[tuple[int, int]] = []
    segment_slices(model, store, np.arange(6), batch=2, progress=lambda *place: done.append(place))
    assert done == [(2, 6), (3, 6), (5, 6), (6, 6)]


@pytest.mark.proves("G4.1")
def test_only_slices_larger_than_the_window_are_gone_over_by_windows(store: Any) -> None:
    rows, model = np.array([0, 1, 5]), Threshold()
    whole = segment_slices(model, store, rows, window=32)
    assert {shape[-1] for shape in model.asked} == {32}
    model.asked.clear()
    found = segment_slices(model, store, rows, window=16)
    assert {shape[-2:] for shape in model.asked} == {(16, 16)}
    assert np.allclose(found, whole, atol=2e-3)  # each pixel by itself: blended windows change nothing
