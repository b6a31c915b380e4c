"""Follow-up of the patients: a time, and whether the event happened or the patient was lost to sight before it.

Only patients with both are there. A time is a duration from the same moment for everybody (months, days), never
negative; an event is 1 where it happened and 0 where the follow-up ended without it (censored). A cell that is only a
limit is no time and no event, but for '>60' without the event: that is what follow-up of 60 without it means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.cohort_file import CohortFile, ColumnSpec, Survival, Task
from medform.cohort.files import column
from medform.cohort.labels import limits, task_label
from medform.errors import InputError

__all__ = ["SurvivalFault", "survival_faults", "survival_frame", "survival_notes"]


@dataclass(frozen=True)
class SurvivalFault:
    """One fault: of the cell of a patient and column, or (``patient_id`` None) of the column."""

    patient_id: str | None
    column: str
    value: str | None
    problem: str
    suggestion: str


def survival_frame(file: CohortFile, clinical: pd.DataFrame) -> pd.DataFrame:
    """Index patient_id in the order of ``clinical``; ``time`` float64, in the unit of its column, and ``event`` int64.

    Raises `InputError` where the cohort file names no survival, and where a time or an event is only a limit.
    """
    if file.survival is None:
        raise InputError(
            "the cohort has no survival times.",
            where=f"cohort '{file.name}'",
            fix="set survival: {time: <column>, event: <column>} in the cohort file and ingest again.",
        )
    if faults := _limit_faults(file, file.survival, clinical):
        raise InputError(
            f"{len(faults)} times or events are only limits.",
            where=f"cohort '{file.name}', survival",
            fix=f"{faults[0].suggestion} Then ingest again.",
        )
    time = column(clinical, file.survival.time).to_numpy(dtype=np.float64, na_value=np.nan)
    event = _events(file.survival, clinical, file.columns[file.survival.event]).to_numpy(dtype=np.float64)
    known = ~(np.isnan(time) | np.isnan(event))
    index = pd.Index(clinical.index[known], name="patient_id")
    return pd.DataFrame({"time": time[known], "event": event[known].astype(np.int64)}, index=index)


def survival_faults(file: CohortFile, clinical: pd.DataFrame) -> list[SurvivalFault]:
    """Every cell that can be no time or no event, and what makes the columns useless; empty without survival."""
    if file.survival is None:
        return []
    spec, declared = file.survival, file.columns[file.survival.event]
    times = column(clinical, spec.time).astype("float64")
    faults = [
        SurvivalFault(str(one), spec.time, f"{value:g}", "a time of follow-up cannot be negative.", "Correct the cell.")
        for one, value in times.items()
        if value < 0
    ]
    if declared.type == "number" and spec.positive is None:
        hint = (
            "1 means that it happened, 0 that it did not; list other codes in survival.positive: [...], "
            f"and codes for unknown in columns.{spec.event}.sentinels."
        )
        faults += [
            SurvivalFault(str(one), spec.event, f"{value:g}", "an event is 1 or 0.", hint)
            for one, value in column(clinical, spec.event).items()
            if pd.notna(value) and value not in (0.0, 1.0)
        ]
    faults += _limit_faults(file, spec, clinical)
    if faults:
        return faults
    try:
        followed = len(survival_frame(file, clinical))
    except InputError as error:
        return [SurvivalFault(None, spec.event, None, error.what, error.fix or "")]
    if followed == 0:
        hint = "Fill the columns in, or leave survival out."
        return [SurvivalFault(None, spec.time, None, "no patient has both a time and an event.", hint)]
    return []


def survival_notes(file: CohortFile, clinical: pd.DataFrame) -> list[str]:
    """What is odd about faultless survival columns, a line each."""
    if file.survival is None:
        return []
    frame = survival_frame(file, clinical)
    names = file.survival.time, file.survival.event
    partial = sum(column(clinical, name).notna().to_numpy(dtype=bool).astype(int) for name in names) == 1
    notes = []
    if count := int(np.count_nonzero(partial)):
        notes.append(f"survival: {count} patients have only one of {names[0]} and {names[1]}; they are left out.")
    if len(classes := set(frame["event"].tolist())) == 1:
        what = "the event happened to everybody" if classes == {1} else "the event happened to nobody"
        notes.append(f"survival: {what}, all {len(frame)} patients.")
    return notes


def _limit_faults(file: CohortFile, spec: Survival, clinical: pd.DataFrame) -> list[SurvivalFault]:
    """Cells of which only a limit is known where a time or an event must be exact."""
    faults = []
    for name, what in ((spec.time, "time of follow-up"), (spec.event, "event")):
        signs = limits(clinical, name, file.columns[name])
        if signs is None:
            continue
        followed = _without_event(file, spec, clinical) if name == spec.time else np.zeros(len(clinical), bool)
        hint = f"Give the exact value, or add the cell to columns.{name}.missing to leave the patient out."
        for one, sign, value, open_end in zip(clinical.index, signs, column(clinical, name), followed, strict=True):
            if pd.notna(sign) and pd.notna(value) and not (open_end and sign in (">", ">=")):
                faults.append(SurvivalFault(str(one), name, f"{sign}{value:g}", f"a limit is no {what}.", hint))
    return faults


def _without_event(file: CohortFile, spec: Survival, clinical: pd.DataFrame) -> NDArray[np.bool_]:
    """Who is known not to have had the event (N,); everybody where events cannot be read, which is told elsewhere."""
    try:
        return (_events(spec, clinical, file.columns[spec.event]) == 0.0).to_numpy(dtype=bool)
    except InputError:
        return np.ones(len(clinical), bool)


def _events(spec: Survival, clinical: pd.DataFrame, declared: ColumnSpec) -> pd.Series:
    """1.0, 0.0 or NaN of every patient; `InputError` for words that never occur."""
    task = Task(name="survival", label=f"clinical.{spec.event}", predicted_at="follow_up", positive=spec.positive)
    return task_label(task, clinical, declared)
