"""What the synthetic hospital hands over as masks and follow-up is read back as it was planted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medform.cohort.cohort_file import read_cohort_file
from medform.cohort.store import Cohort
from medform.ingestion.ingest import ingest
from medform.synthetic.hospital import make_stacks, write_hospital
from medform.synthetic.options import HospitalOptions
from medform.synthetic.truth import Truth

PATIENTS, SEED, OPTIONS = 4, 3, HospitalOptions(size=32)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, Cohort]:
    folder = tmp_path_factory.mktemp("phantom")
    truth = write_hospital(folder / "hospital", patients=PATIENTS, seed=SEED, options=OPTIONS)
    cohort_file = folder / "hospital" / "cohort.yaml"
    lines = cohort_file.read_text(encoding="utf-8").splitlines(keepends=True)
    cohort_file.write_text("".join(line for line in lines if not line.startswith("genes:")), encoding="utf-8")
    return truth, ingest(read_cohort_file(cohort_file), folder / "store")


@pytest.mark.proves("A2.1")
def test_masks_are_those_that_were_planted(hospital: tuple[Truth, Cohort]) -> None:
    truth, cohort = hospital
    people = {one.patient_id: one for one in truth.patients}
    turned = {one.patient_id for one in truth.series if one.turned}
    planted = make_stacks(PATIENTS, SEED, OPTIONS)
    assert cohort.series["codes"].str.contains("mask_visit").any()  # a later visit, which is not chosen, has its grid
    assert turned & {one.patient_id for one in planted}  # rows and columns are stored the other way round
    for one in planted:
        [series_id] = cohort.patient(one.patient_id).series_ids
        mask = cohort.masks(series_id)
        assert mask is not None and mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, one.mask)
        assert mask.sum() * np.prod(one.spacing_mm) == pytest.approx(people[one.patient_id].mask_mm3)
        assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == list(people[one.patient_id].lesion_slices)
    manifest = json.loads((cohort.root / "cohort.json").read_text(encoding="utf-8"))
    counts = manifest["counts"]
    assert manifest["mask_values"] == [0, 1] and counts["masks_used"] == counts["masks_found"] == counts["series_used"]
    assert counts["files_found"] == truth.files.found


@pytest.mark.proves("A2.1")
def test_follow_up_is_the_one_that_was_planted(hospital: tuple[Truth, Cohort]) -> None:
    truth, cohort = hospital
    survival = cohort.survival()
    people = {one.patient_id: one for one in truth.patients}
    assert set(survival.index) == {one for one, person in people.items() if person.table is not None}
    assert survival.index.name == "patient_id" and list(survival.index) == list(cohort.table().index)
    for patient, row in survival.iterrows():
        person = people[str(patient)]
        assert row["time"] == pytest.approx(person.survival_months, abs=0.051) and row["event"] == float(person.died)
    usable = cohort.select(truth.usable).survival()
    assert set(usable.index) == set(truth.usable) and usable.dtypes.tolist() == [np.float64, np.int64]
