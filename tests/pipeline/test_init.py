"""`medform init`: a commented draft that runs as it is and names what to fill in."""

from __future__ import annotations

from pathlib import Path

import pytest

import medform
from medform.cohort.cohort_file import read_cohort_file
from medform.errors import InputError
from medform.synthetic.hospital import write_hospital
from medform.synthetic.options import HospitalOptions


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("init") / "hospital"
    write_hospital(out, patients=6, seed=3, options=HospitalOptions(size=32))
    return out


@pytest.mark.proves("A3.3")
@pytest.mark.parametrize("table", ["clinical.csv", "clinical.xlsx"])
def test_the_draft_ingests_as_it_is(hospital: Path, tmp_path: Path, table: str) -> None:
    out = medform.init(hospital / "images", table=hospital / table, out=tmp_path / "deep" / "cohort.yaml")
    file = read_cohort_file(out)
    assert file.licence == "not stated" and file.images.layout == "dicom" and file.images.unit == "HU"
    assert file.columns["age (years)"].role == "feature" and file.columns["chemo_cycles"].role == "outcome"
    cohort = medform.ingest(out, out=tmp_path / "store").cohort
    assert cohort.counts["patients_used"] == 6 and cohort.features()
    text = out.read_text()
    for word in (
        'licence: "not stated"',
        "known_at",
        "# tasks:",
        "clinical.malignant",
        "# splits:",
        "confirm",
    ):
        assert word in text


@pytest.mark.proves("A3.3", "A.done")
def test_editing_the_keys_it_names_gives_the_cohort_of_the_truth(hospital: Path, tmp_path: Path) -> None:
    """check -> init -> edit -> ingest: patients and exclusions are those that were planted."""
    import json

    out = medform.init(hospital / "images", table=hospital / "clinical.csv", out=hospital.parent / "draft.yaml")
    lines = out.read_text().splitlines()
    for at, line in enumerate(lines):
        if line.startswith('  "malignant"'):
            lines[at] = '  "malignant": {role: label, type: boolean}'
        if line in ("# tasks:",) or "clinical.malignant" in line:
            lines[at] = line.removeprefix("# ").removeprefix("#")
    out.write_text("\n".join(lines) + "\n")
    cohort = medform.ingest(out, out=tmp_path / "store").cohort
    truth = json.loads((hospital / "truth.json").read_text())
    imaged = set(cohort.patients.loc[(cohort.patients["n_series"] > 0) & cohort.patients["has_table"], "patient_id"])
    assert imaged == set(truth["usable"])
    excluded = {row.patient_id for row in cohort.quarantine() if row.code == "gap"}
    assert excluded == {one for one, reason in truth["exclusions"].items() if "slice" in reason}
    assert cohort.labels("malignant").notna().sum() == len(cohort.table())


@pytest.mark.shared
@pytest.mark.proves("A3.3", "A9")
def test_an_index_of_slices_is_found(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "ct_ich"
    out = medform.init(root, table=root / "clinical.csv", out=tmp_path / "ich.yaml")
    file = read_cohort_file(out)
    assert file.images.index == "slices.csv" and file.images.unit == "display"
    assert (file.index.patient, file.index.order, file.index.file) == ("patient_id", "slice_index", "image")
    assert "index.any_ich" in out.read_text()


@pytest.mark.proves("A.input")
def test_nothing_is_overwritten_or_drafted_from_nothing(hospital: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort.yaml"
    out.write_text("mine")
    with pytest.raises(InputError, match="this file exists"):
        medform.init(hospital / "images", out=out)
    assert out.read_text() == "mine"
    assert medform.init(hospital / "images", out=out, overwrite=True) == out
    assert "No clinical table" in out.read_text() and read_cohort_file(out).clinical is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no usable image"):
        medform.init(tmp_path / "empty", out=tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()
