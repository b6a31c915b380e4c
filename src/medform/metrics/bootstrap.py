"""Intervals and paired tests with the patient as the unit: bootstrap, DeLong, Newcombe.

Patients are resampled within class, each keeping its fold. A resample is a row of multiplicities, so that
the AUROCs of all resamples are one matrix product: sum_ij w_i w_j C_ij / sum_ij w_i w_j over pairs of one
fold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import root_scalar
from scipy.stats import norm

from medform.metrics.ranking import Concordance

__all__ = [
    "Interval",
    "PairedDifference",
    "Resamples",
    "auroc_interval",
    "auroc_resamples",
    "delong_covariance",
    "newcombe_interval",
    "paired_auroc",
    "percentile_interval",
    "quadratic_resamples",
    "resample",
    "resample_counts",
    "sign_p_value",
    "weighted_medians",
]

Array = NDArray[np.float64]
Method = Literal["bootstrap", "delong", "delong_logit", "newcombe"]

SMALL_CLASS = 5
"""Below this many patients in a class the bootstrap is too narrow; DeLong's interval on the logit is
given.
"""
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """``low`` and ``high`` with the method that gave them."""

    low: float
    high: float
    method: Method

    @property
    def flat(self) -> bool:
        """Whether no resample differs (up to rounding): a certainty that n patients cannot give."""
        return math.isclose(self.low, self.high, rel_tol=1e-9, abs_tol=1e-12)


@dataclass(frozen=True)
class Resamples:
    """Multiplicities of patients in B resamples: ``positive`` (B, P), ``negative`` (B, N)."""

    positive: Array
    negative: Array


def resample_counts(size: int, draws: int, random: np.random.Generator) -> Array:
    """How often each of ``size`` patients is drawn in each of ``draws`` resamples with replacement, (draws, size)."""
    chosen = random.integers(0, size, (draws, size)) if size else np.zeros((draws, 0), dtype=np.int64)
    chosen += np.arange(draws)[:, None] * size
    return np.bincount(chosen.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)


@lru_cache(maxsize=64)
def resample(positives: int, negatives: int, draws: int, seed: int) -> Resamples:
    """Resamples within class. Equal arguments give the same ones, so two models are compared on the same patients."""
    random = np.random.default_rng([seed, positives, negatives, draws])
    counts = Resamples(resample_counts(positives, draws, random), resample_counts(negatives, draws, random))
    counts.positive.flags.writeable = counts.negative.flags.writeable = False
    return counts


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0)


def auroc_resamples(scores: Concordance, counts: Resamples) -> Array:
    """Fold-stratified AUROC (B,) of every resample; NaN where a resample has no pair to compare.

    With a `Ranking` a compiled pass of n steps a resample; otherwise, and as its plain twin, the matrix
    product.
    """
    if scores.ranking is not None:
        from medform.metrics.bootstrap_kernel import weighted_aurocs

        found = np.empty(len(counts.positive))
        ranked = scores.ranking
        weighted_aurocs(
            np.ascontiguousarray(counts.positive), np.ascontiguousarray(counts.negative), ranked.is_positive,
            ranked.place, ranked.tie_end, ranked.fold_end, found,
        )  # fmt: skip
        return found
    top = ((counts.positive @ (scores.matrix * scores.pairs)) * counts.negative).sum(axis=1)
    bottom = ((counts.positive @ scores.pairs) * counts.negative).sum(axis=1)
    return _ratio(top, bottom)


def quadratic_resamples(top: Array, bottom: Array, counts: Array) -> Array:
    """Ratio w' top w / w' bottom w (B,) for multiplicities ``counts`` (B, P) of patients; NaN where the divisor is 0.

    With ``top`` and ``bottom`` (P, P) summed over the pairs of items of two patients, this is the AUROC of
    items (slices) of which whole patients are resampled.
    """
    return _ratio(((counts @ top) * counts).sum(axis=1), ((counts @ bottom) * counts).sum(axis=1))


def percentile_interval(values: ArrayLike, level: float = LEVEL) -> Interval | None:
    """Percentile interval of resampled figures, undefined resamples (NaN) left out; None where all are undefined."""
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if len(kept) == 0:
        return None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), "bootstrap")


def weighted_medians(values: ArrayLike, counts: ArrayLike) -> Array:
    """Median (B,) of ``values`` (n,) in each resample of ``counts`` (B, n).

    Where a resample is even, it is between the two middle ones.
    """
    kept, weights = np.asarray(values, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    order = np.argsort(kept, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1)
    half = reached[:, -1:] / 2
    low = kept[order][(reached >= half).argmax(axis=1)]
    high = kept[order][(reached > half).argmax(axis=1)]
    return (low + high) / 2


def _influence(scores: Concordance) -> tuple[Array, Array]:
    """Influence of each positive (P,) and negative (N,) on the AUROC, times the number of its class."""
    value = scores.value
    centred = (scores.matrix - (0.5 if value is None else value)) * scores.pairs
    total = scores.pairs.sum()
    positives, negatives = scores.matrix.shape
    return centred.sum(axis=1) * positives / total, centred.sum(axis=0) * negatives / total


def delong_covariance(first: Concordance, second: Concordance) -> float | None:
    """DeLong's covariance of two AUROCs of the same patients in the same order (the variance for equal arguments).

    With one fold this is DeLong, DeLong and Clarke-Pearson (1988); with folds, the same sum over the
    influence of each patient on the stratified AUROC. None where a class has fewer than two patients.
    """
    positives, negatives = first.matrix.shape
    if min(positives, negatives) < 2 or first.pairs.sum() == 0:
        return None
    (up_a, down_a), (up_b, down_b) = _influence(first), _influence(second)
    rising = (up_a * up_b).sum() / (positives - 1) / positives
    falling = (down_a * down_b).sum() / (negatives - 1) / negatives
    return float(rising + falling)


def newcombe_interval(value: float, pairs: Array, level: float = LEVEL) -> Interval:
    """Score-type interval of an AUROC: Newcombe (2006), Statistics in Medicine 25:559, method 5.

    ``pairs`` (P, N) is 1 where a positive and a negative are compared, with one 1 at least. The variance
    t(1 - t)[1 + m(1 - t)/(2 - t) + m t/(1 + t)]/(PN) with m = (P + N)/2 - 1 is taken at the limit t, not at the
    estimate, so the interval does not shrink to a point at 0 or 1: [0.80, 1] for 10 + 10 patients at 1. With folds,
    PN is the number of pairs, and P and N the mean partners of a patient who has any: with one pair a fold this is
    Wilson's interval of a proportion.
    """
    z = float(norm.ppf((1 + level) / 2))
    total = float(pairs.sum())
    mean = sum(total / np.count_nonzero(pairs.sum(axis=axis)) for axis in (0, 1)) / 2 - 1

    def excess(limit: float) -> float:
        spread = 1 + mean * (1 - limit) / (2 - limit) + mean * limit / (1 + limit)
        return (limit - value) ** 2 - z * z * limit * (1 - limit) * spread / total

    # the variance leads at the value and the squared distance at 0 and 1, so each side holds one root;
    # where the value is 0 or 1 it is a root itself, and the one that is wanted lies beside it
    inside = min(max(value, 1e-9), 1 - 1e-9)
    low = root_scalar(excess, bracket=(0.0, inside)).root if value > 0 else 0.0
    high = root_scalar(excess, bracket=(inside, 1.0)).root if value < 1 else 1.0
    return Interval(low, high, "newcombe")


def _logit_interval(value: float, variance: float, level: float) -> Interval:
    z = float(norm.ppf((1 + level) / 2))
    centre = np.log(value / (1 - value))
    half = z * np.sqrt(variance) / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-(centre - half))), 1 / (1 + np.exp(-(centre + half)))
    return Interval(float(low), float(high), "delong_logit")


def auroc_interval(scores: Concordance, counts: Resamples, level: float = LEVEL) -> Interval | None:
    """95 % interval of a fold-stratified AUROC; None where the AUROC is undefined.

    The bootstrap over patients; with a class of fewer than 5 patients DeLong's interval on the logit; where
    the value is 0 or 1, or DeLong's variance 0 or undefined, Newcombe's score-type interval.
    """
    value = scores.value
    if value is None:
        return None
    positives, negatives = scores.matrix.shape
    extreme = value in (0.0, 1.0)
    if not extreme and min(positives, negatives) >= SMALL_CLASS:
        return percentile_interval(auroc_resamples(scores, counts), level)
    variance = delong_covariance(scores, scores)
    if extreme or not variance:
        return newcombe_interval(value, scores.pairs, level)
    return _logit_interval(value, variance, level)


def sign_p_value(differences: ArrayLike) -> float | None:
    """Two-sided p-value of resampled differences: twice the smaller share on one side of 0, each plus one resample."""
    kept = np.asarray(differences, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if len(kept) == 0:
        return None
    tail = min((kept <= 0).sum(), (kept >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(kept) + 1)))


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two AUROCs on the same patients: ``value``, its interval, p-value and standard error."""

    value: float
    interval: Interval | None
    p_value: float | None
    standard_error: float | None


def paired_auroc(first: Concordance, second: Concordance, counts: Resamples) -> PairedDifference | None:
    """First minus second AUROC, resampling the same patients for both; None where either is undefined.

    With a class of fewer than 5 patients interval and p-value are DeLong's (normal). Where no resample
    tells the two apart there is no interval: a width of 0 would claim a certainty that n patients cannot
    give.
    """
    if first.value is None or second.value is None:
        return None
    value = first.value - second.value
    if min(first.matrix.shape) < SMALL_CLASS:
        return _paired_delong(first, second, value)
    differences = auroc_resamples(first, counts) - auroc_resamples(second, counts)
    error = float(np.nanstd(differences))
    if error == 0:
        return PairedDifference(value, None, None, None)
    return PairedDifference(value, percentile_interval(differences), sign_p_value(differences), error)


def _paired_delong(first: Concordance, second: Concordance, value: float) -> PairedDifference:
    parts = [delong_covariance(a, b) for a, b in ((first, first), (second, second), (first, second))]
    if any(part is None for part in parts):
        return PairedDifference(value, None, None, None)
    variance = float(parts[0] or 0) + float(parts[1] or 0) - 2 * float(parts[2] or 0)
    if variance <= 1e-15:
        return PairedDifference(value, None, None, None)
    error = float(np.sqrt(variance))
    z = float(norm.ppf((1 + LEVEL) / 2))
    interval = Interval(max(-1.0, value - z * error), min(1.0, value + z * error), "delong")
    return PairedDifference(value, interval, float(2 * norm.sf(abs(value) / error)), error)
