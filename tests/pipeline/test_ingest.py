"""`medform ingest`: what a person and a program are told of the way from files to patients."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import medform
from medform.errors import InputError
from medform.synthetic.hospital import make_stacks, write_hospital
from medform.synthetic.options import HospitalOptions

OPTIONS = HospitalOptions(size=32)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ingest") / "hospital"
    write_hospital(out, patients=6, seed=3, options=OPTIONS)
    return out


@pytest.mark.proves("A3.1", "A3.3", "A2.1")
def test_the_phantom_comes_out_as_it_was_rendered(hospital: Path, tmp_path: Path) -> None:
    """Voxels, spacing and label of every usable patient equal what the generator made, within its
    rounding."""
    said: list[tuple[int, int, str]] = []
    result = medform.ingest(hospital / "cohort.yaml", out=tmp_path / "store", progress=lambda *one: said.append(one))
    cohort = result.cohort
    for planted in make_stacks(6, 3, OPTIONS):
        (series_id,) = cohort.patient(planted.patient_id).series_ids
        series = cohort.open(series_id)
        assert series.shape == planted.stack.shape
        assert series.spacing_mm == pytest.approx(planted.spacing_mm, abs=1e-3)
        values = np.stack([series.slice(at) for at in range(len(series))])
        assert np.abs(values - planted.stack).max() <= np.abs(series.slope).max() / 2 + 0.01
        assert cohort.labels("malignant")[planted.patient_id] == float(planted.malignant)
    assert said[-1][0] == said[-1][1] == len(cohort.series) and said[-1][2] == "series"


@pytest.mark.proves("A3.3")
def test_counts_codes_and_the_next_step_are_told(hospital: Path, tmp_path: Path) -> None:
    result = medform.ingest(hospital / "cohort.yaml", out=tmp_path / "store")
    tree = json.loads(json.dumps(result.as_json()))
    assert tree["counts"]["patients_used"] == 6 and tree["quarantine"]["gap"] == 1
    text = "\n".join(result.lines())
    assert "series stored" in text and "set aside: gap 1" in text and "Next: medform run" in text
    assert result.exclusions == sum(n for code, n in result.codes.items() if code not in ("not_selected", "skipped"))


@pytest.mark.proves("A3.3", "A9")
def test_the_same_cohort_file_serves_another_root(hospital: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(hospital, moved)
    cohort_file = tmp_path / "cohort.yaml"
    shutil.move(moved / "cohort.yaml", cohort_file)
    with pytest.raises(InputError, match=r"images.path"):
        medform.ingest(cohort_file, out=tmp_path / "store")
    found = medform.ingest(cohort_file, root=moved, out=tmp_path / "store").cohort
    again = medform.ingest(hospital / "cohort.yaml", out=tmp_path / "other").cohort
    assert found.digest == again.digest


@pytest.mark.proves("A.input")
@pytest.mark.parametrize("where", ["images", "images/store"])
def test_an_output_among_the_images_is_refused_before_any_work(hospital: Path, where: str) -> None:
    before = sorted(hospital.rglob("*"))
    with pytest.raises(InputError, match=r"(?s)inside the folder of the images.*Fix: choose a folder outside"):
        medform.ingest(hospital / "cohort.yaml", out=hospital / where)
    assert sorted(hospital.rglob("*")) == before


@pytest.mark.proves("A.input")
def test_resume_and_overwrite_exclude_each_other(hospital: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exclude each other"):
        medform.ingest(hospital / "cohort.yaml", out=tmp_path / "s", resume=True, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(InputError, match="holds no cohort store"):
        medform.ingest(hospital / "cohort.yaml", out=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"
