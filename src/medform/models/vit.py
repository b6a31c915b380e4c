"""A timm ViT of any size and patch as an image tower with tokens and maps (Dosovitskiy 2021)."""

from __future__ import annotations

from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from medform.compute.seed import draws_from
from medform.errors import InputError
from medform.interfaces import Encoded
from medform.models.image import ImageConfig, MapTower, check_model_name

__all__ = ["VitConfig", "VitTower"]


class VitConfig(ImageConfig):
    """A ViT for slices of ``image_size`` pixels; others whose sides its patches divide are taken too.

    ``model``: a timm name (``vit_tiny_patch16_224``, ``vit_small_patch16_224``, ...) or a family, in which
    ``patch`` replaces the side of a patch in pixels. ``depths``: after how many blocks a map is kept for a
    decoder, beside the last tokens; None: after one and two thirds of them. ``pool``: the mean of the tokens,
    or the class token.
    """

    kind: Literal["vit"] = "vit"
    model: str = "vit_small_patch16_224"
    in_channels: int = Field(default=1, ge=1)
    image_size: int = Field(default=256, ge=16)
    patch: int | None = Field(default=None, ge=2)
    depths: tuple[int, ...] | None = None
    pool: Literal["avg", "token"] = "avg"

    @model_validator(mode="after")
    def _patches_fill_the_slice(self) -> VitConfig:
        if self.patch is not None and self.image_size % self.patch:
            raise ValueError(f"patches of {self.patch} pixels do not fill a slice of {self.image_size}.")
        return self

    def build(self, random: torch.Generator) -> VitTower:
        """The tower with initial weights drawn from ``random``.

        Raises `InputError` where ``model`` is no ViT of timm or has fewer blocks than ``depths`` asks for.
        """
        check_model_name(self.model)
        # the norm stays before the pooling, where published weights have it and a decoder's tokens need it
        options = {"in_chans": self.in_channels, "num_classes": 0, "global_pool": self.pool, "fc_norm": False}
        if self.patch is not None:
            options["patch_size"] = self.patch
        with draws_from(random):
            try:
                encoder = timm.create_model(self.model, img_size=self.image_size, dynamic_img_size=True, **options)
            except TypeError:  # families of fixed shape do not know that option
                encoder = None
        if encoder is None or not hasattr(encoder, "patch_embed") or not hasattr(encoder, "forward_intermediates"):
            raise InputError(
                f"'{self.model}' is no ViT that takes slices of any size.",
                where="towers.image.model",
                consequence="Nothing was started.",
                fix="use a name such as vit_small_patch16_224; for a convolutional network use `kind: timm`.",
            )
        return VitTower(encoder, self)


class VitTower(MapTower):
    """Slices (M, C, H, W) in [0, 1] -> vectors (M, d), tokens (M, L, d), maps.

    Maps: the normalised slice, and, on the grid of the patches, the tokens of the ``depths`` side by side.
    The last block's tokens are `Encoded.tokens`, class and register tokens left out.
    """

    def __init__(self, encoder: Any, config: VitConfig) -> None:
        super().__init__(encoder, config, config.model)
        blocks = len(encoder.blocks)
        self.depths = config.depths or tuple(sorted({max(1, blocks // 3), max(1, 2 * blocks // 3)}))
        if min(self.depths) < 1 or max(self.depths) > blocks:
            raise InputError(
                f"'{config.model}' has {blocks} blocks; maps after {', '.join(map(str, self.depths))} were asked for.",
                where="towers.image.depths",
                consequence="Nothing was started.",
                fix=f"give numbers from 1 to {blocks}.",
            )
        self.pool = config.pool
        self.token_width = self.width
        self.channels = (config.in_channels, self.width * len(self.depths))
        self.strides = (1, int(encoder.patch_embed.patch_size[0]))

    def encode(self, image: Float[Tensor, "m c h w"]) -> Encoded:
        """Vectors, tokens and maps of slices in [0, 1]."""
        image = self.normalise(image)
        indices = [depth - 1 for depth in self.depths]
        tokens, inner = self.encoder.forward_intermediates(image, indices=indices)
        prefix = int(self.encoder.num_prefix_tokens)
        pooled = self.encoder.forward_head(tokens)
        return Encoded(pooled, tokens=tokens[:, prefix:], maps=[image, torch.cat(inner, dim=1)])
