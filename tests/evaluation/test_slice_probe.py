"""Slice probes: the unit of the split and of the interval stays the patient."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from medform.cohort.split import Fold, Split, make_split
from medform.errors import InputError
from medform.evaluation.predictions import concat_predictions
from medform.evaluation.rows import score_rows
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.slice_probe import slice_probe

SETTINGS = EvaluationSettings(bootstrap=300)


def slices_of(patients: int, random: np.random.Generator) -> tuple[pd.DataFrame, pd.Series, np.ndarray, Split]:
    count = random.integers(4, 12, patients)
    owner = np.repeat([f"P{k:02d}" for k in range(patients)], count)
    y = (random.random(len(owner)) < np.repeat(random.choice([0.0, 0.5], patients), count)).astype(float)
    ids = [f"s{k}" for k in range(len(owner))]
    features = random.normal(size=(len(owner), 12)) + 0.8 * y[:, None]
    split = make_split(sorted(set(owner)), None, 3, 0.2, 1)
    return pd.DataFrame({"slice_id": ids, "patient_id": owner}), pd.Series(y, index=ids), features, split


@pytest.mark.proves("A4.2")
def test_rows_compare_slices_of_one_fold_and_resample_patients(random: np.random.Generator) -> None:
    slices, labels, features, split = slices_of(30, random)
    by_fold = {fold: features + fold for fold in range(3)}  # each fold has its own encoder
    frames = slice_probe({"image_only": by_fold, "position_only": features[:, :3]}, slices, labels, split, SETTINGS)
    rows = {row.model: row for row in score_rows(frames, None, SETTINGS)}
    assert set(rows) == {"image_only", "position_only", "chance"}
    frame = concat_predictions(frames)
    chosen = frame[frame["model"] == "image_only"]
    assert len(chosen) == len(slices)
    pairs = [
        (g["y_true"].sum() * (1 - g["y_true"]).sum(), roc_auc_score(g["y_true"], g["y_prob"]))
        for _, g in chosen.groupby("fold")
    ]
    expected = sum(n * value for n, value in pairs) / sum(n for n, _ in pairs)
    mine = rows["image_only"]
    assert mine.value == pytest.approx(expected, abs=1e-6)
    assert mine.n_patients == 30 and mine.protocol == "slice_probe"
    assert mine.ci_low is not None and mine.ci_high is not None and mine.ci_low < expected < mine.ci_high


@pytest.mark.proves("L1")
def test_test_slices_reach_no_fit(random: np.random.Generator) -> None:
    slices, labels, features, split = slices_of(20, random)
    before = concat_predictions(slice_probe({"m": features}, slices, labels, split, SETTINGS, folds=[0]))
    poisoned, turned = features.copy(), labels.copy()
    victims = slices["patient_id"].isin(split.folds[0].test[:1]).to_numpy()
    poisoned[victims] += 1e6
    turned[victims] = 1 - turned[victims]
    after = concat_predictions(slice_probe({"m": poisoned}, slices, turned, split, SETTINGS, folds=[0]))
    kept = ~before["patient_id"].isin(split.folds[0].test[:1])
    np.testing.assert_array_equal(before["y_prob"][kept], after["y_prob"][kept])


@pytest.mark.proves("R50")
def test_slices_of_one_class_have_a_row_with_its_reason(random: np.random.Generator) -> None:
    slices, labels, features, split = slices_of(12, random)
    rows = score_rows(slice_probe({"m": features}, slices, labels * 0, split, SETTINGS), None, SETTINGS)
    mine = next(row for row in rows if row.model == "m")
    assert mine.value is None and "undefined" in (mine.note or "")


@pytest.mark.proves("R50", "U7")
def test_few_patients_with_a_positive_slice_have_no_interval(random: np.random.Generator) -> None:
    slices, labels, features, split = slices_of(30, random)
    carriers = [*split.folds[0].test[:2], *split.folds[1].test[:2]]
    labels = (slices["patient_id"].isin(carriers).to_numpy() & (np.arange(len(labels)) % 2 == 0)) + 0 * labels
    rows = score_rows(slice_probe({"m": features}, slices, labels, split, SETTINGS), None, SETTINGS)
    mine = next(row for row in rows if row.model == "m")
    assert mine.value is not None and mine.ci_low is None
    assert "fewer than 5 patients have a positive slice" in (mine.note or "")


def test_features_of_other_slices_are_refused(random: np.random.Generator) -> None:
    slices, labels, features, split = slices_of(6, random)
    with pytest.raises(InputError, match="slice vectors of m"):
        slice_probe({"m": features[:-1]}, slices, labels, split, SETTINGS)


def test_encoders_judged_on_slices_give_rows_and_no_difference_of_patients() -> None:
    """`image_only` beside `imagenet_encoder` is a paired difference of patients elsewhere."""
    random = np.random.default_rng(0)
    patients = [f"p{number}" for number in range(12)]
    slices = pd.DataFrame(
        {"slice_id": [f"{one}:{k}" for one in patients for k in range(4)], "patient_id": np.repeat(patients, 4)}
    )
    labels = pd.Series(np.tile([0.0, 1.0], 24), index=slices["slice_id"])
    split = Split("main", (Fold(tuple(patients[4:]), (), tuple(patients[:4])),))
    settings = EvaluationSettings(bootstrap=100)
    features = {model: random.normal(size=(48, 3)) for model in ("image_only", "imagenet_encoder", "position_only")}
    rows = score_rows(slice_probe(features, slices, labels, split, settings), None, settings)
    assert {"image_only", "imagenet_encoder", "position_only"} <= {row.model for row in rows}
    assert not [row for row in rows if " - " in row.model]
