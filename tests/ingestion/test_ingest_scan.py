"""Scans read for a model: the series that its training would have chosen, in a unit that is known or said not to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from medform.cohort.cohort_file import CohortFile, Select, parse_cohort_file
from medform.errors import InputError
from medform.ingestion.ingest import ingest, ingest_scan


def volume(path: Path, low: int, high: int) -> None:
    """A NIfTI file of random whole numbers."""
    values = np.random.default_rng(0).integers(low, high, (12, 12, 4)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


@pytest.mark.proves("A3.1")
def test_the_series_of_a_scan_is_the_one_that_the_training_chose(tmp_path: Path, kit: Any) -> None:
    """Two kernels of P1: the filter decides; two of P2 with the wanted kernel: P2 is set aside, not everybody."""
    for patient, series, kernel in (("P1", "1", "SOFT"), ("P1", "2", "BONE"), ("P2", "3", "SOFT"), ("P2", "4", "SOFT")):
        tags = {"PatientID": patient, "SeriesInstanceUID": f"1.2.3.{series}", "ConvolutionKernel": kernel}
        kit.write(tmp_path / "dicom" / patient / series, kit.stack(8, series=series, tags=tags))
    cohort = ingest_scan(tmp_path / "dicom", tmp_path / "store", unit="HU", select=Select(kernel="soft"))
    assert list(cohort.series["series_id"]) == ["1.2.3.1"]
    aside = {(one.series_id, one.code) for one in cohort.quarantine()}
    assert aside == {("1.2.3.2", "not_selected"), ("1.2.3.3", "several_series"), ("1.2.3.4", "several_series")}
    assert len(ingest_scan(tmp_path / "dicom", tmp_path / "all", unit="HU").series) == 4
    with pytest.raises(InputError, match=r"one of 2 series that images\.select .* does not tell apart"):
        ingest_scan(tmp_path / "dicom" / "P2", tmp_path / "none", unit="HU", select=Select())


def test_what_states_no_kernel_is_used_and_says_so(tmp_path: Path) -> None:
    volume(tmp_path / "ct.nii.gz", -1000, 500)
    cohort = ingest_scan(tmp_path / "ct.nii.gz", tmp_path / "store", unit="HU", select=Select(kernel="soft"))
    assert cohort.series["codes"].tolist() == ["unit_by_range;select_unchecked"]


@pytest.mark.proves("A.input")
def test_what_cannot_be_known_as_hu_is_said_or_refused(tmp_path: Path) -> None:
    volume(tmp_path / "mr.nii.gz", 0, 1500)
    cohort = ingest_scan(tmp_path / "mr.nii.gz", tmp_path / "store", unit="HU")
    assert cohort.unit == "HU" and cohort.series["codes"].tolist() == ["unit_assumed"]
    (tmp_path / "pictures").mkdir()
    for at in range(3):
        Image.fromarray(np.full((6, 6), 80 * at, np.uint8)).save(tmp_path / "pictures" / f"{at}.png")
    with pytest.raises(InputError, match=r"unit_differs: .*grey values of a picture are not HU"):
        ingest_scan(tmp_path / "pictures", tmp_path / "no", unit="HU")
    assert len(ingest_scan(tmp_path / "pictures", tmp_path / "yes", unit="HU", pictures=True).slices) == 3


def cohort_of(root: Path, **images: Any) -> CohortFile:
    return parse_cohort_file({"name": "c", "licence": "CC0-1.0", "images": images}, "cohort.yaml", root)


@pytest.mark.proves("A.input")
def test_a_cohort_takes_values_as_hu_only_where_they_are_or_its_file_says_so(tmp_path: Path) -> None:
    volume(tmp_path / "mr" / "mr.nii", 0, 2000)
    with pytest.raises(InputError, match=r"unit_unknown: mr\.nii, images\.unit: [\s\S]*images\.unit: raw .*MRI"):
        ingest(cohort_of(tmp_path / "mr"), tmp_path / "none")
    said = ingest(cohort_of(tmp_path / "mr", unit="HU"), tmp_path / "said")
    assert said.unit == "HU" and said.series["codes"].tolist() == ["unit_assumed"]
    assert ingest(cohort_of(tmp_path / "mr", unit="raw"), tmp_path / "raw").series["codes"].tolist() == [""]
    volume(tmp_path / "ct" / "ct.nii", -1000, 500)
    assert ingest(cohort_of(tmp_path / "ct"), tmp_path / "ct_store").series["codes"].tolist() == [""]
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.full((6, 6), 80, np.uint8)).save(tmp_path / "pictures" / "a.png")
    with pytest.raises(InputError, match=r"unit_unknown: a\.png"):
        ingest(cohort_of(tmp_path / "pictures"), tmp_path / "none")
    said = ingest(cohort_of(tmp_path / "pictures", unit="HU"), tmp_path / "said_too")
    assert said.series["codes"].tolist() == ["single_slice;unit_assumed"]
