"""Linear maps in closed form: principal components, ridge regression, regularised canonical correlation.

Everything is computed in float64 and is deterministic: the sign of a component is chosen so that its
largest loading (the first of equals) is positive. All functions raise ``ValueError`` on non-finite values
or mismatched shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

__all__ = ["Cca", "Pca", "Ridge", "cca", "pca", "refit_image_head", "ridge"]

Array = NDArray[np.float64]

RELATIVE_RANK = 1e-10
"""Components whose variance is below this share of the largest are rounding noise of the Gram matrix."""


def _matrix(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"{name} must have two dimensions (rows, columns), not {array.ndim}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite.")
    return array


def _signs(components: Array) -> Array:
    """+1 or -1 for each column, so that its largest absolute entry becomes positive."""
    if components.size == 0:
        return np.ones(components.shape[1])
    magnitude = np.abs(components)
    # rounding may order equal magnitudes differently on another machine: the first within 1e-8 of the
    # largest decides
    leading = np.argmax(magnitude >= magnitude.max(axis=0) * (1 - 1e-8), axis=0)
    return np.where(components[leading, np.arange(components.shape[1])] < 0, -1.0, 1.0)


@dataclass(frozen=True)
class Pca:
    """Principal components of training rows.

    Fields: ``mean`` (d,) and ``scale`` (d,) of the columns, ``components`` (d, k) orthonormal columns,
    ``sd`` (k,) the standard deviation of the training rows along each, largest first.
    """

    mean: Array
    scale: Array
    components: Array
    sd: Array

    def transform(self, x: ArrayLike, power: float = 0.0) -> Array:
        """Scores (n, k) of rows ``x`` (n, d), each divided by its ``sd ** power`` (0: not whitened, 1: whitened)."""
        rows = _matrix(x, "x")
        return ((rows - self.mean) / self.scale) @ (self.components / self.sd**power)


def pca(x: ArrayLike, k: int, *, standardise: bool = False) -> Pca:
    """The first ``k`` principal components of ``x`` (n, d), fewer where the centred rows have a lower rank.

    With ``standardise`` columns are first divided by their standard deviation (a constant column by 1).
    The smaller of the two Gram matrices is decomposed, so 1,000 rows of 1,752 columns take a fraction of a
    second.
    """
    rows = _matrix(x, "x")
    n, d = rows.shape
    if n == 0 or k < 1:
        raise ValueError(f"a PCA needs at least one row and one component, got {n} rows and k = {k}.")
    mean = rows.mean(axis=0)
    centred = rows - mean
    scale = np.ones(d)
    if standardise:
        spread = centred.std(axis=0)
        scale = np.where(spread > 1e-12 * np.maximum(1.0, np.abs(mean)), spread, 1.0)
        centred = centred / scale
    wide = n < d
    gram = (centred @ centred.T if wide else centred.T @ centred) / n
    size = len(gram)
    wanted = min(k, size)
    variance, vectors = scipy.linalg.eigh(gram, subset_by_index=(size - wanted, size - 1))
    variance, vectors = variance[::-1], vectors[:, ::-1]
    kept = variance > max(RELATIVE_RANK * max(variance[0], 0.0), np.finfo(np.float64).tiny)
    variance, vectors = variance[kept], vectors[:, kept]
    sd = np.sqrt(variance)
    components = centred.T @ vectors / (sd * np.sqrt(n)) if wide else vectors
    return Pca(mean, scale, components * _signs(components), sd)


@dataclass(frozen=True)
class Ridge:
    """A linear prediction: ``x @ weight + bias`` with ``weight`` (d, c) and ``bias`` (c,)."""

    weight: Array
    bias: Array

    def predict(self, x: ArrayLike) -> Array:
        """Predictions (n, c) for rows ``x`` (n, d)."""
        return _matrix(x, "x") @ self.weight + self.bias


def ridge(x: ArrayLike, y: ArrayLike, strength: float) -> Ridge:
    """Ridge regression of ``y`` (n, c) on ``x`` (n, d): minimises |y - xw - b|^2 + strength |w|^2, ``b`` not penalised.

    ``strength`` > 0. Solved in the smaller of primal and dual form.
    """
    rows, targets = _matrix(x, "x"), _matrix(y, "y")
    if len(rows) != len(targets) or len(rows) == 0:
        raise ValueError(f"x has {len(rows)} rows and y has {len(targets)}; both need the same number, at least one.")
    if not strength > 0:
        raise ValueError(f"strength must be above 0, not {strength}.")
    mean_x, mean_y = rows.mean(axis=0), targets.mean(axis=0)
    centred_x, centred_y = rows - mean_x, targets - mean_y
    n, d = rows.shape
    if d <= n:
        gram = centred_x.T @ centred_x + strength * np.eye(d)
        weight = scipy.linalg.solve(gram, centred_x.T @ centred_y, assume_a="pos")
    else:
        gram = centred_x @ centred_x.T + strength * np.eye(n)
        weight = centred_x.T @ scipy.linalg.solve(gram, centred_y, assume_a="pos")
    return Ridge(weight, mean_y - mean_x @ weight)


@dataclass(frozen=True)
class Cca:
    """Regularised canonical directions: ``wx`` (d, k), ``wt`` (q, k), ``singular`` (k,) in [0, 1], largest first.

    The columns of both maps are scaled by their singular value, so a pair of directions that hardly belong
    together hardly counts in a distance. Both maps expect centred rows.
    """

    wx: Array
    wt: Array
    singular: Array


def _regularised(covariance: Array, share: float, width: int) -> Array:
    trace = float(np.trace(covariance))
    if not trace > 0:
        raise ValueError("every column is constant: there is nothing to correlate.")
    return covariance + share * trace / width * np.eye(len(covariance))


def _inverse_root(matrix: Array) -> Array:
    values, vectors = scipy.linalg.eigh(matrix)
    floor = RELATIVE_RANK * values[-1]  # only reached with a share of 0 and a singular covariance
    return (vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T


def _paired(x: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
    rows, table = _matrix(x, "x"), _matrix(t, "t")
    if len(rows) != len(table) or len(rows) < 2:
        raise ValueError(f"x has {len(rows)} rows and t has {len(table)}; pairs need the same number, at least two.")
    return rows - rows.mean(axis=0), table - table.mean(axis=0)


def cca(
    x: ArrayLike,
    t: ArrayLike,
    ridge_x: float = 0.3,
    ridge_t: float = 1.0,
    components: int = 8,
    width: int = 64,
) -> Cca:
    """Regularised canonical correlation of paired rows ``x`` (n, d) and ``t`` (n, q); rows are centred here.

    A = (Cxx + ridge_x tr(Cxx)/width I)^-1/2, B = (Ctt + ridge_t tr(Ctt)/width I)^-1/2, U S V' = svd(A Cxt
    B); the maps are A U S and B V S, for min(components, d, q) columns. ``width`` is a constant of the
    method, no dimension.
    """
    rows, table = _paired(x, t)
    n = len(rows)
    root_x = _inverse_root(_regularised(rows.T @ rows / n, ridge_x, width))
    root_t = _inverse_root(_regularised(table.T @ table / n, ridge_t, width))
    left, singular, right = scipy.linalg.svd(root_x @ (rows.T @ table / n) @ root_t, full_matrices=False)
    kept = min(components, len(singular))
    left, singular, right = left[:, :kept], singular[:kept], right[:kept].T
    wx, wt = root_x @ left * singular, root_t @ right * singular
    signs = _signs(wx)
    return Cca(wx * signs, wt * signs, singular)


def refit_image_head(
    x: ArrayLike,
    t: ArrayLike,
    table_head: ArrayLike,
    singular: ArrayLike,
    ridge_x: float = 0.3,
    width: int = 64,
) -> Array:
    """The image head (d, k) that belongs to a frozen table head, from other pairs ``x`` (n, d), ``t`` (n, q).

    (Cxx + ridge_x tr(Cxx)/width I)^-1 Cxt (table_head / singular): on the pairs that the table head was
    made from, this is `cca`'s own ``wx``. ``table_head`` and ``singular`` are `Cca.wt` and `Cca.singular`;
    a direction whose singular value is 0 stays 0.
    """
    rows, table = _paired(x, t)
    n = len(rows)
    strengths = np.asarray(singular, dtype=np.float64)
    head = _matrix(table_head, "table_head")
    directions = np.divide(head, strengths, out=np.zeros_like(head), where=strengths > 0)
    covariance = _regularised(rows.T @ rows / n, ridge_x, width)
    return scipy.linalg.solve(covariance, rows.T @ table / n @ directions, assume_a="pos")
