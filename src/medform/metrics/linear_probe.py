"""Linear readouts of frozen vectors, solved exactly and in batches: L2-logistic regression and nearest class mean.

The logistic objective is that of scikit-learn, |w|^2 / 2 + C sum log(1 + exp(-s (w.x + b))) with s = +-1
and an unpenalised b. It is solved by Newton's method with a line search, in the dual (kernel) form where
there are fewer rows than columns and in the primal form otherwise; many problems of equal size are solved
at once.

Shapes: B problems, m rows of one problem, d columns, n rows of a pool, q queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

__all__ = [
    "Logistic",
    "Scaler",
    "centroid_scores",
    "fit_logistic",
    "fit_scaler",
    "logistic_scores",
    "solve_dual",
    "solve_primal",
]

Array = NDArray[np.float64]

TOLERANCE = 1e-9
"""Largest norm of the gradient at the end, relative to C plus its norm at the start."""
MAX_ITERATIONS = 100
MAX_HALVINGS = 40
FLAT = 1e-14
"""Curvature p(1 - p) is not taken below this: a saturated row then has no say, instead of a division by
zero.
"""


@dataclass(frozen=True)
class Scaler:
    """``(x - mean) / scale``; ``mean`` (d,), ``scale`` (d,)."""

    mean: Array
    scale: Array

    def transform(self, x: ArrayLike) -> Array:
        """Scaled rows (n, d)."""
        return (np.asarray(x, dtype=np.float64) - self.mean) / self.scale


def fit_scaler(x: ArrayLike, kind: Literal["norm", "columns"]) -> Scaler:
    """Scaler from training rows ``x`` (n, d).

    ``norm``: centred, and divided by one number so that the mean squared norm is 1 (image vectors).
    ``columns``: every column to mean 0 and standard deviation 1 (table columns); a constant column stays 0.
    """
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"a scaler needs rows (n, d) with n >= 1, not an array of shape {rows.shape}.")
    if not np.isfinite(rows).all():
        raise ValueError("the rows hold values that are not finite.")
    mean = rows.mean(axis=0)
    centred = rows - mean
    # what is left of a constant column is rounding, and must not be blown up to size 1
    noise = 1e-12 * np.maximum(1.0, np.abs(mean))
    if kind == "columns":
        spread = centred.std(axis=0)
        return Scaler(mean, np.where(spread > noise, spread, 1.0))
    size = float(np.sqrt((centred**2).sum(axis=1).mean()))
    return Scaler(mean, np.full(rows.shape[1], size if size > np.sqrt((noise**2).sum()) else 1.0))


@dataclass(frozen=True)
class Logistic:
    """A fitted logistic readout of d columns: ``weight`` (d,), ``bias``."""

    weight: Array
    bias: float

    def decision(self, x: ArrayLike) -> Array:
        """Log odds (n,) of rows ``x`` (n, d)."""
        return np.asarray(x, dtype=np.float64) @ self.weight + self.bias

    def probability(self, x: ArrayLike) -> Array:
        """Probability (n,) of the positive class."""
        return expit(self.decision(x))


def _check(y: Array, c: float) -> None:
    if not c > 0:
        raise ValueError(f"C must be above 0, not {c}.")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1.")
    positives = y.sum(axis=1)
    if (positives == 0).any() or (positives == y.shape[1]).any():
        raise ValueError("a logistic readout needs both classes among its rows.")


class _Form(Protocol):
    """One way to write B logistic problems; a state is (B, s) coefficients and (B,) biases."""

    def zeros(self, count: int) -> Array: ...

    def smooth(self, coefficients: Array) -> Array:
        """Decision (B, m) without the bias."""
        ...

    def inner(self, first: Array, second: Array) -> Array:
        """Inner product (B,) of two weight vectors given by their coefficients."""
        ...

    def gradient_norm(self, coefficients: Array, gradient: Array) -> Array:
        """Norm (B,) of the objective's gradient in the weights; ``gradient`` (B, m) is the loss's in the decision."""
        ...

    def newton(self, f: Array, gradient: Array, curvature: Array) -> tuple[Array, Array]:
        """Coefficients (B, s) and biases (B,) that minimise the quadratic model at decision ``f`` (B, m)."""
        ...


@dataclass(frozen=True)
class _Dual:
    """weights = rows' @ coefficients: only the kernel (B or 1, m, m) of the rows is needed."""

    kernel: Array

    def zeros(self, count: int) -> Array:
        return np.zeros((count, self.kernel.shape[1]))

    def smooth(self, coefficients: Array) -> Array:
        return (self.kernel @ coefficients[:, :, None])[:, :, 0]

    def inner(self, first: Array, second: Array) -> Array:
        return (first * self.smooth(second)).sum(axis=1)

    def gradient_norm(self, coefficients: Array, gradient: Array) -> Array:
        residual = coefficients + gradient
        return np.sqrt(np.maximum(self.inner(residual, residual), 0.0))

    def newton(self, f: Array, gradient: Array, curvature: Array) -> tuple[Array, Array]:
        # (K + D^-1) a + b 1 = f - g / D with 1'a = 0, written with D^1/2 on both sides: eigenvalues >= 1
        root = np.sqrt(curvature)
        system = np.eye(f.shape[1]) + root[:, :, None] * self.kernel * root[:, None, :]
        solved = np.linalg.solve(system, np.stack([root * f - gradient / root, root], axis=2))
        bias = (root * solved[:, :, 0]).sum(axis=1) / (root * solved[:, :, 1]).sum(axis=1)
        return root * (solved[:, :, 0] - bias[:, None] * solved[:, :, 1]), bias


@dataclass(frozen=True)
class _Primal:
    """weights = coefficients; rows (B or 1, m, d)."""

    rows: Array

    def zeros(self, count: int) -> Array:
        return np.zeros((count, self.rows.shape[2]))

    def smooth(self, coefficients: Array) -> Array:
        return (self.rows @ coefficients[:, :, None])[:, :, 0]

    def inner(self, first: Array, second: Array) -> Array:
        return (first * second).sum(axis=1)

    def gradient_norm(self, coefficients: Array, gradient: Array) -> Array:
        residual = coefficients + (gradient[:, None, :] @ self.rows)[:, 0]
        return np.sqrt((residual**2).sum(axis=1))

    def newton(self, f: Array, gradient: Array, curvature: Array) -> tuple[Array, Array]:
        weighted = curvature[:, :, None] * self.rows
        total, mass = weighted.sum(axis=1), curvature.sum(axis=1)
        target = curvature * f - gradient
        # the bias is eliminated: what remains is the identity plus a positive semi-definite matrix
        system = weighted.transpose(0, 2, 1) @ self.rows
        system -= total[:, :, None] * (total / mass[:, None])[:, None, :]
        system += np.eye(self.rows.shape[2])
        share = target.sum(axis=1) / mass
        right = (target[:, None, :] @ self.rows)[:, 0] - total * share[:, None]
        weights = np.linalg.solve(system, right[:, :, None])[:, :, 0]
        return weights, share - (weights * total).sum(axis=1) / mass


def _loss(f: Array, y: Array, c: float) -> Array:
    return c * np.logaddexp(0.0, np.where(y > 0.5, -f, f)).sum(axis=1)


def _line_search(objective: Callable[[Array], Array], slope: Array) -> Array:
    """Step lengths (B,) by halving until Armijo's condition holds; 0 where rounding forbids any progress."""
    step = np.ones_like(slope)
    start = objective(np.zeros_like(slope))
    slack = 1e-13 * (1 + np.abs(start))  # the objective cannot be told apart more finely than this
    for _ in range(MAX_HALVINGS):
        bad = ~(objective(step) <= start + 1e-4 * step * slope + slack)
        if not bad.any():
            return step
        step[bad] /= 2
    step[~(objective(step) <= start + slack)] = 0.0
    return step


def _newton(form: _Form, y: Array, c: float) -> tuple[Array, Array]:
    """Newton's method with a line search on all problems at once; no problem's result depends on another."""
    coefficients, bias = form.zeros(len(y)), np.zeros(len(y))
    limit = np.zeros(len(y))
    stuck = np.zeros(len(y), dtype=bool)
    for iteration in range(MAX_ITERATIONS):
        f = form.smooth(coefficients) + bias[:, None]
        p = expit(f)
        gradient = c * (p - y)
        norm = form.gradient_norm(coefficients, gradient) + np.abs(gradient.sum(axis=1))
        if iteration == 0:
            limit = TOLERANCE * (c + norm)
        unfinished = (norm > limit) & ~stuck
        if not unfinished.any():
            return coefficients, bias
        goal, goal_bias = form.newton(f, gradient, c * np.maximum(p * (1 - p), FLAT))
        move, shift = goal - coefficients, goal_bias - bias
        change = form.smooth(move) + shift[:, None]
        tilt, bend = form.inner(coefficients, move), form.inner(move, move)
        along = partial(_objective_along, f=f, change=change, tilt=tilt, bend=bend, y=y, c=c)
        step = _line_search(along, tilt + (gradient * change).sum(axis=1))
        stuck |= step == 0
        step[~unfinished] = 0.0
        coefficients = coefficients + step[:, None] * move
        bias = bias + step * shift
    raise ArithmeticError(f"logistic readouts did not converge in {MAX_ITERATIONS} Newton steps.")


def _objective_along(t: Array, *, f: Array, change: Array, tilt: Array, bend: Array, y: Array, c: float) -> Array:
    """The objective (B,) after steps ``t`` (B,), up to the penalty at t = 0."""
    return t * tilt + t * t * bend / 2 + _loss(f + t[:, None] * change, y, c)


def solve_dual(kernel: Array, y: ArrayLike, c: float) -> tuple[Array, Array]:
    """Coefficients (B, m) and biases (B,) of B problems: decision = kernel @ coefficients + bias.

    ``kernel`` (B, m, m), or (1, m, m) where all problems share their rows; ``y`` (B, m) of 0 and 1; ``c`` >
    0. Raises
    ``ValueError`` for a problem of one class or another label, ``ArithmeticError`` without convergence.
    """
    labels = np.asarray(y, dtype=np.float64)
    _check(labels, c)
    return _newton(_Dual(kernel), labels, c)


def solve_primal(rows: Array, y: ArrayLike, c: float) -> tuple[Array, Array]:
    """As `solve_dual`: weights (B, d) and biases (B,) of B problems; ``rows`` (B, m, d), or shared (1, m, d)."""
    labels = np.asarray(y, dtype=np.float64)
    _check(labels, c)
    return _newton(_Primal(rows), labels, c)


def fit_logistic(x: ArrayLike, y: ArrayLike, c: float) -> Logistic:
    """The logistic readout of rows ``x`` (n, d) with labels ``y`` (n,) of 0 and 1."""
    rows, labels = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("the rows hold values that are not finite.")
    if rows.shape[1] <= len(rows):
        weight, bias = solve_primal(rows[None], labels[None], c)
        return Logistic(weight[0], float(bias[0]))
    coefficients, bias = solve_dual((rows @ rows.T)[None], labels[None], c)
    return Logistic(coefficients[0] @ rows, float(bias[0]))


def logistic_scores(pool: Array, queries: Array, supports: NDArray[np.intp], y: ArrayLike, c: float) -> Array:
    """Log odds (B, q) of ``queries`` (q, d) under B readouts, each fitted on its own rows of ``pool`` (n, d).

    ``supports`` (B, m) are row numbers of the pool, or (1, m) where all share them; ``y`` (B, m) their
    labels.
    """
    labels = np.asarray(y, dtype=np.float64)
    m, d = supports.shape[1], pool.shape[1]
    if d <= m:
        weight, bias = solve_primal(pool[supports], labels, c)
        return weight @ queries.T + bias[:, None]
    coefficients, bias = solve_dual(_kernels(pool, supports), labels, c)
    if len(labels) < len(pool):
        weight = (coefficients[:, None, :] @ pool[supports])[:, 0]
        return weight @ queries.T + bias[:, None]
    spread = np.zeros((len(labels), len(pool)))
    np.add.at(spread, (np.arange(len(labels))[:, None], supports), coefficients)
    return spread @ (pool @ queries.T) + bias[:, None]


def _kernels(pool: Array, supports: NDArray[np.intp]) -> Array:
    """Inner products (B, m, m) of each problem's rows, by whichever way multiplies less."""
    count, m = supports.shape
    if count * m * m < len(pool) ** 2:
        rows = pool[supports]
        return rows @ rows.transpose(0, 2, 1)
    gram = pool @ pool.T
    return gram[supports[:, :, None], supports[:, None, :]]


def centroid_scores(pool: Array, queries: Array, supports: NDArray[np.intp], y: ArrayLike) -> Array:
    """Squared distance to the negative minus that to the positive class mean, (B, q): above 0 is positive.

    In units of the pool's mean squared norm, so that scores of many columns are no larger than those of few.
    Arguments as in `logistic_scores`; raises ``ValueError`` for a problem of one class. There is nothing to
    tune.
    """
    labels = np.asarray(y, dtype=np.float64)
    _check(labels, 1.0)
    share = np.zeros((2, len(labels), len(pool)))
    problem = np.arange(len(labels))[:, None]
    for label in (0, 1):
        chosen = labels == label
        np.add.at(share[label], (problem, supports), chosen / chosen.sum(axis=1, keepdims=True))
    negative, positive = share @ pool
    size = (negative**2).sum(axis=1) - (positive**2).sum(axis=1)
    unit = (pool**2).sum(axis=1).mean() or 1.0  # without it the distances of 30 columns end as probabilities of 1
    return (2 * (positive - negative) @ queries.T + size[:, None]) / unit
