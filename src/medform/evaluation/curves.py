"""ROC curves whose area is the fold-stratified AUROC, with bands over patients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.split import patient_order
from medform.evaluation.predictions import CURVE_COLUMNS
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.tally import Key, Tally
from medform.metrics.bootstrap import SMALL_CLASS, resample

__all__ = ["roc_curve", "roc_curves"]

Array = NDArray[np.float64]

GRID = np.linspace(0, 1, 101)
BAND_RESAMPLES = 500
"""A drawn band needs fewer resamples than a printed interval."""


def roc_curve(matrix: Array, pairs: Array, positive: Array, negative: Array) -> Array:
    """True positive rate (B, 101) on a grid of false positive rates, for weights (B, P) and (B, N) of the patients.

    A positive is crossed at the weighted share of its own fold's negatives that score above it (its
    placement), and counts by the number of those, so scores of different folds are never compared and the area is the
    AUROC of `Concordance`, whose ``matrix`` and ``pairs`` (P, N) these are.
    """
    partners = negative @ pairs.T
    above = negative @ ((1 - matrix) * pairs).T
    known = (partners > 0) & (positive > 0)
    placement = np.divide(above, partners, out=np.full_like(above, np.inf), where=known)
    weight = np.where(known, positive * partners, 0.0)
    crossed = placement[:, :, None] <= GRID + 1e-12
    total = weight.sum(axis=1)[:, None]
    rate = (weight[:, :, None] * crossed).sum(axis=1)
    return np.divide(rate, total, out=np.full(rate.shape, np.nan), where=total > 0)


def roc_curves(tallies: Mapping[Key, Tally], settings: EvaluationSettings) -> pd.DataFrame:
    """Rows of ``curves.parquet`` named ``roc/<task>/<model>``: x false, y true positive rate, 95 % band of y.

    Cross-validation and logistic readout (or the model's own prediction); no band with a class of fewer
    than 5 patients.
    """
    frames = []
    for key, tally in tallies.items():
        if key.protocol != "cross_validation" or key.readout == "centroid" or key.model == "permuted_labels":
            continue
        order = patient_order(tally.truth, settings.seed)
        positive = [one for one in order if tally.truth[one] == 1]
        negative = [one for one in order if tally.truth[one] == 0]
        scores = tally.concordance(positive, negative)
        if scores.value is None:
            continue
        once = (np.ones((1, len(positive))), np.ones((1, len(negative))))
        low = high = np.full(len(GRID), np.nan)
        if min(len(positive), len(negative)) >= SMALL_CLASS:
            counts = resample(len(positive), len(negative), BAND_RESAMPLES, settings.seed)
            drawn = roc_curve(scores.matrix, scores.pairs, counts.positive, counts.negative)
            low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
        y = roc_curve(scores.matrix, scores.pairs, *once)[0]
        made = {"name": f"roc/{key.task}/{key.model}", "model": key.model, "x": GRID, "y": y}
        frames.append(pd.DataFrame({**made, "ci_low": low, "ci_high": high}, columns=list(CURVE_COLUMNS)))
    if not frames:
        return pd.DataFrame({name: [] for name in CURVE_COLUMNS})
    return pd.concat(frames, ignore_index=True)
