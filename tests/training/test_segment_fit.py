"""A segmentation stage in the loop: shares of the rate, the average, and resuming to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from medform.compute.seed import generator
from medform.errors import Interrupted
from medform.interfaces import Batch, Block, Encoded, Tower
from medform.models.hybrid import HybridConfig
from medform.objectives.segment import Segment, SegmentConfig
from medform.runs.checkpoint import load_weights, save_weights
from medform.training.fit import FitSettings, fit
from medform.training.optimizer import OptimizerConfig


class GeneTower(Tower):
    width = 3

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Linear(4, 3)

    def forward(self, block: Block) -> Encoded:
        return Encoded(self.vector(block.value["expression"]))


class Squares:
    """Six slices of five patients a step, a bright square in most of them, genes of three patients."""

    steps_per_epoch = 3

    def batch(self, step: int) -> Batch:
        random = generator(5, "batch", step % 3)
        image = 0.3 * torch.rand(6, 1, 32, 32, generator=random)
        mask = torch.zeros_like(image)
        for row in range(5):
            top, left = torch.randint(0, 16, (2,), generator=random).tolist()
            mask[row, :, top : top + 12, left : left + 12] = 1
        ids, owners = torch.tensor([0, 1, 2, 3, 4, 4]), torch.tensor([4, 0, 2])
        genes = {"expression": torch.randn(3, 4, generator=random)}
        return {
            "image": Block({"image": image + 0.6 * mask}, ids, torch.arange(6)),
            "mask": Block({"mask": mask}, ids, torch.arange(6)),
            "genes": Block(genes, owners, owners),
        }

    def whole(self) -> Batch:
        return self.batch(0)


def objective() -> Segment:
    image = HybridConfig(model="resnet10t", width=12, blocks=1, heads=2).build(generator(0, "image"))
    torch.manual_seed(0)
    return SegmentConfig().build({"image": image, "genes": GeneTower()}, generator(0, "objective"))


def train(folder: Path, fabric: Fabric, steps: int, stop_after: int | None = None) -> Segment:
    model = objective()
    settings = FitSettings(steps=steps, rate=0.02, warmup=2, seed=3, checkpoint_every=2)

    def progress(done: int, total: int) -> None:
        if done == stop_after:
            raise KeyboardInterrupt

    fit(model, Squares(), OptimizerConfig(lr=0.02, clip=2.0), settings, fabric, folder=folder, progress=progress)
    return model


@pytest.mark.proves("G4.1")
def test_a_resumed_stage_ends_with_the_same_bits(tmp_path: Path, fabric: Fabric) -> None:
    straight = train(tmp_path / "a", fabric, 5)
    with pytest.raises(Interrupted):
        train(tmp_path / "b", fabric, 5, stop_after=3)
    resumed = train(tmp_path / "b", fabric, 5)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert int(straight.state_dict()["average.n_averaged"]) == 5
    save_weights(tmp_path / "model.safetensors", straight)
    other: Any = objective()
    load_weights(tmp_path / "model.safetensors", other)
    batch = Squares().batch(1)
    assert torch.equal(other.predict(batch["image"], batch["genes"]), straight.predict(batch["image"], batch["genes"]))


@pytest.mark.proves("G4.1")
def test_a_few_steps_find_the_squares(tmp_path: Path, fabric: Fabric) -> None:
    model, batch = train(tmp_path, fabric, 24), Squares().batch(0)
    found = model.predict(batch["image"], batch["genes"]) >= 0.5
    lesion = batch["mask"].value["mask"] > 0
    assert 2 * float((found & lesion).sum()) / float(found.sum() + lesion.sum()) > 0.8
