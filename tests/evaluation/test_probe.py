"""Probes, few-shot draws, fusion and the null, each against a plain loop over scikit-learn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from medform.cohort.split import inner_folds, patient_order, stratified_share
from medform.evaluation.few_shot import POOL_CASE, draw_supports, few_shot, held_out_patients, supports_of
from medform.evaluation.fusion import fuse
from medform.evaluation.permuted import permuted_labels
from medform.evaluation.predictions import concat_predictions
from medform.evaluation.probe import Target, cross_validate
from medform.evaluation.vectors import Vectors

from .conftest import Example


@pytest.fixture(scope="module")
def vectors(example: Example) -> Vectors:
    return Vectors(example.embeddings, example.split)


@pytest.fixture(scope="module")
def target(example: Example) -> Target:
    labels = example.labels["histology"]
    return Target.of("made_up", "histology", labels.index.tolist(), labels.tolist())


def sklearn_logistic(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-10, solver="newton-cholesky", max_iter=500)


def scaled(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Centred on training rows, mean squared norm 1 there."""
    mean = train.mean(0)
    size = np.sqrt(((train - mean) ** 2).sum(1).mean())
    return [(one - mean) / size for one in (train, *others)]


def probability(frame: pd.DataFrame, ids: list[str], **where: object) -> np.ndarray:
    chosen = frame
    for name, value in where.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == len(ids)
    return chosen.set_index(chosen["patient_id"].astype(str))["y_prob"].loc[ids].to_numpy()


@pytest.mark.proves("A6.1", "D39")
@pytest.mark.parametrize("model", ["imagenet_encoder", "intensity_stats", "table"])
def test_cross_validation_equals_scikit_learn(model: str, example: Example, vectors: Vectors, target: Target) -> None:
    name = "table_logistic" if model == "table" else model
    frame = concat_predictions(cross_validate(model, vectors, target, example.settings).predictions)
    for fold in range(3):
        _, train = example.vector(model, "aligned", fold, "train")
        fit_ids, fitting = example.vector(model, "aligned", fold, "train", "validation")
        test_ids, test = example.vector(model, "aligned", fold, "test")
        y = example.labels["histology"].loc[fit_ids].to_numpy()
        if model == "imagenet_encoder":
            _, fitting, test = scaled(train, fitting, test)
            expected = sklearn_logistic(30.0).fit(fitting, y)
        else:
            scaler = StandardScaler().fit(train)
            fitting, test = scaler.transform(fitting), scaler.transform(test)
            expected = sklearn_logistic(1.0).fit(fitting, y)
        mine = probability(frame, test_ids, model=name, readout="logistic", fold=fold)
        np.testing.assert_allclose(mine, expected.predict_proba(test)[:, 1], atol=1e-5)
    assert (frame["readout"] == "centroid").any() == (model != "table")


@pytest.mark.proves("A6.2")
@pytest.mark.parametrize("supports", ["aligned", "out_of_fold", "unseen"])
def test_few_shot_equals_a_loop_of_scikit_learn(
    supports: str, example: Example, vectors: Vectors, target: Target
) -> None:
    settings = example.settings
    held = held_out_patients(vectors, example.labels["histology"], settings)
    outcome = next(
        one
        for one in few_shot("aligned", vectors, target, held, settings)
        if str(one.cases[0]["metric"]) == f"{POOL_CASE}.{supports}"
    )
    frame = concat_predictions(outcome.predictions)
    assert set(frame["shots"]) == {1, 2, 3}  # 25 a class are not there
    fold, shots = 1, 3
    parts = ("held_out", "validation") if supports == "unseen" else ("train",)
    pool_ids, _ = example.vector("aligned", supports, fold, *parts)
    train_parts = ("train", "held_out") if supports == "unseen" else ("train",)
    _, train = example.vector("aligned", supports, fold, *train_parts)
    asked = "unseen" if supports == "unseen" else "aligned"
    test_ids, test = example.vector("aligned", asked, fold, "test")
    rows = vectors.rows("aligned", supports, fold, 0, *parts)  # type: ignore[arg-type]
    assert set(rows.ids) == set(pool_ids)
    rows = rows.select(patient_order(rows.ids, settings.seed))
    _, pool, test = scaled(train, rows.matrix, test)
    y = example.labels["histology"].loc[list(rows.ids)].to_numpy()
    pool_name = "unseen" if supports == "unseen" else "train"
    drawn = draw_supports(y, shots, settings.draws, (settings.seed, "histology", fold, pool_name))
    for draw in range(settings.draws):
        chosen = drawn[draw]
        assert y[chosen].tolist() == [0.0] * shots + [1.0] * shots
        expected = sklearn_logistic(30.0).fit(pool[chosen], y[chosen]).predict_proba(test)[:, 1]
        mine = probability(frame, test_ids, readout="logistic", fold=fold, draw=draw, shots=shots)
        np.testing.assert_allclose(mine, expected, atol=1e-5)


@pytest.mark.proves("A6.2")
def test_supports_of_unseen_rows_were_never_aligned(example: Example, vectors: Vectors) -> None:
    held = held_out_patients(vectors, example.labels["histology"], example.settings)
    for fold in range(3):
        aligned_on, _ = example.vector("aligned", "unseen", fold, "train")
        assert held[0, fold] and not held[0, fold] & set(aligned_on)
        assert held[0, fold] <= set(example.split.folds[fold].train)


@pytest.mark.proves("A6.2")
def test_an_aligned_model_without_an_alignment_that_left_patients_out_has_no_unseen_supports(example: Example) -> None:
    frame = example.embeddings[example.embeddings["supports"] == "aligned"]
    vectors = Vectors(frame, example.split)
    assert supports_of("aligned", vectors) == ["aligned"]
    assert supports_of("image_only", vectors) == supports_of("table", vectors) == ["aligned", "unseen"]
    assert supports_of("aligned", Vectors(example.embeddings, example.split)) == ["aligned", "out_of_fold", "unseen"]


@pytest.mark.proves("A6.2")
def test_unseen_supports_of_several_seeds_are_those_of_the_seed(example: Example) -> None:
    frame = example.embeddings
    others = [
        set(stratified_share(fold.train, None, 0.3, 50 + number)) for number, fold in enumerate(example.split.folds)
    ]
    again = frame[frame["model"] == "aligned"].assign(seed=1)
    taught = (again["supports"] == "unseen") & again["part"].isin(["train", "held_out"])
    hidden = [one in others[fold] for one, fold in zip(again["patient_id"], again["fold"], strict=True)]
    again.loc[taught, "part"] = np.where(hidden, "held_out", "train")[taught]
    both = Vectors(pd.concat([frame, again]), example.split)
    held = held_out_patients(both, example.labels["histology"], example.settings)
    assert set(held) == {(seed, fold) for seed in (0, 1) for fold in range(3)}
    for (seed, fold), ids in held.items():
        assert ids == frozenset(both.rows("aligned", "unseen", fold, seed, "held_out").ids)
    assert any(held[0, fold] != held[1, fold] for fold in range(3))


@pytest.mark.proves("A6.2")
def test_all_models_see_the_same_supports(example: Example, vectors: Vectors, target: Target) -> None:
    """Two models with equal vectors give equal predictions in every draw, whatever their names."""
    frame = example.embeddings
    copies = frame[frame["model"] == "image_only"].assign(model="imagenet_encoder")
    twins = Vectors(pd.concat([frame[frame["model"] != "imagenet_encoder"], copies]), example.split)
    held = held_out_patients(twins, example.labels["histology"], example.settings)
    both = [
        concat_predictions(
            [f for one in few_shot(name, twins, target, held, example.settings) for f in one.predictions]
        )
        for name in ("image_only", "imagenet_encoder")
    ]
    np.testing.assert_array_equal(both[0]["y_prob"], both[1]["y_prob"])


def test_draws_are_nested_without_repeats_and_depend_on_their_names_only() -> None:
    y = np.r_[np.zeros(9), np.ones(7)]
    large, small = draw_supports(y, 5, 30, (0, "t", 1)), draw_supports(y, 2, 30, (0, "t", 1))
    assert all(len(set(one)) == 10 for one in large.tolist())
    np.testing.assert_array_equal(large[:, :2], small[:, :2])
    np.testing.assert_array_equal(large[:, 5:7], small[:, 2:])
    assert not np.array_equal(large, draw_supports(y, 5, 30, (0, "t", 2)))
    assert len({tuple(one) for one in large.tolist()}) > 20
    with pytest.raises(ValueError, match="cannot give 8"):
        draw_supports(y, 8, 3, (0,))


@pytest.mark.proves("A6.1")
@pytest.mark.parametrize("name", ["fused_unaligned", "fused"])
def test_fusion_equals_a_plain_loop(name: str, example: Example, vectors: Vectors, target: Target) -> None:
    model, supports = ("aligned", "out_of_fold") if name == "fused" else ("image_only", "aligned")
    outcome = fuse(name, model, vectors, target, example.settings, out_of_fold=name == "fused")
    frame = concat_predictions(outcome.predictions)
    labels = example.labels["histology"]
    for fold in range(3):
        train_ids, train = example.vector(model, supports, fold, "train")
        more_ids, more = example.vector(model, "aligned", fold, "validation")
        test_ids, test = example.vector(model, "aligned", fold, "test")
        _, fitting, test = scaled(train, np.concatenate([train, more]), test)
        ids = [*train_ids, *more_ids]
        y = labels.loc[ids].to_numpy()
        number = inner_folds(ids, dict(zip(ids, y, strict=True)), 5, f"0:histology:{fold}")
        inner = np.array([number[one] for one in ids])
        column = np.zeros(len(ids))
        for k in range(5):
            probe = sklearn_logistic(30.0).fit(fitting[inner != k], y[inner != k])
            column[inner == k] = probe.decision_function(fitting[inner == k])
        new = sklearn_logistic(30.0).fit(fitting, y).decision_function(test)
        table_train = example.vector("table", "aligned", fold, "train")[1]
        table = dict(zip(*example.vector("table", "aligned", fold, "train", "validation", "test"), strict=True))
        scaler = StandardScaler().fit(table_train)
        pool = np.column_stack([scaler.transform([table[i] for i in ids]), (column - column.mean()) / column.std()])
        asked = np.column_stack([scaler.transform([table[i] for i in test_ids]), (new - column.mean()) / column.std()])
        expected = sklearn_logistic(1.0).fit(pool, y).predict_proba(asked)[:, 1]
        np.testing.assert_allclose(probability(frame, test_ids, fold=fold), expected, atol=1e-4)


def test_fusion_takes_patients_with_both_sides_only(example: Example, target: Target) -> None:
    gone = example.split.folds[0].test[0]
    frame = example.embeddings
    frame = frame[~((frame["patient_id"] == gone) & (frame["model"] == "table"))]
    outcome = fuse(
        "fused_unaligned", "image_only", Vectors(frame, example.split), target, example.settings, out_of_fold=False
    )
    scored = set(concat_predictions(outcome.predictions)["patient_id"])
    assert scored == set(example.labels.index) - {gone}


@pytest.mark.proves("A6.1")
def test_permuted_labels_are_a_permutation_of_all_patients_and_refit_the_probe(
    example: Example, vectors: Vectors, target: Target
) -> None:
    frame = concat_predictions(permuted_labels("aligned", vectors, target, example.settings))
    assert frame["draw"].nunique() == 20
    for _, draw in frame.groupby("draw"):
        assert draw["patient_id"].nunique() == len(example.labels)
        assert draw["y_true"].sum() == example.labels["histology"].sum()
    draw = frame[frame["draw"] == 4]
    shuffled = draw.set_index(draw["patient_id"].astype(str))["y_true"]
    fold = 2
    _, train = example.vector("aligned", "aligned", fold, "train")
    ids, fitting = example.vector("aligned", "aligned", fold, "train", "validation")
    test_ids, test = example.vector("aligned", "aligned", fold, "test")
    _, fitting, test = scaled(train, fitting, test)
    expected = sklearn_logistic(30.0).fit(fitting, shuffled.loc[ids].to_numpy()).predict_proba(test)[:, 1]
    np.testing.assert_allclose(probability(frame, test_ids, fold=fold, draw=4), expected, atol=1e-5)
