"""Whether a set of vectors has collapsed: the effective rank, which needs no labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["effective_rank"]


def effective_rank(vectors: ArrayLike) -> float:
    """Effective rank of centred ``vectors`` (n, d): between 1 and min(n - 1, d), 0.0 where all are equal.

    The exponential of the entropy of the normalised singular values. Roy and Vetterli (2007), after centring: a
    constant offset, which says nothing of a collapse, would else hide the rest. Raises `ValueError` for another shape.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"vectors must be (n, d), not of shape {rows.shape}.")
    centred = rows - rows.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    noise = 1e-10 * np.linalg.norm(rows)  # equal vectors leave rounding behind, which has full rank
    total = singular.sum()
    if total <= noise or not np.isfinite(total):
        return 0.0
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))
