"""Label-free measures of a set of vectors: centred effective rank, alignment, uniformity, retrieval of a pair."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["alignment", "effective_rank", "uniformity"]


def _vectors(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"vectors must be (n, d), not of shape {array.shape}.")
    return array


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, size, out=np.zeros_like(values), where=size > 0)


def effective_rank(vectors: ArrayLike) -> float:
    """Effective rank of centred ``vectors`` (n, d): between 1 and min(n - 1, d), 0.0 where all are equal.

    The exponential of the entropy of the normalised singular values. Roy and Vetterli (2007), after centring: a
    constant offset, which says nothing of a collapse, would else hide the rest.
    """
    rows = _vectors(vectors)
    centred = rows - rows.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    noise = 1e-10 * np.linalg.norm(rows)  # equal vectors leave rounding behind, which has full rank
    total = singular.sum()
    if total <= noise or not np.isfinite(total):
        return 0.0
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def alignment(first: ArrayLike, second: ArrayLike) -> float:
    """Mean squared distance of paired unit vectors (n, d); 0 = views agree, 2 = orthogonal (Wang and Isola, 2020)."""
    a, b = _unit(_vectors(first)), _unit(_vectors(second))
    return float(((a - b) ** 2).sum(axis=1).mean())


def uniformity(vectors: ArrayLike, temperature: float = 2.0) -> float:
    """Log mean exp(-t |a - b|^2) over pairs of unit vectors (n, d), n >= 2; lower is more uniform, 0 is collapse.

    Wang and Isola (2020), t = 2.
    """
    rows = _unit(_vectors(vectors))
    if len(rows) < 2:
        raise ValueError("uniformity needs at least two vectors.")
    above = np.triu_indices(len(rows), k=1)
    squared = np.maximum(2 - 2 * (rows @ rows.T)[above], 0.0)
    return float(np.log(np.exp(-temperature * squared).mean()))
