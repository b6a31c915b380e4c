"""NIfTI: the same volume however its axes are stored, and the same as the DICOM it was made from."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medform.ingestion.found_series import FoundSeries, Refused
from medform.ingestion.nifti import read_nifti_header, read_nifti_slices
from medform.ingestion.plan import accepting
from medform.ingestion.voxels import examine

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(path: Path) -> tuple[FoundSeries, np.ndarray]:
    series = read_nifti_header(path, path.name, "HU")
    values = [
        stored.astype(float) * source.slope + source.intercept
        for source, stored in zip(series.slices, read_nifti_slices(path, path.name), strict=True)
    ]
    return series, np.stack(values)


def as_nifti(kit: Any, folder: Path) -> tuple[FoundSeries, np.ndarray, nibabel.Nifti1Image]:
    """A DICOM series, its HU, and the same volume as a NIfTI image (i, j, k = column, row, slice)."""
    kit.write(folder, kit.stack())
    (series,) = kit.series(folder)
    values = kit.hu(folder, series)
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0).astype(np.int16), LPS_TO_RAS @ np.array(series.affine_lps))
    return series, values, image


def reoriented(image: nibabel.Nifti1Image, axes: tuple[int, ...], flips: tuple[int, ...]) -> nibabel.Nifti1Image:
    """The same volume with its axes permuted and flipped."""
    codes = np.array([(axis, flip) for axis, flip in zip(axes, flips, strict=True)])
    return image.as_reoriented(codes)


@pytest.mark.proves("U5", "A.tests", "A3.1")
def test_all_48_ways_to_store_a_volume_end_as_the_dicom_volume(tmp_path: Path, kit: Any) -> None:
    series, values, image = as_nifti(kit, tmp_path / "dicom")
    for number, (axes, flips) in enumerate(product(permutations(range(3)), product((1, -1), repeat=3))):
        path = tmp_path / f"{number}.nii"
        reoriented(image, axes, flips).to_filename(path)
        found, read_values = read(path)
        np.testing.assert_array_equal(read_values, values)
        np.testing.assert_allclose(found.affine_lps, series.affine_lps, atol=1e-4)
        assert found.spacing_mm == pytest.approx(series.spacing_mm)
        np.testing.assert_allclose(
            [one.position_mm for one in found.slices], [one.position_mm for one in series.slices], atol=1e-4
        )


def test_a_thick_axis_is_the_slice_axis(tmp_path: Path) -> None:
    """A sagittal acquisition stays one: 5 mm across, 1 mm within; columns to Posterior, rows to the feet."""
    values = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8)
    nibabel.Nifti1Image(values, np.diag([5.0, 1, 1, 1])).to_filename(tmp_path / "sagittal.nii")
    series, read_values = read(tmp_path / "sagittal.nii")
    assert series.shape == (4, 8, 6) and series.spacing_mm == (5, 1, 1)
    directions = np.array(series.affine_lps)[:3, :3]
    np.testing.assert_allclose(directions, [[0, 0, -5], [1, 0, 0], [0, -1, 0]], atol=1e-9)
    np.testing.assert_array_equal(read_values[0], values[0, ::-1, ::-1].T)


@pytest.mark.parametrize("kind", ["<i2", ">i2", "u1", "<f4", "<f8", "<i4"])
def test_gzip_byte_orders_and_types_keep_the_values(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(1).integers(0, 200, (5, 6, 7)).astype(kind)
    image = nibabel.Nifti1Image(values, np.eye(4), dtype=values.dtype)
    image.header.set_slope_inter(2.0, -3.0)
    endian = image.header.as_byteswapped(">" if kind.startswith(">") else "<")
    swapped = nibabel.Nifti1Image(values, np.eye(4), header=endian, dtype=values.dtype)
    swapped.to_filename(tmp_path / "a.nii.gz")
    series, read_values = read(tmp_path / "a.nii.gz")
    assert series.dtype == {"i2": "int16", "u1": "uint8"}.get(kind.lstrip("<>"), "float32")
    back = np.asanyarray(nibabel.load(tmp_path / "a.nii.gz").dataobj)  # nibabel as the other reader
    np.testing.assert_allclose(np.sort(read_values.ravel()), np.sort(back.ravel().astype(float)), atol=1e-4)


def test_without_affine_nothing_is_said_of_left_and_right(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.header.set_zooms((0.5, 0.6, 2.0))
    image.to_filename(tmp_path / "bare.nii")
    series, _ = read(tmp_path / "bare.nii")
    assert series.codes == ["no_affine"] and series.affine_lps is None
    assert series.spacing_mm == pytest.approx((2.0, 0.6, 0.5))
    assert all(np.isnan(source.position_mm) for source in series.slices)


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (2, 3, 4, 1, 3)])
def test_more_than_one_volume_a_file_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)).to_filename(tmp_path / "series.nii")
    with pytest.raises(Refused, match=r"series.nii.*one 3-D volume"):
        read(tmp_path / "series.nii")


def test_a_colour_volume_is_refused(tmp_path: Path) -> None:
    values = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "rgb.nii")
    with pytest.raises(Refused, match=r"rgb.nii"):
        read(tmp_path / "rgb.nii")


@pytest.mark.proves("R47")
def test_a_volume_with_nan_is_refused(tmp_path: Path) -> None:
    values = np.zeros((3, 4, 5), np.float32)
    values[1, 2, 3] = np.nan
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "nan.nii")
    series = examine(tmp_path, read_nifti_header(tmp_path / "nan.nii", "nan.nii", "HU"))
    assert series.codes == ["not_finite"] and "nan.nii" in series.details[0]


@pytest.mark.parametrize(("unit", "scale"), [("micron", 1000.0), ("meter", 0.001)])
def test_other_lengths_become_millimetres(tmp_path: Path, unit: str, scale: float) -> None:
    for affine in (np.diag([0.5, 0.6, 2.0, 1.0]), None):
        image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), None if affine is None else affine)
        image.header.set_zooms((0.5, 0.6, 2.0))
        image.to_filename(tmp_path / "mm.nii")
        if affine is not None:
            image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([scale, scale, scale, 1]) @ affine)
        image.header.set_zooms((0.5 * scale, 0.6 * scale, 2.0 * scale))
        image.header.set_xyzt_units(unit)
        image.to_filename(tmp_path / "other.nii")
        mm, _ = read(tmp_path / "mm.nii")
        other, _ = read(tmp_path / "other.nii")
        assert other.codes == ["length_unit", *mm.codes] and other.spacing_mm == pytest.approx(mm.spacing_mm)
        if affine is not None:
            np.testing.assert_allclose(other.affine_lps, mm.affine_lps, rtol=1e-6)


def test_two_transforms_that_differ_are_refused_unless_accepted(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    image = nibabel.Nifti1Image(np.zeros((30, 30, 30), np.int16), affine)
    for shift, codes in ((0.3, []), (2.0, ["affines_differ"])):
        moved = affine.copy()
        moved[0, 3] = shift
        image.set_qform(moved, 1)
        image.set_sform(affine, 1)
        image.to_filename(tmp_path / "two.nii")
        series, _ = read(tmp_path / "two.nii")
        assert series.codes == codes and series.usable == (not codes)
    assert accepting(series, ["affines_differ"]).usable and "2.0 voxels apart" in series.details[0]
