"""The committed results: every finished run spent what its plan said, within 30 per cent."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medform.evaluation.segmentation import NEVER_SELECTED
from medform.runs.scores import read_scores

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
TOLERANCE = 0.3


def finished() -> dict[str, dict[str, Any]]:
    records = {path.parent.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/run.json"))}
    return {name: record for name, record in records.items() if record["status"] == "complete"}


@pytest.mark.proves("A7", "A9")
def test_there_are_results_of_finished_runs() -> None:
    assert finished()


@pytest.mark.proves("A7", "A9")
@pytest.mark.parametrize("name", finished())
def test_a_finished_run_spent_what_was_planned_within_thirty_per_cent(name: str) -> None:
    record = finished()[name]
    planned, spent = record["planned"]["cpu_minutes"], record["spent"]["cpu_minutes"]
    assert abs(spent - planned) <= TOLERANCE * planned, f"{name}: planned {planned}, spent {spent} CPU-minutes"


@pytest.mark.proves("G6.1")
def test_the_sitting_of_the_committed_run_took_no_more_than_150_minutes() -> None:
    sitting = json.loads((RESULTS / "tcga_lgg" / "sitting.json").read_text())
    record = finished()[sitting["run"]]
    assert (sitting["commit"], sitting["folds"]) == (record["commit"], record["folds_run"])
    assert 0 < sitting["wall_minutes"] <= 150


@pytest.mark.proves("G6.1", "G6.2")
@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/cases.csv")), ids=lambda path: path.parent.name)
def test_the_scores_of_masks_are_those_of_the_committed_cases(path: Path) -> None:
    cases = pd.read_csv(path)
    tested = cases[cases["part"] == "test"]
    rows = {(row.model, row.metric): row for row in read_scores(path.with_name("scores.json"))}
    means = tested.groupby(["model", "patient"])["dice_patient"].mean().groupby("model")
    for model, mean in means.mean().items():
        row = rows[str(model), "dice_patient"]
        assert row.value == pytest.approx(mean, abs=1e-4)
        assert row.n_patients == means.size()[model]
        assert rows[str(model), "dice_patient_median"].value == pytest.approx(means.median()[model], abs=1e-4)
    assert not cases["patient"].str.startswith("TCGA").any()  # pseudonyms alone


@pytest.mark.proves("G6.2")
@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/cases.csv")), ids=lambda path: path.parent.name)
def test_the_selected_model_is_the_best_on_validation_patients_of_the_committed_cases(path: Path) -> None:
    cases = pd.read_csv(path)
    controls = cases["model"].str.contains("|".join(NEVER_SELECTED))
    validation = cases[(cases["part"] == "validation") & ~controls]
    best = validation.groupby(["model", "fold", "patient"])["dice_patient"].mean().groupby("model").mean().idxmax()
    assert json.loads(path.with_name("run.json").read_text())["selected"]["segmentation"] == best


@pytest.mark.proves("G6.1", "G6.2")
def test_seeds_of_several_runs_are_judged_together_on_the_same_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RESULTS.parents[1] / "tools"))
    tool = importlib.import_module("mask_results")
    folders = [RESULTS / "tcga_lgg", RESULTS / "tcga_lgg_seed1", RESULTS / "tcga_lgg_seed2"]
    cases = tool.pooled_cases(folders)
    dice = cases[cases["metric"] == "dice_patient"].groupby(["model", "patient_id"])["value"].mean()
    page = RESULTS.with_suffix(".md").read_text(encoding="utf-8").partition("all runs of mgi-small together")[2]
    for model in ("mgi", "vit_no_genes"):
        assert cases[cases["model"] == model]["seed"].nunique() == 3
        assert len(dice[model]) == 82 and f"| `{model}` | {dice[model].mean():.3f} [" in page
    with pytest.raises(ValueError, match="stands in two runs"):
        tool.pooled_cases([folders[0], folders[0]])


@pytest.mark.proves("G6.2")
def test_what_was_tried_on_masks_after_training_is_of_the_validation_patients_of_the_committed_cases() -> None:
    tried = pd.read_csv(RESULTS / "mask_trials.csv")
    cases = pd.concat([pd.read_csv(RESULTS / name / "cases.csv") for name in ("tcga_lgg_seed1", "tcga_lgg_seed2")])
    cases = cases[(cases["part"] == "validation") & (cases["model"] == "vit_no_genes")]
    judged = cases.groupby(["fold", "patient"])["dice_patient"].mean()
    found = tried[tried["way"] == "as judged"].set_index(["fold", "patient"])["dice_patient"]
    assert set(found.index) == set(judged.index) and set(tried["seeds"]) == {2}
    assert found.to_numpy() == pytest.approx(judged.loc[found.index].to_numpy(), abs=2e-3)
    page = RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    assert (
        f"| as judged | {tried[tried['way'] == 'as judged'].groupby('patient')['dice_patient'].mean().mean():.3f} |"
        in page
    )
