"""Masks beside volumes: whose they are, that they lie on their image in millimetres, and what becomes of bad ones."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from medform.cohort.cohort_file import CohortFile, parse_cohort_file, read_cohort_file
from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.ingestion.ingest import ingest, ingest_scan
from medform.ingestion.mask_names import matches, owner_by_name, owner_by_pattern, study_by_name
from medform.ingestion.mask_voxels import read_masks
from medform.ingestion.masks import FoundMask, with_masks
from medform.ingestion.nifti import read_nifti_header
from medform.ingestion.plan import Plan, ReadSettings, plan_folder
from medform.pipeline.check import check

AFFINE = np.array([[-0.8, 0, 0, 20], [0, -0.9, 0, 30], [0, 0, 4.0, -12], [0, 0, 0, 1]])
SHAPE = (7, 6, 5)


def image_values(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


def lesion(shape: tuple[int, ...] = SHAPE, value: float = 1, kind: Any = np.uint8) -> np.ndarray:
    values = np.zeros(shape, kind)
    values[1:4, 2:4, 1:3] = value
    values[5, 1, 4] = value  # no symmetry is left
    return values


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = nibabel.Nifti1Image(values, affine)
    if affine is None:
        made.set_sform(None, 0)
        made.set_qform(None, 0)
    made.to_filename(path)
    return path


def cohort_file(root: Path, masks: dict[str, Any] | None = None, **images: Any) -> CohortFile:
    tree: dict[str, Any] = {"name": "small", "licence": "CC0-1.0", "images": {"path": "images", **images}}
    return parse_cohort_file(tree | ({} if masks is None else {"masks": masks}), "cohort.yaml", root)


def masks_of(cohort: Cohort) -> dict[str, np.ndarray | None]:
    owners = zip(cohort.series["patient_id"], cohort.series["series_id"], strict=True)
    return {str(patient): cohort.masks(str(series)) for patient, series in owners}


def on_image(cohort: Cohort, patient: str, stored: np.ndarray) -> np.ndarray:
    """Where the lesion of ``stored`` (i, j, k under `AFFINE`) must lie in the store, by millimetres alone."""
    series = cohort.open(cohort.patient(patient).series_ids[0])
    assert series.affine_lps is not None
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    points = nibabel.affines.apply_affine(lps, np.argwhere(stored))
    columns, rows, slices = np.rint(nibabel.affines.apply_affine(np.linalg.inv(series.affine_lps), points)).T
    expected = np.zeros(series.shape, bool)
    expected[slices.astype(int), rows.astype(int), columns.astype(int)] = True
    return expected


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Three patients with an image and a mask each, the masks in a folder of their own."""
    root = tmp_path / "hospital"
    for seed, patient in enumerate(("P1", "P2", "P10")):
        write(root / "images" / patient / "ct.nii.gz", image_values(seed))
        write(root / "masks" / f"{patient}_seg.nii.gz", lesion())
    return root


DECLARED = {"path": "masks", "pattern": "{patient}*.nii.gz", "values": {"lesion": [1]}}


@pytest.mark.proves("G.tests")
def test_a_mask_finds_its_image_in_every_order_and_direction_of_its_axes(tmp_path: Path) -> None:
    stored = lesion()
    corner = np.asarray(SHAPE) - 1
    series = replace(read_nifti_header(write(tmp_path / "P.nii.gz", image_values()), "P.nii.gz", "HU"), patient_id="P")
    expected = on_image(ingest_scan(tmp_path / "P.nii.gz", tmp_path / "store"), "P", stored)
    for axes, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        turn = np.zeros((4, 4))  # new indices -> those of AFFINE
        turn[3, 3] = 1
        for new, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
            turn[axis, new], turn[axis, 3] = (-1, corner[axis]) if flip else (1, 0)
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        write(tmp_path / "mask.nii", stored.transpose(axes)[steps], AFFINE @ turn)
        [placed], aside = with_masks(tmp_path, [series], [FoundMask("mask.nii", "mask.nii", "P")], None)
        assert placed.mask is not None and placed.mask.axes.shift < 1e-4 and not aside
        np.testing.assert_array_equal(read_masks(tmp_path, placed), expected)


@pytest.mark.proves("G.input")
def test_declared_masks_are_taken_by_name_and_counted(hospital: Path, tmp_path: Path) -> None:
    cohort = ingest(cohort_file(hospital, DECLARED), tmp_path / "store")
    for patient in ("P1", "P2", "P10"):
        np.testing.assert_array_equal(masks_of(cohort)[patient], on_image(cohort, patient, lesion()))
    assert cohort.counts["masks_found"] == cohort.counts["masks_used"] == 3
    assert cohort.file.masks is not None and cohort.file.masks.values == {"lesion": [1]}
    assert cohort.quarantine() == []
    assert masks_of(Cohort.read(tmp_path / "store", verify=True))["P1"] is not None


@pytest.mark.proves("G.input")
def test_faulty_masks_are_set_aside_with_reasons_and_their_images_are_kept(hospital: Path, tmp_path: Path) -> None:
    masks = hospital / "masks"
    for patient in ("size", "grid", "values", "half", "cut", "empty", "two", "bare", "wide"):
        write(hospital / "images" / patient / "ct.nii.gz", image_values())
        write(masks / f"{patient}_seg.nii.gz", lesion())
    write(masks / "size_seg.nii.gz", lesion((7, 6, 9)))
    moved = AFFINE.copy()
    moved[2, 3] += 4.0  # one slice
    write(masks / "grid_seg.nii.gz", lesion(), moved)
    write(masks / "values_seg.nii.gz", lesion(value=3))
    write(masks / "half_seg.nii.gz", lesion(value=0.5, kind=np.float32))
    (masks / "cut_seg.nii.gz").write_bytes((masks / "cut_seg.nii.gz").read_bytes()[:-6])
    write(masks / "empty_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    write(masks / "two_seg.nii.gz", lesion())
    write(masks / "two_other.nii.gz", lesion())
    write(masks / "bare_seg.nii.gz", lesion(), None)
    write(masks / "wide_seg.nii.gz", lesion(value=300, kind=np.int16))
    write(masks / "nobody_seg.nii.gz", lesion())
    (masks / "P7_seg.nrrd").write_bytes(b"NRRD0004\n")
    cohort = ingest(cohort_file(hospital, DECLARED | {"pattern": "{patient}_*"}), tmp_path / "store")
    rows = {(Path(row.file).name.removesuffix(".nii.gz"), row.code): row for row in cohort.quarantine()}
    assert set(rows) == {
        ("size_seg", "mask_size"), ("grid_seg", "mask_grid"), ("values_seg", "mask_values"),
        ("half_seg", "mask_values"), ("cut_seg", "unreadable"), ("two_seg", "two_masks"), ("two_other", "two_masks"),
        ("bare_seg", "mask_grid"), ("wide_seg", "mask_values"), ("nobody_seg", "mask_without_image"),
        ("P7_seg.nrrd", "mask_format"),
    }  # fmt: skip
    assert "7x6x9 voxels where its image has 7x6x5" in rows["size_seg", "mask_size"].reason
    assert "up to 1.00 voxels beside" in rows["grid_seg", "mask_grid"].reason
    assert "it holds 3; declared are 1 and 0" in rows["values_seg", "mask_values"].reason
    assert "it holds 0.5" in rows["half_seg", "mask_values"].reason
    assert "0 to 300" in rows["wide_seg", "mask_values"].reason
    assert rows["two_seg", "two_masks"].override.startswith("masks.pattern")
    found = masks_of(cohort)
    assert {patient for patient, mask in found.items() if mask is not None} == {"P1", "P2", "P10", "empty"}
    assert set(cohort.series["verdict"]) == {"accepted"} and len(found) == 12
    notes = json.loads((cohort.root / "columns.json").read_text())["notes"]
    assert notes == ["masks: 4 of 15 found are used; 4 of 12 patients have one, 1 of them without a lesion."]
    codes = dict(zip(cohort.series["patient_id"], cohort.series["codes"], strict=True))
    assert codes["empty"] == "mask_empty" and codes["two"] == "two_masks;two_masks"


@pytest.mark.proves("G.input")
def test_a_mask_whose_two_transforms_differ_is_set_aside_unless_accepted_as_an_image_is(
    hospital: Path, tmp_path: Path
) -> None:
    mask = nibabel.Nifti1Image(lesion(), AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 1.6  # two voxels of 0.8 mm
    mask.set_qform(moved, 1)
    mask.set_sform(AFFINE, 1)
    mask.to_filename(hospital / "masks" / "P2_seg.nii.gz")
    cohort = ingest(cohort_file(hospital, DECLARED), tmp_path / "store")
    (row,) = cohort.quarantine()
    assert (row.file, row.code) == ("../masks/P2_seg.nii.gz", "affines_differ") and "2.0 voxels apart" in row.reason
    assert "images.accept: [affines_differ]" in row.override
    assert {patient for patient, found in masks_of(cohort).items() if found is None} == {"P2"}
    assert set(cohort.series["verdict"]) == {"accepted"}
    taken = ingest(cohort_file(hospital, DECLARED, accept=["affines_differ"]), tmp_path / "taken")
    np.testing.assert_array_equal(masks_of(taken)["P2"], on_image(taken, "P2", lesion()))
    codes = dict(zip(taken.series["patient_id"], taken.series["codes"], strict=True))
    assert codes == {"P1": "", "P2": "affines_differ", "P10": ""} and taken.quarantine() == []
    for patient in ("P1", "P10"):
        mask.to_filename(hospital / "masks" / f"{patient}_seg.nii.gz")
    with pytest.raises(InputError, match=r"(?s)no image has a usable one.*voxels apart"):
        ingest(cohort_file(hospital, DECLARED), tmp_path / "none")


@pytest.mark.proves("G.input", "A3.3")
def test_an_interrupted_ingest_ends_with_the_same_bytes_and_workers_do_not_matter(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(hospital / "masks" / "P2_seg.nii.gz", lesion(value=7))
    file = cohort_file(hospital, DECLARED)
    whole = ingest(file, tmp_path / "whole")

    def stop(done: int, total: int, what: str) -> None:
        if what == "series" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(file, tmp_path / "begun", progress=stop)
    ended = ingest(file, tmp_path / "begun")
    assert ended.digest == whole.digest and ended.quarantine() == whole.quarantine() != []
    assert ingest(file, tmp_path / "whole").digest == whole.digest  # taken as it is
    write(hospital / "masks" / "P1_seg.nii.gz", np.roll(lesion(), 1, axis=0))
    with pytest.raises(InputError, match=r"made from other files|changed since"):
        ingest(file, tmp_path / "whole")


@pytest.mark.proves("G.input")
@pytest.mark.parametrize(
    ("masks", "says"),
    [
        ({"pattern": "{patient}.mha"}, "no file matches masks.pattern"),
        ({"pattern": "{patient}g.nii.gz"}, "none of the 3 masks names a patient with images"),
        ({"values": {"lesion": [4]}}, "masks are declared and no image has a usable one"),
        ({"path": "images", "pattern": "**/{patient}.nii*"}, "takes the images too"),
    ],
)
def test_masks_that_cannot_be_meant_are_an_error_and_nothing_is_written(
    hospital: Path, tmp_path: Path, masks: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match="(?s)" + says.replace(".", r"\.")) as caught:
        ingest(cohort_file(hospital, DECLARED | masks), tmp_path / "store")
    assert "Nothing was written" in str(caught.value) and caught.value.fix
    assert not (tmp_path / "store" / "cohort.json").exists() and not list(tmp_path.glob("store/*/*.npy"))


@pytest.mark.proves("G.input")
def test_a_cohort_file_that_cannot_be_meant_is_refused_with_every_fault(hospital: Path) -> None:
    faults = {
        "masks.pattern": {"path": "masks", "pattern": "*.nii.gz"},
        "stands for two labels": {"values": {"core": [1], "edema": [1, 2]}},
        "set it too": {"pattern": "{patient}_mask.nii"},
        "255": {"values": {"lesion": [256]}},
        "names no number": {"values": {}},
    }
    for says, masks in faults.items():
        with pytest.raises(InputError, match=says):
            cohort_file(hospital, masks)
    (hospital / "slices.csv").write_text("patient_id,slice_index,image\n")
    with pytest.raises(InputError, match="have their masks in the index"):
        cohort_file(hospital, DECLARED, layout="slices", index="slices.csv", unit="display")
    assert cohort_file(hospital, {"values": {"lesion": 1}}).masks is not None
    assert "masks" not in cohort_file(hospital).portable()
    (hospital / "cohort.yaml").write_text(
        "name: x\nlicence: none\nimages: {path: images}\nmasks: {path: labels, values: {lesion: [1]}}\n"
    )
    with pytest.raises(InputError, match=r"masks\.path.*'labels': no such file or folder"):
        read_cohort_file(hospital / "cohort.yaml")


def plan_of(root: Path) -> Plan:
    return plan_folder(root, ReadSettings(unit="HU"))


def masked(plan: Plan) -> dict[str, str]:
    return {one.files[0]: one.mask.file for one in plan.series if one.mask}


@pytest.mark.proves("G.input", "A3.1")
def test_layouts_say_whose_a_mask_is(tmp_path: Path) -> None:
    nnunet, msd, bids = tmp_path / "nnunet", tmp_path / "msd", tmp_path / "bids"
    for channel in (0, 1):
        write(nnunet / "imagesTr" / f"liver_7_000{channel}.nii.gz", image_values())
    write(nnunet / "labelsTr" / "liver_7.nii.gz", lesion())
    write(nnunet / "labelsTr" / "liver_8.nii.gz", lesion())
    plan = plan_of(nnunet)
    assert masked(plan) == {f"imagesTr/liver_7_000{at}.nii.gz": "labelsTr/liver_7.nii.gz" for at in (0, 1)}
    assert [(row.file, row.code) for row in plan.set_aside] == [("labelsTr/liver_8.nii.gz", "mask_without_image")]
    assert "The nearest name is 'liver_7'" in plan.set_aside[0].reason

    write(msd / "imagesTr" / "lung_001.nii.gz", image_values())
    write(msd / "labelsTr" / "lung_001.nii.gz", lesion())
    (msd / "dataset.json").write_text("{}")
    assert masked(plan_of(msd)) == {"imagesTr/lung_001.nii.gz": "labelsTr/lung_001.nii.gz"}

    for visit in ("a", "b"):
        name = f"sub-01_ses-{visit}"
        write(bids / "sub-01" / f"ses-{visit}" / "anat" / f"{name}_T1w.nii.gz", image_values())
    derived = bids / "derivatives" / "lesions" / "sub-01" / "ses-b" / "anat"
    write(derived / "sub-01_ses-b_desc-lesion_mask.nii.gz", lesion())
    write(derived / "sub-01_ses-b_desc-smooth_T1w.nii.gz", image_values())
    write(derived.parents[1] / "ses-c" / "anat" / "sub-01_ses-c_dseg.nii.gz", lesion())
    plan = plan_of(bids)
    series, mask = next(iter(masked(plan).items()))
    assert "ses-b" in series and mask.endswith("desc-lesion_mask.nii.gz") and len(masked(plan)) == 1
    assert "no series of visit 'sub-01_ses-c'" in plan.set_aside[0].reason
    assert plan.counts == {"found": 5, "image": 2, "other": 3, "unreadable": 0}
    assert {file.reason for file in plan.files if file.kind == "other"} == {"a mask", "a derivative of BIDS"}


@pytest.mark.proves("G.input", "A3.1")
def test_a_mask_goes_to_the_visit_that_it_names_and_to_no_other(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for subject in ("sub-1", "sub-2"):
        for visit in ("ses-01", "ses-02"):
            for contrast in ("T1w", "FLAIR"):
                write(images / subject / visit / "anat" / f"{subject}_{visit}_{contrast}.nii", image_values())
    write(masks / "sub-1_ses-01_mask.nii", lesion())
    write(masks / "sub-2_mask.nii", lesion())
    file = cohort_file(
        tmp_path, {"path": "masks", "pattern": "{patient}_*mask.nii"}, layout="bids", select={"rule": "all"}
    )
    cohort = ingest(file, tmp_path / "store")
    with_mask = {one for one in cohort.series["series_id"] if cohort.masks(str(one)) is not None}
    first = "sub-1/ses-01/anat/sub-1_ses-01_{}.nii"
    assert with_mask == {first.format("T1w"), first.format("FLAIR")}, "contrasts of one visit share a mask"
    assert set(cohort.series["study"]) == {f"sub-{one}_ses-0{two}" for one in (1, 2) for two in (1, 2)}
    [row] = [row for row in cohort.quarantine() if row.code == "mask_visit"]
    assert row.file.endswith("sub-2_mask.nii") and "images of 2 visits ('sub-2_ses-01', 'sub-2_ses-02')" in row.reason
    (masks / "sub-1_ses-01_mask.nii").unlink()
    with pytest.raises(InputError, match="no image has a usable one") as caught:
        ingest(file, tmp_path / "other")
    assert "images of 2 visits" in str(caught.value)


@pytest.mark.proves("G.input")
def test_check_counts_masks_as_others_and_says_what_is_wrong_with_them(hospital: Path, tmp_path: Path) -> None:
    write(hospital / "masks" / "P3.nii.gz", lesion())
    write(hospital / "masks" / "P2_seg.nii.gz", lesion((7, 6, 8)))
    write(hospital / "masks" / "P1_seg.nii.gz", lesion(value=-1, kind=np.int16))
    write(hospital / "masks" / "P10_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    report = check(hospital)
    assert report["files"] == {"found": 7, "image": 3, "other": 4, "unreadable": 0}
    codes = {one["patient_id"]: one["codes"] for one in report["series"]}
    assert codes == {"P1": ["mask_values"], "P2": ["mask_size"], "P10": ["mask_empty"]}
    assert {one["verdict"] for one in report["series"]} == {"accepted"} and report.exit_code == 0
    assert [(one["file"], one["problem"].split(":")[0]) for one in report["problems"]] == [
        ("masks/P3.nii.gz", "mask_without_image")
    ]
    scan = ingest_scan(hospital, tmp_path / "scan")
    assert scan.masks(scan.patient("P10").series_ids[0]) is not None and len(scan.quarantine()) == 3


@pytest.mark.proves("G.input")
def test_a_mask_whose_image_is_quarantined_or_has_no_affine(tmp_path: Path) -> None:
    write(tmp_path / "images" / "bad" / "ct.nii.gz", image_values(shape=(4, 4, 4, 3)))
    write(tmp_path / "masks" / "bad.nii.gz", lesion())
    write(tmp_path / "images" / "raw" / "ct.nii.gz", image_values(), None)
    write(tmp_path / "masks" / "raw.nii.gz", lesion(), None)
    plan = plan_of(tmp_path)
    assert masked(plan) == {"images/raw/ct.nii.gz": "masks/raw.nii.gz"}
    assert "every series of patient 'bad' is quarantined" in plan.set_aside[0].reason
    cohort = ingest_scan(tmp_path, tmp_path / "store")
    np.testing.assert_array_equal(masks_of(cohort)["raw"], lesion().transpose(2, 1, 0))


def test_a_small_shift_is_said_and_half_a_voxel_is_too_much(tmp_path: Path) -> None:
    for patient, voxels in (("near", 0.3), ("half", 0.5)):
        write(tmp_path / "images" / patient / "ct.nii.gz", image_values())
        shifted = AFFINE.copy()
        shifted[:3, 3] += voxels * AFFINE[:3, 0]
        write(tmp_path / "masks" / f"{patient}.nii.gz", lesion(), shifted)
    plan = plan_of(tmp_path)
    details = {one.patient_id: one.details for one in plan.series}
    assert "0.30 voxels beside that of its image" in details["near"][0]
    assert "never resampled" in details["half"][0] and set(masked(plan)) == {"images/near/ct.nii.gz"}


@pytest.mark.proves("G.input")
@pytest.mark.shared
def test_dicom_segmentations_and_contours_are_refused_by_name(
    shared_data: Path, hospital: Path, tmp_path: Path, kit: Any
) -> None:
    seg = shared_data / "robustness" / "dicom" / "seg_image_ct_binary.dcm"
    (hospital / "images" / "seg.dcm").write_bytes(seg.read_bytes())
    contours = kit.stack(1, series="contours", tags={"Modality": "RTSTRUCT"})
    kit.write(hospital / "images" / "rt", contours)
    cohort = ingest(cohort_file(hospital, DECLARED), tmp_path / "store")
    rows = [row for row in cohort.quarantine() if row.code == "mask_format"]
    assert {row.reason.split(" is not read")[0] for row in rows} == {
        "a DICOM segmentation (SEG)", "a set of DICOM contours (RTSTRUCT)",
    }  # fmt: skip
    assert cohort.counts["files_other"] == 2 and all("export the mask as NIfTI" in row.reason for row in rows)


@pytest.mark.proves("G.input")
def test_masks_of_an_index_hold_the_declared_values_only(tmp_path: Path) -> None:
    for name, value in (("good", 255), ("bad", 9)):
        for at in range(2):
            Image.fromarray(image_values(at, (6, 5)).astype(np.uint8)).save(tmp_path / f"{name}{at}.png")
        picture = np.zeros((6, 5), np.uint8)
        picture[2, 3] = value
        Image.fromarray(picture).save(tmp_path / f"{name}_mask.png")
    rows = [f"{name},{at},{name}{at}.png,{name}_mask.png" for name in ("good", "bad") for at in range(2)]
    (tmp_path / "slices.csv").write_text("\n".join(["patient_id,slice_index,image,seg", *rows]) + "\n")
    tree = {
        "name": "small", "licence": "CC0-1.0", "masks": {"values": {"lesion": [255]}}, "index": {"mask": "seg"},
        "images": {"layout": "slices", "index": "slices.csv", "unit": "display"},
    }  # fmt: skip
    cohort = ingest(parse_cohort_file(tree, "cohort.yaml", tmp_path), tmp_path / "store")
    assert set(masks_of(cohort)) == {"good"}
    assert [(row.patient_id, row.code) for row in cohort.quarantine()] == [("bad", "mask_values")]


@pytest.mark.proves("G.input")
def test_slices_of_an_index_without_a_mask_are_told_and_a_redrawn_mask_is_noticed(tmp_path: Path) -> None:
    for at in range(2):
        Image.fromarray(image_values(at, (6, 5)).astype(np.uint8)).save(tmp_path / f"{at}.png")
    drawn = lesion((6, 5, 5))[..., 1]
    Image.fromarray(drawn).save(tmp_path / "mask.png", compress_level=0)
    lines = ["patient_id,slice_index,image,seg", "P1,0,0.png,mask.png", "P1,1,1.png,"]
    (tmp_path / "slices.csv").write_text("\n".join(lines) + "\n")
    tree = {
        "name": "small", "licence": "CC0-1.0", "index": {"mask": "seg"},
        "images": {"layout": "slices", "index": "slices.csv", "unit": "display"},
    }  # fmt: skip
    file, store = parse_cohort_file(tree, "cohort.yaml", tmp_path), tmp_path.parent / f"{tmp_path.name}-store"
    cohort = ingest(file, store)
    assert "1 of 2 slices have no mask; they count as slices without a lesion" in str(cohort.series.to_dict())
    size = (tmp_path / "mask.png").stat().st_size
    Image.fromarray(drawn[::-1].copy()).save(tmp_path / "mask.png", compress_level=0)
    assert (tmp_path / "mask.png").stat().st_size == size
    with pytest.raises(InputError, match="changed since") as raised:
        ingest(file, store)
    assert raised.value.problems[0].file == "mask.png"


def test_an_id_in_a_name_ends_where_it_ends() -> None:
    people = ["P1", "P10", "P1-2", "a.b"]
    assert owner_by_pattern("P10_seg.nii.gz", "{patient}*.nii.gz", people) == "P10"
    assert owner_by_pattern("seg17.nii.gz", "seg*{patient}.nii.gz", ["7"]) is None
    assert owner_by_pattern("seg_7.nii.gz", "seg*{patient}.nii.gz", ["7"]) == "7"
    assert owner_by_pattern("P1-2.nii.gz", "{patient}*.nii.gz", people) == "P1-2"
    assert owner_by_pattern("P1-3.nii.gz", "{patient}*.nii.gz", people) is None
    assert owner_by_pattern("P12.nii.gz", "{patient}*.nii.gz", people) is None
    assert owner_by_pattern("x/y/P1/core.nii", "**/{patient}/core.nii?gz", people) is None
    assert owner_by_pattern("x/y/P1/core.nii", "**/{patient}/co?e.nii", people) == "P1"
    assert owner_by_pattern("aXb.nii", "{patient}.nii", people) is None
    assert owner_by_name("masks/P10_lesion_mask.nii.gz", people) == "P10"
    assert owner_by_name("P1/masks/tumour.nii.gz", people) == "P1"
    assert owner_by_name("P1/masks/P10.nii.gz", people) is None and owner_by_name("masks/P1_7.nii.gz", people) is None
    visits = {"P1/2020", "P1/2020-05", "P1/late"}
    assert study_by_name("P1_2020_seg.nii.gz", visits) == "P1/2020"
    assert study_by_name("2020-05/P1.nii.gz", visits) == "P1/2020-05"
    assert study_by_name("P1_seg.nii.gz", visits) is None and study_by_name("P1_late_to_2020_seg.nii", visits) is None
    assert matches("deep/er/P_mask.nii", "**/{patient}_mask.nii") and not matches("P.nii", "{patient}_mask.nii")
