"""The paper's recipe at its own sizes: twenty steps of each stage, after which its loss is lower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medform.cli.main import invoke
from medform.runs.folder import read_json
from medform.runs.log import read_log
from medform.runs.scores import read_scores

STEPS = 20


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.proves("G.done")
def test_mgi_as_published_takes_twenty_steps_of_each_stage(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    hospital, run = tmp_path / "hospital", tmp_path / "run"
    assert invoke(["phantom", str(hospital), "--patients", "16", "--seed", "4"]) == 0
    settings = [f"stages.{stage}.budget={{steps: {STEPS}}}" for stage in ("align", "segment")]
    settings += ["variants={}", "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    cohort = str(hospital / "cohort.yaml")
    assert invoke(["run", "mgi-paper", "--cohort", cohort, "-o", str(run), "--fold", "0", *arguments]) == 0
    for stage in ("align", "segment"):
        told = f"{stage}: loss of the first and the last of {STEPS} steps"
        losses = [line["loss"] for line in read_log(run / "metrics.jsonl") if line["stage"] == stage and "loss" in line]
        assert losses[-1] < losses[0]
        record_property(told, f"{losses[0]:.3f}, {losses[-1]:.3f}")
        assert read_json(run / "folds" / "0" / "main" / "0" / stage / "stage.json")["steps"] == STEPS
    assert any(row.protocol == "segmentation" and row.model == "mgi" for row in read_scores(run / "scores.json"))
    record_property("CPU-minutes", read_json(run / "run.json")["spent"]["cpu_minutes"])
