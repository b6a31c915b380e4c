"""Towers over gene expression (``block.value``: ``expression`` (M, G) and ``known`` (M, G)): Mamba, Transformer, MLP.

The first two read tokens: a gene, or a patch of g neighbouring genes, each with what the tower has learnt of it. The
order of the genes is the encoder's (`medform.inputs.genes`). All three give the same `Encoded`, so that one can stand
in for another.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from medform.compute.seed import draws_from
from medform.config import Config
from medform.interfaces import Block, Encoded, Tower
from medform.models.mamba import NORM_EPSILON, BidirectionalMamba, Mamba

__all__ = [
    "GeneMlpConfig",
    "GeneMlpTower",
    "GeneTokens",
    "GeneTower",
    "GeneTransformerConfig",
    "MambaConfig",
    "TokenGeneTower",
    "masked_mean",
]

# Standard deviation of identities before training: about the size of a projected value. At the 0.02 that is usual for
# positions of image patches every gene looks alike at first, and a planted module is found half as well.
IDENTITY_SPREAD = 0.5


def masked_mean(token: Float[Tensor, "m l d"], known: Bool[Tensor, "m l"]) -> Float[Tensor, "m d"]:
    """Mean over the tokens that are ``known``; 0 where none is."""
    total = token.masked_fill(~known[..., None], 0.0).sum(1)
    return total / known.sum(1, keepdim=True).clamp(min=1)


class GeneTokens(nn.Module):
    """Genes to tokens: (M, G) -> (M, L, d) with L = ceil(G / g) patches of g neighbouring genes.

    A token is a linear map of the patch's values and of which of them are missing, so that a missing gene counts as a
    learnt value. A patch without any known gene is a learnt token. To either a learnt ``identity`` of the patch (with
    g = 1: of the gene) is added, unless ``identity`` is False.
    """

    def __init__(self, genes: int, width: int, patch: int, *, identity: bool = True) -> None:
        super().__init__()
        self.patch, self.length = patch, math.ceil(genes / patch)
        self.project = nn.Linear(2 * patch, width)
        self.missing = nn.Parameter(torch.randn(width) * IDENTITY_SPREAD)
        table = torch.randn(self.length, width) * IDENTITY_SPREAD
        self.identity = nn.Parameter(table) if identity else None

    def forward(
        self, expression: Float[Tensor, "m g"], known: Bool[Tensor, "m g"]
    ) -> tuple[Float[Tensor, "m l d"], Bool[Tensor, "m l"]]:
        """Tokens, and which of them hold a known gene. What stands where a gene is not known is not looked at."""
        beyond = self.length * self.patch - expression.shape[1]
        values = F.pad(expression.masked_fill(~known, 0.0), (0, beyond)).unflatten(1, (self.length, self.patch))
        there = F.pad(known, (0, beyond)).unflatten(1, (self.length, self.patch))
        token = self.project(torch.cat([values, (~there).to(values.dtype)], dim=-1))
        any_known = there.any(-1)
        token = torch.where(any_known[..., None], token, self.missing.to(token.dtype))
        return (token if self.identity is None else token + self.identity), any_known


class GeneTower(Tower):
    """What the gene towers share: ``token_width`` d of the tokens, and the head into a shared space.

    ``Encoded.pooled`` (M, ``width``) is the head of the pooled tokens; ``Encoded.extra["known"]`` (M, L) says which
    tokens hold a known gene.
    """

    def __init__(self, token_width: int, shared_width: int | None) -> None:
        super().__init__()
        self.token_width = token_width
        self.width = shared_width or token_width
        self.head = nn.Linear(token_width, shared_width) if shared_width else nn.Identity()


class TokenGeneTower(GeneTower):
    """Tokens -> ``mixer`` (M, L, d) -> ``norm`` -> mean over the tokens with a known gene -> head."""

    def __init__(self, tokens: GeneTokens, mixer: nn.Module, norm: nn.Module, width: int, shared: int | None) -> None:
        super().__init__(width, shared)
        self.tokens, self.mixer, self.norm = tokens, mixer, norm

    def forward(self, block: Block) -> Encoded:
        """``pooled`` (M, ``width``) and ``tokens`` (M, L, ``token_width``)."""
        token, known = self.tokens(block.value["expression"], block.value["known"])
        token = self.norm(self.mixer(token))
        return Encoded(self.head(masked_mean(token, known)), tokens=token, extra={"known": known})


class GeneMlpTower(GeneTower):
    """(Linear, GELU, Dropout) for every entry of ``hidden``, Linear, LayerNorm; the result is the one token as well.

    A gene that is not known has a learnt value.
    """

    def __init__(self, genes: int, hidden: tuple[int, ...], width: int, dropout: float, shared: int | None) -> None:
        super().__init__(width, shared)
        self.missing = nn.Parameter(torch.zeros(genes))
        layers: list[nn.Module] = []
        for out in hidden:
            layers += [nn.Linear(genes, out), nn.GELU(), nn.Dropout(dropout)]
            genes = out
        self.layers = nn.Sequential(*layers, nn.Linear(genes, width), nn.LayerNorm(width))

    def forward(self, block: Block) -> Encoded:
        """``pooled`` (M, ``width``) and ``tokens`` (M, 1, ``token_width``)."""
        known = block.value["known"]
        vector = self.layers(torch.where(known, block.value["expression"], self.missing))
        extra = {"known": known.any(1, keepdim=True)}
        return Encoded(self.head(vector), tokens=vector[:, None], extra=extra)


class _TokenConfig(Config):
    """What tokens are. ``patch``: genes a token; ``position``: whether a token has a learnt identity."""

    width: int = Field(default=256, ge=1)
    layers: int = Field(default=4, ge=1)
    patch: int = Field(default=16, ge=1)
    position: Literal["learned", "none"] = "learned"
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def tokens(self, genes: int) -> GeneTokens:
        """The module that makes tokens of ``genes`` values."""
        return GeneTokens(genes, self.width, self.patch, identity=self.position == "learned")


class MambaConfig(_TokenConfig):
    """A Mamba over gene tokens: ``layers`` of ``width``, ``state`` numbers a channel, ``expand`` x width channels.

    ``conv``: taps of the convolution. ``bidirectional``: a second copy reads from the end, since expression has no
    direction. The defaults have 3,504,128 parameters in the layers (MGI, arXiv 2406.00631, does not give its sizes).
    """

    kind: Literal["mamba"] = "mamba"
    state: int = Field(default=16, ge=1)
    expand: int = Field(default=2, ge=1)
    conv: int = Field(default=4, ge=1)
    bidirectional: bool = True

    def build(self, genes: int, random: torch.Generator, shared_width: int | None = None) -> TokenGeneTower:
        """The tower for ``genes`` columns; with ``shared_width`` a linear head maps the pooled vector to it."""
        kind = BidirectionalMamba if self.bidirectional else Mamba
        with draws_from(random):
            mixer = kind(self.width, self.layers, self.state, self.expand, self.conv, self.dropout)
            norm = nn.RMSNorm(self.width, eps=NORM_EPSILON)
            return TokenGeneTower(self.tokens(genes), mixer, norm, self.width, shared_width)


class GeneTransformerConfig(_TokenConfig):
    """A pre-norm Transformer over gene tokens: ``heads`` of attention, ``expand`` x width hidden units."""

    kind: Literal["gene_transformer"] = "gene_transformer"
    heads: int = Field(default=8, ge=1)
    expand: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> GeneTransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared among {self.heads} heads: take a multiple.")
        return self

    def build(self, genes: int, random: torch.Generator, shared_width: int | None = None) -> TokenGeneTower:
        """The tower for ``genes`` columns; with ``shared_width`` a linear head maps the pooled vector to it."""
        with draws_from(random):
            layers = [
                nn.TransformerEncoderLayer(
                    self.width,
                    self.heads,
                    self.expand * self.width,
                    self.dropout,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(self.layers)
            ]
            mixer, norm = nn.Sequential(*layers), nn.LayerNorm(self.width)
            return TokenGeneTower(self.tokens(genes), mixer, norm, self.width, shared_width)


class GeneMlpConfig(Config):
    """An MLP over all genes (or principal components) at once: the plain alternative to a sequence model."""

    kind: Literal["gene_mlp"] = "gene_mlp"
    hidden: list[Annotated[int, Field(ge=1)]] = [256]
    width: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def build(self, genes: int, random: torch.Generator, shared_width: int | None = None) -> GeneMlpTower:
        """The tower for ``genes`` columns; with ``shared_width`` a linear head maps the pooled vector to it."""
        with draws_from(random):
            return GeneMlpTower(genes, tuple(self.hidden), self.width, self.dropout, shared_width)
