"""The U-Net (Ronneberger 2015) of MONAI as an image tower: the field's baseline, on images alone."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from medform.compute.seed import draws_from
from medform.interfaces import Encoded
from medform.models.image import ImageConfig, MapTower
from medform.models.monai_parts import unet

__all__ = ["UnetConfig", "UnetTower"]


class UnetConfig(ImageConfig):
    """MONAI's residual U-Net: ``channels`` from the finest level to the coarsest, 1.6 M weights by default.

    Slices need sides that are multiples of 2^(levels - 1). Needs the extra ``seg``.
    """

    kind: Literal["unet"] = "unet"
    in_channels: int = Field(default=1, ge=1)
    channels: tuple[int, ...] = Field(default=(16, 32, 64, 128, 256), min_length=2)
    units: int = Field(default=2, ge=0)

    def build(self, random: torch.Generator) -> UnetTower:
        """The tower with initial weights drawn from ``random``; raises `ExtraMissing` without MONAI."""
        with draws_from(random):
            network = unet(self.in_channels, self.channels[0], self.channels, self.units)
        return UnetTower(network, self)


class UnetTower(MapTower):
    """Slices (M, C, H, W) in [0, 1] -> one map (M, c, H, W), on which a ``head`` decoder draws the mask.

    ``Encoded.pooled`` (M, d) is the mean of the coarsest level.
    """

    def __init__(self, network: Any, config: UnetConfig) -> None:
        super().__init__(network, config, "unet", config.channels[-1])
        self.token_width = self.width
        self.channels = (config.channels[0],)
        self.strides = (1,)

    def encode(self, image: Float[Tensor, "m c h w"]) -> Encoded:
        """Vectors and the finest map of slices in [0, 1]."""
        fine, coarse = _descend(self.encoder.model, self.normalise(image))
        return Encoded(coarse.mean((2, 3)), maps=[fine])


def _descend(level: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """What a level of the U-Net gives, and the map of the coarsest level below it.

    MONAI nests its levels: (down, skip over the next level, up).
    """
    down, skip, up = level
    above = down(image)
    inner = skip.submodule
    if isinstance(inner, torch.nn.Sequential) and len(inner) == 3 and hasattr(inner[1], "submodule"):
        below, coarse = _descend(inner, above)
    else:
        below = coarse = inner(above)
    return up(torch.cat([above, below], dim=1)), coarse
