"""Two invented scanners whose files differ in everything that a reader must not assume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["SCANNERS", "Grid", "Scanner"]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an axial stack lie in mm (LPS: x to the left, y to the back, z to the head).

    ``spacing_mm`` is (z, y, x); ``origin_mm`` is the centre (x, y, z) of the first voxel of the lowest slice.
    """

    slices: int
    size: int
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voxel centres as z (N,1,1), y (1,H,1) and x (1,1,W), ready to broadcast."""
        dz, dy, dx = self.spacing_mm
        x0, y0, z0 = self.origin_mm
        z = z0 + dz * np.arange(self.slices)
        y = y0 + dy * np.arange(self.size)
        x = x0 + dx * np.arange(self.size)
        return z[:, None, None], y[None, :, None], x[None, None, :]

    @property
    def affine_lps(self) -> np.ndarray:
        """(4,4): voxel (column, row, slice) to LPS millimetres."""
        dz, dy, dx = self.spacing_mm
        affine = np.diag([dx, dy, dz, 1.0])
        affine[:3, 3] = self.origin_mm
        return affine


@dataclass(frozen=True)
class Scanner:
    """One vendor's habits.

    ``slopes`` and ``intercepts`` are what a scan may use to store HU; where ``rescale_varies``, every
    third scan changes the slope from slice to slice. ``shared_folder``: all series of a study lie in one
    folder.
    """

    name: str
    manufacturer: str
    model: str
    field_of_view_mm: float
    slice_mm: float
    slice_range: tuple[int, int]
    thickness_mm: float
    noise_hu: float
    soft_kernel: str
    sharp_kernel: str
    signed: bool
    bits_stored: int
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    rescale_varies: bool
    implicit_vr: bool
    head_first_numbers: bool
    shared_folder: bool
    suffix: str

    def grid(self, slices: int, size: int, first_mm: float, step: int = 1) -> Grid:
        """``slices`` slices from ``first_mm`` up, ``step`` slice distances apart, centred on the body."""
        pixel = round(self.field_of_view_mm / size, 4)  # a DICOM decimal has 16 characters
        corner = -pixel * (size - 1) / 2
        return Grid(slices, size, (self.slice_mm * step, pixel, pixel), (corner, corner, first_mm))


SCANNERS = {
    "alpha": Scanner(
        name="alpha",
        manufacturer="PHANTOM ALPHA (NOT A VENDOR)",
        model="Alpha 16",
        field_of_view_mm=320.0,
        slice_mm=5.0,
        slice_range=(11, 16),
        thickness_mm=2.5,
        noise_hu=12.0,
        soft_kernel="SOFT",
        sharp_kernel="EDGE",
        signed=False,
        bits_stored=12,
        slopes=(1.0,),
        intercepts=(-1024.0,),
        rescale_varies=False,
        implicit_vr=False,
        head_first_numbers=True,
        shared_folder=True,
        suffix="",
    ),
    "beta": Scanner(
        name="beta",
        manufacturer="PHANTOM BETA (NOT A VENDOR)",
        model="Beta One",
        field_of_view_mm=352.0,
        slice_mm=6.5,
        slice_range=(8, 12),
        thickness_mm=8.0,
        noise_hu=20.0,
        soft_kernel="B30s",
        sharp_kernel="B70s",
        signed=True,
        bits_stored=16,
        slopes=(0.5, 0.625, 1.25),
        intercepts=(0.0, -1000.5, 24.0),
        rescale_varies=True,
        implicit_vr=True,
        head_first_numbers=False,
        shared_folder=False,
        suffix=".dcm",
    ),
}
