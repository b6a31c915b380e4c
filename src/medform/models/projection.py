"""Heads: what stands between a tower's vector and the space in which vectors are compared."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from medform.compute.seed import draws_from
from medform.config import Config

__all__ = ["HeadConfig", "LinearHeadConfig", "ProjectionConfig", "ProjectionHead"]


class ProjectionHead(nn.Module):
    """Linear, optional batch norm, ReLU, linear (Chen 2020). With batch norm the layers before it have no bias."""

    def __init__(self, width: int, hidden: int, out: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.width = out
        self.first = nn.Linear(width, hidden, bias=not batch_norm)
        self.norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.last = nn.Linear(hidden, out)

    def forward(self, vector: Float[Tensor, "m d"]) -> Float[Tensor, "m e"]:
        """(M, width) -> (M, out)."""
        return self.last(self.norm(self.first(vector)).relu())


class ProjectionConfig(Config):
    """A projection MLP. ``hidden`` None: as wide as the tower. ``width``: of what is compared."""

    kind: Literal["projection"] = "projection"
    hidden: int | None = Field(default=None, ge=1)
    width: int = Field(default=128, ge=1)
    batch_norm: bool = False

    def build(self, width: int, random: torch.Generator, shared_width: int | None = None) -> ProjectionHead:
        """The head behind a vector of ``width``; its own width is its configuration's, not ``shared_width``."""
        with draws_from(random):
            return ProjectionHead(width, self.hidden or width, self.width, batch_norm=self.batch_norm)


class LinearHeadConfig(Config):
    """One linear map. ``width`` None: that of the space which the stage's modalities share."""

    kind: Literal["linear"] = "linear"
    width: int | None = Field(default=None, ge=1)
    bias: bool = False

    def build(self, width: int, random: torch.Generator, shared_width: int | None = None) -> nn.Linear:
        """The map from ``width`` to its own width, or else to ``shared_width``; ValueError where neither is given."""
        out = self.width or shared_width
        if out is None:
            raise ValueError("a linear head without a width of its own needs the width of the shared space.")
        with draws_from(random):
            return nn.Linear(width, out, bias=self.bias)


HeadConfig = Annotated[LinearHeadConfig | ProjectionConfig, Field(discriminator="kind")]
