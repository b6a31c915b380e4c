"""The pass behind `bootstrap.auroc_resamples` for one score a patient, compiled by numba.

Its plain twin is the matrix product there. Importing this module compiles it, or reads the compiled code from
numba's cache; so it is imported where it is used. One thread runs one call.
"""

from __future__ import annotations

import numpy as np

from medform.kernel import compiled

__all__ = ["weighted_aurocs"]

_COUNTS = "Array(float64, 2, 'C', readonly=True)"


@compiled(f"void({_COUNTS}, {_COUNTS}, boolean[::1], int64[::1], boolean[::1], boolean[::1], float64[::1])")
def weighted_aurocs(
    positive: np.ndarray,
    negative: np.ndarray,
    is_positive: np.ndarray,
    place: np.ndarray,
    tie_end: np.ndarray,
    fold_end: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fold-stratified AUROC of each row of multiplicities into ``out`` (B,); NaN where no pair can be compared.

    ``positive`` (B, P), ``negative`` (B, N); the other arrays (n,) are a `ranking.Ranking`: patients
    ordered by fold, then score.
    """
    for draw in range(out.shape[0]):
        top = bottom = 0.0
        below = risen = tied = fold_positive = 0.0
        for row in range(place.shape[0]):
            if is_positive[row]:
                risen += positive[draw, place[row]]
            else:
                tied += negative[draw, place[row]]
            if tie_end[row]:
                top += risen * (below + 0.5 * tied)
                below += tied
                fold_positive += risen
                risen = tied = 0.0
            if fold_end[row]:
                bottom += fold_positive * below
                below = fold_positive = 0.0
        out[draw] = top / bottom if bottom > 0 else np.nan
