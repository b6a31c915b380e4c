"""`medform embed`: rows of slices and of series, of a scan as of a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.pipeline.embed import embed


@pytest.mark.proves("A8.1", "U5")
def test_a_series_vector_is_the_mean_of_its_slices(small_store: Cohort, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    frame = embed(
        small_store.root, out=tmp_path / "e.parquet", progress=lambda done, total, what: told.append((done, total))
    )
    slices, series = frame.query("level == 'slice'"), frame.query("level == 'series'")
    assert list(slices["slice_id"]) == list(small_store.slices["slice_id"])
    assert told[-1] == (len(slices), len(slices))
    assert sorted(series["series_id"]) == sorted(small_store.series["series_id"])
    assert not series[["slice_id", "z_mm"]].notna().to_numpy().any()
    assert not slices[["slice_id", "z_mm"]].isna().to_numpy().any()
    for series_id, vector in zip(series["series_id"], series["vector"], strict=True):
        own = np.stack(list(slices.loc[slices["series_id"] == series_id, "vector"]))
        np.testing.assert_allclose(vector, own.mean(axis=0), atol=1e-4)
    written = pd.read_parquet(tmp_path / "e.parquet")
    assert list(written.columns) == list(frame.columns) and len(written) == len(frame)
    assert all(vector.dtype == np.float32 for vector in written["vector"])
