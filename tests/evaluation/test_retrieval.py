"""Retrieval against chance, by both directions, with patients as the unit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from medform.evaluation.evaluate import evaluate
from medform.evaluation.predictions import case_frame
from medform.evaluation.retrieval import retrieval_cases, retrieval_rows
from medform.evaluation.settings import EvaluationSettings
from medform.runs.scores import FLAT, ScoreRow

from .conftest import Example

SETTINGS = EvaluationSettings(bootstrap=300, recall_at=2)


def rows_of(image: np.ndarray, table: np.ndarray, folds: int = 3, **options: object) -> dict[tuple, ScoreRow]:
    cases = []
    for fold in range(folds):
        chosen = np.arange(len(image)) % folds == fold
        ids = [f"P{k}" for k in np.flatnonzero(chosen)]
        cases += retrieval_cases("c", "aligned", fold, 0, ids, image[chosen], table[chosen], **options)  # type: ignore[arg-type]
    return {(row.task, row.model, row.metric): row for row in retrieval_rows(case_frame(cases), SETTINGS)}


def test_perfect_pairs_have_rank_one_in_both_directions(random: np.random.Generator) -> None:
    x = random.normal(size=(30, 4))
    found = rows_of(x, x + 1e-6)
    for task in ("image_to_table", "table_to_image"):
        assert found[task, "aligned", "recall_at_k"].value == 1
        assert found[task, "aligned", "median_rank"].value == 1
        for metric in ("recall_at_k", "median_rank"):
            row = found[task, "aligned", metric]
            assert row.ci_low is None and row.ci_high is None and (row.note or "").startswith(FLAT), "no certainty"
        assert found[task, "chance", "recall_at_k"].value == pytest.approx(2 / 10)
        assert found[task, "chance", "median_rank"].value == 5.5


def test_unrelated_pairs_are_at_chance(random: np.random.Generator) -> None:
    found = rows_of(random.normal(size=(300, 4)), random.normal(size=(300, 4)), folds=30)
    recall = found["image_to_table", "aligned", "recall_at_k"]
    assert recall.ci_low is not None and recall.ci_high is not None
    assert recall.ci_low < 0.2 < recall.ci_high and recall.n_patients == 300
    assert recall.note == "k = 2"
    rank = found["table_to_image", "aligned", "median_rank"]
    assert rank.ci_low is not None and rank.ci_high is not None and rank.ci_low <= 5.5 <= rank.ci_high


def test_cosine_ignores_length_and_distance_does_not(random: np.random.Generator) -> None:
    x = random.normal(size=(30, 4))
    longer = x * random.uniform(5, 50, size=(30, 1))
    near = rows_of(x, longer, similarity="distance")["image_to_table", "aligned", "recall_at_k"].value
    angle = rows_of(x, longer, similarity="cosine")["image_to_table", "aligned", "recall_at_k"].value
    assert angle == 1 and near is not None and near < 0.8


def test_collapsed_projections_are_at_chance_not_perfect() -> None:
    found = rows_of(np.ones((30, 3)), np.ones((30, 3)))
    assert found["image_to_table", "aligned", "median_rank"].value == 5.5


def test_projections_give_rows_of_an_evaluation(example: Example) -> None:
    projections = pd.DataFrame(
        [
            (one, number, "aligned", 0, modality, [float(place), 1.0])
            for number, fold in enumerate(example.split.folds)
            for place, one in enumerate(fold.test)
            for modality in ("image", "clinical")
        ],
        columns=["patient_id", "fold", "model", "seed", "modality", "vector"],
    )
    small = example.embeddings[example.embeddings["model"] == "image_only"]
    found = evaluate(small, example.labels, example.split, example.settings, projections=projections)
    ranks = [row for row in found.rows if row.protocol == "retrieval" and row.metric == "median_rank"]
    assert {(row.task, row.model) for row in ranks} == {
        (task, model) for task in ("image_to_table", "table_to_image") for model in ("aligned", "chance")
    }
    assert all(row.value == 1 for row in ranks if row.model == "aligned")
