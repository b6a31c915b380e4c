"""Voxel grids in patient millimetres: whether two are the same but for the order and direction of their axes.

A grid is a shape (3,) and an affine (4, 4) over the same three axes: ``affine @ (i, j, k, 1)`` is the centre of
voxel (i, j, k). An array of medform is (slice, row, column) while its affine takes (column, row, slice), so its
transpose is the array of its grid. Nothing is ever resampled: a voxel of one grid is a voxel of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["HALF_VOXEL", "AxisMap", "Grid", "match_grids"]

HALF_VOXEL = 0.499
"""Grids further apart than this many voxels are two grids. Exactly half a voxel is the usual mistake of taking
corners for centres, and no voxel is then the nearest, so it is refused."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels (i, j, k) of a file lie, axes as they are stored; ``affine_lps`` None where nothing says it."""

    shape: tuple[int, int, int]
    affine_lps: NDArray[np.float64] | None


@dataclass(frozen=True)
class AxisMap:
    """How an array of one grid is read along the axes of another.

    Axis d of the wanted array is axis ``axes[d]`` of the stored one, backwards where ``flips[d]``. ``shift`` is
    the largest distance between two voxels taken for one, along any axis, in voxels of the wanted grid.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    shift: float = 0.0

    def onto(self, stored: np.ndarray) -> np.ndarray:
        """A view of the stored array along the wanted axes."""
        return stored.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


def match_grids(
    shape: Sequence[int], affine: ArrayLike, wanted_shape: Sequence[int], wanted_affine: ArrayLike
) -> AxisMap | None:
    """The best of the 48 orders and directions under which a stored grid lies on a wanted one.

    None where no order of the axes gives the wanted shape. The affines must be invertible and of one frame (both
    LPS, or both RAS). Whether the match is good enough is the caller's to say, by ``shift`` (`HALF_VOXEL`).
    """
    stored, wanted = np.asarray(affine, np.float64), np.asarray(wanted_affine, np.float64)
    corners = np.array(list(product(*((0, size - 1) for size in wanted_shape))), np.float64)
    into_voxels = np.linalg.inv(wanted).astype(np.float64)
    best: AxisMap | None = None
    for axes in permutations(range(3)):
        if any(shape[axis] != size for axis, size in zip(axes, wanted_shape, strict=True)):
            continue
        for flips in product((False, True), repeat=3):
            indices = _stored_indices(corners, shape, axes, flips)
            places = _apply(into_voxels, _apply(stored, indices))
            shift = float(np.abs(places - corners).max())
            if best is None or shift < best.shift - 1e-9:
                best = AxisMap((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]), shift)
    return best


def _stored_indices(
    wanted: NDArray[np.float64], shape: Sequence[int], axes: Sequence[int], flips: Sequence[bool]
) -> NDArray[np.float64]:
    """Indices of the stored array (K, 3) for indices of the wanted one (K, 3)."""
    stored = np.empty_like(wanted)
    for along, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        stored[:, axis] = shape[axis] - 1 - wanted[:, along] if flip else wanted[:, along]
    return stored


def _apply(affine: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points @ affine[:3, :3].T + affine[:3, 3]
