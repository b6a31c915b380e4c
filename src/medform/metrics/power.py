"""Which difference a cohort of this size shows with a given power: sometimes it misses it, and it may show less."""

from __future__ import annotations

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import norm

__all__ = ["auroc_variance", "detectable_difference", "detectable_from_error"]

POWER = 0.8
SIGNIFICANCE = 0.05


def auroc_variance(auroc: float, positives: int, negatives: int) -> float:
    """Variance of an AUROC by Hanley and McNeil (1982), for ``positives`` + ``negatives`` patients (each >= 1)."""
    one = auroc / (2 - auroc)
    two = 2 * auroc**2 / (1 + auroc)
    total = auroc * (1 - auroc) + (positives - 1) * (one - auroc**2) + (negatives - 1) * (two - auroc**2)
    return total / (positives * negatives)


def detectable_from_error(standard_error: float, power: float = POWER, significance: float = SIGNIFICANCE) -> float:
    """The difference that a two-sided test with this standard error finds with ``power``: 2.80 standard errors."""
    return float((norm.ppf(1 - significance / 2) + norm.ppf(power)) * standard_error)


def detectable_difference(
    positives: int,
    negatives: int,
    correlation: float = 0.5,
    auroc: float = 0.7,
    power: float = POWER,
    significance: float = SIGNIFICANCE,
) -> float | None:
    """The smallest paired difference of two AUROCs that these patients show with 80 % power (two-sided 5 %).

    ``auroc`` is that of the weaker model, ``correlation`` that of the two estimates (0.5 where nothing is
    known: two models that see the same images lie between 0.3 and 0.7). Variances by Hanley and McNeil
    (1982). None where even a perfect second model could not be told from the first.
    """
    if positives < 1 or negatives < 1:
        return None
    weaker = auroc_variance(auroc, positives, negatives)

    def shortfall(difference: float) -> float:
        better = max(auroc_variance(auroc + difference, positives, negatives), 0.0)
        variance = weaker + better - 2 * correlation * np.sqrt(weaker * better)
        return difference - detectable_from_error(float(np.sqrt(max(variance, 0.0))), power, significance)

    largest = 1 - auroc
    if shortfall(largest) < 0:
        return None
    return float(root_scalar(shortfall, bracket=(0.0, largest)).root) if shortfall(0.0) < 0 else 0.0
