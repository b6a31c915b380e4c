"""Tiny parts to train: an image tower over noise slices, a folder, a log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medform.inputs.loader import SliceLoader
from medform.inputs.slices import Scale, SliceInputConfig, SliceStore
from medform.interfaces import Batch, Block, Encoded, Objective, Tower
from medform.runs.log import StageLog
from medform.training.fit import FitResult, FitSettings, fit
from medform.training.optimizer import OptimizerConfig


class TinyTower(Tower):
    """A convolution, batch norm, dropout from torch's global generator, a mean."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 5, stride=4)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.2)

    def forward(self, block: Block) -> Encoded:
        return Encoded(self.dropout(self.norm(self.conv(block.value["image"])).relu().mean((2, 3))))

    def slice_vector(self, image: Tensor, layers: Any) -> Tensor:
        maps = self.norm(self.conv(image))
        return torch.cat([maps.mean((2, 3)) if layer == "head" else maps.amax((2, 3)) for layer in layers], dim=1)


class TinySimclr(Objective):
    """Views of one slice are each other's class; draws from the generator it is given, too."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.towers = nn.ModuleDict({"image": TinyTower()})
        self.head = nn.Linear(6, 4)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.dtype: torch.dtype | None = None

    def forward(self, batch: Batch, step: int, random: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        block = batch["image"]
        z = self.head(self.towers["image"](block).pooled)
        self.dtype = z.dtype
        z = z.float() + 0.01 * torch.randn(z.shape, generator=random)
        logits = torch.nn.functional.normalize(z) @ torch.nn.functional.normalize(z).T / 0.2
        logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        other = torch.arange(len(z)).roll(len(z) // 2)
        return nn.functional.cross_entropy(logits, other), {"chance": float(np.log(len(z) - 1))}

    def after_step(self) -> None:
        self.steps += 1


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def noise_store() -> SliceStore:
    """24 noise slices of 8 patients."""
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(8), 3)
    return SliceStore(
        pixels=random.integers(-1000, 400, (24, 32, 32)).astype(np.int16),
        scale=Scale(1.0, 0.0, (-1000.0, 400.0)),
        slice_ids=tuple(f"s{number}" for number in range(24)),
        patient_ids=tuple(f"P{number}" for number in range(8)),
        patient=patient,
        series=patient,
        index=np.tile(np.arange(3), 8),
        z_mm=np.full(24, np.nan, np.float32),
        key=np.arange(24) * 7919,
        digest="noise",
    )


@pytest.fixture
def store() -> SliceStore:
    return noise_store()


@dataclass
class Bench:
    """Everything a fit needs; ``run(objective, folder)`` trains and returns how it ended."""

    store: SliceStore
    fabric: Fabric
    folder: Path
    steps: int = 14
    batch: int = 5
    config: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=0.01))
    options: Mapping[str, int] = field(default_factory=lambda: {"log_every": 3, "checkpoint_every": 4})

    def loader(self, rows: int = 24) -> SliceLoader:
        return SliceLoader(self.store, np.arange(rows), SliceInputConfig(size=16, source=32), self.batch, seed=1)

    def log(self, name: str = "a") -> StageLog:
        return StageLog(self.folder / name / "metrics.jsonl", {"fold": 0, "stage": "pretrain"})

    def run(self, objective: Objective, name: str = "a", **more: Any) -> FitResult:
        settings = FitSettings(steps=self.steps, rate=0.01, warmup=2, seed=3, **self.options)
        keywords = {"folder": self.folder / name, "log": self.log(name), **more}
        loader = keywords.pop("loader", None) or self.loader()
        return fit(objective, loader, self.config, settings, keywords.pop("fabric", self.fabric), **keywords)


@pytest.fixture
def bench(store: SliceStore, fabric: Fabric, tmp_path: Path) -> Bench:
    return Bench(store, fabric, tmp_path)


@pytest.fixture
def simclr() -> Callable[[], TinySimclr]:
    return TinySimclr
