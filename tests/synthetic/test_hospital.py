"""The hospital as a whole: complete, counted, byte-identical, never half-written, its cohort file valid."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from medform.cohort.cohort_file import read_cohort_file
from medform.cohort.columns import feature_columns
from medform.errors import InputError
from medform.synthetic import hospital as hospital_module
from medform.synthetic.hospital import make_stacks, write_hospital
from medform.synthetic.options import HospitalOptions
from medform.synthetic.truth import Truth

SMALL = HospitalOptions(size=32)


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.proves("A2.1")
def test_two_hospitals_of_one_seed_are_byte_identical(tmp_path, monkeypatch):
    write_hospital(tmp_path / "a", patients=4, seed=3, options=SMALL)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    write_hospital(tmp_path / "elsewhere" / "b", patients=4, seed=3, options=SMALL)
    write_hospital(tmp_path / "c", patients=4, seed=4, options=SMALL)
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "elsewhere" / "b")
    assert not set(first) & set(digests(tmp_path / "c")) - {
        "clinical.csv", "clinical.xlsx", "cohort.yaml", "genes.csv", "images/EXPORT_LOG.txt", "truth.json",
    }  # fmt: skip


@pytest.mark.proves("A2.1", "A2.2")
def test_truth_counts_what_lies_on_disk(hospital):
    truth, root = hospital.truth, hospital.root
    files = [path for path in (root / "images").rglob("*") if path.is_file()]
    assert truth.files.found == len(files) == truth.files.image + truth.files.other + truth.files.unreadable
    assert {one.series_uid: one.shape[0] for one in truth.series} == {
        uid: len(slices) for uid, slices in hospital.series.items()
    }
    assert len(truth.usable) == 12
    assert truth.exclusions.keys() == {one.patient_id for one in truth.patients} - set(truth.usable)
    assert sorted(truth.exclusions.values()) == [
        "a slice of the only scan is missing", "no images", "no row in the clinical table",
    ]  # fmt: skip
    assert {one.patient_id for one in truth.series if one.selected} == {
        one.patient_id for one in truth.patients if one.usable or one.reason == "no row in the clinical table"
    }
    assert truth.counts()["series"] == sum(
        truth.counts()[f"series_{verdict}"] for verdict in ("accepted", "quarantined")
    )


def test_truth_reads_back_and_refuses_another_version(hospital, tmp_path):
    path = hospital.root / "truth.json"
    assert Truth.read(path) == hospital.truth
    other = tmp_path / "truth.json"
    other.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 9'))
    with pytest.raises(InputError, match="schema_version 9"):
        Truth.read(other)


@pytest.mark.proves("A2.1")
def test_every_kind_of_series_is_there(hospital):
    kinds = {one.kind for one in hospital.truth.series}
    assert kinds == {"main", "second_kernel", "follow_up", "localizer"}
    by_scanner = {
        scanner: {one.spacing_mm for one in hospital.truth.series if one.scanner == scanner and one.kind == "main"}
        for scanner in ("alpha", "beta")
    }
    assert all(len(spacings) == 1 for spacings in by_scanner.values())
    assert by_scanner["alpha"] != by_scanner["beta"]
    follow_up = [one for one in hospital.truth.series if one.kind == "follow_up"]
    main = {one.patient_id: one.study_uid for one in hospital.truth.series if one.kind == "main"}
    assert all(one.study_uid != main[one.patient_id] for one in follow_up)


@pytest.mark.proves("A2.2")
def test_the_cohort_file_that_comes_along_is_valid(hospital):
    file = read_cohort_file(hospital.root / "cohort.yaml")
    assert file.primary is not None and file.primary.name == "malignant"
    features = feature_columns(file, "malignant")
    assert set(hospital.truth.nuisances) <= set(features)
    assert not set(hospital.truth.leaks) & set(features)
    header = (hospital.root / "clinical.csv").read_text(encoding="utf-8").splitlines()[0].split(";")
    assert set(header) - {"patient_id"} == set(file.columns)


def test_nothing_is_half_written(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hospital_module, "write_genes", fail)
    with pytest.raises(OSError, match="No space"):
        write_hospital(tmp_path / "h", patients=2, options=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_only_an_earlier_hospital_is_replaced(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="neither an empty folder"):
            write_hospital(mine, patients=2, options=SMALL, overwrite=overwrite)
    assert (mine / "thesis.txt").read_text() == "years of work"
    target = tmp_path / "hospital"
    write_hospital(target, patients=2, seed=1, options=SMALL)
    with pytest.raises(InputError, match="--overwrite"):
        write_hospital(target, patients=2, seed=2, options=SMALL)
    assert Truth.read(target / "truth.json").seed == 1
    write_hospital(target, patients=2, seed=2, options=SMALL, overwrite=True)
    assert Truth.read(target / "truth.json").seed == 2


def test_stacks_in_memory_are_the_patients_on_disk(hospital):
    options = HospitalOptions.model_validate(hospital.truth.options)
    stacks = make_stacks(len(hospital.truth.usable), hospital.truth.seed, options)
    assert [one.patient_id for one in stacks] == list(hospital.truth.usable)
    people = {one.patient_id: one for one in hospital.truth.patients}
    for one in stacks:
        truth = people[one.patient_id]
        assert one.stack.dtype == np.float32 and one.mask.dtype == np.uint8
        assert one.stack.shape == one.mask.shape == (truth.slices, 48, 48)
        assert tuple(np.flatnonzero(one.mask.any(axis=(1, 2)))) == truth.lesion_slices


def test_numbers_out_of_range_are_refused(tmp_path):
    for patients in (1, 10_000):
        with pytest.raises(InputError, match="2 to 9000"):
            write_hospital(tmp_path / "h", patients=patients)
    assert list(tmp_path.iterdir()) == []


def test_two_patients_make_a_hospital_with_both_classes():
    assert sorted(one.malignant for one in make_stacks(2, 0, SMALL)) == [False, True]


def test_synthetic_imports_no_torch():
    import subprocess

    code = "import sys, medform.synthetic.hospital, medform.pipeline.phantom; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
