"""Where the attention of a bag lies, and whether it lies anywhere at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

__all__ = ["FLAT", "AttentionSummary", "entropy_ratio", "summarise_attention", "top_slices"]

FLAT = 0.95
"""Above this share of the largest entropy the weights are as good as equal: nothing was looked at more than
the rest.
"""


def entropy_ratio(weight: ArrayLike) -> float | None:
    """Entropy of weights (n,) that sum to 1, as a share of ln n; 1 = all slices alike. None for a bag of
    one slice.

    Raises ``ValueError`` for weights that are negative or do not sum to 1 (within 1e-3).
    """
    shares = np.asarray(weight, dtype=np.float64)
    if (shares < 0).any() or abs(shares.sum() - 1) > 1e-3:
        raise ValueError(f"attention weights must be at least 0 and sum to 1, not to {shares.sum():.4f}.")
    if len(shares) < 2:
        return None
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum() / np.log(len(shares)))


def top_slices(slice_ids: list[str], weight: ArrayLike, count: int) -> list[str]:
    """The ``count`` slices with the highest weights, highest first; the earlier of equals first."""
    order = np.argsort(-np.asarray(weight, dtype=np.float64), kind="stable")
    return [slice_ids[place] for place in order[:count]]


@dataclass(frozen=True)
class AttentionSummary:
    """``ratio``: median entropy ratio over patients (None where every bag has one slice); ``n_patients``
    counted.
    """

    ratio: float | None
    n_patients: int

    @property
    def flat(self) -> bool:
        """Whether the attention is as good as uniform, so that its highest slices say nothing."""
        return self.ratio is not None and self.ratio > FLAT

    @property
    def words(self) -> str:
        """One sentence for the report."""
        if self.ratio is None:
            return "Every bag holds one slice, so there is no attention to show."
        share = f"the entropy of the weights is {self.ratio:.3f} of its maximum (median of {self.n_patients} patients)"
        if self.flat:
            return (
                f"The attention is flat: {share}, so the slices shown are hardly weighted above the others."
            )
        return f"The attention is selective: {share}."


def summarise_attention(attention: pd.DataFrame) -> dict[str, AttentionSummary]:
    """Model -> summary, from the frame of ``attention.parquet`` (patient_id, fold, model, seed, slice_id,
    weight).
    """
    bags: dict[tuple[str, str, int, int], list[float]] = {}
    names = ("model", "patient_id", "fold", "seed", "weight")
    for model, patient, fold, seed, weight in zip(*(attention[name].tolist() for name in names), strict=True):
        bags.setdefault((str(model), str(patient), int(fold), int(seed)), []).append(float(weight))
    ratios: dict[str, list[float]] = {}
    patients: dict[str, set[str]] = {}
    for (model, patient, _, _), weights in bags.items():
        patients.setdefault(model, set()).add(patient)
        ratio = entropy_ratio(weights)
        if ratio is not None:
            ratios.setdefault(model, []).append(ratio)
    return {
        model: AttentionSummary(
            float(np.median(ratios[model])) if model in ratios else None, len(patients[model])
        )
        for model in sorted(patients)
    }
