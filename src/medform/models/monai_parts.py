"""MONAI's parts that medform uses, imported when one is asked for: any of them loads all of MONAI (6 s)."""

from __future__ import annotations

from typing import Any

from torch import nn

from medform.errors import ExtraMissing

__all__ = ["dice_loss", "sliding_window", "unet"]


def _missing(what: str, error: ImportError) -> ExtraMissing:
    return ExtraMissing(
        f"{what} needs MONAI, which is not installed ({error}).",
        consequence="Nothing was started.",
        fix='pip install "medform[seg]"',
    )


def unet(in_channels: int, out_channels: int, channels: tuple[int, ...], units: int) -> nn.Module:
    """MONAI's U-Net in 2-D, every level half the side of the one above; ``units`` convolutions a level."""
    try:
        from monai.networks.nets.unet import UNet
    except ImportError as error:
        raise _missing("the U-Net", error) from None
    strides = (2,) * (len(channels) - 1)
    return UNet(2, in_channels, out_channels, channels, strides, num_res_units=units)


def dice_loss(smooth: float, *, batch: bool) -> nn.Module:
    """1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth) of logits (M, 1, H, W) and masks in [0, 1].

    Over the whole batch at once, or (``batch`` False) of every slice, averaged.
    """
    try:
        from monai.losses.dice import DiceLoss
    except ImportError as error:
        raise _missing("the Dice loss", error) from None
    return DiceLoss(sigmoid=True, batch=batch, smooth_nr=smooth, smooth_dr=smooth)


def sliding_window(side: int, batch: int, overlap: float = 0.5) -> Any:
    """Windows of ``side`` pixels over larger slices, their logits blended by Gaussian weights."""
    try:
        from monai.inferers.inferer import SlidingWindowInferer
    except ImportError as error:
        raise _missing("a sliding window", error) from None
    return SlidingWindowInferer((side, side), batch, overlap, mode="gaussian")
