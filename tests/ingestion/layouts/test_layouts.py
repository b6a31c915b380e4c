"""Whose image a file is, in each recognised layout; what is no scan is counted as other."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medform.ingestion.layouts.folders import FolderLayout
from medform.ingestion.layouts.place import common_folder, stem
from medform.ingestion.plan import Plan, ReadSettings, natural, plan_folder


def volume(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([1.0, 1, 2, 1])).to_filename(path)


def named(plan: Plan) -> dict[str, str]:
    return {one.files[0]: one.patient_id for one in plan.series}


@pytest.mark.proves("A3.1")
def test_nnunet(tmp_path: Path) -> None:
    for name in ("imagesTr/liver_001_0000", "imagesTr/liver_001_0001", "labelsTr/liver_001"):
        volume(tmp_path / f"{name}.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT", "1": "PET"}}))
    plan = plan_folder(tmp_path, ReadSettings(unit="HU"))
    assert named(plan) == {f"imagesTr/liver_001_000{at}.nii.gz": "liver_001" for at in (0, 1)}
    assert [one.modality for one in plan.series] == ["CT", "PET"]
    assert plan.counts == {"found": 4, "image": 2, "other": 2, "unreadable": 0}


@pytest.mark.proves("A3.1")
def test_decathlon_and_bids(tmp_path: Path) -> None:
    volume(tmp_path / "msd" / "imagesTr" / "lung_7.nii.gz")
    volume(tmp_path / "msd" / "labelsTr" / "lung_7.nii.gz")
    (tmp_path / "msd" / "dataset.json").write_text("{}")
    assert named(plan_folder(tmp_path / "msd", ReadSettings())) == {"imagesTr/lung_7.nii.gz": "lung_7"}
    bids = tmp_path / "bids"
    volume(bids / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz")
    volume(bids / "sub-01" / "ses-b" / "anat" / "sub-01_ses-b_FLAIR.nii.gz")
    volume(bids / "derivatives" / "sub-01" / "sub-01_mask.nii.gz")
    plan = plan_folder(bids, ReadSettings())
    assert set(named(plan).values()) == {"sub-01"} and len(plan.series) == 2
    assert {(one.study_id, one.modality) for one in plan.series} == {("sub-01_ses-a", "T1w"), ("sub-01_ses-b", "FLAIR")}
    assert plan.counts["other"] == 1


@pytest.mark.proves("A3.1")
def test_one_folder_or_one_file_a_patient(tmp_path: Path) -> None:
    for name in ("data/P049/ct.nii.gz", "data/P050/deep/ct.nii", "data/masks/P049.nii.gz"):
        volume(tmp_path / name)
    plan = plan_folder(tmp_path, ReadSettings())
    assert named(plan) == {"data/P049/ct.nii.gz": "P049", "data/P050/deep/ct.nii": "P050"}
    volume(tmp_path / "flat" / "0049.nii.gz")
    volume(tmp_path / "flat" / "0050.nii.gz")
    assert set(named(plan_folder(tmp_path / "flat", ReadSettings())).values()) == {"0049", "0050"}


def test_pictures_of_a_folder_are_one_stack_in_natural_order(tmp_path: Path) -> None:
    for name in ("A/s10.png", "A/s9.png", "B/s1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    first, second = plan_folder(tmp_path, ReadSettings()).series
    assert [source.file for source in first.slices] == ["A/s9.png", "A/s10.png"]
    assert (first.patient_id, second.patient_id) == ("A", "B") and first.unit == "display"


def test_a_named_layout_reads_its_own_files_only(tmp_path: Path) -> None:
    volume(tmp_path / "P1" / "a.nii.gz")
    Image.new("L", (4, 4)).save(tmp_path / "P1" / "key.png")
    plan = plan_folder(tmp_path, ReadSettings(layout="nifti"))
    assert named(plan) == {"P1/a.nii.gz": "a"} and plan.counts["other"] == 1


def test_names() -> None:
    assert common_folder(["a/b/1", "a/b/c/2"]) == ("a", "b") and common_folder([]) == ()
    assert stem("x/CASE.nii.gz") == "CASE" and stem("x/CASE.tar.png") == "CASE.tar"
    assert sorted(["s10", "s9", "s9b", "t1"], key=natural) == ["s9", "s9b", "s10", "t1"]
    layout = FolderLayout("root", ["x.nii"], [])
    assert layout.place("x.nii").patient_id == "x" and layout.folder("x.nii") is None
