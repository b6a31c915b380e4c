"""What the torch-side packages agree on: Block, Batch, Encoded, Tower, Pool, Objective.

Shapes: M items of a block (slices, patients), T slices of all bags of a block packed one after another, d features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Batch", "Block", "Encoded", "Objective", "Pool", "Tower"]


@dataclass(frozen=True)
class Block:
    """One modality of one batch. A patient without the modality has no row in it.

    ``value`` holds tensors with leading M, except in a block of bags, where ``feature`` (T, d) or ``image``
    (T, C, H, W) is packed and ``offset`` (M + 1,) says where each bag begins. ``patient``, ``cohort`` and ``item``
    are integers that are equal where the patient, the cohort, the slice is the same; ``z`` is the slice index
    ((M,), for bags (T,)), ``z_mm`` its position, NaN where unknown.

    Names in ``value`` by modality: slices ``image`` (M, C, H, W) in [0, 1], optionally ``height`` (M,), the relative
    height of a slice in its stack, 0 to 1; bags ``feature``; a clinical table
    ``table`` (M, q) as encoded by `medform.inputs.clinical`; labels ``label`` (M,) of the block called ``label``.
    """

    value: Mapping[str, Tensor]
    patient: Int[Tensor, " m"]
    item: Int[Tensor, " m"]
    cohort: Int[Tensor, " m"] | None = None
    z: Int[Tensor, " t"] | None = None
    z_mm: Float[Tensor, " t"] | None = None
    offset: Int[Tensor, " m1"] | None = None

    def __len__(self) -> int:
        return len(self.patient)

    def take(self, rows: Int[Tensor, " k"]) -> Block:
        """Some rows of a block without bags, in the order asked. Raises ValueError for packed bags."""
        if self.offset is not None:
            raise ValueError("rows of packed bags cannot be taken one by one")
        taken: dict[str, Any] = {"value": {name: tensor[rows] for name, tensor in self.value.items()}}
        for name in ("patient", "item", "cohort", "z", "z_mm"):
            tensor = getattr(self, name)
            taken[name] = None if tensor is None else tensor[rows]
        return replace(self, **taken)

    def to(self, device: torch.device | str) -> Block:
        """The block with every tensor on ``device``."""
        moved: dict[str, Any] = {"value": {name: tensor.to(device) for name, tensor in self.value.items()}}
        for name in ("patient", "item", "cohort", "z", "z_mm", "offset"):
            tensor = getattr(self, name)
            moved[name] = None if tensor is None else tensor.to(device)
        return replace(self, **moved)


Batch = Mapping[str, Block]


@dataclass(frozen=True)
class Encoded:
    """What a tower returns: ``pooled`` (M, d); where it has them tokens (M, L, k), maps (M, c, h, w), weight (T,)."""

    pooled: Float[Tensor, "m d"]
    tokens: Float[Tensor, "m l k"] | None = None
    maps: list[Float[Tensor, "m _ _ _"]] | None = None  # channels and sizes of their own
    weight: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class Tower(nn.Module):
    """Encodes one modality. ``width`` is d of ``Encoded.pooled``."""

    width: int

    def forward(self, block: Block) -> Encoded:
        """Vectors (M, d) of the block's items, and tokens, maps or weights where the tower has them."""
        raise NotImplementedError  # abstract: every tower of models/ says how


class Pool(nn.Module):
    """Packed slices to bags: (T, d), offset (M + 1,), z (T,) -> bag (M, e), weight (T,) that sums to 1 over a bag."""

    width: int

    def forward(
        self, feature: Float[Tensor, "t d"], offset: Int[Tensor, " m1"], z: Int[Tensor, " t"] | None = None
    ) -> tuple[Float[Tensor, "m e"], Tensor]:
        """Bags (M, e) and the weights (T,) of their slices; ``offset``: where each begins, ``z``: slice indices."""
        raise NotImplementedError  # abstract: every pool of models/pooling.py says how


class Objective(nn.Module):
    """What is learnt. Built with its towers; ``forward`` is the whole step and knows what to mask.

    ``chance`` of the last step (the loss of a guess, for example ln of the number of candidates) belongs into the logs.
    """

    towers: nn.ModuleDict

    def start(self, batch: Batch) -> None:
        """Closed-form starting point; called once, before step 0, with all the fold's training patients."""

    @property
    def fits_start(self) -> bool:
        """Whether `start` looks at the patients at all; where it does not they are not loaded for it."""
        return type(self).start is not Objective.start

    def forward(self, batch: Batch, step: int, random: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Loss of ``batch`` at ``step`` (from 0), and what is logged by name; ``random`` is for all that is drawn."""
        raise NotImplementedError  # abstract: every objective of objectives/ says how

    def after_step(self) -> None:
        """Called after each optimizer step (a teacher's moving average, a clamp)."""

    def learning_rate_scale(self) -> float:
        """What a learning rate given as ``{relative: r}`` is multiplied by: the size of the weights after ``start``.

        `medform.objectives.align` answers with the root mean square of the image head's weights, so that a step is a
        share of the weights whatever the unit of the features. 1.0 where an objective has no opinion.
        """
        return 1.0

    def rate_of(self, name: str) -> float:
        """Learning rate of the parameter ``name`` in units of the stage's; 1.0 where an objective has no opinion."""
        return 1.0
