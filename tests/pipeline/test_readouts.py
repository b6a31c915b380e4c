"""Readouts of a model folder are those of the run's own evaluation, but for calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.evaluation.predictions import read_predictions
from medform.pipeline.readouts import fit_readouts, from_files, to_files
from medform.pipeline.run import run_stages, task_labels
from medform.recipes.recipe import read_recipe
from medform.runs.folder import RunFolder

TINY = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.budget={steps: 0}",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [2, head], pca: 16}",
    "stages.align.budget={steps: 3}",
    "variants={out_of_fold: {stages.align.patients: {inner_folds: 3}}}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)


@pytest.mark.proves("A8.2", "U12")
def test_scores_of_test_patients_equal_the_run_s_predictions(phantom_store: Cohort, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    recipe = read_recipe("medform-small", TINY)
    with folder.lock():
        run_stages(folder, phantom_store, recipe, [0], "cpu", resume=False, overwrite=False, progress=None)
    frame = pd.read_parquet(folder.path / "folds" / "0" / "embeddings.parquet")
    made = fit_readouts(frame, task_labels(phantom_store), recipe.evaluation, 0, 0)
    readouts = from_files(*to_files(made))["malignant"]
    assert set(readouts) == {"image", "table", "both"}
    said = pd.concat(list(read_predictions(folder.path / "predictions.parquet")))
    said = said[(said["protocol"] == "cross_validation") & (said["readout"] == "logistic")]
    rows = frame[(frame["part"] == "test") & (frame["supports"] == "aligned")]
    vectors = {name: rows[rows["model"] == name].set_index("patient_id")["vector"] for name in ("aligned", "table")}
    for name, model in (("image", "aligned"), ("table", "table_logistic"), ("both", "fused")):
        wanted = said[said["model"] == model].set_index("patient_id")["y_prob"]
        assert len(wanted) == 12
        for patient, probability in wanted.items():
            image = None if name == "table" else np.asarray(vectors["aligned"][patient], np.float64)
            row = None if name == "image" else np.asarray(vectors["table"][patient], np.float64)
            score = readouts[name].score(image, row)
            assert 1 / (1 + np.exp(-score)) == pytest.approx(float(probability), abs=1e-5)
