"""From a column to a binary label: 1, 0, or NaN where the value is missing."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.cohort_file import ColumnSpec, SliceTask, Task
from medform.cohort.files import column
from medform.errors import InputError, nearest

__all__ = ["CENSORED", "binary_label", "check_classes", "limits", "slice_label", "task_label"]

CENSORED = ".censored"
"""Ending of the column beside a number column that holds the signs of its limits."""

COMPARISON = re.compile(r"^\s*(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)\s*$")
COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def task_label(task: Task, frame: pd.DataFrame, spec: ColumnSpec) -> pd.Series:
    """`binary_label` of ``task`` from a typed table (`type_table`, or a store's), with the signs of its limits."""
    return binary_label(task, column(frame, task.column), spec, limits(frame, task.column, spec))


def limits(frame: pd.DataFrame, name: str, spec: ColumnSpec) -> pd.Series | None:
    """Signs of the cells of column ``name`` that only gave a limit, NA elsewhere; None where it reads no limits."""
    return column(frame, name + CENSORED) if spec.censored and name + CENSORED in frame else None


def binary_label(task: Task, values: pd.Series, spec: ColumnSpec, signs: pd.Series | None = None) -> pd.Series:
    """Label of ``task``: float 1.0 / 0.0 / NaN on the index of ``values`` (typed as in the store).

    ``signs``: '<', '<=', '>' or '>=' where a value is only a limit. Such a patient has a label where the limit lies
    wholly on one side of the threshold, and none otherwise. Of a set one positive member is enough. Raises
    `InputError` where a number is neither 0/1 nor thresholded, or a positive value never occurs.
    """
    where = f"task '{task.name}', column '{task.column}'"
    missing = values.isna().to_numpy(dtype=bool)
    if signs is not None:
        missing = missing | _undecided(values, signs, task.threshold)
    if task.threshold is not None:
        positive = values.astype("float64").to_numpy() >= task.threshold
        if signs is not None:
            # '<1' is below a threshold of 1, though its limit is not
            positive = positive & ~signs.isin(["<", "<="]).to_numpy(dtype=bool)
    elif task.positive is not None and spec.type == "set":
        sets = [
            set() if absent else set(str(value).split(spec.separator))
            for value, absent in zip(values, missing, strict=True)
        ]
        _refuse_unknown(task.positive, sorted(set().union(*sets)), where)
        positive = np.array([not members.isdisjoint(task.positive) for members in sets], dtype=bool)
    elif task.positive is not None:
        words = [_word(value) for value in values]
        known = sorted({word for word, absent in zip(words, missing, strict=True) if not absent})
        wanted = [_number_word(word) if spec.type == "number" else word for word in task.positive]
        if spec.type == "boolean":
            wanted = [word.lower() for word in wanted]
        _refuse_unknown(wanted, known, where)
        positive = np.array([word in set(wanted) for word in words], dtype=bool)
    else:
        if other := _not_binary(values.loc[~missing]):
            raise InputError(
                f"the label holds {other}, not only 0 and 1.",
                where=where,
                fix=f"set positive: [...] or threshold: ... for task '{task.name}'; "
                f"codes for unknown belong into columns.{task.column}.sentinels.",
            )
        positive = values.astype("float64").to_numpy(na_value=np.nan) == 1.0
    return _as_series(positive, missing, values.index, task.name)


def slice_label(task: SliceTask, values: pd.Series) -> pd.Series:
    """Label of a slice task from the text of an index column: float 1.0 / 0.0 / NaN (missing or empty cell)."""
    where = f"slice task '{task.name}', index column '{task.column}'"
    text = values.astype("string").str.strip()
    missing = (text.isna() | (text == "")).to_numpy(dtype=bool)
    words = ["" if absent else str(word) for word, absent in zip(text, missing, strict=True)]
    known = sorted(set(words) - {""})
    comparison = COMPARISON.match(task.positive[0]) if task.positive and len(task.positive) == 1 else None
    if comparison:
        sign, bound = COMPARE[comparison[1]], float(comparison[2])
        numbers = np.array([_number(word, where) for word in words])
        positive = sign(numbers, bound)
    elif task.positive is not None:
        _refuse_unknown(task.positive, known, where)
        positive = np.array([word in set(task.positive) for word in words], dtype=bool)
    else:
        numbers = {word: _number(word, where) for word in known}
        if other := [word for word, number in numbers.items() if number not in (0.0, 1.0)]:
            raise InputError(
                f"the label holds '{other[0]}', not only 0 and 1.",
                where=where,
                fix=f"set slice_tasks positive: '> 0' (or a list) for task '{task.name}'.",
            )
        positive = np.array([numbers.get(word, 0.0) == 1.0 for word in words], dtype=bool)
    return _as_series(positive, missing, values.index, task.name)


def check_classes(task: str, labels: pd.Series | NDArray[np.float64], folds: int) -> str | None:
    """Why labels (1, 0, NaN) cannot be divided into folds, with the smallest number that works; else None."""
    values = np.asarray(labels, dtype=np.float64)
    positive, negative = int(np.count_nonzero(values == 1.0)), int(np.count_nonzero(values == 0.0))
    few = "positive" if positive <= negative else "negative"
    if positive + negative == 0:
        return f"task '{task}' has no label at all."
    if min(positive, negative) == 0:
        only = "negative" if few == "positive" else "positive"
        return f"task '{task}' has one class only: all {positive + negative} labelled patients are {only}."
    if min(positive, negative) < folds:
        return (
            f"task '{task}' has {min(positive, negative)} {few} patients for {folds} folds; "
            f"at least {folds} patients of each class are needed."
        )
    return None


def _undecided(values: pd.Series, signs: pd.Series, threshold: float | None) -> NDArray[np.bool_]:
    """Which values are limits (N,) that do not say on which side of the threshold the value lies, or what it is."""
    if threshold is None:
        return signs.notna().to_numpy(dtype=bool)
    limit = values.astype("float64").to_numpy()
    sign = signs.fillna("").to_numpy(dtype=str)
    below = ((sign == "<") & (limit <= threshold)) | ((sign == "<=") & (limit < threshold))
    above = np.isin(sign, (">", ">=")) & (limit >= threshold)
    return (sign != "") & ~below & ~above


def _as_series(positive: np.ndarray, missing: np.ndarray, index: pd.Index, name: str) -> pd.Series:
    return pd.Series(np.where(missing, np.nan, np.asarray(positive, dtype=np.float64)), index=index, name=name)


def _word(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        return _number_word(str(value))
    return str(value)


def _number_word(word: str) -> str:
    try:
        return f"{float(word):.15g}"
    except ValueError:
        return word


def _number(word: str, where: str) -> float:
    if word == "":
        return float("nan")
    try:
        return float(word)
    except ValueError:
        raise InputError(f"'{word}' is not a number.", where=where, fix="list the positive values.") from None


def _not_binary(values: pd.Series) -> str | None:
    if pd.api.types.is_bool_dtype(values.dtype):
        return None
    other = sorted({_word(value) for value in values} - {"0", "1"})
    return f"'{other[0]}'" if other else None


def _refuse_unknown(wanted: Sequence[str], known: Sequence[str], where: str) -> None:
    """Refuse a spelling that is not quite the table's, and a list of which nothing occurs.

    A value that these patients happen not to have is no fault: the same cohort file serves other patients.
    """
    spelt = {word.casefold().strip(): word for word in known}
    for word in wanted:
        if word not in known and word.casefold().strip() in spelt:
            there = spelt[word.casefold().strip()]
            raise InputError(
                f"positive value '{word}' is spelt '{there}' in the table.", where=where, fix="spell it so."
            )
    if known and not set(wanted) & set(known):
        close = nearest(wanted[0], known) if wanted else []
        hint = f"did you mean '{close[0]}'?" if close else f"values found: {', '.join(known[:12])}."
        raise InputError(f"no positive value ({', '.join(wanted)}) occurs.", where=where, fix=hint)
