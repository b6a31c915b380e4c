"""Survival from the vectors of a run: a Cox model for each model and fold, judged on the fold's test patients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medform.evaluation.survival import BAR, survival_cases, survival_rows
from medform.evaluation.vectors import TABLE
from medform.objectives.cox import fit_cox

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort
    from medform.evaluation.settings import EvaluationSettings
    from medform.runs.scores import ScoreRow

__all__ = ["judge_survival"]

TASK = "survival"
FEWEST_EVENTS = 2
"""Events among a fold's fitted patients below which nothing is fitted in it."""


def judge_survival(
    frame: pd.DataFrame, cohort: Cohort, settings: EvaluationSettings, notes: dict[str, str]
) -> tuple[list[ScoreRow], list[dict[str, Any]]]:
    """Rows and cases of every model in ``frame`` (embeddings.parquet); the encoded table's is `table_cox`, the bar.

    ``notes``: model -> a remark that its rows carry. Fitted on training and validation patients, as the other
    readouts; risk sets go over the whole fold.
    """
    import pandas as pd
    import torch

    if cohort.file.survival is None:
        return [], []
    known = cohort.survival()
    chosen: Any = frame[(frame["supports"] == "aligned") & frame["patient_id"].isin(list(known.index))]
    cases: list[dict[str, Any]] = []
    for (model, fold, seed), rows in chosen.groupby(["model", "fold", "seed"], sort=True):
        tested = rows[rows["part"] == "test"]
        fitted = rows[rows["part"].isin(["train", "validation"])].sort_values("patient_id")
        outcome = known.loc[fitted["patient_id"]]
        if tested.empty or int(outcome["event"].sum()) < FEWEST_EVENTS:
            continue
        vectors = torch.from_numpy(np.stack(fitted["vector"].tolist()).astype(np.float32))
        time = torch.from_numpy(outcome["time"].to_numpy(np.float32))
        event = torch.from_numpy(outcome["event"].to_numpy() == 1)
        cox = fit_cox(vectors, time, event)
        risk = cox.risk(torch.from_numpy(np.stack(tested["vector"].tolist()).astype(np.float32))).numpy()
        ids = tested["patient_id"].tolist()
        truth = known.loc[ids]
        cases += survival_cases(
            ids,
            truth["time"],
            truth["event"],
            risk,
            cohort=cohort.name,
            task=TASK,
            model=BAR if model == TABLE else str(model),
            fold=int(fold),
            seed=int(seed),
        )
    return (survival_rows(pd.DataFrame(cases), settings, notes=notes) if cases else []), cases
