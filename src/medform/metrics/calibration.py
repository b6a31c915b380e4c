"""How far predicted probabilities can be taken at their word, and how scores are made into probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

__all__ = ["Calibrator", "best_threshold", "brier", "fit_calibrator"]

Array = NDArray[np.float64]


def brier(y: ArrayLike, probability: ArrayLike, weight: ArrayLike | None = None) -> float | None:
    """Mean squared difference of probability (n,) and outcome (n,) of 0 and 1; 0 is best; None without a row."""
    outcome, predicted = np.asarray(y, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    counts = np.ones(len(outcome)) if weight is None else np.asarray(weight, dtype=np.float64)
    if not outcome.shape == predicted.shape == counts.shape:
        raise ValueError(f"outcomes {outcome.shape}, probabilities {predicted.shape}, weights {counts.shape} differ.")
    total = counts.sum()
    return float((counts * (outcome - predicted) ** 2).sum() / total) if total > 0 else None


@dataclass(frozen=True)
class Calibrator:
    """probability = 1 / (1 + exp(-(slope * score + offset))); slope 0 says the prevalence, whatever the score."""

    slope: float
    offset: float

    @property
    def follows(self) -> bool:
        """Whether the probability rises with the score, so that it ranks patients as the score does."""
        return self.slope > 0

    def probability(self, score: ArrayLike) -> Array:
        """Calibrated probabilities of scores (log odds) of any shape."""
        return expit(self.slope * np.asarray(score, dtype=np.float64) + self.offset)


def fit_calibrator(y: ArrayLike, score: ArrayLike) -> Calibrator | None:
    """Platt scaling (1999) of out-of-fold ``score`` (n,), with its smoothed targets; None with one class only.

    The targets (n1 + 1)/(n1 + 2) and 1/(n0 + 2) keep the slope finite where the score separates the classes. The slope
    is never negative: of scores that do not rise with the outcome it is 0, and the offset the log odds of the targets'
    mean, which is the best fit of all that do not turn the order of the scores round.
    """
    outcome, values = np.asarray(y, dtype=np.float64), np.asarray(score, dtype=np.float64)
    positives = float(outcome.sum())
    negatives = len(outcome) - positives
    if positives == 0 or negatives == 0:
        return None
    target = np.where(outcome == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    size = float(values.std()) or 1.0

    def loss(parameters: Array) -> tuple[float, Array]:
        f = parameters[0] * values / size + parameters[1]
        residual = expit(f) - target
        value = (np.logaddexp(0, f) - target * f).sum()
        return float(value), np.array([(residual * values / size).sum(), residual.sum()])

    start = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-8})
    if found.x[0] <= 0 or values.min() == values.max():
        return Calibrator(0.0, float(logit(target.mean())))
    return Calibrator(float(found.x[0] / size), float(found.x[1]))


def best_threshold(y: ArrayLike, probability: ArrayLike) -> float | None:
    """The threshold with the highest balanced accuracy (Youden), midway between two scores; None with one class.

    Predicted positive means probability >= threshold. Of equals the one nearest to 0.5 is taken.
    """
    outcome, values = np.asarray(y, dtype=np.float64) == 1, np.asarray(probability, dtype=np.float64)
    if outcome.all() or not outcome.any():
        return None
    distinct = np.unique(values)
    between = np.r_[distinct[0], (distinct[1:] + distinct[:-1]) / 2]
    chosen = values[None, :] >= between[:, None]
    gain = (chosen & outcome).sum(axis=1) / outcome.sum() - (chosen & ~outcome).sum(axis=1) / (~outcome).sum()
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(between[best[np.argmin(np.abs(between[best] - 0.5))]])
