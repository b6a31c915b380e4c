"""Lesion masks as NIfTI, lying where the CT lies."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from medform.synthetic.scanners import Grid

__all__ = ["write_mask"]


def write_mask(mask: np.ndarray, grid: Grid, path: Path) -> None:
    """Write ``mask`` (N,H,W) uint8 as ``.nii.gz``: axes column, row, slice; affine in RAS millimetres."""
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    image = nib.Nifti1Image(np.ascontiguousarray(mask.transpose(2, 1, 0)), lps_to_ras @ grid.affine_lps)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), mtime=0))
