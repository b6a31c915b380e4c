"""Boosted trees on the encoded table: what its columns give when they need not add up on a line."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medform.evaluation.probe import Outcome, Target, fold_predictions, validation_cases
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.vectors import TABLE, Vectors

__all__ = ["TABLE_BOOSTING", "boosted_probabilities", "boosted_table", "smallest_leaf"]

Array = NDArray[np.float64]

TABLE_BOOSTING = "table_boosting"
"""Name of the rows."""
ROUNDS = 100
RATE = 0.05
LEAVES = 4
"""At most: a tree asks two or three questions, so columns may act together in pairs and threes."""
SHRINKAGE = 1.0
"""L2 penalty of a leaf's value."""


def smallest_leaf(patients: int) -> int:
    """Patients that every leaf must keep: a twelfth of them, at least 2 and at most scikit-learn's own 20."""
    return min(max(2, patients // 12), 20)


def boosted_table(vectors: Vectors, target: Target, settings: EvaluationSettings) -> Outcome:
    """Predictions named `table_boosting` (no readout: the trees predict themselves) of every fold's test patients.

    As for the other rows, the trees of the test rows are grown on training + validation patients, those of the
    validation cases on training patients alone. A patient has NaN where no tree could be grown, and the row's note
    says how many: see `boosted_probabilities`.
    """
    outcome = Outcome.empty()
    for seed, fold in vectors.folds(TABLE):
        train = vectors.rows(TABLE, "aligned", fold, seed, "train")
        if len(train) == 0:
            continue
        test, truth = target.labelled(vectors.rows(TABLE, "aligned", fold, seed, "test"))
        fitting, y = target.labelled(vectors.rows(TABLE, "aligned", fold, seed, "train", "validation"))
        probability = boosted_probabilities(fitting.matrix, y, test.matrix, settings.seed)
        outcome.predictions.append(
            fold_predictions(target, TABLE_BOOSTING, None, fold, seed, test.ids, truth, probability)
        )
        fitting, y = target.labelled(train)
        held, _ = target.labelled(vectors.rows(TABLE, "aligned", fold, seed, "validation"))
        probability = boosted_probabilities(fitting.matrix, y, held.matrix, settings.seed)
        outcome.cases.extend(validation_cases(target, TABLE_BOOSTING, fold, seed, held.ids, probability))
    return outcome


def boosted_probabilities(pool: Array, y: Array, queries: Array, seed: int) -> Array:
    """Probability (q,) of ``queries`` (q, d) by trees grown on ``pool`` (n, d) with labels ``y`` (n,).

    Logistic loss, no early stopping (a tenth of 60 patients is no validation set), sizes for 40 to 80 patients. Columns
    that do not vary are never split on: of a constant table every patient gets the share of positives. NaN where ``y``
    holds one class, or fewer patients than two of the smallest leaves, so that no tree could be grown.
    """
    if len(queries) == 0 or len(np.unique(y)) < 2 or len(y) < 2 * smallest_leaf(len(y)):
        return np.full(len(queries), np.nan)
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    trees = HistGradientBoostingClassifier(
        max_iter=ROUNDS,
        learning_rate=RATE,
        max_leaf_nodes=LEAVES,
        min_samples_leaf=smallest_leaf(len(y)),
        l2_regularization=SHRINKAGE,
        early_stopping=False,  # pyright: ignore[reportArgumentType]  (its stub says str)
        random_state=seed,
    )
    with threadpool_limits(limits=1):  # shared out, so few rows cost more time, and in theory other sums
        return trees.fit(pool, y).predict_proba(queries)[:, 1]
