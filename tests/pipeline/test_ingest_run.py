"""`medform run` and the store that lies in its folder, once the files it was made from are no longer those."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from medform.cohort.cohort_file import read_cohort_file
from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.ingestion.ingest import ingest
from medform.pipeline.judge import judge_vectors
from medform.pipeline.run import run

COHORT = """
name: small
licence: CC0-1.0
images: {path: images, unit: raw}
"""
TASKED = (
    COHORT
    + """
tables: {clinical: {path: clinical.csv, patient_id: id}}
columns: {ill: {role: label, type: boolean}}
tasks: [{name: ill, label: clinical.ill, predicted_at: scan}]
"""
)


def scan(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 900, (6, 6, 4)).astype(np.int16)
    nibabel.Nifti1Image(values, np.diag([1.0, 1, 3, 1])).to_filename(path)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    root = tmp_path / "hospital"
    for seed, patient in enumerate(("P1", "P2")):
        scan(root / "images" / patient / "ct.nii", seed)
    (root / "cohort.yaml").write_text(COHORT)
    (root / "clinical.csv").write_text("id,ill\nP1,1\nP2,0\n")
    return root


@pytest.fixture
def started(hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cohort]:
    """`run`, up to the cohort with which training would begin."""
    monkeypatch.setattr("medform.pipeline.run.run_stages", lambda _, cohort, *__, **___: cohort)

    def start(recipe: str = "medform-small", **options: Any) -> Cohort:
        found: Any = run(recipe, hospital / "cohort.yaml", out=tmp_path / "a run", **options)
        return found

    return start


def redrawn(root: Path) -> None:
    """Other voxels in a file of the same size, which is older than the store."""
    scan(root / "images" / "P1" / "ct.nii", 7)
    os.utime(root / "images" / "P1" / "ct.nii", (10**9, 10**9))


def added(root: Path) -> None:
    scan(root / "images" / "P3" / "ct.nii", 2)


def removed(root: Path) -> None:
    (root / "images" / "P2" / "ct.nii").unlink()


CHANGES = [redrawn, added, removed]


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_not_trained_on_files_that_are_no_longer_there_and_overwrite_reads_them_anew(
    change: Callable[[Path], None], hospital: Path, tmp_path: Path, started: Callable[..., Cohort]
) -> None:
    before = started()
    change(hospital)
    for options in ({}, {"resume": True}):
        with pytest.raises(InputError, match=r"Fix: start anew with --overwrite, or choose another folder with -o\."):
            started(**options)
    assert Cohort.read(tmp_path / "a run" / "store").digest == before.digest
    again = started(overwrite=True)
    fresh = ingest(read_cohort_file(hospital / "cohort.yaml"), tmp_path / "fresh")
    assert again.digest == fresh.digest != before.digest
    assert again.root == tmp_path / "a run" / "store" and started(resume=True).digest == again.digest


@pytest.mark.parametrize("change", CHANGES)
def test_overwriting_a_run_leaves_a_store_elsewhere_that_was_made_from_other_files(
    change: Callable[[Path], None], hospital: Path, tmp_path: Path, started: Callable[..., Cohort]
) -> None:
    store = tmp_path / "shared store"
    shared = started(store=store)
    change(hospital)
    with pytest.raises(InputError, match=r"replace it: medform ingest COHORT -o '\S+shared store' --overwrite"):
        started(store=store, overwrite=True)
    assert Cohort.read(store, verify=True).digest == shared.digest


@pytest.mark.parametrize("change", CHANGES)
def test_vectors_are_judged_in_another_folder_where_the_files_of_the_store_have_changed(
    change: Callable[[Path], None], hospital: Path, tmp_path: Path
) -> None:
    """`evaluate --embeddings` has no --overwrite."""
    ingest(read_cohort_file(hospital / "cohort.yaml"), tmp_path / "run" / "store")
    change(hospital)
    vectors = pd.DataFrame({"patient_id": ["P1"], "level": "series", "slice_id": None, "vector": [[1.0, 2.0]]})
    vectors.to_parquet(tmp_path / "vectors.parquet")
    with pytest.raises(InputError, match=r"Fix: choose another folder with -o\.$"):
        judge_vectors(tmp_path / "vectors.parquet", hospital / "cohort.yaml", tmp_path / "run")


def test_overwriting_a_run_does_not_read_unchanged_files_anew(tmp_path: Path, started: Callable[..., Cohort]) -> None:
    before = started()
    voxels = {path: path.stat().st_mtime_ns for path in (tmp_path / "a run" / "store" / "voxels").iterdir()}
    assert started(overwrite=True).digest == before.digest
    assert {path: path.stat().st_mtime_ns for path in voxels} == voxels


@pytest.mark.parametrize("damage", ["{", "[]", None])
def test_overwriting_a_run_replaces_a_damaged_store(
    damage: str | None, tmp_path: Path, started: Callable[..., Cohort]
) -> None:
    before = started()
    manifest = before.root / "cohort.json"
    manifest.write_text(damage if damage else json.dumps(json.loads(manifest.read_text()) | {"name": "other"}))
    with pytest.raises(InputError):
        started()
    assert started(overwrite=True).digest == before.digest


@pytest.mark.parametrize(
    ("options", "cohort", "said"),
    [
        ({"device": "abacus"}, COHORT, "no device 'abacus'"),
        ({"device": "cpu", "overrides": ["precision=bf16"]}, COHORT, "no bf16 arithmetic"),
        ({"folds": [9]}, TASKED, "no fold 9"),
        (
            {"recipe": "mgi-small", "overrides": ["stages.segment.inputs.image.intensity=scan"]},
            COHORT.replace("raw", "HU"),
            "Hounsfield units",
        ),
    ],
)
def test_what_is_refused_without_looking_at_the_store_leaves_it_to_the_run_that_it_is_of(
    options: dict[str, Any],
    cohort: str,
    said: str,
    hospital: Path,
    started: Callable[..., Cohort],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medform.compute.precision.cpu_flags", frozenset)
    before = started()
    added(hospital)
    (hospital / "cohort.yaml").write_text(cohort)
    with pytest.raises(InputError, match=said):
        started(**options, overwrite=True)
    assert Cohort.read(before.root, verify=True).digest == before.digest


def test_a_store_of_an_older_medform_is_told_as_such_and_its_run_goes_on_with_the_new_one(
    hospital: Path, tmp_path: Path, started: Callable[..., Cohort], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, ct = hospital / "cohort.yaml", hospital / "images" / "P1" / "ct.nii"
    image: Any = nibabel.load(ct)
    (hospital / "masks").mkdir()
    lesion = (np.asanyarray(image.dataobj) > 500).astype(np.uint8)
    nibabel.Nifti1Image(lesion, image.affine).to_filename(hospital / "masks" / "P1.nii")
    file.write_text(COHORT + 'masks: {path: masks, pattern: "{patient}.nii"}')
    before = started()
    monkeypatch.setattr("medform.ingestion.ingest.FORMAT_BESIDE", 99)
    with pytest.raises(InputError, match=r"or by an older medform") as raised:
        started(resume=True)
    assert f"medform ingest COHORT -o '{before.root}' --overwrite, then --resume" in str(raised.value)
    again = ingest(read_cohort_file(file), before.root, overwrite=True)
    assert started(resume=True).digest == again.digest == before.digest


def test_a_store_of_images_alone_is_not_older_where_genes_and_masks_are_read_in_another_way(
    started: Callable[..., Cohort], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = started()
    monkeypatch.setattr("medform.ingestion.ingest.FORMAT_BESIDE", 99)
    assert started(resume=True).digest == before.digest
