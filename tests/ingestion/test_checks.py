"""Geometry of stacks: what the positions say, for any step, direction and order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medform.ingestion.checks import StackGeometry, stack_geometry

AXIAL = (1.0, 0, 0, 0, 1, 0)


def geometry(corners: np.ndarray, orientation: tuple[float, ...] = AXIAL) -> StackGeometry:
    names = [f"f{at}" for at in range(len(corners))]
    return stack_geometry(corners, orientation, (2.0, 1.5), (12, 16), names)


def along(positions: list[float]) -> np.ndarray:
    return np.array([[5.0, 6.0, z] for z in positions])


@pytest.mark.proves("A3.1", "D2")
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 12.0), st.integers(2, 30), st.permutations(range(5)))
@settings(max_examples=60, deadline=None)
def test_any_even_stack_is_accepted_with_its_own_spacing(seed: int, step: float, count: int, order: list[int]) -> None:
    """Any direction, any order of the slices, positions rounded as a header has them."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    normal = np.cross(rotation[:, 0], rotation[:, 1])
    corners = np.array([at * step * normal for at in range(count)])
    shuffled = corners[np.argsort([order[at % 5] * count + at for at in range(count)])].round(3)
    found = geometry(shuffled, (*rotation[:, 0], *rotation[:, 1]))
    assert not found.findings and found.affine_lps is not None
    assert found.spacing_mm[0] == pytest.approx(step, abs=2e-3)
    assert list(found.position_mm) == sorted(found.position_mm)
    np.testing.assert_allclose(np.array(found.affine_lps)[:3, 2], found.spacing_mm[0] * _normal(found), atol=0.05)


def _normal(found: StackGeometry) -> np.ndarray:
    axes = np.array(found.affine_lps)[:3, :2]
    columns, rows = (axes / np.linalg.norm(axes, axis=0)).T
    return np.cross(columns, rows)


@pytest.mark.proves("R6", "R7")
@pytest.mark.parametrize(
    ("positions", "code", "words"),
    [
        ([0, 3, 6, 12, 15, 18], "gap", "1 slice missing, first between 6.00 and 12.00 mm"),
        ([0, 3, 6, 9, 21, 24], "gap", "3 slices missing"),
        ([0, 1.25, 2.5, 3.75, 6.25, 7.5, 8.75], "gap", "1 slice missing"),
        ([0.1 * at for at in range(40) if at != 20], "gap", "1 slice missing"),
        (
            [0.62 * at for at in range(300)] + [186 + 0.7 * at for at in range(300)],
            "nonuniform_spacing",
            "0.62 to 0.70",
        ),
        ([5.0 * at + 0.01 * max(0, at - 20) for at in range(60)], "nonuniform_spacing", "steps from 5.00 to 5.01 mm"),
        ([0, 3, 6, 9, 14, 19], "nonuniform_spacing", "steps from 3.00 to 5.00 mm"),
        ([0, 4.22, 8.44, 9.58, 13.8, 21.18], "nonuniform_spacing", "steps from 1.14 to 7.38 mm"),
    ],
)
def test_uneven_stacks_have_no_affine(positions: list[float], code: str, words: str) -> None:
    found = geometry(along(positions))
    (finding,) = found.findings
    assert finding.code == code and finding.effect == "quarantine" and words in finding.reason
    assert found.affine_lps is None and found.spacing_mm == (None, 2.0, 1.5)


def test_positions_rounded_to_a_tenth_are_even() -> None:
    for step in (0.45, 0.625, 0.75, 1.25, 2.97):
        assert not geometry(along([round(step * at + 0.05, 1) for at in range(400)])).findings, step


def test_a_crooked_stack_is_refused() -> None:
    corners = along([0, 3, 6, 9, 12])
    corners[2, 0] += 1.0
    (finding,) = geometry(corners).findings
    assert finding.code == "crooked_stack" and finding.file == "f2"


def test_stations_beside_each_other_are_no_stack() -> None:
    """One coronal slice a station: positions differ along the body alone, within the plane of the slices."""
    stations = np.array([[5.0, 6.0, z] for z in (0, 300, 600)])
    for shift in (0.0, 1.0):
        stations[:, 1] += shift * np.arange(3)
        found = geometry(stations, (1.0, 0, 0, 0, 0, -1.0))
        assert [(one.code, one.effect) for one in found.findings] == [("crooked_stack", "quarantine")]
        assert found.affine_lps is None and found.spacing_mm[0] is None
