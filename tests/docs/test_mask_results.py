"""What the tools of the results page make of the cases of a run that draws masks."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.evaluation.segmentation import PredictedScan, segmentation_cases, select_segmentation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("mask_results")


def judged(model: str, patient: str, fold: int, part: Any, *, drawn: int, true: int) -> list[dict[str, Any]]:
    """Cases of a patient: so many voxels drawn, so many true."""
    prediction, truth = (np.arange(64).reshape(1, 8, 8) < count for count in (drawn, true))
    where = {"cohort": "brains", "task": "segmentation", "seed": 0, "fold": fold, "patient_id": patient}
    return segmentation_cases([PredictedScan(prediction, truth)], model=model, part=part, **where)


@pytest.mark.proves("G6.2")
def test_committed_cases_select_as_the_run_did_where_a_validation_patient_has_no_lesion(
    tool: Any, tmp_path: Path
) -> None:
    cases = judged("mgi", "a", 0, "validation", drawn=10, true=10) + judged(
        "unet", "a", 0, "validation", drawn=5, true=10
    )
    cases += judged("mgi", "b", 1, "validation", drawn=0, true=0) + judged(
        "unet", "b", 1, "validation", drawn=5, true=0
    )
    cases += [one for model in ("mgi", "unet") for one in judged(model, "b", 0, "test", drawn=0, true=0)]
    frame = pd.DataFrame(cases)
    frame.to_parquet(tmp_path / "cases.parquet")
    (tmp_path / "run.json").write_text(json.dumps({"store": "store"}))
    (tmp_path / "store").mkdir()
    people = pd.DataFrame({"patient_id": ["a", "b"], "pseudonym": ["patient-1", "patient-2"]})
    people.to_parquet(tmp_path / "store" / "patients.parquet")
    tool.collect_cases(tmp_path, tmp_path)
    written = pd.read_csv(tmp_path / "cases.csv").set_index(["part", "model", "fold"])
    assert pd.isna(written.loc[("validation", "mgi", 1), "dice_patient"])
    assert written.loc[("validation", "mgi", 1), "lesion_voxels"] == 0
    pooled = tool.pooled_cases([tmp_path])
    assert len(pooled) == (frame["metric"].isin([*tool.FIGURES, *tool.VALIDATION])).sum()
    assert select_segmentation(pooled) == select_segmentation(frame) == {"segmentation": "mgi"}
    assert "nan" not in "".join(tool._folds(pd.read_csv(tmp_path / "cases.csv"), ["mgi", "unet"]))


@pytest.mark.proves("G6.2")
def test_patients_without_lesion_are_not_among_the_small_tumours_of_the_trials(tool: Any, tmp_path: Path) -> None:
    sizes = {"a": 0, "b": 500, "c": 5000}
    rows = [
        {"way": way, "fold": 0, "patient": patient, "seeds": 1, "dice_patient": 0.5 * (size > 0), "lesion_voxels": size}
        for way in ("as judged", "other")
        for patient, size in sizes.items()
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "trials.csv", index=False)
    text = " ".join(tool.trials_section(tmp_path / "trials.csv"))
    assert "3 patients, 1 of them" in text and "| as judged | 0.333 | 0.500 |" in text
