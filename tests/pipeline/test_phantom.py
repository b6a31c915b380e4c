"""The verb `phantom`."""

from __future__ import annotations

import numpy as np
import pytest

from medform.cohort.cohort_file import read_cohort_file
from medform.errors import InputError
from medform.ingestion.ingest import ingest
from medform.pipeline.check import check
from medform.pipeline.phantom import phantom
from medform.synthetic.hospital import make_stacks
from medform.synthetic.options import HospitalOptions


@pytest.mark.proves("A2.1", "A2.2")
def test_phantom_writes_a_hospital_and_returns_its_truth(tmp_path):
    truth = phantom(tmp_path / "h", patients=3, seed=2, options={"size": "32", "signal": "off"})
    assert {path.name for path in (tmp_path / "h").iterdir()} == {
        "images", "masks", "clinical.csv", "clinical.xlsx", "genes.csv", "cohort.yaml", "truth.json",
    }  # fmt: skip
    assert len(truth.usable) == 3 and truth.options["signal"] == "off" and truth.seed == 2


@pytest.mark.proves("A.input")
def test_all_wrong_options_are_named_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        phantom(tmp_path / "h", options={"shortcut": "2", "imagesignal": "1"})
    assert "shortcut" in str(caught.value) and "Did you mean 'image_signal'" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.proves("A2.1", "A3.1", "A3.3", "A.done")
def test_check_and_ingest_find_what_the_truth_says(tmp_path):
    root = tmp_path / "h"
    truth = phantom(root, patients=8, seed=1, options={"size": "32", "missing": "0.2", "sentinel": "0.4"})
    report = check(root / "images", table=root / "clinical.xlsx")
    assert report["files"] == vars(truth.files)
    assert {one["series_id"]: (one["verdict"], list(one["codes"])) for one in report["series"]} == {
        one.series_uid: (one.verdict, [one.code] if one.code else []) for one in truth.series
    }

    cohort = ingest(read_cohort_file(root / "cohort.yaml"), tmp_path / "store")
    assert set(cohort.series["series_id"]) >= {one.series_uid for one in truth.series if one.selected}
    used = cohort.patients.set_index("patient_id")
    assert {key for key in used.index if used.n_series[key] and used.has_table[key]} == set(truth.usable)
    labels = cohort.labels("malignant")
    table = cohort.table()
    for person in truth.patients:
        if not person.usable:
            continue
        assert labels[person.patient_id] == person.malignant
        for column in ("age (years)", "weight (kg)", "marker", "ldh (U/L)", "room"):
            cell = table.loc[person.patient_id, column]
            assert person.table is not None
            assert np.isnan(cell) if column in person.emptied else cell == person.table[column]


@pytest.mark.proves("A2.1", "A3.1")
def test_the_store_holds_the_hounsfield_units_that_were_planted(tmp_path):
    options = HospitalOptions(size=32)
    truth = phantom(tmp_path / "h", patients=8, seed=1, options=options)
    cohort = ingest(read_cohort_file(tmp_path / "h" / "cohort.yaml"), tmp_path / "store")
    series = {one.patient_id: one for one in truth.series if one.selected}
    assert any(one.turned for one in series.values()), "no patient on the belly: choose another seed"
    for patient in make_stacks(8, 1, options):
        stored = cohort.open(series[patient.patient_id].series_uid)
        assert stored.shape == patient.stack.shape
        assert stored.spacing_mm == pytest.approx(patient.spacing_mm)
        for index in range(len(patient.stack)):
            assert np.abs(stored.slice(index) - patient.stack[index]).max() <= 1.25 / 2 + 1e-3
