"""Masks written as files lie where they lay, in millimetres, for every order and direction of the source's axes."""

from __future__ import annotations

import builtins
import logging
import os
import warnings
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medform.errors import ExtraMissing, InputError
from medform.ingestion.nifti import read_nifti_grid, read_nifti_header, read_nifti_labels
from medform.ingestion.plan import ReadSettings, plan_folder
from medform.ingestion.slices import read_mask
from medform.runs.grids import AxisMap, Grid, match_grids
from medform.runs.mask_files import write_dicom_seg, write_nifti, write_nrrd, write_png

SHAPE = (5, 6, 4)
SPACING = np.array([0.8, 1.1, 2.5])
ORIGIN = np.array([-31.0, 12.5, 104.0])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TURNS = [
    (axes, signs)
    for axes in permutations(range(3))
    for signs in product((1.0, -1.0), repeat=3)
]  # fmt: skip
Points = NDArray[np.float64]


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small files need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def lesion(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    """A mask without any symmetry (i, j, k) that leaves some slices of every axis empty."""
    values = np.zeros(shape, np.uint8)
    values[1:3, 1:4, 1] = 1
    values[3, 4, 2] = 1
    return values


def turned(axes: tuple[int, ...], signs: tuple[float, ...]) -> Points:
    """An affine (i, j, k) -> LPS mm whose axis d runs along patient axis ``axes[d]``."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for stored, (patient, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[patient, stored] = sign * SPACING[stored]
    affine[:3, 3] = ORIGIN
    return affine


def tilted() -> Points:
    """An oblique grid."""
    a, b = 0.35, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tip @ np.diag(SPACING)
    affine[:3, 3] = ORIGIN
    return affine


def sheared() -> Points:
    """A stack whose slices are displaced sideways, as under a tilted gantry."""
    affine = turned((0, 1, 2), (1, 1, 1))
    affine[1, 2] = 0.9
    return affine


def places(values: np.ndarray, affine: np.ndarray) -> Points:
    """Millimetres (K, 3) of the voxels that are set, sorted."""
    points = nibabel.affines.apply_affine(affine, np.argwhere(values))
    return points[np.lexsort(np.round(points, 2).T)]


def in_store(source: np.ndarray, affine: np.ndarray, path: Path) -> tuple[NDArray[np.uint8], Points]:
    """A NIfTI source (i, j, k) as the store has it: (N, H, W) and its affine, by ingestion itself."""
    nibabel.Nifti1Image(source.astype(np.int16), LPS @ affine).to_filename(path)
    series = read_nifti_header(path, path.name, "raw")
    assert series.affine_lps is not None
    stored = match_grids(source.shape, affine, series.shape[::-1], series.affine_lps)
    assert stored is not None and stored.shift < 1e-4
    return np.ascontiguousarray(stored.onto(source).transpose(2, 1, 0)), np.asarray(series.affine_lps)


def half_voxel(found: Points, wanted: Points) -> bool:
    return found.shape == wanted.shape and bool((np.abs(found - wanted) < SPACING.min() / 2).all())


def read_nrrd(path: Path) -> tuple[np.ndarray, Points]:
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), affine


@pytest.mark.proves("G4.2", "G.tests", "U16")
def test_nifti_and_nrrd_are_read_back_in_place_for_all_48_axes_and_a_tilt(tmp_path: Path, unsynced: None) -> None:
    source = lesion()
    for affine in [*(turned(axes, signs) for axes, signs in TURNS), tilted(), sheared()]:
        mask, affine_lps = in_store(source, affine, tmp_path / "ct.nii")
        wanted = places(source, affine)
        grid = read_nifti_grid(tmp_path / "ct.nii", "ct.nii")
        write_nifti(mask, affine_lps, tmp_path / "own.nii", grid=grid)
        own = nibabel.load(tmp_path / "own.nii")
        np.testing.assert_array_equal(read_nifti_labels(tmp_path / "own.nii", "own.nii"), source)
        np.testing.assert_allclose(own.affine, nibabel.load(tmp_path / "ct.nii").affine, atol=1e-4)
        write_nifti(mask, affine_lps, tmp_path / "plain.nii")
        plain = nibabel.load(tmp_path / "plain.nii")
        assert half_voxel(places(np.asarray(plain.dataobj), LPS @ plain.affine), wanted)
        if np.allclose(affine, sheared()):
            continue
        write_nrrd(mask, affine_lps, tmp_path / "mask.seg.nrrd")
        assert half_voxel(places(*read_nrrd(tmp_path / "mask.seg.nrrd")), wanted)


def write_series(folder: Path, affine: np.ndarray, name: str = "Doe^Jane", **tags: Any) -> list[Path]:
    """A CT series (columns, rows, slices) = (i, j, k) of ``affine``, its files in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    columns, rows, step = affine[:3, :3].T
    paths = []
    for at in range(SHAPE[2]):
        made = Dataset()
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = CTImageStorage
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{at + 1}"
        made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.9"
        made.PatientID, made.PatientName, made.PatientBirthDate, made.PatientSex = "P1", name, "19700101", "F"
        made.Modality, made.SeriesNumber, made.InstanceNumber = "CT", 7, at + 1
        made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        made.ImagePositionPatient = [f"{value:.8g}" for value in affine[:3, 3] + at * step]
        direction = np.concatenate([columns / np.linalg.norm(columns), rows / np.linalg.norm(rows)])
        made.ImageOrientationPatient = [f"{value:.12g}" for value in direction]
        made.PixelSpacing = [f"{np.linalg.norm(rows):.8g}", f"{np.linalg.norm(columns):.8g}"]
        made.Columns, made.Rows = SHAPE[:2]
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation = 15, 1
        made.RescaleSlope, made.RescaleIntercept = 1, 0
        made.PixelData = np.full(SHAPE[:2], at, "<i2").tobytes()
        for keyword, value in tags.items():
            setattr(made, keyword, value)
        paths.append(folder / f"{(at * 3) % SHAPE[2]}.dcm")
        made.save_as(paths[-1], enforce_file_format=True)
    return paths


def seg_places(path: Path, segment: int = 1) -> Points:
    """Millimetres of the set pixels of a segment, by the frames' own attributes alone."""
    dataset = dcmread(path)
    frames = np.reshape(dataset.pixel_array, (-1, dataset.Rows, dataset.Columns))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    orientation = np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    points = []
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        named = groups if "SegmentIdentificationSequence" in groups else shared  # where all frames are of one
        if named.SegmentIdentificationSequence[0].ReferencedSegmentNumber != segment:
            continue
        corner = np.asarray(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            points.append(corner + column * between_columns * orientation[:3] + row * between_rows * orientation[3:])
    found = np.asarray(points)
    return found[np.lexsort(np.round(found, 2).T)]


@pytest.mark.proves("G4.2", "G.tests", "U16")
def test_a_dicom_segmentation_is_read_back_in_place_for_all_48_axes_and_a_tilt(tmp_path: Path, unsynced: None) -> None:
    source = lesion()
    for number, affine in enumerate([*(turned(axes, signs) for axes, signs in TURNS), tilted(), sheared()]):
        files = write_series(tmp_path / "ct", affine)
        mask, affine_lps = in_store(source, affine, tmp_path / "ct.nii")
        path = tmp_path / f"mask{number}.dcm"
        write_dicom_seg(mask, affine_lps, files, path)
        assert half_voxel(seg_places(path), places(source, affine))
        assert dcmread(path).NumberOfFrames == SHAPE[2]  # the empty ones too


@pytest.mark.proves("G4.2", "U16")
def test_a_segmentation_says_what_it_is_and_of_which_slices(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    affine = turned((0, 1, 2), (1, 1, 1))
    files = write_series(tmp_path / "ct", affine, name="Lung_Dx-A0002")
    (tmp_path / "ct" / "report.txt").write_text("not DICOM")
    [series] = plan_folder(tmp_path / "ct", ReadSettings()).series
    assert series.affine_lps is not None
    source = lesion()
    source[0, 0, 3] = 5
    mask = np.ascontiguousarray(source.transpose(2, 1, 0))
    path = tmp_path / "mask.dcm"
    instances = [one.instance for one in series.slices]
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        everything = sorted((tmp_path / "ct").iterdir())
        write_dicom_seg(mask, series.affine_lps, everything, path, instances=instances, labels={1: "core", 3: "none"})
    assert not caught and "Lung_Dx" not in caplog.text + "".join(capfd.readouterr())
    made = dcmread(path)
    assert [(one.SegmentNumber, one.SegmentLabel) for one in made.SegmentSequence] == [
        (1, "core"), (2, "none"), (3, "label 5"),
    ]  # fmt: skip
    assert made.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
    assert made.NumberOfFrames == 3 * SHAPE[2] and made.SegmentationType == "BINARY" and made.PatientID == "P1"
    referenced = {one.ReferencedSOPInstanceUID for one in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {f"1.2.3.4.{at + 1}" for at in range(len(files))}
    assert half_voxel(seg_places(path, 3), places(source == 5, affine))
    write_dicom_seg(mask, series.affine_lps, files, tmp_path / "again.dcm", labels={1: "core", 3: "none"})
    assert dcmread(tmp_path / "again.dcm").SOPInstanceUID == made.SOPInstanceUID
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.proves("G4.2")
@pytest.mark.shared
def test_frames_of_one_enhanced_file_are_referred_to_by_their_numbers(shared_data: Path, tmp_path: Path) -> None:
    folder = next(path for path in sorted(shared_data.rglob("eCT_Supplemental.dcm"))).parent
    [series] = plan_folder(folder, ReadSettings(assume_hu=True)).series
    assert series.affine_lps is not None and series.shape[0] == 2
    mask = np.zeros(series.shape, np.uint8)
    mask[0, 10:20, 30:33] = mask[1, 12, 400] = 1
    instances = [one.instance for one in series.slices]
    write_dicom_seg(mask, series.affine_lps, sorted(folder.iterdir()), tmp_path / "mask.dcm", instances=instances)
    wanted = places(mask.transpose(2, 1, 0), np.asarray(series.affine_lps))
    assert np.abs(seg_places(tmp_path / "mask.dcm") - wanted).max() < 1e-3
    with pytest.raises(InputError, match="some frames"):
        write_dicom_seg(
            mask[:1], series.affine_lps, sorted(folder.iterdir()), tmp_path / "m.dcm", instances=instances[:1]
        )


@pytest.mark.proves("G4.2", "G.input")
def test_a_series_that_is_not_that_of_the_mask_is_refused(tmp_path: Path) -> None:
    affine = turned((0, 1, 2), (1, 1, 1))
    files = write_series(tmp_path / "ct", affine)
    mask = np.ascontiguousarray(lesion().transpose(2, 1, 0))
    path = tmp_path / "mask.dcm"
    moved = affine.copy()
    moved[0, 3] += SPACING[0]
    (tmp_path / "note.txt").write_text("x" * 600)
    cases: list[tuple[np.ndarray, Any, list[Path], Any, str]] = [
        (mask, affine, files[1:], None, "4 slices of 6 x 5, the series 3 slices"),
        (mask, moved, files, None, "1.00 voxels beside"),
        (mask, affine, [tmp_path / "note.txt"], None, "'note.txt' is no DICOM"),
        (mask, affine, files, ["9.9"], "no DICOM slice"),
        (mask, None, files, None, "no DICOM slice"),
        (mask, affine, files * 2, None, "the series 8 slices"),
        (mask, affine, write_series(tmp_path / "bare", affine, PixelSpacing=None), None, "does not say where"),
        (mask, affine, write_series(tmp_path / "odd", affine, SOPClassUID="1.2"), None, "cannot be referred to"),
    ]
    for values, lps, sources, instances, says in cases:
        with pytest.raises(InputError, match=says):
            write_dicom_seg(values, lps, sources, path, instances=instances)
    assert not path.exists()
    one = write_series(tmp_path / "one", affine)[:1]
    write_dicom_seg(mask[:1] + 1, affine, one, path)
    assert dcmread(path).NumberOfFrames == 1


@pytest.mark.proves("G4.2")
def test_files_are_the_same_bytes_twice_and_name_their_labels(tmp_path: Path) -> None:
    mask, affine = np.ascontiguousarray(lesion().transpose(2, 1, 0)), tilted()
    for name in ("a", "b"):
        write_nifti(mask, affine, tmp_path / f"{name}.nii.gz")
        write_nrrd(mask, affine, tmp_path / f"{name}.seg.nrrd", labels={1: "tumour", 2: "oedema"})
    for suffix in (".nii.gz", ".seg.nrrd"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.uint8 and image.header.get_intent()[0] == "label"
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    header = (tmp_path / "a.seg.nrrd").read_bytes().split(b"\n\n")[0].decode()
    assert "Segment0_Name:=tumour" in header and "Segment1_Name:=oedema" in header
    assert "Segment0_Extent:=1 3 1 4 1 2" in header and "Segment1_Extent:=0 -1 0 -1 0 -1" in header
    assert "encoding: gzip" in header and "space: left-posterior-superior" in header


@pytest.mark.proves("G4.2")
def test_pictures_keep_labels_where_there_is_no_geometry(tmp_path: Path) -> None:
    mask = np.ascontiguousarray(lesion().transpose(2, 1, 0))
    paths = write_png(mask, tmp_path / "binary")
    assert [path.name for path in paths] == [f"mask_{at:04d}.png" for at in range(SHAPE[2])]
    with Image.open(paths[0]) as picture:
        assert picture.mode == "1"
    for values, folder in ((mask, "binary"), (mask * np.uint8(3), "several")):
        paths = write_png(values, tmp_path / folder)
        np.testing.assert_array_equal([read_mask(path, path.name) for path in paths], values)
    for write in (write_nifti, write_nrrd):
        with pytest.raises(InputError, match="ask for png"):
            write(mask, None, tmp_path / "mask.nii")
    grid = Grid((SHAPE[0], SHAPE[1], SHAPE[2]), None)
    write_nifti(mask, None, tmp_path / "bare.nii", grid=grid)
    assert read_nifti_grid(tmp_path / "bare.nii", "bare.nii").affine_lps is None
    np.testing.assert_array_equal(read_nifti_labels(tmp_path / "bare.nii", "bare.nii"), lesion())


def test_what_is_no_mask_or_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    mask, affine = np.ascontiguousarray(lesion().transpose(2, 1, 0)), tilted()
    with pytest.raises(ValueError, match="slices, rows, columns"):
        write_nifti(mask.astype(np.float32), affine, tmp_path / "m.nii")  # type: ignore[arg-type]
    moved = affine.copy()
    moved[:3, 3] += 9
    for grid in (Grid((6, 5, 4), moved), Grid((5, 6, 9), affine), Grid((5, 6, 4), None)):
        with pytest.raises(ValueError, match=r"grid|affine"):
            write_nifti(mask, affine, tmp_path / "m.nii", grid=grid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.proves("G4.2")
@pytest.mark.parametrize(("module", "extra"), [("SimpleITK", "nrrd"), ("highdicom", "seg")])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == module:
            raise ImportError(f"No module named '{module}'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    mask = np.ascontiguousarray(lesion().transpose(2, 1, 0))
    with pytest.raises(ExtraMissing) as caught:
        if extra == "nrrd":
            write_nrrd(mask, tilted(), tmp_path / "m.seg.nrrd")
        else:
            write_dicom_seg(mask, tilted(), [], tmp_path / "m.dcm")
    assert caught.value.fix == f'pip install "medform[{extra}]"'


def test_grids_of_other_sizes_do_not_match_and_a_flat_one_matches_itself() -> None:
    assert match_grids((2, 3, 4), np.eye(4), (2, 3, 5), np.eye(4)) is None
    flat = match_grids((4, 3, 1), np.eye(4), (4, 3, 1), np.eye(4))
    assert flat == AxisMap()


def test_a_sheared_mask_has_no_qform_that_would_move_it(tmp_path: Path) -> None:
    mask = np.ascontiguousarray(lesion().transpose(2, 1, 0))
    write_nifti(mask, sheared(), tmp_path / "m.nii")
    header = nibabel.load(tmp_path / "m.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(header.get_zooms(), np.linalg.norm(sheared()[:3, :3], axis=0), rtol=1e-6)
