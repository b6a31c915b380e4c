"""Vectors that hold no anatomy: grey values, position in the stack, a thumbnail. A score they reach is no finding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "INTENSITY_NAMES",
    "intensity_statistics",
    "position_vectors",
    "slice_statistics",
    "thumbnail",
]

Array = NDArray[np.float64]

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
INTENSITY_NAMES = ("mean", "sd", "skewness", *(f"p{share}" for share in PERCENTILES), "n_slices")
"""Names of the eleven numbers of `intensity_statistics`, in order; all but the last in the unit of the
images.
"""


def slice_statistics(image: ArrayLike) -> Array:
    """Ten statistics of one slice (H, W): mean, sd, skewness and seven percentiles of its pixels; NaN pixels left out.

    A slice of one grey value, or of NaN alone, has skewness 0; the latter has zeros throughout.
    """
    pixels = np.asarray(image, dtype=np.float64).ravel()
    pixels = pixels[np.isfinite(pixels)]
    if len(pixels) == 0:
        return np.zeros(len(INTENSITY_NAMES) - 1)
    mean, sd = float(pixels.mean()), float(pixels.std())
    flat = sd <= 1e-12 * max(1.0, abs(mean))
    skewness = 0.0 if flat else float((((pixels - mean) / sd) ** 3).mean())
    return np.array([mean, sd, skewness, *np.percentile(pixels, PERCENTILES)])


def intensity_statistics(stack: Iterable[ArrayLike]) -> Array:
    """Eleven numbers (11,) of a patient's slices: the mean of `slice_statistics`, then the number of slices.

    Slices are taken one at a time, so a volume never has to be in memory. ``ValueError`` for an empty stack.
    """
    found = [slice_statistics(image) for image in stack]
    if not found:
        raise ValueError("a stack needs at least one slice.")
    return np.array([*np.mean(found, axis=0), float(len(found))])


def position_vectors(patient_ids: Sequence[str], index: Sequence[int]) -> Array:
    """(T, 3): relative position r in the stack (0 = feet, 1 = head end of the stored order), r^2 and r^3.

    The powers let a linear probe say "in the middle". ``patient_ids`` (or series ids) and ``index`` name
    the slices.
    """
    groups = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)[1]
    place = np.asarray(index, dtype=np.float64)
    relative = np.zeros(len(place))
    for group in range(groups.max() + 1 if len(groups) else 0):
        inside = groups == group
        low, high = place[inside].min(), place[inside].max()
        relative[inside] = (place[inside] - low) / (high - low) if high > low else 0.5
    return np.stack([relative, relative**2, relative**3], axis=1)


def _area_weights(size: int, cells: int) -> Array:
    """(cells, size): share of each pixel in each of ``cells`` equal intervals, rows summing to 1."""
    edges = np.linspace(0, size, cells + 1)
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.maximum(overlap, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def thumbnail(image: ArrayLike, size: int = 16) -> Array:
    """A slice (H, W) shrunk to ``size`` x ``size`` by area means, flattened (size * size,); NaN pixels count as 0."""
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64))
    rows, columns = pixels.shape
    return (_area_weights(rows, size) @ pixels @ _area_weights(columns, size).T).ravel()
