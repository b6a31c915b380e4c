"""Working slices: the cohort's numbers at another size, nothing more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medform.cohort.store import Cohort
from medform.config import parse
from medform.errors import InputError
from medform.inputs.slices import SliceInputConfig, placement, shrink, working_slices

Make = Callable[..., Cohort]
Slices = dict[str, list[np.ndarray]]


def test_whole_blocks_shrink_to_their_means(random: np.random.Generator) -> None:
    image = random.normal(size=(48, 48)).astype(np.float32)
    blocks = image.reshape(16, 3, 16, 3).mean(axis=(1, 3))
    assert np.allclose(shrink(image, 16, -1.0), blocks, atol=1e-5)
    assert np.array_equal(shrink(image, 48, -1.0), image)


@given(st.integers(16, 70), st.integers(16, 70), st.integers(16, 40))
def test_shrinking_keeps_range_mean_and_aspect(height: int, width: int, size: int) -> None:
    random = np.random.default_rng(height * 100 + width)
    image = random.uniform(1, 2, (height, width)).astype(np.float32)
    small = shrink(image, size, 0.0)
    inside = small > 0
    assert small.shape == (size, size)
    assert small[inside].min() >= image.min() - 1e-5 and small.max() <= image.max() + 1e-5
    rows, columns = inside.any(1).sum(), inside.any(0).sum()
    assert max(rows, columns) == size and rows * columns == inside.sum()
    assert abs(rows / columns - height / width) <= 1.01 * (1 + height / width) / min(rows, columns)
    if size <= min(height, width) and rows == columns:
        assert np.isclose(small[inside].mean(), image.mean(), atol=1e-4)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(16, 256))
def test_an_image_lies_where_its_placement_says(height: int, width: int, size: int) -> None:
    rows, columns, top, left = placement(height, width, size)
    inside = np.zeros((size, size), bool)
    inside[top : top + rows, left : left + columns] = True
    assert np.array_equal(shrink(np.ones((height, width), np.float32), size, 0.0) > 0, inside)
    assert placement(height, height, size) == (size, size, 0, 0)


def test_hounsfield_units_stay_and_the_window_is_a_view(make_cohort: Make, chests: Slices) -> None:
    cohort = make_cohort(chests, intercept=-1024.0)
    store = working_slices(cohort, 20)
    assert store.pixels.dtype == np.int16 and store.pixels.shape == (15, 20, 20)
    for row, slice_id in enumerate(store.slice_ids):
        patient, index = store.patient_ids[store.patient[row]], int(store.index[row])
        assert slice_id == f"series-{patient}:{index:04d}" and store.z_mm[row] == 2.5 * index
        expected = chests[patient][index].reshape(20, 2, 20, 2).mean(axis=(1, 3)) - 1024
        assert abs(store.pixels[row] - expected).max() <= 0.5
    unit = np.clip((store.pixels + 1000.0) / 1400, 0, 1)
    assert np.allclose(store.images(np.arange(15))[:, 0], unit, atol=1e-6)


@pytest.mark.parametrize(("unit", "kind", "step"), [("display", np.uint8, 1.0), ("raw", np.int16, 2000 / 65535)])
def test_other_units_keep_their_own_steps(
    make_cohort: Make, chests: Slices, unit: str, kind: type, step: float
) -> None:
    slices = {name: [image.astype(np.float32) / 8 for image in images] for name, images in chests.items()}
    cohort = make_cohort(slices, unit=unit, window=(0.0, 1000.0) if unit == "raw" else None)
    store = working_slices(cohort, 40)
    assert store.pixels.dtype == kind
    value = store.pixels * store.scale.slope + store.scale.intercept
    first = store.patient_ids[store.patient[0]]
    assert abs(value[0] - slices[first][0]).max() <= step / 2 + 1e-4


def test_a_cohort_is_shrunk_once_and_the_file_is_named_by_what_is_in_it(
    make_cohort: Make, chests: Slices, tmp_path: Path
) -> None:
    cohort = make_cohort(chests)
    seen: list[tuple[int, int]] = []
    cache = tmp_path / "cache"
    first = working_slices(cohort, 20, cache, progress=lambda *done: seen.append(done))
    assert seen[-1] == (15, 15)
    again = working_slices(cohort, 20, cache, progress=lambda *done: seen.append(done))
    assert len(seen) == 15 and np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.pixels, working_slices(cohort, 20).pixels)
    assert working_slices(cohort, 24, cache).digest != first.digest
    chests["P3"][1] = chests["P3"][1] + np.int16(1)
    changed = working_slices(make_cohort(chests), 20, cache)
    assert changed.digest != first.digest and len(list(cache.iterdir())) == 3
    with pytest.raises(ValueError, match="read-only"):
        first.pixels[0] = 0


@pytest.mark.proves("A.tests", "R34")
def test_poisoned_test_slices_change_no_cached_slice_of_anybody_else(
    make_cohort: Make, chests: Slices, tmp_path: Path
) -> None:
    clean = working_slices(make_cohort(chests), 20, tmp_path / "cache")
    chests["P4"] = [np.full((40, 40), 32000, np.int16) for _ in chests["P4"]]
    poisoned = working_slices(make_cohort(chests), 20, tmp_path / "cache")
    others = clean.rows(["P1", "P2", "P3", "P5"])
    assert np.array_equal(poisoned.pixels[others], clean.pixels[others])
    assert clean.slice_ids == poisoned.slice_ids and clean.scale == poisoned.scale


def test_a_slice_keeps_its_key_in_a_smaller_cohort(make_cohort: Make, chests: Slices) -> None:
    cohort = make_cohort(chests)
    store = working_slices(cohort, 20)
    some = working_slices(cohort.select(["P2", "P5"]), 20)
    rows = store.rows(["P5", "P2"])
    assert rows.tolist() == sorted(rows) and [store.slice_ids[row] for row in rows] == list(some.slice_ids)
    assert np.array_equal(store.key[rows], some.key) and len(set(store.key)) == len(store)
    with pytest.raises(KeyError):
        store.rows(["nobody"])


@pytest.mark.proves("A.input")
def test_a_source_that_would_alias_is_refused() -> None:
    with pytest.raises(InputError, match="more than twice size 64: views would alias"):
        parse(SliceInputConfig, {"size": 64, "source": 192})
