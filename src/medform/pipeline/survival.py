"""Survival from the vectors of a run: a Cox model for each model and fold, judged on the fold's test patients."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.errors import ExtraMissing
from medform.evaluation.survival import BAR, survival_cases, survival_rows
from medform.evaluation.vectors import COLUMN_MODELS, TABLE
from medform.metrics.linear_probe import fit_scaler
from medform.objectives.cox import fit_cox
from medform.runs.scores import ScoreRow

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort
    from medform.evaluation.settings import EvaluationSettings

__all__ = ["judge_survival"]

logger = logging.getLogger(__name__)

TASK = "survival"
FEWEST_EVENTS = 2
"""Events among a fold's fitted patients below which nothing is fitted in it."""


def judge_survival(
    frame: pd.DataFrame, cohort: Cohort, settings: EvaluationSettings, notes: dict[str, str]
) -> tuple[list[ScoreRow], list[dict[str, Any]]]:
    """Rows and cases of every model in ``frame`` (embeddings.parquet); the encoded table's is `table_cox`, the bar.

    ``notes``: model -> a remark that its rows carry. Without the extra ``survival`` there is one row without a value
    that says so: the other figures of a run do not depend on it.
    """
    import pandas as pd

    if cohort.file.survival is None:
        return [], []
    known = cohort.survival()
    try:
        cases = _cases(frame, known, cohort.name)
    except ExtraMissing as error:
        logger.warning("survival is not judged: %s", error.fix)
        note = f"not judged: {error.fix}"
        return [ScoreRow(cohort.name, TASK, "survival", BAR, "c_index", None, len(known), cohort.name, note=note)], []
    return (survival_rows(pd.DataFrame(cases), settings, notes=notes) if cases else []), cases


def _cases(frame: pd.DataFrame, known: pd.DataFrame, cohort: str) -> list[dict[str, Any]]:
    """Risks of the test patients of every model, fold and seed.

    Fitted on training and validation patients, as the other readouts, which also standardise the same models' columns;
    risk sets go over the whole fold.
    """
    import torch

    chosen: Any = frame[(frame["supports"] == "aligned") & frame["patient_id"].isin(list(known.index))]
    cases: list[dict[str, Any]] = []
    for (model, fold, seed), rows in chosen.groupby(["model", "fold", "seed"], sort=True):
        tested = rows[rows["part"] == "test"]
        fitted = rows[rows["part"].isin(["train", "validation"])].sort_values("patient_id")
        outcome = known.loc[fitted["patient_id"]]
        if tested.empty or int(outcome["event"].sum()) < FEWEST_EVENTS:
            continue
        matrices = [np.stack(part["vector"].tolist()) for part in (fitted, tested)]
        if model in COLUMN_MODELS:  # units of their own: `fit_cox` has one scale for all
            scaler = fit_scaler(matrices[0], "columns")
            matrices = [scaler.transform(matrix) for matrix in matrices]
        vectors, asked = (torch.from_numpy(matrix.astype(np.float32)) for matrix in matrices)
        time = torch.from_numpy(outcome["time"].to_numpy(np.float32))
        cox = fit_cox(vectors, time, torch.from_numpy(outcome["event"].to_numpy() == 1))
        truth = known.loc[tested["patient_id"]]
        name = BAR if model == TABLE else str(model)
        cases += survival_cases(
            list(truth.index), truth["time"], truth["event"], cox.risk(asked).numpy(),
            cohort=cohort, task=TASK, model=name, fold=int(fold), seed=int(seed),
        )  # fmt: skip
    return cases
