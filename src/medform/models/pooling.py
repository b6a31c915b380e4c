"""From a patient's slices to one vector: packed bags of true length, mean or gated attention (Ilse 2018).

Bags are packed: the slices of all bags stand one after another in ``feature`` (T, d), ``offset`` (M + 1,)
says where each begins. No padding, no resampling; attention sums to 1 over each bag.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from medform.compute.seed import draws_from
from medform.config import Config
from medform.interfaces import Pool

__all__ = [
    "AbmilConfig",
    "AttentionStart",
    "GatedAttentionPool",
    "MeanPool",
    "MeanPoolConfig",
    "PoolConfig",
    "segment_softmax",
    "segment_sum",
    "segments",
]

AttentionStart = Literal["uniform", "random"]


def segments(offset: Int[Tensor, " m1"], length: int) -> Int[Tensor, " t"]:
    """The bag (0 to M - 1) that each of ``length`` packed slices belongs to.

    Raises ValueError for an empty bag, and where the offsets do not run from 0 to ``length``.
    """
    sizes = offset.diff()
    if len(offset) < 1 or int(offset[0]) != 0 or int(offset[-1]) != length or bool((sizes < 0).any()):
        raise ValueError(f"offsets must rise from 0 to the number of packed slices, {length}; got {offset.tolist()}.")
    empty = (sizes == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"bags {empty} hold no slice; a patient without slices has no row in the block.")
    return torch.repeat_interleave(torch.arange(len(sizes), device=offset.device), sizes, output_size=length)


def segment_sum(value: Float[Tensor, "t d"], segment: Int[Tensor, " t"], bags: int) -> Float[Tensor, "m d"]:
    """Sum of the rows of each segment."""
    return value.new_zeros((bags, value.shape[1])).index_add(0, segment, value)


def segment_softmax(score: Float[Tensor, " t"], segment: Int[Tensor, " t"], bags: int) -> Float[Tensor, " t"]:
    """Softmax within each segment, in float32 at least."""
    score = score.to(torch.promote_types(score.dtype, torch.float32))
    highest = score.detach().new_full((bags,), -torch.inf)
    highest = highest.scatter_reduce(0, segment, score.detach(), "amax")  # a constant per bag: no gradient through it
    share = (score - highest[segment]).exp()
    total = share.new_zeros(bags).index_add(0, segment, share)
    return share / total[segment]


class MeanPool(Pool):
    """The mean of a bag's slices."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(
        self, feature: Float[Tensor, "t d"], offset: Int[Tensor, " m1"], z: Int[Tensor, " t"] | None = None
    ) -> tuple[Float[Tensor, "m e"], Float[Tensor, " t"]]:
        """Bags (M, d) and weights (T,): 1 / slices of the bag."""
        segment = segments(offset, len(feature))
        weight = 1 / offset.diff()[segment].to(feature.dtype)
        return segment_sum(feature * weight[:, None], segment, len(offset) - 1), weight


class GatedAttentionPool(Pool):
    """Gated attention: weight = softmax over the bag of w (tanh(V h) * sigmoid(U h)) + b, bag = sum of weight * h.

    ``width``: of the slice features. ``pre_attention``: widths of layers (Linear, LayerNorm, GELU, Dropout)
    that turn slice features into h; without any, h is the feature itself and the bag has its width.
    ``hidden``: rows of V and U, both followed by dropout. ``start="uniform"`` sets w and b to 0, so that
    the first bag is the mean.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        dropout: float = 0.25,
        pre_attention: tuple[int, ...] = (),
        pre_dropout: float = 0.1,
        start: AttentionStart = "uniform",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for out in pre_attention:
            layers += [nn.Linear(width, out), nn.LayerNorm(out), nn.GELU(), nn.Dropout(pre_dropout)]
            width = out
        self.width = width
        self.pre_attention = nn.Sequential(*layers)
        self.tanh_gate = nn.Linear(width, hidden)
        self.sigmoid_gate = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden, 1)
        if start == "uniform":
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)

    def forward(
        self, feature: Float[Tensor, "t d"], offset: Int[Tensor, " m1"], z: Int[Tensor, " t"] | None = None
    ) -> tuple[Float[Tensor, "m e"], Float[Tensor, " t"]]:
        """Bags (M, ``width``) and weights (T,). Raises ValueError for an empty bag."""
        segment = segments(offset, len(feature))
        hidden = self.pre_attention(feature)
        tanh = self.dropout(self.tanh_gate(hidden).tanh())
        sigmoid = self.dropout(self.sigmoid_gate(hidden).sigmoid())
        score = self.score(tanh * sigmoid).squeeze(1)
        weight = segment_softmax(score, segment, len(offset) - 1)
        return segment_sum(hidden * weight[:, None].to(hidden.dtype), segment, len(offset) - 1), weight


class MeanPoolConfig(Config):
    """The mean: nothing to learn."""

    kind: Literal["mean"] = "mean"

    def build(self, width: int, random: torch.Generator, start: AttentionStart = "uniform") -> MeanPool:
        """The pool for slice features of ``width``; it has no weights, so ``random`` and ``start`` change nothing."""
        return MeanPool(width)


class AbmilConfig(Config):
    """Gated attention. MEDFORM's: hidden 768, dropout 0.25, pre_attention [2048, 2048], pre_dropout 0.1."""

    kind: Literal["abmil"] = "abmil"
    hidden: int = Field(ge=1)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    pre_attention: list[Annotated[int, Field(ge=1)]] = []
    pre_dropout: float = Field(default=0.1, ge=0, lt=1)

    def build(self, width: int, random: torch.Generator, start: AttentionStart = "uniform") -> GatedAttentionPool:
        """The pool for slice features of ``width``, with initial weights drawn from ``random``."""
        options: dict[str, Any] = self.model_dump(exclude={"kind", "pre_attention"})
        with draws_from(random):
            return GatedAttentionPool(width, pre_attention=tuple(self.pre_attention), start=start, **options)


PoolConfig = Annotated[MeanPoolConfig | AbmilConfig, Field(discriminator="kind")]
