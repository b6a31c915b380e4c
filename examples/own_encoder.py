"""Your own image encoder, in one file outside medform: any module that maps (M, 1, H, W) in [0, 1] to (M, d).

In this folder (`python -m` finds its modules): python -m medform pretrain SCANS -o run
--set "stages.pretrain.towers.image={kind: 'own_encoder:Net'}" --set stages.pretrain.start.image=random
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Net(nn.Module):
    """Three strided convolutions and the mean over the slice; ``width`` is the length of its vectors."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        channels = (1, 16, 32, width)
        blocks = [
            nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU())
            for before, after in pairwise(channels)
        ]
        self.layers = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, image: Tensor) -> Tensor:
        """Vectors (M, width) of images (M, 1, H, W)."""
        return self.layers(image)
