"""How well two masks agree: Dice, IoU, and distances between their surfaces (HD95, NSD). Pure numpy and scipy.

Masks are boolean arrays of one shape: a slice (H, W) or a volume (N, H, W). Where both are empty a figure is
None: there was nothing to find and nothing was found, which is no overlap of 1. A missed lesion (one of the two
empty) has Dice and NSD 0, and as distance the diagonal of the image, the largest that there could be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

__all__ = [
    "Overlap",
    "SurfaceDistances",
    "dice",
    "hd95",
    "iou",
    "nsd",
    "overlap",
    "pooled",
    "remove_small",
    "surface_distances",
]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def _masks(prediction: ArrayLike, truth: ArrayLike) -> tuple[Mask, Mask]:
    found, wanted = np.asarray(prediction), np.asarray(truth)
    if found.dtype != bool or wanted.dtype != bool:
        raise ValueError(f"masks are boolean, these are {found.dtype} and {wanted.dtype}.")
    if found.shape != wanted.shape or found.ndim not in (2, 3):
        raise ValueError(f"masks of shape {found.shape} and {wanted.shape} cannot be compared.")
    return found, wanted


@dataclass(frozen=True)
class Overlap:
    """Pixels of both masks, of the prediction and of the truth; the sum of two is that of both scans together."""

    both: int
    prediction: int
    truth: int

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.both + other.both, self.prediction + other.prediction, self.truth + other.truth)

    @property
    def dice(self) -> float | None:
        """2 |A and B| / (|A| + |B|); None where both are empty."""
        total = self.prediction + self.truth
        return 2 * self.both / total if total else None

    @property
    def iou(self) -> float | None:
        """|A and B| / |A or B|; None where both are empty."""
        union = self.prediction + self.truth - self.both
        return self.both / union if union else None


def overlap(prediction: ArrayLike, truth: ArrayLike) -> Overlap:
    """Counts of two masks."""
    found, wanted = _masks(prediction, truth)
    return Overlap(*(int(np.count_nonzero(mask)) for mask in (found & wanted, found, wanted)))


def dice(prediction: ArrayLike, truth: ArrayLike) -> float | None:
    """Dice of two masks, 0 to 1; None where both are empty."""
    return overlap(prediction, truth).dice


def iou(prediction: ArrayLike, truth: ArrayLike) -> float | None:
    """Intersection over union of two masks, 0 to 1; None where both are empty."""
    return overlap(prediction, truth).iou


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of every surface point of the prediction (P,) to the truth's surface, and the reverse (T,)."""

    of_prediction: Array
    of_truth: Array

    @property
    def hd95(self) -> float | None:
        """95th percentile of the distances, the larger of both directions (as MONAI); None where both are empty."""
        sides = [float(np.percentile(side, 95)) for side in (self.of_prediction, self.of_truth) if len(side)]
        return max(sides) if sides else None

    def nsd(self, tolerance: float) -> float | None:
        """Share of both surfaces within ``tolerance`` of each other; None where both are empty.

        Normalised surface Dice (Nikolov et al. 2018, arXiv 1809.04430), on pixels.
        """
        total = len(self.of_prediction) + len(self.of_truth)
        near = sum(int(np.count_nonzero(side <= tolerance)) for side in (self.of_prediction, self.of_truth))
        return near / total if total else None


def surface_distances(
    prediction: ArrayLike, truth: ArrayLike, spacing: Sequence[float] | None = None
) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    A surface are the pixels of a mask that touch its outside by a face (the image's border is outside). With a
    ``spacing`` for each axis, distances are in its unit (mm). A volume with ``spacing`` (y, x), or None, is
    measured slice by slice, in that unit or in pixels: nothing is known of the distance between its slices.
    Where a slice (a volume) holds only one of the surfaces, its points are as far as the diagonal.
    """
    found, wanted = _masks(prediction, truth)
    step = (1.0, 1.0) if spacing is None else tuple(map(float, spacing))
    if len(step) not in (2, found.ndim) or not all(0 < one < np.inf for one in step):
        raise ValueError(f"a spacing of {step} does not fit masks of {found.ndim} axes.")
    if len(step) == found.ndim:
        return _distances(found, wanted, step)
    return pooled(_distances(one, other, step) for one, other in zip(found, wanted, strict=True))


def pooled(parts: Iterable[SurfaceDistances]) -> SurfaceDistances:
    """All points of several slices or scans together."""
    sides = [(np.zeros(0), np.zeros(0)), *((part.of_prediction, part.of_truth) for part in parts)]
    first, second = (np.concatenate(side) for side in zip(*sides, strict=True))
    return SurfaceDistances(first, second)


def _distances(found: Mask, wanted: Mask, step: Sequence[float]) -> SurfaceDistances:
    shape = found.shape
    there = found | wanted
    if not there.any():
        return SurfaceDistances(np.zeros(0), np.zeros(0))
    # nothing outside the box of both masks is on a surface or nearer to one
    box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in ndimage.find_objects(there.astype(np.int8))[0])
    surfaces = [mask & ~np.asarray(ndimage.binary_erosion(mask), dtype=bool) for mask in (found, wanted)]
    first, second = (surface[box] for surface in surfaces)
    if not first.any() or not second.any():
        diagonal = float(np.linalg.norm(np.array(shape) * np.array(step)))
        return SurfaceDistances(*(np.full(np.count_nonzero(side), diagonal) for side in (first, second)))
    to_first, to_second = (ndimage.distance_transform_edt(~side, sampling=step) for side in (first, second))
    return SurfaceDistances(np.asarray(to_second)[first], np.asarray(to_first)[second])


def hd95(prediction: ArrayLike, truth: ArrayLike, spacing: Sequence[float] | None = None) -> float | None:
    """95th percentile Hausdorff distance, in the unit of ``spacing``, without one in pixels (`surface_distances`)."""
    return surface_distances(prediction, truth, spacing).hd95


def nsd(
    prediction: ArrayLike, truth: ArrayLike, tolerance: float, spacing: Sequence[float] | None = None
) -> float | None:
    """Normalised surface Dice within ``tolerance``, in the unit of ``spacing``, without one in pixels."""
    return surface_distances(prediction, truth, spacing).nsd(tolerance)


def remove_small(mask: ArrayLike, least: int) -> Mask:
    """``mask`` without its connected parts (by faces; through the slices of a volume) of under ``least`` pixels."""
    kept = np.asarray(mask)
    if kept.dtype != bool:
        raise ValueError(f"a mask is boolean, this is {kept.dtype}.")
    labels = np.zeros(kept.shape, np.int32)
    ndimage.label(kept, output=labels)
    large = np.bincount(labels.ravel()) >= least
    large[0] = False
    return large[labels]
