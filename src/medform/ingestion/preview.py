"""A small picture of a patient's middle slice, for people to see that the right thing was read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
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
    """Passes the slices of a series on and hands a picture of the middle one to ``keep`` when all have passed."""

    def __init__(
        self, series: FoundSeries, window: tuple[float, float] | None, keep: Callable[[bytes], object]
    ) -> None:
        self._series, self._window, self._keep = series, window, keep

    def through(self, slices: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The same slices (H, W), stored values."""
        middle = self._series.shape[0] // 2
        source = self._series.slices[middle]
        png = b""
        for at, stored in enumerate(slices):
            if at == middle:
                values = stored.astype(np.float32) * np.float32(source.slope) + np.float32(source.intercept)
                png = preview_png(values, self._window)
            yield stored
        self._keep(png)
