"""Columns that restate a label: by name, by what they predict alone; and orders of rows or ids that give it away."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.cohort_file import CohortFile, ColumnSpec
from medform.cohort.columns import feature_columns
from medform.cohort.files import column
from medform.cohort.labels import task_label
from medform.cohort.split import inner_folds
from medform.cohort.survival import survival_frame
from medform.errors import InputError, Problem

__all__ = [
    "FEWEST",
    "NAME_ALIKE",
    "REFUSED_ABOVE",
    "WARNED_ABOVE",
    "Leak",
    "cross_fitted_auroc",
    "find_leaks",
    "name_similarity",
    "order_auroc",
    "refuse_leaks",
]

REFUSED_ABOVE = 0.98
WARNED_ABOVE = 0.85
ORDER_WARNED_ABOVE = 0.70
ORDER_P = 0.001
NAME_ALIKE = 0.85
FOLDS = 5
FEWEST = 5
"""With fewer patients of a class a column may separate them by luck, so that it is only warned of."""
FEW_VALUES = 10
"""A number with at most this many values also enters value by value, since it may be a code."""
SAME_ORDER = 0.98
"""Spearman's correlation with the survival time above which a number restates it, of patients with the event."""
FEWEST_TIMES = 10
"""With fewer patients with the event a number may be in the order of their times by luck."""
SURVIVAL = "survival"


@dataclass(frozen=True)
class Leak:
    """A column, an order, or a gene that gives a label away. ``auroc`` is None where names or values are the reason.

    ``verdict``: refused, warned, or allowed (``allow_as_feature``). ``task`` is empty where the label is no task's.
    """

    column: str
    task: str
    how: Literal["name", "auroc", "id_number", "row_order", "values"]
    verdict: Literal["refused", "warned", "allowed"]
    auroc: float | None
    message: str


def name_similarity(feature: str, label: str) -> float:
    """How much two column names are alike, 0 to 1: letters and digits only; 1 where one contains the other."""
    left, right = (re.sub(r"[^a-z0-9]", "", name.casefold()) for name in (feature, label))
    if not left or not right:
        return 0.0
    shorter, longer = sorted((left, right), key=len)
    if len(shorter) >= 4 and shorter in longer:
        return 1.0
    return SequenceMatcher(None, left, right, autojunk=False).ratio()


def cross_fitted_auroc(
    values: pd.Series, spec: ColumnSpec, labels: pd.Series, seed: int = 0
) -> tuple[float, int] | None:
    """AUROC of one column alone for a label, and the number of patients of the rarer class.

    ``labels``: 1, 0 or NaN, on the index of ``values`` (typed). A logistic regression (C = 1) on the
    standardised number with a flag for missing, or on one-hot categories, is fitted on four fifths of the
    patients and scores the others; only pairs of patients of one fold are compared. None with fewer than two
    patients of a class. Both directions count.
    """
    known = labels.dropna()
    y = known.to_numpy(dtype=np.float64)
    minority = int(min(y.sum(), len(y) - y.sum()))
    if minority < 2:
        return None
    design = _design(values.reindex(known.index), spec)
    folds = inner_folds([str(one) for one in known.index], y, min(FOLDS, minority), seed)
    fold = np.array([folds[str(one)] for one in known.index])
    won = pairs = 0.0
    for number in range(min(FOLDS, minority)):
        test = fold == number
        score = _fit_score(design[~test], y[~test], design[test])
        difference = score[y[test] == 1.0][:, None] - score[y[test] == 0.0][None, :]
        won += float((difference > 0).sum() + 0.5 * (difference == 0).sum())
        pairs += difference.size
    return (won / pairs, minority) if pairs else None


def _design(values: pd.Series, spec: ColumnSpec) -> NDArray[np.float64]:
    """Columns of one table column (N, k): a number, a missing flag, one-hot values; nothing is fitted here."""
    missing = values.isna().to_numpy(dtype=bool)
    parts = [missing.astype(np.float64)[:, None]]
    text = ["" if absent else str(value) for value, absent in zip(values, missing, strict=True)]
    if spec.type == "number":
        parts.append(values.to_numpy(dtype=np.float64, na_value=np.nan)[:, None])
    if spec.type != "number" or len(set(text)) <= FEW_VALUES:
        several = spec.type == "set"
        members = [set(cell.split(spec.separator) if several else [cell]) - {""} for cell in text]
        levels = sorted(set().union(*members))
        parts.append(
            np.array([[float(level in mine) for mine in members] for level in levels]).reshape(-1, len(text)).T
        )
    return np.hstack(parts)


def _fit_score(train: NDArray[np.float64], y: NDArray[np.float64], test: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logit of the test rows; the scale and the value for a missing number come from the training rows."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        middle = np.nan_to_num(np.nanmedian(train, axis=0))
        train, test = (np.where(np.isnan(part), middle, part) for part in (train, test))
        spread = train.std(axis=0)
        spread[spread == 0] = 1.0
        centre = train.mean(axis=0)
        model = LogisticRegression(C=1.0, max_iter=200)
        model.fit((train - centre) / spread, y)
    return model.decision_function((test - centre) / spread)


def order_auroc(
    order: Sequence[float] | NDArray[np.float64], labels: NDArray[np.float64]
) -> tuple[float, float] | None:
    """AUROC (of the better direction) and Mann-Whitney p of an order for a label (1, 0, NaN); None for one class."""
    from scipy.stats import mannwhitneyu

    order = np.asarray(order, dtype=np.float64)
    positive, negative = (order[(labels == value) & ~np.isnan(order)] for value in (1.0, 0.0))
    if not positive.size or not negative.size:
        return None
    test = mannwhitneyu(positive, negative)
    auroc = float(test.statistic) / (positive.size * negative.size)
    return max(auroc, 1.0 - auroc), float(test.pvalue)


def find_leaks(file: CohortFile, table: pd.DataFrame, seed: int = 0) -> list[Leak]:
    """Every leak between the features of a typed table (`type_table`, in the file's order) and what is asked.

    Asked are the tasks' labels and, where the file names survival, its event as one label more, and its time. Orders of
    rows and ids are compared with labels of tasks only.
    """
    leaks: list[Leak] = []
    known: list[tuple[str, pd.Series]] = []
    for task in file.tasks:
        labels = task_label(task, table, file.columns[task.column])
        known.append((task.column, labels))
        asked = _Asked(task.name, f"task '{task.name}'", task.column, labels)
        leaks += [*_label_leaks(file, table, asked, seed), *_order_leaks(asked, table.index)]
    if file.survival is not None:
        followed = survival_frame(file, table)
        event = column(followed, "event").astype(np.float64).reindex(table.index)
        if not any(name == file.survival.event and _says_all(labels, event) for name, labels in known):
            # of a few events one of several columns may say all by chance
            asked = _Asked(SURVIVAL, "survival", file.survival.event, event, FEWEST_TIMES)
            leaks += _label_leaks(file, table, asked, seed)
        times = column(followed, "time").loc[followed["event"] == 1]
        for name in feature_columns(file):
            leaks += _time_leaks(name, file.columns[name], file.survival.time, column(table, name), times)
    return leaks


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is predicted: a task or survival, ``what`` in words; its column and labels (1, 0, NaN).

    ``fewest``: patients of the rarer class from which on a column that says it all is refused.
    """

    task: str
    what: str
    column: str
    labels: pd.Series
    fewest: int = FEWEST


def _label_leaks(file: CohortFile, table: pd.DataFrame, asked: _Asked, seed: int) -> list[Leak]:
    leaks: list[Leak] = []
    for name in feature_columns(file):
        leaks += _column_leaks(name, file.columns[name], asked, column(table, name), seed)
    return leaks


def _says_all(labels: pd.Series, event: pd.Series) -> bool:
    """Whether a task's labels are those of the event wherever that is known, so that no leak would be told twice."""
    there = event.notna().to_numpy(dtype=bool)
    return bool((labels.to_numpy(dtype=np.float64)[there] == event.to_numpy(dtype=np.float64)[there]).all())


def _time_leaks(name: str, spec: ColumnSpec, time: str, values: pd.Series, times: pd.Series) -> list[Leak]:
    """A name like that of the survival time, or a number in its order; ``times`` of the patients with the event."""
    from scipy.stats import rankdata

    allowed = spec.allow_as_feature
    refused: Literal["refused", "allowed"] = "allowed" if allowed else "refused"
    allow = f"set columns.{name}.role: ignore, or allow it with columns.{name}.allow_as_feature: true"
    if name_similarity(name, time) >= NAME_ALIKE:
        text = f"its name is like that of the survival time '{time}': {allow}."
        return [Leak(name, SURVIVAL, "name", refused, None, text)]
    if spec.type != "number":
        return []
    mine, theirs = (one.to_numpy(dtype=np.float64) for one in (values.reindex(times.index), times))
    there = ~np.isnan(mine)
    mine, theirs = rankdata(mine[there]), rankdata(theirs[there])
    count = len(mine)
    if count < FEWEST or np.ptp(mine) == 0 or np.ptp(theirs) == 0:
        return []
    same = abs(float(np.corrcoef(mine, theirs)[0, 1]))
    if same <= SAME_ORDER:
        return []
    text = f"it is in the order of the survival time '{time}' (correlation {same:.2f} of {count} patients)"
    if count >= FEWEST_TIMES:
        return [Leak(name, SURVIVAL, "values", refused, None, f"{text}: it restates the time; {allow}.")]
    warned: Literal["warned", "allowed"] = "allowed" if allowed else "warned"
    return [Leak(name, SURVIVAL, "values", warned, None, f"{text}: look whether it is known by then.")]


def _column_leaks(name: str, spec: ColumnSpec, asked: _Asked, values: pd.Series, seed: int) -> list[Leak]:
    refused: Literal["refused", "allowed"] = "allowed" if spec.allow_as_feature else "refused"
    warned: Literal["warned", "allowed"] = "allowed" if spec.allow_as_feature else "warned"
    allow = f"set columns.{name}.role: ignore, or allow it with columns.{name}.allow_as_feature: true"
    found = []
    if name_similarity(name, asked.column) >= NAME_ALIKE:
        text = f"its name is like that of '{asked.column}', the label of {asked.what}: {allow}."
        found.append(Leak(name, asked.task, "name", refused, None, text))
    alone = cross_fitted_auroc(values, spec, asked.labels, seed)
    if alone is None or alone[0] <= WARNED_ABOVE:
        return found
    auroc, minority = alone
    text = f"this column alone predicts {asked.what} with AUROC {auroc:.2f}"
    if auroc > REFUSED_ABOVE and minority >= asked.fewest:
        found.append(Leak(name, asked.task, "auroc", refused, auroc, f"{text}: it restates the label; {allow}."))
    else:
        found.append(Leak(name, asked.task, "auroc", warned, auroc, f"{text}: look whether it is known by then."))
    return found


def _order_leaks(asked: _Asked, ids: pd.Index) -> list[Leak]:
    labels = asked.labels.to_numpy(dtype=np.float64)
    digits = [re.sub(r"\D", "", str(one)) for one in ids]
    orders: dict[Literal["id_number", "row_order"], tuple[NDArray[np.float64], str]] = {
        "id_number": (
            np.array([float(one) if one else np.nan for one in digits]),
            "the number in the patient id",
        ),
        "row_order": (np.arange(len(ids), dtype=np.float64), "the order of the rows"),
    }
    found = []
    for how, (order, what) in orders.items():
        result = order_auroc(order, labels)
        if result and result[0] >= ORDER_WARNED_ABOVE and result[1] < ORDER_P:
            text = f"{what} predicts {asked.what} with AUROC {result[0]:.2f}; nothing here depends on it."
            found.append(Leak("patient_id", asked.task, how, "warned", result[0], text))
    return found


def refuse_leaks(leaks: Sequence[Leak], where: str, what: str = "features give a label away") -> None:
    """Raise one `InputError` with every refused leak, if there are any; ``what`` they do."""
    problems = [Problem(leak.message, column=leak.column) for leak in leaks if leak.verdict == "refused"]
    if problems:
        raise InputError(
            f"{len(problems)} {what}.",
            where=where,
            consequence="Nothing was started.",
            fix="leave them out or allow them, each by its key.",
            problems=problems,
        )
