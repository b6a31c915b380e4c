"""Decoders that draw a mask from an image tower's maps, with or without a patient's genes.

A slice whose patient has no genes goes through the same path with one learned vector or token in their
place, so that one model segments with and without them.

Shapes: M slices, P patients with genes, d channels of their vector, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medform.compute.seed import draws_from
from medform.config import Config
from medform.errors import InputError
from medform.interfaces import Encoded, Tower
from medform.models.image import MapTower

__all__ = ["DecoderConfig", "FusionDecoder", "FusionDecoderConfig", "HeadDecoder", "HeadDecoderConfig"]

GenePath = Literal["film", "cross_attention", "none"]

STEM_GROWTH = {1: 1, 2: 2, 4: 3, 8: 5}
"""Channels of the convolution stem at each stride, in units of those at stride 1 (8: 8, 16, 24, 40, as the
maps of EfficientNet-Lite0)."""
DEFAULT_RATES = {"film": 5.0, "cross_attention": 1.0, "none": 1.0}
FIRST_LOGIT = -2.0
"""Where the mask begins: 0.12 everywhere, since most pixels are no tumour."""


class FusionDecoderConfig(Config):
    """Progressive upsampling with skips, genes mixed in where the slice is smallest.

    ``genes``: ``film`` scales and shifts channels by the patient's gene vector (Perez 2018), by an MLP of
    ``hidden``; with ``cross_attention`` (``heads`` heads, one layer) each place of the slice attends to the
    gene tokens. Both begin by changing nothing. ``gene_width``: of the vector that stands for absent genes,
    where there is no gene tower to say it. ``gene_rate``: learning rate of the gene path in units of the
    others' (None: 5 for FiLM, which begins at zero, 1 for attention). ``widths``: channels behind each
    doubling, the coarsest first; ``stem``: of the convolution stem on the slice itself.
    """

    kind: Literal["fusion"] = "fusion"
    genes: GenePath = "film"
    hidden: int = Field(default=64, ge=1)
    heads: int = Field(default=3, ge=1)
    gene_width: int = Field(default=16, ge=1)
    gene_rate: float | None = Field(default=None, gt=0)
    widths: tuple[int, ...] = Field(default=(48, 32, 24, 16), min_length=1)
    stem: int = Field(default=8, ge=1)

    def build(self, image: Tower, genes: Tower | None, random: torch.Generator) -> FusionDecoder:
        """The decoder for these towers, weights drawn from ``random``.

        Raises `InputError` where the image tower gives no tokens and maps, or ``widths`` are too few for its coarsest
        map.
        """
        if not isinstance(image, MapTower) or len(image.strides) < 2 or image.strides[0] != 1:
            raise _unfit("a fusion decoder needs an image tower with tokens and maps", "use `hybrid` or `vit`")
        with draws_from(random):
            return FusionDecoder(image, genes, self)


class HeadDecoderConfig(Config):
    """A 1 x 1 convolution on the tower's finest map: for towers that decode themselves (``unet``)."""

    kind: Literal["head"] = "head"

    def build(self, image: Tower, genes: Tower | None, random: torch.Generator) -> HeadDecoder:
        """The decoder, weights drawn from ``random``. Raises `InputError` for another tower or for genes."""
        if not isinstance(image, MapTower) or image.strides != (1,):
            raise _unfit("a head alone needs an image tower that decodes itself", "use `unet`, or `kind: fusion`")
        if genes is not None:
            raise _unfit("a head alone has no place for genes", "leave towers.genes out, or use `kind: fusion`")
        with draws_from(random):
            return HeadDecoder(image.channels[0])


DecoderConfig = Annotated[FusionDecoderConfig | HeadDecoderConfig, Field(discriminator="kind")]


def _unfit(why: str, fix: str) -> InputError:
    return InputError(
        f"{why}.", where="objective.decoder", consequence="Nothing was started.", fix=f"{fix} for the image."
    )


class HeadDecoder(nn.Module):
    """The finest map of a tower -> logits (M, 1, H, W)."""

    gene_rate = 1.0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = _head(channels)

    def forward(self, image: Encoded, genes: Encoded | None, rows: Int[Tensor, " m"]) -> Float[Tensor, "m 1 h w"]:
        """Logits; genes are not looked at."""
        assert image.maps is not None
        return self.head(image.maps[0])


class FusionDecoder(nn.Module):
    """Tokens and maps of slices, and the genes of their patients -> logits (M, 1, H, W) at the slices' size.

    ``fusion`` is the gene path: `Film`, `GeneAttention`, or None.
    """

    def __init__(self, image: MapTower, genes: Tower | None, config: FusionDecoderConfig) -> None:
        super().__init__()
        self.gene_rate = config.gene_rate or DEFAULT_RATES[config.genes]
        bottom = image.token_width + image.channels[-1]
        width = config.gene_width if genes is None else genes.width
        self.fusion: Film | GeneAttention | None = None
        if config.genes == "film":
            self.fusion = Film(width, config.hidden, bottom)
        elif config.genes == "cross_attention":
            tokens = int(getattr(genes, "token_width", width))
            self.fusion = GeneAttention(image.token_width, tokens, config.heads)
        inner = dict(zip(image.strides[1:-1], image.channels[1:-1], strict=True))
        strides = _halvings(image.strides[-1], len(config.widths))
        self.stem = Stem(image.channels[0], config.stem, [stride for stride in strides if stride not in inner])
        channels = [inner.get(stride) or self.stem.channels[stride] for stride in strides]
        widths = config.widths[-len(strides) :]
        before = (bottom, *widths[:-1])
        steps = zip(before, reversed(channels), widths, strict=True)
        self.doublings = nn.ModuleList(Doubling(low, skip, width) for low, skip, width in steps)
        self.head = _head(widths[-1])
        self.inner = tuple(inner)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, image: Encoded, genes: Encoded | None, rows: Int[Tensor, " m"]) -> Float[Tensor, "m 1 h w"]:
        """Logits. ``rows``: which row of ``genes`` is the slice's patient, -1 for none."""
        assert image.maps is not None
        assert image.tokens is not None
        tokens, maps = image.tokens, image.maps
        if isinstance(self.fusion, GeneAttention):
            tokens = self.fusion(tokens, genes, rows)
        x = torch.cat([_on_grid(tokens, maps[-1]), maps[-1]], dim=1)
        if isinstance(self.fusion, Film):
            x = self.fusion(x, genes, rows)
        skips = {**self.stem(maps[0]), **dict(zip(self.inner, maps[1:-1], strict=True))}
        for doubling, stride in zip(self.doublings, sorted(skips, reverse=True), strict=True):
            x = doubling(x, skips[stride])
        return self.head(x)


def _halvings(coarsest: int, most: int) -> list[int]:
    """1, 2, 4, ... below the coarsest stride."""
    strides = [2**power for power in range(coarsest.bit_length() - 1)]
    if coarsest != 2 ** len(strides) or coarsest > 2 * max(STEM_GROWTH) or not strides:
        raise _unfit(f"places of {coarsest} pixels cannot be halved down to one", "give a patch of 2, 4, 8 or 16")
    if len(strides) > most:
        raise _unfit(f"{len(strides)} doublings need as many widths, not {most}", "lengthen `widths`, or coarsen it")
    return strides


def _on_grid(tokens: Float[Tensor, "m l c"], like: Float[Tensor, "m k h w"]) -> Float[Tensor, "m c h w"]:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *like.shape[-2:])


def _head(channels: int) -> nn.Conv2d:
    head = nn.Conv2d(channels, 1, 1)
    nn.init.constant_(head.bias, FIRST_LOGIT)  # pyright: ignore[reportArgumentType]
    return head


def _layer(before: int, after: int, side: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, side, stride, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class Stem(nn.Module):
    """A shallow convolution pyramid on the slice, for the strides at which the image tower has no map."""

    def __init__(self, channels: int, width: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.kept = tuple(strides)
        chain = [stride for stride in STEM_GROWTH if stride <= max(strides)]
        self.channels = {stride: width * STEM_GROWTH[stride] for stride in chain}
        layers, before = {}, channels
        for stride in chain:
            layers[str(stride)] = _layer(before, self.channels[stride], 3, 1 if stride == 1 else 2)
            before = self.channels[stride]
        self.layers = nn.ModuleDict(layers)

    def forward(self, image: Float[Tensor, "m c h w"]) -> dict[int, Tensor]:
        """Maps by their stride."""
        found, x = {}, image
        for stride, layer in self.layers.items():
            x = layer(x)
            if int(stride) in self.kept:
                found[int(stride)] = x
        return found


class Doubling(nn.Module):
    """Fewer channels, twice the side, the skip beside it, one 3 x 3 convolution."""

    def __init__(self, before: int, skip: int, after: int) -> None:
        super().__init__()
        self.narrow = _layer(before, after, 1)
        self.mix = _layer(after + skip, after, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(M, before, h, w) and a skip (M, k, 2h, 2w) -> (M, after, 2h, 2w)."""
        x = F.interpolate(self.narrow(x), skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.mix(torch.cat([x, skip], dim=1))


class Film(nn.Module):
    """x (1 + scale) + shift by channel, both from a gene vector by an MLP that begins at zero (Perez 2018).

    ``null`` (d,) is the learned vector in place of absent genes.
    """

    def __init__(self, width: int, hidden: int, channels: int) -> None:
        super().__init__()
        self.null = nn.Parameter(0.02 * torch.randn(width))
        last = nn.Linear(hidden, 2 * channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), last)

    def forward(
        self, x: Float[Tensor, "m c h w"], genes: Encoded | None, rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "m c h w"]:
        """The map of every slice, changed by its patient's genes."""
        vector = self.null.expand(len(x), -1)
        if genes is not None and len(genes.pooled):
            vector = torch.where(rows[:, None] >= 0, genes.pooled[rows.clamp(min=0)], vector)
        scale, shift = self.mlp(vector)[:, :, None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift


class GeneAttention(nn.Module):
    """Places of a slice attend to the gene tokens of its patient; what they find is added (from zero on).

    ``null`` (1, d) is the one learned token of a patient without genes. A gene tower without tokens gives
    its vector as one.
    """

    def __init__(self, width: int, gene_width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise _unfit(f"{heads} heads cannot share {width} channels", "give `heads` that divide the width")
        self.null = nn.Parameter(0.02 * torch.randn(1, gene_width))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Sequential(nn.LayerNorm(gene_width), nn.Linear(gene_width, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)

    def forward(
        self, tokens: Float[Tensor, "m l c"], genes: Encoded | None, rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "m l c"]:
        """The tokens of every slice, changed by its patient's genes."""
        keys = self.project(self.null).expand(len(tokens), 1, -1)
        ignored = None
        if genes is not None and len(genes.pooled):
            own = self.project(genes.pooled[:, None] if genes.tokens is None else genes.tokens)
            keys = torch.cat([keys, own[rows.clamp(min=0)]], dim=1)
            absent = (rows < 0)[:, None]
            ignored = torch.cat([~absent, absent.expand(-1, own.shape[1])], dim=1)
        found, _ = self.attention(self.norm(tokens), keys, keys, key_padding_mask=ignored, need_weights=False)
        return tokens + found
