"""Survival from vectors: units of a column do not matter, proportions of an embedding do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.evaluation.settings import EvaluationSettings
from medform.pipeline.survival import judge_survival

N, FOLDS = 60, 3


def c_of(model: str, vectors: np.ndarray) -> float:
    """Harrell's C of ``model`` with ``vectors`` (60, d), the first column of which decides the hazard."""
    random = np.random.default_rng(0)
    ids = [f"p{number:02d}" for number in range(N)]
    death, leaving = random.exponential(np.exp(-2 * COLUMNS[:, 0])), random.exponential(3.0, N)
    known = pd.DataFrame({"time": np.minimum(death, leaving), "event": (death <= leaving).astype(float)}, index=ids)
    rows = [
        (one, fold, "test" if number % FOLDS == fold else "train", model, "aligned", 0, vectors[number].tolist())
        for fold in range(FOLDS)
        for number, one in enumerate(ids)
    ]
    frame = pd.DataFrame(rows, columns=["patient_id", "fold", "part", "model", "supports", "seed", "vector"])
    cohort: Any = SimpleNamespace(file=SimpleNamespace(survival=True), survival=lambda: known, name="c")
    found, cases = judge_survival(
        frame, cohort, EvaluationSettings(bootstrap=100), {model: "as told", "table_cox": "as told"}
    )
    assert len(cases) == 3 * N
    judged = [row for row in found if row.metric == "c_index" and row.model != "chance"]
    assert [row.n_patients for row in judged] == [N] and "as told" in (judged[0].note or "")
    assert judged[0].value is not None
    return judged[0].value


COLUMNS = np.random.default_rng(1).normal(size=(N, 3))
UNITS = np.array([0.01, 1000.0, 1.0])  # in which the column that counts is the smallest of all


@pytest.mark.proves("G6.3")
@pytest.mark.parametrize("model", ["table", "intensity_stats"])
def test_the_units_of_a_column_do_not_matter(model: str) -> None:
    plain = c_of(model, COLUMNS)
    assert plain > 0.7
    assert c_of(model, COLUMNS * UNITS + 7) == pytest.approx(plain, abs=1e-6)


def test_the_components_of_an_embedding_keep_their_proportions() -> None:
    assert c_of("aligned", COLUMNS * UNITS) < c_of("aligned", COLUMNS) - 0.1
    assert c_of("aligned", COLUMNS * 1000) == pytest.approx(c_of("aligned", COLUMNS), abs=1e-6)
