"""Whether the attention of a bag lies anywhere at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

__all__ = ["ATTENTION_CASE", "attention_cases", "entropy_ratio"]

ATTENTION_CASE = "attention_entropy"
"""Metric of the cases that hold a patient's entropy ratio; above 0.95 the weights are as good as equal."""


def entropy_ratio(weight: ArrayLike) -> float | None:
    """Entropy of weights (n,) that sum to 1, as a share of ln n; 1 = all slices alike. None for a bag of one slice.

    Raises ``ValueError`` for weights that are negative or do not sum to 1 (within 1e-3).
    """
    shares = np.asarray(weight, dtype=np.float64)
    if (shares < 0).any() or abs(shares.sum() - 1) > 1e-3:
        raise ValueError(f"attention weights must be at least 0 and sum to 1, not to {shares.sum():.4f}.")
    if len(shares) < 2:
        return None
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum() / np.log(len(shares)))


def attention_cases(cohort: str, attention: pd.DataFrame) -> list[dict[str, Any]]:
    """A case for each bag of two slices or more.

    ``attention`` is that of ``attention.parquet``: patient_id, fold, model, seed, slice_id, weight.
    """
    bags: dict[tuple[str, str, int, int], list[float]] = {}
    names = ("model", "patient_id", "fold", "seed", "weight")
    for model, patient, fold, seed, weight in zip(*(attention[name].tolist() for name in names), strict=True):
        bags.setdefault((str(model), str(patient), int(fold), int(seed)), []).append(float(weight))
    cases = []
    for (model, patient, fold, seed), weights in bags.items():
        ratio = entropy_ratio(weights)
        if ratio is not None:
            place = {
                "cohort": cohort,
                "protocol": "cross_validation",
                "model": model,
                "fold": fold,
                "seed": seed,
            }
            cases.append({**place, "patient_id": patient, "metric": ATTENTION_CASE, "value": ratio})
    return cases
