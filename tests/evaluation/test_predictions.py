"""The predictions file: small, complete, whole or absent, readable by anybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from medform.errors import InputError
from medform.evaluation.predictions import (
    CASE_COLUMNS,
    PREDICTION_COLUMNS,
    PredictionWriter,
    case_frame,
    concat_predictions,
    prediction_frame,
    read_predictions,
)


def frame(task: str = "größe", size: int = 3, **columns: object) -> pd.DataFrame:
    given = {"cohort": "a", "task": task, "protocol": "few_shot", "model": "m", "readout": "logistic",
             "shots": 5, "supports": "unseen", "draw": np.arange(size), "fold": 0, "seed": 7,
             "patient_id": [f"P{k}" for k in range(size)], "y_true": np.arange(size) % 2,
             "y_prob": np.linspace(0, 1, size), **columns}  # fmt: skip
    return prediction_frame(size, **given)


@pytest.mark.proves("A6.2")
def test_chunks_come_back_equal_nulls_too(tmp_path: Path) -> None:
    chunks = [frame(), frame("b", 2, shots=None, draw=None, supports=None, readout=None), frame("c", 300)]
    path = tmp_path / "predictions.parquet"
    with PredictionWriter(path) as writer:
        for chunk in chunks:
            writer(chunk)
        writer(frame(size=0))
        assert not path.exists()
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    back = list(read_predictions(path))
    assert len(back) == 3
    for mine, theirs in zip(chunks, back, strict=True):
        for name in PREDICTION_COLUMNS:
            left, right = mine[name].astype(object), theirs[name].astype(object)
            assert left.where(left.notna(), None).tolist() == right.where(right.notna(), None).tolist(), name
    whole = pd.read_parquet(path)
    assert whole["task"].tolist() == concat_predictions(chunks)["task"].tolist()
    assert whole["slice_id"].isna().all() and whole["shots"].isna().sum() == 2
    assert pq.ParquetFile(path).schema_arrow.metadata[b"schema_version"] == b"1"


@pytest.mark.proves("A6.2")
def test_ten_million_rows_fit_into_a_third_of_a_gigabyte() -> None:
    size = 100_000
    patients = [f"P{k % 76:03d}" for k in range(size)]
    made = frame(size=size, draw=np.arange(size) % 200, patient_id=patients)
    assert made.memory_usage(deep=True).sum() / size < 33


def test_a_failed_evaluation_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    with PredictionWriter(path) as writer:
        writer(frame())
    before = path.read_bytes()
    with pytest.raises(RuntimeError), PredictionWriter(path) as writer:
        writer(frame("other"))
        raise RuntimeError
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    with pytest.raises(InputError, match="no such file"):
        next(read_predictions(path))
    path.write_text("text")
    with pytest.raises(InputError, match="not a Parquet file"):
        next(read_predictions(path))
    pd.DataFrame({"task": ["a"]}).to_parquet(path)
    with pytest.raises(InputError, match="missing or unknown: cohort"):
        next(read_predictions(path))


def test_frames_have_every_column_and_no_other() -> None:
    assert tuple(concat_predictions([]).columns) == PREDICTION_COLUMNS
    assert tuple(case_frame([{"task": "t", "value": 1}]).columns) == CASE_COLUMNS
    with pytest.raises(TypeError, match="no such column"):
        prediction_frame(1, probability=0.5, y_true=1, y_prob=1)
