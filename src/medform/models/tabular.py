"""Towers over encoded table rows (``block.value["table"]``, (M, q)): one linear map, or an MLP."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from medform.compute.seed import draws_from
from medform.config import Config
from medform.interfaces import Block, Encoded, Tower

__all__ = ["LinearConfig", "LinearTower", "MlpConfig", "MlpTower"]


class LinearTower(Tower):
    """A table row, centred, times a matrix: (M, q) -> (M, ``width``).

    ``centre`` (q,) is the training patients' mean; `fit_input` sets it before step 0. ``directions`` (q,
    width) keeps the whitened table directions of a closed-form start (NaN without one): an image head can
    be fitted onto them later, while this tower is frozen.
    """

    centre: Tensor
    directions: Tensor

    def __init__(self, columns: int, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.width = width
        self.head = nn.Linear(columns, width, bias=bias)
        self.register_buffer("centre", torch.zeros(columns))
        self.register_buffer("directions", torch.full((columns, width), math.nan))

    def forward(self, block: Block) -> Encoded:
        """``pooled`` (M, ``width``)."""
        return Encoded(self.head(block.value["table"] - self.centre))

    @torch.no_grad()
    def fit_input(self, block: Block) -> Float[Tensor, "m q"]:
        """Set ``centre`` from all training patients and return their rows as the matrix sees them."""
        self.centre.copy_(block.value["table"].mean(0))
        return block.value["table"] - self.centre


class LinearConfig(Config):
    """A linear map of table columns. ``width`` None: that of the space which the stage's modalities share."""

    kind: Literal["linear"] = "linear"
    width: int | None = Field(default=None, ge=1)
    bias: bool = False

    def build(self, width: int, random: torch.Generator, *, shared_width: int | None = None) -> LinearTower:
        """The tower for ``width`` encoded columns; ValueError where no width of its own and none shared is given."""
        out = self.width or shared_width
        if out is None:
            raise ValueError("a linear tower without a width of its own needs the width of the shared space.")
        with draws_from(random):
            return LinearTower(width, out, bias=self.bias)


class MlpTower(Tower):
    """(Linear, LayerNorm, ReLU, Dropout) for every entry of ``hidden``, then Linear: (M, q) -> (M, ``width``)."""

    def __init__(self, columns: int, hidden: tuple[int, ...], width: int, dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = columns
        for out in hidden:
            layers += [nn.Linear(before, out), nn.LayerNorm(out), nn.ReLU(), nn.Dropout(dropout)]
            before = out
        self.width = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, width))

    def forward(self, block: Block) -> Encoded:
        """``pooled`` (M, ``width``)."""
        return Encoded(self.layers(block.value["table"]))


class MlpConfig(Config):
    """An MLP over table columns.

    ``hidden``: widths of the hidden layers; ``columns`` stands for the number of columns, which is what the
    MEDFORM paper's code does (p-p-p-2048) and bounds the rank of the vectors by p. ``width`` None: the
    shared space's.
    """

    kind: Literal["mlp"] = "mlp"
    hidden: list[int | Literal["columns"]] = [128, 128]
    width: int | None = Field(default=None, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)

    def build(self, width: int, random: torch.Generator, *, shared_width: int | None = None) -> MlpTower:
        """The tower for ``width`` encoded columns; ValueError where no width of its own and none shared is given."""
        out = self.width or shared_width
        if out is None:
            raise ValueError("an MLP tower without a width of its own needs the width of the shared space.")
        hidden = tuple(width if size == "columns" else size for size in self.hidden)
        with draws_from(random):
            return MlpTower(width, hidden, out, self.dropout)
