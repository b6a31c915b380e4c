"""Closed forms against independent implementations and their own identities."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge

from medform.metrics.linear_maps import cca, pca, refit_image_head, ridge


@pytest.mark.parametrize("shape", [(30, 7), (9, 40), (5, 5)])
def test_pca_equals_scikit_learn_up_to_sign(random: np.random.Generator, shape: tuple[int, int]) -> None:
    x = random.normal(size=shape) @ random.normal(size=(shape[1], shape[1])) + 3
    fitted = pca(x, 4)
    reference = PCA(4, svd_solver="full").fit(x)
    n = len(x)
    np.testing.assert_allclose(fitted.sd**2, reference.explained_variance_ * (n - 1) / n, rtol=1e-9)
    new = random.normal(size=(3, shape[1]))
    np.testing.assert_allclose(np.abs(fitted.transform(new)), np.abs(reference.transform(new)), atol=1e-8)


def test_pca_power_one_whitens_and_half_is_between(random: np.random.Generator) -> None:
    x = random.normal(size=(50, 6)) * np.arange(1, 7)
    fitted = pca(x, 3)
    np.testing.assert_allclose(fitted.transform(x, power=1).std(axis=0), 1, rtol=1e-9)
    np.testing.assert_allclose(fitted.transform(x, power=0.5).std(axis=0), fitted.sd**0.5, rtol=1e-9)


def test_pca_standardised_ignores_units_and_constant_columns(random: np.random.Generator) -> None:
    x = random.normal(size=(20, 4))
    x[:, 3] = 5.0
    units = np.array([1.0, 1000.0, 0.01, 1.0])
    first, second = pca(x, 3, standardise=True), pca(x * units, 3, standardise=True)
    np.testing.assert_allclose(first.transform(x), second.transform(x * units), atol=1e-8)
    assert first.scale[3] == 1.0


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 10), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_pca_of_any_shape_is_orthonormal_and_finite(n: int, d: int, k: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-2, 3, size=(n, d)).astype(float)
    fitted = pca(x, k)
    kept = fitted.components.shape[1]
    assert kept <= min(k, d, max(n - 1, 0)) or kept == np.linalg.matrix_rank(x - x.mean(0))
    np.testing.assert_allclose(fitted.components.T @ fitted.components, np.eye(kept), atol=1e-6)
    assert np.isfinite(fitted.transform(x, power=1)).all()


@pytest.mark.parametrize("shape", [(30, 7), (9, 40)])
def test_ridge_equals_scikit_learn(random: np.random.Generator, shape: tuple[int, int]) -> None:
    x, y = random.normal(size=shape) + 2, random.normal(size=(shape[0], 3)) - 1
    fitted = ridge(x, y, 0.7)
    reference = SklearnRidge(alpha=0.7).fit(x, y)
    np.testing.assert_allclose(fitted.predict(x), reference.predict(x), atol=1e-9)


def test_cca_without_ridge_finds_the_canonical_correlations(random: np.random.Generator) -> None:
    x = random.normal(size=(200, 5))
    t = x[:, :2] @ random.normal(size=(2, 3)) + random.normal(size=(200, 3))
    fitted = cca(x, t, ridge_x=0, ridge_t=0, components=3)
    # independent: the generalised eigenproblem of Hotelling
    a, b = x - x.mean(0), t - t.mean(0)
    left = a.T @ b @ np.linalg.solve(b.T @ b, b.T @ a)
    values = np.sort(scipy.linalg.eigh(left, a.T @ a, eigvals_only=True))[::-1][:3]
    np.testing.assert_allclose(fitted.singular**2, values, atol=1e-9)
    projected_x, projected_t = a @ fitted.wx, b @ fitted.wt
    for column in range(3):
        correlation = np.corrcoef(projected_x[:, column], projected_t[:, column])[0, 1]
        assert correlation == pytest.approx(fitted.singular[column], abs=1e-9)


def test_cca_regularisation_is_the_published_one(random: np.random.Generator) -> None:
    x, t = random.normal(size=(12, 20)), random.normal(size=(12, 3))
    fitted = cca(x, t, ridge_x=0.3, ridge_t=1.0, components=8, width=64)
    a, b = x - x.mean(0), t - t.mean(0)
    cxx, ctt = a.T @ a / 12, b.T @ b / 12
    root_a = np.linalg.inv(scipy.linalg.sqrtm(cxx + 0.3 * np.trace(cxx) / 64 * np.eye(20)))
    root_b = np.linalg.inv(scipy.linalg.sqrtm(ctt + np.trace(ctt) / 64 * np.eye(3)))
    u, s, vt = np.linalg.svd(root_a @ (a.T @ b / 12) @ root_b, full_matrices=False)
    assert fitted.wx.shape == (20, 3)
    np.testing.assert_allclose(fitted.singular, s, atol=1e-10)
    np.testing.assert_allclose(np.abs(fitted.wx), np.abs(root_a @ u * s), atol=1e-8)
    np.testing.assert_allclose(np.abs(fitted.wt), np.abs(root_b @ vt.T * s), atol=1e-8)
    np.testing.assert_allclose(fitted.wx @ fitted.wt.T, root_a @ u * s**2 @ vt @ root_b, atol=1e-8)


def test_image_head_refitted_on_the_same_pairs_is_unchanged(random: np.random.Generator) -> None:
    x, t = random.normal(size=(30, 40)), random.normal(size=(30, 5))
    fitted = cca(x, t)
    np.testing.assert_allclose(refit_image_head(x, t, fitted.wt, fitted.singular), fitted.wx, atol=1e-10)


@pytest.mark.parametrize(
    ("x", "t", "said"),
    [
        (np.ones((4, 2)), np.eye(4), "constant"),
        (np.eye(4), np.eye(3), "same number"),
        (np.full((4, 2), np.nan), np.eye(4), "not finite"),
        (np.ones(4), np.eye(4), "two dimensions"),
    ],
)
def test_what_has_no_solution_is_refused_with_its_reason(x: np.ndarray, t: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cca(x, t)
