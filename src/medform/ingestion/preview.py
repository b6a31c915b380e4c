"""A small picture of a patient's middle slice, for people to see that the right thing was read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medform.ingestion.found_series import FoundSeries

__all__ = ["PreviewTap", "preview_png"]

LARGEST_SIDE = 256


def preview_png(values: NDArray[np.float32], window: tuple[float, float] | None) -> bytes:
    """PNG of a slice (H, W) in its unit, ``window`` mapped to black and white (its own percentiles for None)."""
    low, high = window or tuple(float(value) for value in np.percentile(values, [0.5, 99.5]))
    grey = (values - low) * (255.0 / max(high - low, 1e-6))
    image = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class PreviewTap:
    """Passes slices on and keeps the middle one of them."""

    def __init__(self, series: FoundSeries) -> None:
        self._series = series
        self._kept: NDArray[Any] | None = None

    def through(self, slices: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The same slices."""
        for at, stored in enumerate(slices):
            if at == self._series.shape[0] // 2:
                self._kept = np.array(stored)
            yield stored

    def png(self, window: tuple[float, float] | None) -> bytes:
        """The picture of the middle slice; to be asked for after the last slice has passed."""
        assert self._kept is not None
        source = self._series.slices[self._series.shape[0] // 2]
        values = self._kept.astype(np.float32) * np.float32(source.slope) + np.float32(source.intercept)
        return preview_png(values, window)
