"""A cohort with slice tasks: pre-training logs how well training slices can be told apart, and learns the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medform.cohort.cohort_file import parse_cohort_file
from medform.cohort.quarantine import Verdict
from medform.cohort.store import Cohort, CohortWriter, SeriesRecord, SliceRecord
from medform.pipeline.pretrain import pretrain
from medform.runs.folder import read_json
from medform.runs.log import TIME_FIELDS
from medform.synthetic.hospital import make_stacks
from medform.synthetic.options import HospitalOptions

TINY = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.towers.image={kind: timm, model: test_efficientnet}",
    "stages.pretrain.start.image=random",
    "stages.pretrain.batch=4",
    "stages.pretrain.budget={steps: 3}",
    "stages.pretrain.log_every=1",
)
PROBE = "slice_probe.lesion"


def make_store(root: Path, slice_tasks: list[dict[str, str]]) -> Cohort:
    """Six phantom patients whose index says which slices hold the lesion."""
    file = {
        "name": "phantom", "licence": "synthetic", "images": {"layout": "slices", "index": "index.csv", "unit": "HU"},
        "index": {"patient": "patient", "order": "order", "file": "file"},
    }  # fmt: skip
    tree = file | ({"slice_tasks": slice_tasks} if slice_tasks else {})
    writer = CohortWriter(root, parse_cohort_file(tree, "phantom"), inputs="phantom")
    patients = make_stacks(6, 1, HospitalOptions(size=48))
    for number, patient in enumerate(patients):
        slices = tuple(
            SliceRecord(
                float(index) * 3, 1.0, 0.0, f"{number}.{index}", f"{number}-{index}", {"lesion": str(int(any_))}
            )
            for index, any_ in enumerate(patient.mask.reshape(len(patient.mask), -1).any(axis=1))
        )
        record = SeriesRecord(f"1.2.{number}", patient.patient_id, "CT", "HU", Verdict("accepted"), slices)
        writer.write_series(record, [np.rint(image).astype(np.int16) for image in patient.stack])
    writer.finish([f"1.2.{number}" for number in range(len(patients))])
    return Cohort.read(root)


def lines(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIME_FIELDS} for row in rows]


@pytest.mark.proves("A4.2")
def test_the_log_has_a_slice_probe_where_slice_tasks_exist_and_nothing_else_changes(tmp_path: Path) -> None:
    labelled = make_store(tmp_path / "labelled", [{"name": "lesion", "label": "index.lesion"}])
    plain = make_store(tmp_path / "plain", [])
    for name, cohort in (("labelled", labelled), ("plain", plain)):
        pretrain(cohort.root, tmp_path / f"run_{name}", device="cpu", overrides=TINY)
    probed, unprobed = lines(tmp_path / "run_labelled"), lines(tmp_path / "run_plain")
    assert [row["step"] for row in probed] == [1, 2, 3] and all(0 <= row[PROBE] <= 1 for row in probed)
    assert [{key: value for key, value in row.items() if key != PROBE} for row in probed] == unprobed
    place = Path("final/main/0/pretrain")
    runs = [tmp_path / f"run_{name}" / place for name in ("labelled", "plain")]
    assert runs[0].joinpath("model.safetensors").read_bytes() == runs[1].joinpath("model.safetensors").read_bytes()
    assert read_json(runs[0] / "stage.json")["digest"] == read_json(runs[1] / "stage.json")["digest"]
