"""A NIfTI file that does not say what its numbers mean is HU only where it looks like a CT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medform.ingestion.found_series import SliceSource
from medform.ingestion.nifti import read_nifti_header
from medform.ingestion.slices import picture_series
from medform.ingestion.units import SaidBy, judged_as_hu, unit_by_range


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


@pytest.mark.parametrize(
    ("kind", "low", "said_by", "codes", "usable"),
    [
        ("nifti", -1000, "cohort file", [], True),
        ("nifti", -1000, "nobody", [], True),
        ("nifti", -1000, "training", ["unit_by_range"], True),
        ("nifti", -500, "cohort file", ["unit_assumed"], True),
        ("nifti", -500, "training", ["unit_assumed"], True),
        ("nifti", -500, "nobody", ["unit_unknown"], False),
        ("picture", 0, "cohort file", ["unit_assumed"], True),
        ("picture", 0, "training", ["unit_differs"], False),
        ("picture", 0, "nobody", ["unit_unknown"], False),
    ],
)
def test_who_says_that_values_are_hu_decides_what_becomes_of_a_file_that_does_not(
    tmp_path: Path, kind: str, low: int, said_by: SaidBy, codes: list[str], usable: bool
) -> None:
    values = np.random.default_rng(0).integers(0, 60, (8, 8, 8))
    values[:3] = low
    if kind == "nifti":
        nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
        series = read_nifti_header(tmp_path / "a.nii", "a.nii", "HU")
    else:
        Image.fromarray(values[0].astype(np.uint8)).save(tmp_path / "a.png")
        series = picture_series(tmp_path, "a", "P", [SliceSource("a.png", "a.png")], "HU")
    judged = judged_as_hu(tmp_path, series, said_by)
    assert [code for code in judged.codes if code not in series.codes] == codes
    assert (judged.usable, judged.unit) == (usable, "HU")
    assert judged_as_hu(tmp_path, replace(series, reader="dicom"), said_by).codes == series.codes
