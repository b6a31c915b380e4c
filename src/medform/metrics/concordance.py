"""How well risks order survival times: Harrell's C and Uno's C, also within folds. Pure numpy.

``time`` is the time to the event or to the last visit, ``event`` whether the event was seen, a higher ``risk``
means an earlier event. Figures are ratios of sums over pairs of patients, kept as matrices, so that a bootstrap
over patients is one matrix product (`medform.metrics.bootstrap.quadratic_resamples`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Pairs", "censoring_survival", "harrell_c", "harrell_pairs", "mean_pairs", "uno_c", "uno_pairs"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Every pair of patients (n, n), the row's event coming first.

    ``weight`` is 0 where the two cannot be compared, and ``right`` the part of it that the risks order rightly (a tie
    counts half).
    """

    right: Array
    weight: Array

    @property
    def value(self) -> float | None:
        """The concordance index, 0 to 1; None where no pair can be compared."""
        total = float(self.weight.sum())
        return float(self.right.sum()) / total if total > 0 else None


def _columns(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> tuple[Array, NDArray[np.bool_], Array]:
    times, events, risks = (np.asarray(one, dtype=np.float64) for one in (time, event, risk))
    if not times.shape == events.shape == risks.shape or times.ndim != 1:
        raise ValueError(f"times {times.shape}, events {events.shape} and risks {risks.shape} must be alike.")
    if not (np.isfinite(times).all() and np.isfinite(risks).all()):
        raise ValueError("a time or a risk is not a finite number.")
    if not np.isin(events, (0.0, 1.0)).all():
        raise ValueError("events must be 0 or 1.")
    return times, events == 1.0, risks


def _pairs(times: Array, events: NDArray[np.bool_], risks: Array, weight: Array, fold: ArrayLike | None) -> Pairs:
    # who was censored at the very time of another one's event outlived it
    later = (times[:, None] < times) | ((times[:, None] == times) & ~events)
    comparable = events[:, None] & later
    np.fill_diagonal(comparable, False)
    if fold is not None:
        folds = np.asarray(fold)
        comparable &= folds[:, None] == folds
    weights = comparable * weight[:, None]
    ordered = (risks[:, None] > risks) + 0.5 * (risks[:, None] == risks)
    return Pairs(ordered * weights, weights)


def harrell_pairs(time: ArrayLike, event: ArrayLike, risk: ArrayLike, fold: ArrayLike | None = None) -> Pairs:
    """Pairs of Harrell's C (1996): every pair whose order is known counts once.

    Two events at one time are not compared. With ``fold`` (n,) only pairs of one fold count: risks of models
    that were fitted on different patients have no common scale.
    """
    times, events, risks = _columns(time, event, risk)
    return _pairs(times, events, risks, np.ones(len(times)), fold)


def harrell_c(time: ArrayLike, event: ArrayLike, risk: ArrayLike, fold: ArrayLike | None = None) -> float | None:
    """Harrell's concordance index; None where no pair can be compared."""
    return harrell_pairs(time, event, risk, fold).value


def censoring_survival(time: ArrayLike, event: ArrayLike, at: ArrayLike) -> Array:
    """Kaplan-Meier estimate of P(not censored until t) at each of ``at`` (m,), from patients (n,).

    Who has the event at a time is no longer at risk of being censored there (events come first).
    """
    times, events = np.asarray(time, dtype=np.float64), np.asarray(event, dtype=np.float64) == 1.0
    moments = np.unique(times[~events])
    censored = (times[~events][:, None] == moments).sum(axis=0)
    at_risk = (times[:, None] > moments).sum(axis=0) + censored
    survival = np.concatenate([[1.0], np.cumprod(1 - censored / np.maximum(at_risk, 1))])
    return survival[np.searchsorted(moments, np.asarray(at, dtype=np.float64), side="right")]


def uno_pairs(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    fold: ArrayLike | None = None,
    limit: float | None = None,
) -> Pairs:
    """Pairs of Uno's C (2011, Statistics in Medicine 30:1105), weighted by 1 / G(t)^2.

    G is the chance of not being censored until then, from all the patients given. Unlike Harrell's it does not depend
    on when patients were censored. Events from ``limit`` on do not count (None: all count; late ones weigh much where
    few are left). In a bootstrap over patients G stays as it is.
    """
    times, events, risks = _columns(time, event, risk)
    chance = censoring_survival(times, events, times)
    counted = events & (chance > 0) & (times < (np.inf if limit is None else limit))
    weight = np.divide(1.0, chance**2, out=np.zeros(len(times)), where=counted)
    return _pairs(times, events, risks, weight, fold)


def uno_c(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    fold: ArrayLike | None = None,
    limit: float | None = None,
) -> float | None:
    """Uno's concordance index; None where no pair can be compared."""
    return uno_pairs(time, event, risk, fold, limit).value


def mean_pairs(parts: list[Pairs]) -> Pairs:
    """The mean over seeds: equal patients, several risks."""
    return Pairs(np.mean([one.right for one in parts], axis=0), np.mean([one.weight for one in parts], axis=0))
