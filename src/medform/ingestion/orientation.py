"""Which way an image lies in the patient: canonical rows and columns by flips and transposes alone.

Everything is in millimetres, patient LPS (x to the Left, y to Posterior, z to the head), as DICOM has it.
Axial images end with columns to the Left and rows to Posterior, feet to head. Coronal ones keep columns
to the Left, sagittal ones columns to Posterior; both have rows to the feet, as radiologists hang them.
Slices run along columns x rows, so the axes are right-handed. No voxel is resampled: an oblique image
takes the nearest of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

__all__ = ["Orientation", "canonical", "index_map"]

Vector = NDArray[np.float64]

_LEFT, _POSTERIOR, _FEET = np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, -1.0])
_TARGETS = {0: (_POSTERIOR, _FEET), 1: (_LEFT, _FEET), 2: (_LEFT, _POSTERIOR)}
"""Wanted directions of columns and rows by the dominant axis of the normal: sagittal, coronal, axial."""


@dataclass(frozen=True)
class Orientation:
    """How a stored (H, W) array becomes the canonical one: transpose first, then flip rows, then flip columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """The canonical view of a stored slice; no voxel is changed."""
        array = stored.T if self.transpose else stored
        if self.flip_rows:
            array = array[::-1]
        return array[:, ::-1] if self.flip_columns else array


def canonical(columns: Vector, rows: Vector) -> tuple[Orientation, Vector, Vector, Vector]:
    """The flips and transpose for stored directions, and the directions that follow.

    ``columns`` and ``rows`` (3,) are the unit directions of growing column and row index. Returns the
    orientation and the canonical column, row and slice directions; the last is the normal, feet to head
    for axial images.
    """
    wanted_columns, wanted_rows = _TARGETS[int(np.argmax(np.abs(np.cross(columns, rows))))]
    best: tuple[float, Orientation, Vector, Vector] | None = None
    for transpose, flip_rows, flip_columns in product((False, True), repeat=3):
        new_columns, new_rows = (rows, columns) if transpose else (columns, rows)
        new_columns = -new_columns if flip_columns else new_columns
        new_rows = -new_rows if flip_rows else new_rows
        score = float(new_columns @ wanted_columns + new_rows @ wanted_rows)
        if best is None or score > best[0] + 1e-9:
            best = score, Orientation(transpose, flip_rows, flip_columns), new_columns, new_rows
    assert best is not None
    _, orientation, new_columns, new_rows = best
    return orientation, new_columns, new_rows, np.cross(new_columns, new_rows)


def index_map(orientation: Orientation, rows: int, columns: int) -> NDArray[np.float64]:
    """(4, 4) matrix from canonical (column, row, slice, 1) to stored indices, for a stored (rows, columns) slice."""
    matrix = np.eye(4)
    if orientation.transpose:
        matrix[:2, :2] = [[0, 1], [1, 0]]
        rows, columns = columns, rows
    flip = np.eye(4)
    if orientation.flip_columns:
        flip[0, 0], flip[0, 3] = -1, columns - 1
    if orientation.flip_rows:
        flip[1, 1], flip[1, 3] = -1, rows - 1
    return matrix @ flip
