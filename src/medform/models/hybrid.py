"""The hybrid image tower: a convolutional backbone to stride 16, transformer blocks on what it sees there.

The convolutions can start from ImageNet and find edges in few steps; the transformer (Dosovitskiy 2021, here
four pre-norm blocks) relates the places of a slice to each other.
"""

from __future__ import annotations

from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from timm.models.vision_transformer import Block as TransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from medform.compute.seed import draws_from
from medform.errors import InputError
from medform.interfaces import Encoded
from medform.models.image import ImageConfig, MapTower, check_model_name

__all__ = ["HybridConfig", "HybridTower"]

STRIDES = (2, 4, 8, 16)
POSITIONS = 16
"""Side of the learned position map, which is enlarged or shrunk to the grid of the slice at hand."""


class HybridConfig(ImageConfig):
    """A timm backbone cut off after stride 16, and ``blocks`` transformer blocks of ``width`` on its map.

    ``model``: an EfficientNet, ResNet or another backbone with maps at strides 2, 4, 8 and 16. ``trainable``
    and ``batch_norm`` are about the backbone; the transformer always learns.
    """

    kind: Literal["hybrid"] = "hybrid"
    model: str = "tf_efficientnet_lite0"
    in_channels: int = Field(default=1, ge=1)
    width: int = Field(default=192, ge=1)
    blocks: int = Field(default=4, ge=1)
    heads: int = Field(default=3, ge=1)
    mlp_ratio: float = Field(default=4.0, gt=0)

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> HybridConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared by {self.heads} heads: give a multiple.")
        return self

    def build(self, random: torch.Generator) -> HybridTower:
        """The tower with initial weights drawn from ``random``.

        Raises `InputError` for a backbone that is not known to timm or has no maps at these strides.
        """
        check_model_name(self.model)
        with draws_from(random):
            return HybridTower(_backbone(self.model, self.in_channels), self)


def _backbone(model: str, in_channels: int) -> Any:
    """The backbone without the stages behind stride 16; calling it gives its maps at `STRIDES`."""
    try:
        indices = tuple(range(len(STRIDES)))
        backbone: Any = timm.create_model(model, in_chans=in_channels, features_only=True, out_indices=indices)
        strides = tuple(backbone.feature_info.reduction())
    except (AssertionError, IndexError, RuntimeError):  # as timm answers for a family without such maps
        strides, backbone = (), None
    if strides != STRIDES:
        raise InputError(
            f"the backbone '{model}' has no maps at strides 2, 4, 8 and 16.",
            where="towers.image.model",
            consequence="Nothing was started.",
            fix="use tf_efficientnet_lite0, resnet18 or the like; for a ViT use `kind: vit`.",
        )
    if hasattr(backbone, "blocks"):  # EfficientNets keep their later stages, and would run them
        last = int(backbone.feature_info.get_dicts()[-1]["module"].removeprefix("blocks."))
        backbone.blocks = backbone.blocks[: last + 1]
    return backbone


class HybridTower(MapTower):
    """Slices (M, C, H, W) in [0, 1] -> vectors (M, ``width``), tokens (M, L, ``width``), maps.

    The vector is the mean of the tokens. Maps: the normalised slice, then the backbone's maps at strides 2,
    4, 8 and 16; L is the number of places of the last.
    """

    def __init__(self, backbone: Any, config: HybridConfig) -> None:
        super().__init__(backbone, config, config.model, config.width)
        found = backbone.feature_info.channels()
        self.channels = (config.in_channels, *found)
        self.strides = (1, *STRIDES)
        self.token_width = config.width
        self.projection = nn.Conv2d(found[-1], config.width, 1)
        self.position = nn.Parameter(torch.empty(1, config.width, POSITIONS, POSITIONS))
        nn.init.trunc_normal_(self.position, std=0.02)
        blocks = (
            TransformerBlock(config.width, config.heads, config.mlp_ratio, qkv_bias=True) for _ in range(config.blocks)
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def encode(self, image: Float[Tensor, "m c h w"]) -> Encoded:
        """Vectors, tokens and maps of slices in [0, 1]."""
        image = self.normalise(image)
        maps = self.encoder(image)
        tokens = self.projection(maps[-1])
        grid = tokens.shape[-2:]
        position = self.position
        if grid != position.shape[-2:]:
            position = F.interpolate(position, grid, mode="bilinear", align_corners=False)
        tokens = (tokens + position).flatten(2).transpose(1, 2)
        tokens = self.norm(self.blocks(tokens))
        return Encoded(tokens.mean(1), tokens=tokens, maps=[image, *maps])

    def left_out(self) -> frozenset[str]:
        """Names of the whole backbone's tensors behind stride 16, its classifier's among them."""
        with torch.device("meta"):
            whole = timm.create_model(self.model)
        return frozenset(whole.state_dict()) - frozenset(self.encoder.state_dict())
