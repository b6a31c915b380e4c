"""The whole evaluation: rows of the design, made again from files, untouched by test rows, honest where
undefined.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    roc_auc_score,
)

from medform.errors import InputError
from medform.evaluation.evaluate import Evaluation, detectable_differences, evaluate
from medform.evaluation.predictions import (
    PREDICTION_COLUMNS,
    PredictionWriter,
    prediction_frame,
    read_predictions,
)
from medform.evaluation.probe import VALIDATION_CASE, select_models
from medform.evaluation.rows import PAIRS, score_rows
from medform.runs.scores import ScoreRow, read_scores, write_scores

from .conftest import Example

HERE = [pair for pair in PAIRS if "shuffled_pairs" not in pair]  # the example has no alignment with others' rows


def judge(example: Example, **changes: object) -> Evaluation:
    given = {"embeddings": example.embeddings, "labels": example.labels, **changes}
    return evaluate(split=example.split, settings=example.settings, cohort_name="made_up", **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(example: Example) -> Evaluation:
    return judge(example)


def row(rows: list[ScoreRow], **wanted: object) -> ScoreRow:
    matching = [one for one in rows if all(getattr(one, name) == value for name, value in wanted.items())]
    assert len(matching) == 1, (wanted, len(matching))
    return matching[0]


@pytest.mark.proves("A6.1", "A6.2")
def test_there_is_one_row_a_figure_for_every_model_and_control(found: Evaluation) -> None:
    keys = [(r.task, r.protocol, r.shots, r.supports, r.model, r.readout, r.metric) for r in found.rows]
    assert len(set(keys)) == len(keys)
    validated = {r.model for r in found.rows if r.protocol == "cross_validation" and r.task == "histology"}
    assert validated == {
        "aligned", "image_only", "imagenet_encoder", "intensity_stats", "table_logistic", "table_boosting",
        "fused_unaligned", "fused", "permuted_labels", "chance", *(f"{first} - {second}" for first, second in HERE),
    }  # fmt: skip
    few = {(r.model, r.supports) for r in found.rows if r.protocol == "few_shot" and r.model != "chance"}
    assert few == {
        *((model, supports) for model in ("aligned", "aligned - image_only") for supports in SUPPORTS),
        *((model, supports) for model in UNALIGNED for supports in ("aligned", "unseen")),
    }
    assert all(r.value is None or r.model == "chance" or r.n_patients > 0 for r in found.rows)
    assert all(r.value is not None or r.note for r in found.rows)
    assert all(r.train_cohorts == "made_up" for r in found.rows)


SUPPORTS = ("aligned", "out_of_fold", "unseen")
UNALIGNED = (
    "image_only", "imagenet_encoder", "intensity_stats", "table_logistic", "image_only - imagenet_encoder",
)  # fmt: skip


@pytest.mark.proves("A6.1", "D39")
@pytest.mark.parametrize("model", ["aligned", "table_logistic", "fused"])
def test_cross_validation_rows_equal_scikit_learn_on_the_predictions(found: Evaluation, model: str) -> None:
    assert found.predictions is not None
    frame = found.predictions
    chosen = frame[
        (frame["protocol"] == "cross_validation")
        & (frame["model"] == model)
        & (frame["readout"] == "logistic")
        & (frame["task"] == "histology")
    ]
    y, p = chosen["y_true"].to_numpy(), chosen["y_prob"].to_numpy().astype(float)
    pairs = [(g["y_true"].sum() * (1 - g["y_true"]).sum(), roc_auc_score(g["y_true"], g["y_prob"]))
             for _, g in chosen.groupby("fold")]  # fmt: skip
    expected = {
        "auroc": sum(n * value for n, value in pairs) / sum(n for n, _ in pairs),
        "auprc": average_precision_score(y, p),
        "balanced_accuracy": balanced_accuracy_score(y, p >= 0.5),
        "macro_f1": f1_score(y, p >= 0.5, average="macro"),
        "brier": brier_score_loss(y, p),
    }
    for metric, value in expected.items():
        mine = row(found.rows, task="histology", protocol="cross_validation", model=model, readout="logistic",
                   metric=metric)  # fmt: skip
        assert mine.value == pytest.approx(value, abs=1e-6)
        assert mine.ci_low is not None and mine.ci_high is not None and mine.ci_low <= value <= mine.ci_high
        assert mine.n_patients == len(chosen) == chosen["patient_id"].nunique()


@pytest.mark.proves("A6.2")
def test_few_shot_rows_are_the_mean_of_the_draws(found: Evaluation, example: Example) -> None:
    assert found.predictions is not None
    frame = found.predictions
    chosen = frame[
        (frame["protocol"] == "few_shot")
        & (frame["model"] == "aligned")
        & (frame["supports"] == "unseen")
        & (frame["shots"] == 2)
        & (frame["readout"] == "centroid")
        & (frame["task"] == "histology")
    ]
    values = []
    for _, draw in chosen.groupby("draw"):
        areas = [(g["y_true"].sum() * (1 - g["y_true"]).sum(), roc_auc_score(g["y_true"], g["y_prob"]))
                 for _, g in draw.groupby("fold")]  # fmt: skip
        values.append(sum(n * value for n, value in areas) / sum(n for n, _ in areas))
    mine = row(found.rows, task="histology", protocol="few_shot", model="aligned", supports="unseen", shots=2,
               readout="centroid")  # fmt: skip
    assert len(values) == mine.n_draws == example.settings.draws
    assert mine.value == pytest.approx(np.mean(values))


@pytest.mark.proves("A6.1", "D38", "U9")
def test_every_row_can_be_made_again_from_the_files(example: Example, found: Evaluation, tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "predictions.parquet") as writer:
        streamed = judge(example, sink=writer)
    assert streamed.predictions is None
    assert streamed.rows == found.rows
    streamed.cases.to_parquet(tmp_path / "cases.parquet")
    write_scores(tmp_path / "scores.json", streamed.rows)
    again = score_rows(
        read_predictions(tmp_path / "predictions.parquet"),
        pd.read_parquet(tmp_path / "cases.parquet"),
        example.settings,
    )
    assert again == read_scores(tmp_path / "scores.json") == found.rows
    plain = pd.read_parquet(tmp_path / "predictions.parquet")  # any reader of Parquet
    assert tuple(plain.columns) == PREDICTION_COLUMNS and len(plain) > 1000


@pytest.mark.proves("D38", "D33")
def test_two_runs_are_identical_and_the_order_of_rows_does_not_matter(example: Example, found: Evaluation) -> None:
    shuffled = example.embeddings.sample(frac=1, random_state=3)
    again = judge(example, embeddings=shuffled, labels=example.labels.iloc[::-1])
    assert again.rows == found.rows
    assert again.selected == found.selected


@pytest.mark.proves("L1", "A.tests", "U8")
def test_poisoned_test_rows_change_no_other_score(example: Example, found: Evaluation) -> None:
    """1e6 added to one test patient: every other prediction of every model and draw stays bit for bit what
    it was.
    """
    victim = example.split.folds[0].test[0]
    poisoned = example.embeddings.copy()
    hit = (poisoned["fold"] == 0) & (poisoned["patient_id"] == victim)
    poisoned.loc[hit, "vector"] = poisoned.loc[hit, "vector"].map(lambda v: [x + 1e6 for x in v])
    other = judge(example, embeddings=poisoned)
    assert found.predictions is not None and other.predictions is not None
    kept = found.predictions["patient_id"] != victim
    before, after = found.predictions[kept], other.predictions[kept]
    np.testing.assert_allclose(before["y_prob"], after["y_prob"], rtol=1e-6)
    changed = found.predictions["y_prob"].ne(other.predictions["y_prob"])
    assert changed[~kept & (found.predictions["fold"] == 0)].any()
    pd.testing.assert_frame_equal(found.cases, other.cases)
    assert other.selected == found.selected


@pytest.mark.proves("L1", "L7")
def test_labels_of_test_patients_reach_no_prediction(example: Example, found: Evaluation) -> None:
    """Turning the labels of fold 0's test patients over changes none of fold 0's predictions of whole
    training sets.
    """
    turned = example.labels.copy()
    tested = list(example.split.folds[0].test)
    turned.loc[tested, "histology"] = 1 - turned.loc[tested, "histology"]
    other = judge(example, labels=turned[["histology"]])
    assert found.predictions is not None and other.predictions is not None

    def of_fold(frame: pd.DataFrame) -> pd.DataFrame:
        whole = (frame["fold"] == 0) & (frame["protocol"] == "cross_validation") & (frame["task"] == "histology")
        return frame[whole & (frame["model"] != "permuted_labels")].sort_values(["model", "readout", "patient_id"])

    np.testing.assert_array_equal(of_fold(found.predictions)["y_prob"], of_fold(other.predictions)["y_prob"])


@pytest.mark.proves("A6.1")
def test_differences_are_paired_and_say_what_could_have_been_seen(found: Evaluation) -> None:
    where = {"task": "histology", "protocol": "cross_validation", "readout": "logistic", "metric": "auroc"}
    for first, second in HERE:
        difference = row(found.rows, model=f"{first} - {second}", **where)
        values = [row(found.rows, model=one, **where).value for one in (first, second)]
        assert None not in values
        assert difference.value == pytest.approx(values[0] - values[1])  # type: ignore[operator]
        assert difference.p_value is not None and 0 < difference.p_value <= 1
        assert "detectable 0." in (difference.note or "")
    assert set(found.detectable) == {"histology", "stage"}


@pytest.mark.proves("A6.3")
def test_detectable_difference_is_planned_from_the_labels_alone(example: Example) -> None:
    planned = detectable_differences(example.labels)
    assert set(planned) == {"histology", "stage"}
    assert all(0.1 < value < 0.4 for value in planned.values())


@pytest.mark.proves("L7")
def test_selection_uses_validation_patients_and_never_a_control(example: Example, found: Evaluation) -> None:
    cases = found.cases[(found.cases["metric"] == VALIDATION_CASE) & (found.cases["task"] == "histology")]
    assert set(zip(cases["fold"], cases["patient_id"], strict=True)) == {
        (number, one) for number, fold in enumerate(example.split.folds) for one in fold.validation
    }
    made = [
        {
            "task": "t",
            "model": model,
            "fold": 0,
            "seed": 0,
            "patient_id": one,
            "metric": VALIDATION_CASE,
            "value": value,
        }
        for model, values in {
            "random_encoder": (0.0, 1.0, 0.0, 1.0),
            "shuffled_pairs": (0.0, 1.0, 0.0, 1.0),
            "aligned": (0.2, 0.8, 0.1, 0.1),
            "image_only": (0.2, 0.8, 0.1, 0.1),
            "fused": (0.9, 0.1, 0.9, 0.1),
        }.items()
        for one, value in zip("abcd", values, strict=True)
    ]
    labels = pd.DataFrame({"t": [0.0, 1.0, 0.0, 1.0]}, index=list("abcd"))
    assert select_models(pd.DataFrame(made), labels) == {"t": "image_only"}  # a tie goes to the simpler
    assert select_models(pd.DataFrame(made), labels * 0) == {}


@pytest.mark.proves("A6.1", "R50")
def test_a_task_of_one_class_has_rows_with_a_reason(example: Example) -> None:
    labels = example.labels.assign(stage=1.0)
    rows = [r for r in judge(example, labels=labels).rows if r.task == "stage"]
    assert rows and all(r.value is None and r.note for r in rows)
    area = row(rows, protocol="cross_validation", model="aligned", readout="logistic", metric="auroc")
    assert area.note is not None and area.note.startswith("undefined: one class only")


@pytest.mark.proves("A6.1", "R50")
def test_fewer_positives_than_folds_is_scored_where_it_can_be(example: Example) -> None:
    """Two positives, three folds: one fold tests none, another may train on one; nothing crashes, nothing
    is 0.5.
    """
    labels = example.labels.copy()
    labels["stage"] = 0.0
    labels.loc[[example.split.folds[0].test[0], example.split.folds[1].test[0]], "stage"] = 1.0
    rows = [r for r in judge(example, labels=labels).rows if r.task == "stage"]
    area = row(rows, protocol="cross_validation", model="image_only", readout="logistic", metric="auroc")
    assert area.value is not None and area.note is not None and "interval: " in area.note
    pair = row(rows, protocol="cross_validation", model="aligned - image_only", readout="logistic", metric="auprc")
    assert pair.value is not None and "no interval: a class has fewer than 5 patients" in (pair.note or ""), (
        "that no resample tells them apart would be another matter: none was drawn"
    )
    few = [r for r in rows if r.protocol == "few_shot" and r.model == "image_only"]
    assert few and {r.note for r in few} == {"not_possible"} and all(r.value is None for r in few)


@pytest.mark.proves("R50")
def test_a_fold_that_trains_on_one_class_leaves_its_patients_unscored(example: Example) -> None:
    labels = example.labels.copy()
    labels["stage"] = np.where(labels.index.isin(example.split.folds[0].test), labels["histology"], 0.0)
    found = judge(example, labels=labels)
    area = row(found.rows, task="stage", protocol="cross_validation", model="image_only", readout="logistic",
               metric="auroc")  # fmt: skip
    assert area.value is None  # fold 0 cannot be fitted, the others test one class
    assert str(len(example.split.folds[0].test)) + " patients without a score" in (area.note or "")


@pytest.mark.proves("A6.1")
def test_models_that_predict_themselves_are_judged_beside_the_probes(example: Example) -> None:
    direct = [
        {"task": "histology", "model": "supervised_mil", "fold": number, "seed": 0, "part": part,
         "patient_id": one, "y_prob": 0.9 if example.labels["histology"][one] else 0.1}
        for number, fold in enumerate(example.split.folds)
        for part in ("validation", "test")
        for one in fold.part(part)
    ]  # fmt: skip
    found = judge(example, direct=pd.DataFrame(direct))
    area = row(found.rows, model="supervised_mil", metric="auroc")
    assert (area.value, area.readout, area.protocol) == (1.0, None, "cross_validation")
    assert area.note == "interval: newcombe"
    validated = found.cases[found.cases["model"] == "supervised_mil"]
    assert set(validated["patient_id"]) == {one for fold in example.split.folds for one in fold.validation}


@pytest.mark.proves("A6.1")
def test_a_value_is_the_mean_over_seeds(example: Example, found: Evaluation) -> None:
    """A second seed whose vectors are noise: the row is the mean of both, the table stays as it was."""
    random = np.random.default_rng(5)
    second = example.embeddings[example.embeddings["model"] != "table"].assign(seed=1)
    second["vector"] = second["vector"].map(lambda vector: random.normal(size=len(vector)).tolist())
    where = {
        "task": "histology",
        "protocol": "cross_validation",
        "readout": "logistic",
        "model": "image_only",
    }
    both = judge(example, embeddings=pd.concat([example.embeddings, second])).rows
    alone = judge(example, embeddings=pd.concat([second, example.embeddings.query("model == 'table'")])).rows
    for metric in ("auroc", "auprc", "brier", "balanced_accuracy"):
        values = [row(rows, metric=metric, **where).value for rows in (found.rows, alone)]
        mine = row(both, metric=metric, **where)
        assert mine.seeds == 2 and mine.value == pytest.approx(np.mean(values))  # type: ignore[arg-type]
    where["model"] = "table_logistic"
    assert row(both, metric="auroc", **where) == row(found.rows, metric="auroc", **where)


@pytest.mark.proves("A6.2")
def test_k_goes_up_to_the_smaller_class_and_overlaps_are_noted(another: Callable[..., Example]) -> None:
    example = another(patients=60, folds=3)
    settings = example.settings.model_copy(update={"shots": [1, 5, 8, 10, 25]})
    small = example.embeddings[example.embeddings["model"] == "image_only"]
    rows = evaluate(small, example.labels[["histology"]], example.split, settings).rows
    positives = [int(example.labels["histology"].loc[list(fold.train)].sum()) for fold in example.split.folds]
    assert min(positives) in (12, 13)
    noted = {
        r.shots: (r.note, r.value is None)
        for r in rows
        if r.protocol == "few_shot" and r.supports == "aligned" and r.readout == "logistic"
    }
    assert noted == {
        1: (None, False), 5: (None, False), 8: ("overlapping_draws", False), 10: ("overlapping_draws", False),
        25: ("not_possible", True),
    }  # fmt: skip


def test_ragged_draws_are_gathered_draw_by_draw() -> None:
    """A foreign predictions file may lack a patient in one draw: what is there still counts, once."""
    frame = prediction_frame(
        7, cohort="c", task="t", protocol="few_shot", model="m", readout="logistic", shots=1,
        supports="aligned", draw=[0, 0, 0, 0, 1, 1, 1], fold=0, seed=0,
        patient_id=list("abcdcba"), y_true=[1, 0, 1, 0, 1, 0, 1], y_prob=[0.9, 0.1, 0.3, 0.5, 0.2, 0.4, 0.6],
    )  # fmt: skip
    mine = row(score_rows(frame), model="m")
    assert mine.value == pytest.approx((3 + 1) / (4 + 2))
    assert (mine.n_patients, mine.n_draws) == (4, 2)


@pytest.mark.proves("U2")
def test_planted_signal_is_found_and_permuted_labels_are_chance(another: Callable[..., Example]) -> None:
    found = judge(another(patients=90, seed=2))
    where = {"task": "histology", "protocol": "cross_validation", "readout": "logistic", "metric": "auroc"}
    aligned, null = (
        row(found.rows, model="aligned", **where),
        row(found.rows, model="permuted_labels", **where),
    )
    assert aligned.ci_low is not None and aligned.ci_low > 0.5
    assert null.value == pytest.approx(0.5, abs=0.06)
    assert null.ci_low is not None and null.ci_high is not None and null.ci_low < 0.5 < null.ci_high
    assert null.n_draws == 20 and "permutations" in (null.note or "")


@pytest.mark.proves("A6.1", "L6", "L3")
@pytest.mark.parametrize("fault", ["part", "twice", "fold", "nan", "length", "unknown"])
def test_vectors_that_do_not_fit_the_split_are_refused(example: Example, fault: str) -> None:
    frame = example.embeddings.copy()
    test = frame.index[(frame["part"] == "test") & (frame["model"] == "image_only")][0]
    if fault == "part":
        frame.loc[test, "part"] = "train"
    elif fault == "twice":
        frame = pd.concat([frame, frame.loc[[test]]])
    elif fault == "fold":
        frame.loc[test, "fold"] = 9
    elif fault == "unknown":
        frame.loc[test, "patient_id"] = "stranger"
    else:
        frame.at[test, "vector"] = [np.nan] * 6 if fault == "nan" else [0.0]
    said = {
        "part": "called train in fold", "twice": "stand twice", "fold": "unknown fold", "nan": "not finite",
        "length": "different lengths", "unknown": "not in the split",
    }[fault]  # fmt: skip
    with pytest.raises(InputError, match=said):
        judge(example, embeddings=frame)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (lambda frame: frame.assign(histology=1.0), "one class"),
        (lambda frame: frame.assign(stage=2.0), "not 0 or 1"),
        (lambda frame: frame[[]], "no task"),
        (lambda frame: frame.rename(columns={"histology": "histologie"}), "did you mean 'histologie'"),
    ],
)
def test_labels_that_cannot_be_judged_are_refused(
    example: Example, labels: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        judge(example, labels=labels(example.labels))


def test_one_fold_alone_is_judged_too(example: Example) -> None:
    found = judge(example, embeddings=example.embeddings[example.embeddings["fold"] == 0])
    area = row(found.rows, task="histology", protocol="cross_validation", model="aligned", readout="logistic",
               metric="auroc")  # fmt: skip
    assert area.n_patients == len(example.split.folds[0].test)


def test_curves_have_the_area_of_the_row(found: Evaluation) -> None:
    curve = found.curves[found.curves["name"] == "roc/histology/aligned"]
    assert curve["y"].is_monotonic_increasing and curve["x"].iloc[[0, -1]].tolist() == [0.0, 1.0]
    area = np.trapezoid(curve["y"], curve["x"])
    mine = row(found.rows, task="histology", protocol="cross_validation", model="aligned", readout="logistic",
               metric="auroc")  # fmt: skip
    assert mine.value is not None
    assert area == pytest.approx(mine.value, abs=0.05)  # positives weigh alike here, pairs there
    assert (curve["ci_low"] <= curve["y"] + 1e-9).all() and (curve["y"] <= curve["ci_high"] + 1e-9).all()


def test_notes_of_a_model_stand_on_all_its_rows(example: Example) -> None:
    rows = judge(example, notes={"aligned": "encoder_untrained"}).rows
    assert all("encoder_untrained" in (r.note or "") for r in rows if "aligned" in r.model.split(" - "))
    assert not any("encoder_untrained" in (r.note or "") for r in rows if r.model == "image_only")
