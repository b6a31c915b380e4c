"""The bag tower: frozen slice features, a pool over each patient's bag, a head."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medform.config import Config
from medform.interfaces import Block, Encoded, Pool, Tower
from medform.models.pooling import AttentionStart, PoolConfig
from medform.models.projection import HeadConfig

__all__ = ["BagConfig", "BagTower"]


class BagTower(Tower):
    """Packed slice features -> pool -> head(bag centred and divided by one number), or the bag itself without a head.

    ``centre`` (e,) and ``scale`` () are those of the training patients' bags; `fit_input` sets them before
    step 0, they are stored with the weights and never learn. Without a head they stay 0 and 1.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, pool: Pool, head: nn.Module | None = None, width: int | None = None) -> None:
        super().__init__()
        self.pool = pool
        self.head = head
        self.width = pool.width if width is None else width
        self.register_buffer("centre", torch.zeros(pool.width))
        self.register_buffer("scale", torch.ones(()))

    def bags(self, block: Block) -> tuple[Float[Tensor, "m e"], Float[Tensor, " t"]]:
        """The pooled bags before the head, and the attention of every slice (sums to 1 over a bag)."""
        if block.offset is None:
            raise ValueError("a bag tower needs packed bags: a block with `feature` (T, d) and `offset` (M + 1,).")
        return self.pool(block.value["feature"], block.offset, block.z)

    def forward(self, block: Block) -> Encoded:
        """``pooled`` (M, ``width``) and ``weight`` (T,)."""
        bag, weight = self.bags(block)
        if self.head is None:
            return Encoded(bag, weight=weight)
        return Encoded(self.head((bag - self.centre) / self.scale), weight=weight)

    @torch.no_grad()
    def fit_input(self, block: Block) -> Float[Tensor, "m e"]:
        """Set ``centre`` and ``scale`` from all training patients and return their bags as the head sees them.

        The scale is one number for all dimensions, the root mean square of the centred entries, so that
        components keep their proportions (they are not whitened). Pooled in evaluation mode.
        """
        training = self.training
        self.eval()
        bag, _ = self.bags(block)
        self.train(training)
        if self.head is None:
            return bag
        self.centre.copy_(bag.mean(0))
        size = (bag - self.centre).square().mean().sqrt()
        self.scale.copy_(size if float(size) > 0 else torch.ones_like(size))  # a single patient has no spread
        return (bag - self.centre) / self.scale


class BagConfig(Config):
    """A tower over slice features. Without a ``head`` the bag itself is the vector, as in the MEDFORM paper."""

    kind: Literal["bag"] = "bag"
    pool: PoolConfig
    head: HeadConfig | None = None

    def build(
        self,
        width: int,
        random: torch.Generator,
        *,
        shared_width: int | None = None,
        pool_start: AttentionStart = "uniform",
    ) -> BagTower:
        """The tower for slice features of ``width``.

        ``shared_width``: of the space that the stage's modalities share, for a head without a width of its
        own.
        """
        pool: Any = self.pool.build(width, random, pool_start)
        if self.head is None:
            return BagTower(pool)
        head = self.head.build(pool.width, random, shared_width)
        return BagTower(pool, head, head.width if hasattr(head, "width") else head.out_features)  # pyright: ignore[reportArgumentType]
