"""`medform run` and the store that lies in its folder, once the files it was made from are no longer those."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medform.cohort.cohort_file import read_cohort_file
from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.ingestion.ingest import ingest
from medform.pipeline.run import run

COHORT = """
name: small
licence: CC0-1.0
images: {path: images, unit: raw}
"""


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
    return root


@pytest.fixture
def started(hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cohort]:
    """`run`, up to the cohort with which training would begin."""
    monkeypatch.setattr("medform.pipeline.run.run_stages", lambda _, cohort, *__, **___: cohort)

    def start(**options: Any) -> Cohort:
        found: Any = run("medform-small", hospital / "cohort.yaml", out=tmp_path / "run", **options)
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
        with pytest.raises(InputError, match=r"(?s)medform ingest COHORT -o \S+run/store --overwrite"):
            started(**options)
    assert Cohort.read(tmp_path / "run" / "store").digest == before.digest
    again = started(overwrite=True)
    fresh = ingest(read_cohort_file(hospital / "cohort.yaml"), tmp_path / "fresh")
    assert again.digest == fresh.digest != before.digest
    assert again.root == tmp_path / "run" / "store" and started(resume=True).digest == again.digest


@pytest.mark.parametrize("change", CHANGES)
def test_overwriting_a_run_leaves_a_store_elsewhere_that_was_made_from_other_files(
    change: Callable[[Path], None], hospital: Path, tmp_path: Path, started: Callable[..., Cohort]
) -> None:
    shared = started(store=tmp_path / "shared")
    change(hospital)
    with pytest.raises(InputError, match=r"(?s)medform ingest COHORT -o \S+shared --overwrite"):
        started(store=tmp_path / "shared", overwrite=True)
    assert Cohort.read(tmp_path / "shared", verify=True).digest == shared.digest


def test_overwriting_a_run_does_not_read_unchanged_files_anew(tmp_path: Path, started: Callable[..., Cohort]) -> None:
    before = started()
    voxels = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "store" / "voxels").iterdir()}
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
