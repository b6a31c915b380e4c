"""Boosted trees on the table: judged like every other row, sensible on dull tables, null where nothing fits."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from medform.evaluation.boosting import TABLE_BOOSTING, boosted_probabilities, boosted_table, smallest_leaf
from medform.evaluation.evaluate import evaluate
from medform.evaluation.predictions import concat_predictions
from medform.evaluation.probe import SIMPLEST_FIRST, VALIDATION_CASE, Target
from medform.evaluation.vectors import TABLE, Vectors

from .conftest import Example

ONLY = {"protocol": "cross_validation", "model": TABLE_BOOSTING}


@pytest.fixture(scope="module")
def target(example: Example) -> Target:
    labels = example.labels["histology"]
    return Target.of("made_up", "histology", labels.index.tolist(), labels.tolist())


@pytest.mark.proves("A6.1")
def test_test_rows_come_from_trees_on_training_and_validation_patients(example: Example, target: Target) -> None:
    outcome = boosted_table(Vectors(example.embeddings, example.split), target, example.settings)
    frame = concat_predictions(outcome.predictions)
    assert set(frame["model"]) == {TABLE_BOOSTING} and set(frame["readout"].isna()) == {True}
    for fold in range(3):
        fitted, pool = example.vector(TABLE, "aligned", fold, "train", "validation")
        tested, queries = example.vector(TABLE, "aligned", fold, "test")
        order = np.argsort([list(frame["patient_id"]).index(one) for one in tested])
        y = example.labels["histology"].loc[fitted].to_numpy()
        expected = boosted_probabilities(pool, y, queries, 0)
        mine = frame[frame["fold"] == fold].set_index("patient_id")["y_prob"]
        np.testing.assert_allclose(mine.loc[[tested[place] for place in order]], expected[order], atol=1e-6)
    validated = {case["patient_id"] for case in outcome.cases if case["metric"] == VALIDATION_CASE}
    assert validated == {one for fold in example.split.folds for one in fold.validation}


@pytest.mark.proves("A6.1")
def test_the_row_has_its_figures_intervals_and_no_few_shot_row(example: Example) -> None:
    found = evaluate(example.embeddings, example.labels, example.split, example.settings)
    rows = [row for row in found.rows if row.model == TABLE_BOOSTING]
    assert {row.protocol for row in rows} == {"cross_validation"} and {row.readout for row in rows} == {None}
    assert {row.metric for row in rows} == {"auroc", "auprc", "balanced_accuracy", "macro_f1", "brier"}
    assert all(row.value is not None and row.ci_low is not None for row in rows if row.task == "histology")
    assert TABLE_BOOSTING in SIMPLEST_FIRST


@pytest.mark.proves("A6.1")
def test_trees_see_what_a_line_cannot(random: np.random.Generator) -> None:
    """Positive where two columns have the same sign: no weighted sum of them tells."""
    pool, queries = random.normal(size=(80, 4)), random.normal(size=(200, 4))
    y, truth = (np.prod(rows[:, :2], axis=1) > 0 for rows in (pool, queries))
    found = boosted_probabilities(pool, y.astype(float), queries, 0)
    assert found[truth].mean() > found[~truth].mean() + 0.25


@pytest.mark.proves("A6.1")
@pytest.mark.parametrize("columns", [1, 3])
def test_a_constant_table_says_the_share_of_positives(columns: int) -> None:
    y = np.repeat([1.0, 0.0], [15, 25])
    found = boosted_probabilities(np.ones((40, columns)), y, np.zeros((5, columns)), 0)
    np.testing.assert_allclose(found, 0.375, atol=1e-6)


def test_one_column_is_enough(random: np.random.Generator) -> None:
    column = random.normal(size=(60, 1))
    found = boosted_probabilities(column, (column[:, 0] > 0).astype(float), np.array([[-1.0], [1.0]]), 0)
    assert found[0] < 0.1 and found[1] > 0.9


@pytest.mark.proves("R50")
@pytest.mark.parametrize("y", [[1.0] * 20, [0.0, 1.0], [0.0, 1.0, 1.0], []])
def test_nothing_is_said_where_no_tree_can_grow(y: list[float]) -> None:
    assert np.isnan(boosted_probabilities(np.arange(float(len(y)))[:, None], np.array(y), np.zeros((2, 1)), 0)).all()
    assert len(boosted_probabilities(np.zeros((0, 1)), np.array(y), np.zeros((0, 1)), 0)) == 0


@pytest.mark.proves("R50")
def test_a_fold_that_trains_on_one_class_leaves_a_null_row_with_its_note(example: Example) -> None:
    labels = example.labels.copy()
    labels["stage"] = np.where(labels.index.isin(example.split.folds[0].test), labels["histology"], 0.0)
    found = evaluate(example.embeddings, labels, example.split, example.settings)
    area = next(r for r in found.rows if (r.model, r.task, r.metric) == (TABLE_BOOSTING, "stage", "auroc"))
    assert area.value is None and "patients without a score" in (area.note or "")


def test_the_smallest_leaf_grows_with_the_patients() -> None:
    assert [smallest_leaf(n) for n in (4, 24, 60, 240, 5000)] == [2, 2, 5, 20, 20]


@pytest.mark.proves("A6.1")
def test_twice_the_same_bits_on_one_thread_and_in_well_under_a_second(random: np.random.Generator) -> None:
    pool, queries = random.normal(size=(64, 12)), random.normal(size=(16, 12))
    y = (pool[:, 0] + random.normal(size=64) > 0).astype(float)
    first = boosted_probabilities(pool, y, queries, 0)
    started, wall = time.process_time(), time.perf_counter()
    assert boosted_probabilities(pool, y, queries, 0).tobytes() == first.tobytes()
    assert time.process_time() - started < 1.5 * (time.perf_counter() - wall) + 0.05  # no second thread
    # plain scikit-learn with the same settings, on as many threads as it likes
    plain = HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.05, max_leaf_nodes=4, min_samples_leaf=5, l2_regularization=1.0,
        early_stopping=False, random_state=0,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    np.testing.assert_allclose(first, plain.fit(pool, y).predict_proba(queries)[:, 1], atol=1e-9)
