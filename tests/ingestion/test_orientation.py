"""Flips and transposes keep every voxel where it lies in the patient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medform.ingestion.orientation import Orientation, canonical, index_map

booleans = st.booleans()


@pytest.mark.proves("A3.1")
@given(st.tuples(booleans, booleans, booleans), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_index_map_says_where_each_voxel_came_from(flags: tuple[bool, bool, bool], rows: int, columns: int) -> None:
    orientation = Orientation(*flags)
    stored = np.arange(rows * columns).reshape(rows, columns)
    turned = orientation.apply(stored)
    matrix = index_map(orientation, rows, columns)
    for row in range(turned.shape[0]):
        for column in range(turned.shape[1]):
            from_column, from_row, _, _ = (matrix @ [column, row, 0, 1]).astype(int)
            assert turned[row, column] == stored[from_row, from_column]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_canonical_axes_are_right_handed_and_the_nearest(seed: int) -> None:
    """For any rotation: orthonormal axes, and no other flip or transpose lies nearer to the wanted
    directions."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    _, columns, rows, normal = canonical(rotation[:, 0], rotation[:, 1])
    axes = np.stack([columns, rows, normal], axis=1)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    assert np.linalg.det(axes) == pytest.approx(1)
    again, *same = canonical(columns, rows)
    assert again == Orientation()
    np.testing.assert_array_equal(same[0], columns)
    if np.argmax(np.abs(normal)) == 2:
        assert normal[2] > 0 and columns[0] + rows[1] > 0
