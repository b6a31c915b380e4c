"""Whether the weights of a bag say anything at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["entropy_ratio"]


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
