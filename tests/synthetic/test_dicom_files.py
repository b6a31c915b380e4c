"""What an independent reader (pydicom) finds in the files: HU, places, names, and nobody's identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medform.synthetic.dicom_files import series_uid
from medform.synthetic.options import HospitalOptions
from medform.synthetic.planting import plant
from medform.synthetic.scans import plan_scans, render


def voxel_positions(dataset) -> np.ndarray:
    """(H,W,3) patient position in mm of every stored pixel, from the header alone (PS3.3 C.7.6.2.1.1)."""
    along_row, along_column = np.split(np.array(dataset.ImageOrientationPatient, float), 2)
    row, column = np.mgrid[: dataset.Rows, : dataset.Columns]
    between_rows, between_columns = map(float, dataset.PixelSpacing)
    return (
        np.array(dataset.ImagePositionPatient, float)
        + column[..., None] * between_columns * along_row
        + row[..., None] * between_rows * along_column
    )


def rescaled(dataset) -> np.ndarray:
    return dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


@pytest.fixture(scope="module")
def planned(hospital):
    """Every planned axial scan with its HU, by series UID."""
    options = HospitalOptions.model_validate(hospital.truth.options)
    seed = hospital.truth.seed
    scans = {}
    for patient in plant(len(hospital.truth.usable), seed, options):
        for scan in plan_scans(patient, seed, options):
            if scan.kind != "localizer":
                scans[series_uid(scan, seed)] = (scan, render(scan, seed)[0])
    return scans


@pytest.mark.proves("A2.1")
def test_every_voxel_has_its_hu_where_the_header_says_it_lies(hospital, planned):
    assert len(planned) > 15
    for uid, (scan, stack) in planned.items():
        dz, dy, dx = scan.grid.spacing_mm
        for dataset in hospital.series[uid]:
            index = (voxel_positions(dataset) - scan.grid.origin_mm) / (dx, dy, dz)
            assert np.abs(index - np.rint(index)).max() < 1e-3
            column, row, depth = np.rint(index).astype(int).transpose(2, 0, 1)
            error = np.abs(rescaled(dataset) - stack[depth, row, column])
            assert error.max() <= float(dataset.RescaleSlope) / 2 + 1e-3


@pytest.mark.proves("A2.1")
def test_vendors_differ_in_all_that_a_reader_must_not_assume(hospital, planned):
    found: dict[str, dict[str, set]] = {"alpha": {}, "beta": {}}
    for uid, (scan, _) in planned.items():
        for dataset in hospital.series[uid]:
            values = found[scan.scanner.name]
            for tag in (
                "PixelRepresentation",
                "BitsStored",
                "RescaleSlope",
                "RescaleIntercept",
                "Manufacturer",
            ):
                values.setdefault(tag, set()).add(dataset[tag].value)
            values.setdefault("syntax", set()).add(dataset.file_meta.TransferSyntaxUID.name)
            values.setdefault("thickness is spacing", set()).add(
                float(dataset.SliceThickness) == scan.grid.spacing_mm[0]
            )
    assert found["alpha"]["PixelRepresentation"] == {0} and found["beta"]["PixelRepresentation"] == {1}
    assert found["alpha"]["syntax"] != found["beta"]["syntax"]
    assert any(slope % 1 for slope in found["beta"]["RescaleSlope"])
    assert len(found["beta"]["RescaleIntercept"]) > 1
    assert not any(True in values["thickness is spacing"] for values in found.values())
    varying = [uid for uid in planned if len({float(one.RescaleSlope) for one in hospital.series[uid]}) > 1]
    assert varying, "no series whose rescale changes from slice to slice"


def test_names_and_numbers_do_not_give_the_order_away(hospital):
    main = [one for one in hospital.truth.series if one.kind == "main"]
    sorted_by_name = sum(
        heights == sorted(heights) or heights == sorted(heights)[::-1]
        for heights in ([float(d.ImagePositionPatient[2]) for d in hospital.series[one.series_uid]] for one in main)
    )
    assert sorted_by_name == 0
    names = {Path(d.filename).name for slices in hospital.series.values() for d in slices}
    assert not any(person.patient_id in name for person in hospital.truth.patients for name in names)
    numbers = {}
    for one in main:
        slices = hospital.series[one.series_uid]
        pairs = np.array([(d.InstanceNumber, float(d.ImagePositionPatient[2])) for d in slices])
        numbers[one.scanner] = np.corrcoef(pairs.T)[0, 1]
    assert numbers["alpha"] < -0.99 and numbers["beta"] > 0.99


def test_a_gap_is_one_missing_slice(hospital):
    (gap,) = [one for one in hospital.truth.series if one.code == "gap"]
    heights = np.sort([float(d.ImagePositionPatient[2]) for d in hospital.series[gap.series_uid]])
    steps = np.diff(heights)
    assert np.isclose(steps, 2 * gap.spacing_mm[0]).sum() == 1
    assert np.isclose(steps, gap.spacing_mm[0]).sum() == len(steps) - 1


def test_a_localizer_is_one_coronal_image_of_the_same_study(hospital):
    studies = {one.patient_id: one.study_uid for one in hospital.truth.series if one.kind == "main"}
    localizers = [one for one in hospital.truth.series if one.kind == "localizer"]
    for one in localizers:
        (dataset,) = hospital.series[one.series_uid]
        assert "LOCALIZER" in dataset.ImageType
        assert list(dataset.ImageOrientationPatient) == [1, 0, 0, 0, 0, -1]
        assert dataset.StudyInstanceUID == studies[one.patient_id]


@pytest.mark.proves("A2.1")
def test_headers_name_nobody_and_no_library(hospital):
    for slices in hospital.series.values():
        for dataset in slices:
            assert "PHANTOM" in str(dataset.PatientName)
            assert "SYNTHETIC" in dataset.InstitutionName and "SYNTHETIC" in str(dataset.ReferringPhysicianName)
            assert "NOT A VENDOR" in dataset.Manufacturer
            assert "pydicom" not in str(dataset.file_meta).lower()
            assert all(len(uid) <= 64 for uid in (dataset.SOPInstanceUID, dataset.StudyInstanceUID))
    instances = [str(d.SOPInstanceUID) for slices in hospital.series.values() for d in slices]
    assert len(set(instances)) == len(instances)


@pytest.mark.parametrize("size", [32, 96, 100])
def test_every_size_writes_decimals_that_dicom_allows(tmp_path, size):
    from medform.synthetic.hospital import write_hospital

    truth = write_hospital(tmp_path / "h", patients=2, options=HospitalOptions(size=size, defects=False))
    assert all(one.shape[1:] == (size, size) for one in truth.series)
