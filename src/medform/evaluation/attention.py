"""Whether the attention of a bag lies anywhere at all."""

from __future__ import annotations

from typing import Any

import pandas as pd

from medform.metrics.attention import entropy_ratio

__all__ = ["ATTENTION_CASE", "attention_cases"]

ATTENTION_CASE = "attention_entropy"
"""Metric of the cases that hold a patient's entropy ratio; above 0.95 the weights are as good as equal."""


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
