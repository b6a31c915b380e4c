"""One series and one patient, as the store hands them out: read-only, one slice at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medform.cohort.cohort_file import Unit

__all__ = ["Patient", "Series"]


@dataclass(frozen=True, eq=False)
class Series:
    """One image series: N slices of H x W, along the acquisition normal (feet to head for axial ones).

    ``slope`` and ``intercept`` (N,) turn stored values into ``unit``; ``affine_lps`` (4, 4) maps (column,
    row, slice) to millimetres in patient Left-Posterior-Superior and is None where unknown, as are
    ``spacing_mm`` (z, y, x; z alone is NaN for a single slice) and ``position_mm`` (N,), which is NaN where
    unknown. ``sha256`` is that of the voxel file.
    """

    series_id: str
    patient_id: str
    modality: str
    shape: tuple[int, int, int]
    unit: Unit
    affine_lps: NDArray[np.float64] | None
    spacing_mm: tuple[float, float, float] | None
    position_mm: NDArray[np.float64]
    slope: NDArray[np.float64]
    intercept: NDArray[np.float64]
    sha256: str
    voxels: NDArray[np.generic] = field(repr=False)
    """Read-only memory map (N, H, W) of the stored values."""

    def __len__(self) -> int:
        return self.shape[0]

    def stored(self, index: int) -> NDArray[np.generic]:
        """Stored values (H, W) of one slice: a read-only view of the file; nothing else is read."""
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"slice {index} of {self.shape[0]} in series {self.series_id}")
        return self.voxels[index]

    def slice(self, index: int) -> NDArray[np.float32]:
        """One slice (H, W) in ``unit`` as float32: stored value x its own slope + intercept."""
        values = self.stored(index).astype(np.float32)
        slope, intercept = np.float32(self.slope[index]), np.float32(self.intercept[index])
        if slope != 1.0:
            values *= slope
        if intercept != 0.0:
            values += intercept
        return values


@dataclass(frozen=True)
class Patient:
    """A patient of a cohort: which series there are and whether the clinical table has a row."""

    patient_id: str
    pseudonym: str
    series_ids: tuple[str, ...]
    n_slices: int
    has_table: bool
    store: Path = field(repr=False)
