"""A NIfTI file that does not say what its numbers mean is HU only where it looks like a CT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medform.ingestion.nifti import read_nifti_header
from medform.ingestion.units import unit_by_range


@pytest.mark.parametrize(
    ("low", "high", "unit"),
    [(-1000, 1500, "HU"), (-1024, 3071, "HU"), (0, 4095, "raw"), (-500, 400, "raw"), (0, 1, "raw")],
)
def test_range_decides(tmp_path: Path, low: int, high: int, unit: str) -> None:
    values = np.random.default_rng(0).integers(0, 60, (8, 8, 8)).astype(np.int16)
    values[:3] = low
    values[-1, -1, -1] = high
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "a.nii")
    series = read_nifti_header(tmp_path / "a.nii", "a.nii", "raw")
    judged = unit_by_range(tmp_path, series)
    assert judged.unit == unit and (judged.codes == ["unit_by_range"]) == (unit == "HU")
    assert unit_by_range(tmp_path, replace(series, reader="dicom")).unit == "raw"
