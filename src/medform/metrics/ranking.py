"""How well scores rank and classify: AUROC (also within folds), AUPRC, balanced accuracy, macro F1, recall at k.

Labels are 0 and 1, higher scores mean more positive, ``weight`` counts a row that many times. A figure that
is not defined (one class, no row) is None: never 0, 0.5 or an error. Pure functions on arrays (n,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Concordance",
    "Ranking",
    "auroc",
    "average_precision",
    "average_precisions",
    "balanced_accuracy",
    "concordance",
    "macro_f1",
    "macro_f1s",
    "match_ranks",
    "median_rank",
    "recall_at_k",
    "stratified_auroc",
]

Array = NDArray[np.float64]


def _rows(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None) -> tuple[NDArray[np.bool_], Array, Array]:
    labels = np.asarray(y, dtype=np.float64)
    values = np.asarray(score, dtype=np.float64)
    counts = np.ones(len(labels)) if weight is None else np.asarray(weight, dtype=np.float64)
    if not labels.shape == values.shape == counts.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape}, scores {values.shape} and weights {counts.shape} must be alike.")
    if not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1.")
    if np.isnan(values).any():
        raise ValueError("a score is not a number.")
    if (counts < 0).any():
        raise ValueError("a weight is negative.")
    return labels == 1.0, values, counts


def concordance(positive: ArrayLike, negative: ArrayLike) -> Array:
    """(..., P, N): 1 where a positive (..., P) scores above a negative (..., N), 0.5 where they tie, else 0."""
    first = np.asarray(positive)[..., :, None]
    second = np.asarray(negative)[..., None, :]
    return (first > second) + 0.5 * (first == second)


@dataclass(frozen=True)
class Ranking:
    """Patients (n,) ordered by fold, then score: their class, ``place`` within it, where ties and folds end.

    It says what a `Concordance` of one score a patient says, in n numbers instead of P x N.
    """

    is_positive: NDArray[np.bool_]
    place: NDArray[np.int64]
    tie_end: NDArray[np.bool_]
    fold_end: NDArray[np.bool_]


@dataclass(frozen=True)
class Concordance:
    """Positives against negatives: ``matrix`` (P, N) mean concordance of a pair, ``pairs`` (P, N) how often it counts.

    A pair counts once for each fold that tests both; pairs of different folds have ``pairs`` 0, since
    scores of different fits cannot be compared. ``matrix`` may be a mean over few-shot draws and seeds: the
    AUROC is linear in it, so the mean of the draws' AUROCs, their bootstrap and DeLong's variance all come
    from this one matrix. ``ranking`` is there where it comes from one score a patient, and makes the
    bootstrap faster.
    """

    matrix: Array
    pairs: Array
    ranking: Ranking | None = None

    @property
    def value(self) -> float | None:
        """The fold-stratified AUROC; None where no pair can be compared."""
        total = float(self.pairs.sum())
        return float((self.matrix * self.pairs).sum() / total) if total > 0 else None


def stratified_auroc(y: ArrayLike, score: ArrayLike, fold: ArrayLike) -> Concordance:
    """Concordance of scores (n,) where only pairs of one ``fold`` (n,) count; rows keep their order within a class."""
    labels, values, _ = _rows(y, score, None)
    folds = np.asarray(fold)
    pairs = (folds[labels][:, None] == folds[~labels][None, :]).astype(np.float64)
    return Concordance(concordance(values[labels], values[~labels]), pairs, _ranking(labels, values, folds))


def _ranking(labels: NDArray[np.bool_], values: Array, folds: NDArray[Any]) -> Ranking:
    order = np.lexsort((values, folds))
    place = np.where(labels, np.cumsum(labels), np.cumsum(~labels)) - 1
    fold_end = np.append(folds[order][1:] != folds[order][:-1], True)[: len(order)]
    tie_end = fold_end | np.append(values[order][1:] != values[order][:-1], True)[: len(order)]
    return Ranking(labels[order], place[order].astype(np.int64), tie_end, fold_end)


def auroc(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float | None:
    """Area under the ROC curve; ties count half."""
    labels, values, counts = _rows(y, score, weight)
    positives, negatives = counts[labels].sum(), counts[~labels].sum()
    if positives == 0 or negatives == 0:
        return None
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order], append=np.inf))  # last row of each run of equal scores
    below_or_equal = np.cumsum((counts * ~labels)[order])[ends]
    inside = np.diff(below_or_equal, prepend=0.0)
    risen = np.diff(np.cumsum((counts * labels)[order])[ends], prepend=0.0)
    return float((risen * (below_or_equal - inside / 2)).sum() / (positives * negatives))


def average_precision(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float | None:
    """Area under the precision-recall steps (AUPRC), as scikit-learn's ``average_precision_score``."""
    labels, values, counts = _rows(y, score, weight)
    if counts[labels].sum() == 0 or counts[~labels].sum() == 0:
        return None
    return float(average_precisions(labels, values, counts[None])[0])


def average_precisions(labels: NDArray[np.bool_], score: Array, weights: Array) -> Array:
    """Average precision (B,) under each of B weightings (B, n); NaN where a weighting has no positive."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=np.inf))
    hits = np.cumsum(weights[:, order] * labels[order], axis=1)[:, ends]
    taken = np.cumsum(weights[:, order], axis=1)[:, ends]
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    gained = np.diff(hits, axis=1, prepend=0.0)
    total = hits[:, -1]
    return np.divide((gained * precision).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)


def balanced_accuracy(y: ArrayLike, predicted: ArrayLike, weight: ArrayLike | None = None) -> float | None:
    """Mean of sensitivity and specificity of ``predicted`` classes (n,) of 0 and 1."""
    labels, values, counts = _rows(y, predicted, weight)
    positives, negatives = counts[labels].sum(), counts[~labels].sum()
    if positives == 0 or negatives == 0:
        return None
    sensitivity = counts[labels & (values == 1)].sum() / positives
    specificity = counts[~labels & (values == 0)].sum() / negatives
    return float((sensitivity + specificity) / 2)


def macro_f1(y: ArrayLike, predicted: ArrayLike, weight: ArrayLike | None = None) -> float | None:
    """Mean of the F1 scores of the two classes; a class that is never predicted has F1 0."""
    labels, values, counts = _rows(y, predicted, weight)
    if counts[labels].sum() == 0 or counts[~labels].sum() == 0:
        return None
    return float(macro_f1s(labels, values == 1, counts[None])[0])


def macro_f1s(labels: NDArray[np.bool_], predicted: NDArray[np.bool_], weights: Array) -> Array:
    """Macro F1 (B,) under each of B weightings (B, n) in which both classes have weight."""
    both, neither = weights @ (labels & predicted), weights @ (~labels & ~predicted)
    wrong = weights @ (labels != predicted)
    return (2 * both / (2 * both + wrong) + 2 * neither / (2 * neither + wrong)) / 2


def match_ranks(similarity: ArrayLike) -> Array:
    """Rank (n,) of each row's own column in ``similarity`` (n, n), 1 = best; ties get their mean rank.

    Row i and column i belong to one patient; a higher similarity is better.
    """
    values = np.asarray(similarity, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(f"similarity must be square, not {values.shape}.")
    own = np.diagonal(values)[:, None]
    return 1 + (values > own).sum(axis=1) + ((values == own).sum(axis=1) - 1) / 2


def recall_at_k(rank: ArrayLike, k: int) -> float | None:
    """Share of ranks (n,) that are ``k`` or better."""
    ranks = np.asarray(rank, dtype=np.float64)
    return float((ranks <= k).mean()) if len(ranks) else None


def median_rank(rank: ArrayLike) -> float | None:
    """Median of ranks (n,)."""
    ranks = np.asarray(rank, dtype=np.float64)
    return float(np.median(ranks)) if len(ranks) else None
