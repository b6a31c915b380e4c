"""Readouts of a model folder are those of the run's own evaluation, but for calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.evaluation.predictions import read_predictions
from medform.evaluation.settings import EvaluationSettings
from medform.metrics.ranking import auroc
from medform.pipeline.readouts import (
    NOT_FOLLOWING,
    PLAIN,
    SEEN,
    TURNED,
    answers,
    fit_readouts,
    from_files,
    to_files,
    without_readout,
)
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
    assert {one.basis for one in readouts.values()} == {PLAIN}, "out-of-fold alignments never saw who calibrates"
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


def vectors(model: str, labels: pd.Series, follow: float) -> pd.DataFrame:
    """Rows of embeddings.parquet of a final model: eight numbers a patient, the first follows the label."""
    random = np.random.default_rng(4)
    made = random.normal(size=(len(labels), 8)).astype(np.float32)
    made[:, 0] += follow * labels.fillna(0).to_numpy()
    return pd.DataFrame(
        {"patient_id": labels.index, "fold": -1, "part": "train", "model": model, "supports": "aligned",
         "seed": 0, "modality": "image", "vector": list(made)}
    )  # fmt: skip


def of_patients(positive: int, negative: int) -> pd.Series:
    ids = pd.Index([f"p{number}" for number in range(positive + negative)])
    return pd.Series(np.r_[np.ones(positive), np.zeros(negative)], index=ids)


def test_scores_by_chance_against_the_label_are_said_and_call_nobody() -> None:
    """Vectors that say nothing: leaving a patient out makes the rest lean to the other class."""
    y = of_patients(10, 10)
    frame = vectors("image_only", y, 0.0).assign(vector=lambda one: [np.ones(8, np.float32)] * len(one))
    settings = EvaluationSettings()
    (readout,) = from_files(*to_files(fit_readouts(frame, pd.DataFrame({"t": y}), settings, 0, None)))["t"].values()
    assert readout.calibrator.slope == 0 and readout.caution == NOT_FOLLOWING
    assert [readout.probability(score) for score in (-3.0, 0.0, 3.0)] == pytest.approx([0.5] * 3)
    assert readout.call(readout.probability(3.0)) is None and readout.threshold == 1.0
    assert any(NOT_FOLLOWING in line for line in answers({"t": {"image": readout}}, {}))


def test_a_calibration_that_turned_the_order_round_is_said_of_a_folder_of_before() -> None:
    y = of_patients(10, 10)
    arrays, numbers = to_files(
        fit_readouts(vectors("image_only", y, 6.0), pd.DataFrame({"t": y}), EvaluationSettings(), 0, None)
    )
    good = from_files(arrays, numbers)["t"]["image"]
    assert good.caution is None and good.call(good.probability(9.0)) is True and good.call(0.0) is False
    numbers["t"]["image"]["slope"] = -0.3
    old = from_files(arrays, numbers)["t"]["image"]
    assert old.caution == TURNED and old.call(0.99) is None


def test_calibration_on_patients_whom_the_alignment_saw_is_a_caution() -> None:
    y = of_patients(12, 12)
    frame = vectors("aligned", y, 6.0)
    made = fit_readouts(frame, pd.DataFrame({"t": y}), EvaluationSettings(), 0, None)
    assert made["t"]["image"].caution == f"calibrated on {SEEN}"
    assert "  - image: " + f"calibrated on {SEEN}." in answers(made, {})
    held = frame.assign(supports="out_of_fold")
    plain = fit_readouts(pd.concat([frame, held]), pd.DataFrame({"t": y}), EvaluationSettings(), 0, None)
    assert plain["t"]["image"].caution is None
    assert answers(plain, {}) == ["- t: from image (24 patients, 12 positive)."]


def test_probabilities_rank_patients_as_the_scores_do_or_are_all_the_same(random: np.random.Generator) -> None:
    """Noise alone, ten times: no readout may rank patients opposite to the scores that the report shows."""
    y = of_patients(8, 8)
    for _ in range(10):
        noise = vectors("image_only", y, 0.0).assign(
            vector=lambda one: list(random.normal(size=(len(one), 8)).astype(np.float32))
        )
        readout = fit_readouts(noise, pd.DataFrame({"t": y}), EvaluationSettings(), 0, None)["t"]["image"]
        scores = np.array([readout.score(np.asarray(one, np.float64), None) for one in noise["vector"]])
        said = np.array([readout.probability(one) for one in scores])
        assert (np.diff(said[np.argsort(scores)]) >= 0).all()
        assert readout.calibrator.follows or auroc(y.to_numpy(), said) == 0.5


def test_a_task_without_a_readout_is_named_with_its_reason() -> None:
    y = of_patients(4, 16)
    labels = pd.DataFrame({"rare": y, "common": of_patients(10, 10)})
    frame = vectors("image_only", y, 0.0)
    made = fit_readouts(frame, labels, EvaluationSettings(), 0, None)
    said = without_readout(frame, labels, 0, made)
    assert set(made) == {"common"}
    assert said == {"rare": "of 20 labelled patients 4 have the rarer answer, 5 are needed"}
    assert answers(made, said)[-1] == f"- rare: not answered ({said['rare']})."
    nothing = frame.assign(model="intensity_stats")
    assert "neither image vectors nor" in without_readout(nothing, labels, 0, {})["common"]
