"""Roles and times of columns: what may enter a tower, and what the cohort file contradicts itself in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from medform.cohort.cohort_file import MOMENTS, CohortFile, ColumnSpec, Moment, Task
from medform.errors import Problem, nearest

__all__ = ["feature_columns", "group_notes", "known_in_time", "rule_problems"]

ENCODABLE = ("number", "category", "ordinal", "set", "boolean")


def known_in_time(known_at: Moment | None, predicted_at: Moment) -> bool:
    """Whether a value known at one moment may serve a prediction at another; an unstated moment never may."""
    return known_at is not None and MOMENTS.index(known_at) <= MOMENTS.index(predicted_at)


def feature_columns(file: CohortFile, task: str | None = None) -> list[str]:
    """Names of the columns that may enter a tower, in the order of the cohort file.

    For ``task``, those known by the time it is predicted; without one, those that are known in time for every
    task and for survival (an alignment serves all of them, so it may know no more than the earliest).
    """
    asked: list[Moment] = [one.predicted_at for one in (file.tasks if task is None else [file.task(task)])]
    if task is None and file.survival is not None:
        asked.append(file.survival.predicted_at)
    return [
        name
        for name, column in file.columns.items()
        if column.role == "feature"
        and column.known_at is not None
        and all(known_in_time(column.known_at, moment) for moment in asked)
    ]


def group_notes(file: CohortFile) -> list[str]:
    """A line for each column with the role ``group`` where no column keeps patients together."""
    if file.splits.group is not None:
        return []
    return [
        f"column '{name}' (role group) does not keep patients together unless splits.group names it."
        for name, column in file.columns.items()
        if column.role == "group"
    ]


def rule_problems(file: CohortFile, where: str) -> list[Problem]:
    """Every contradiction between the keys of a cohort file; each names the column or task and the key to set."""
    problems = [*_table_problems(file), *_task_problems(file), *_survival_problems(file), *_mask_problems(file)]
    problems += _group_problems(file)
    for name, column in file.columns.items():
        if column.role == "feature":
            problems += _feature_problems(name, column, file)
        elif column.role == "time" and column.type not in ("number", "date"):
            problems.append(
                _problem(name, f"a time cannot be a {column.type}.", f"Set columns.{name}.type: number or date.")
            )
    return [Problem(p.problem, file=where, column=p.column, value=p.value, suggestion=p.suggestion) for p in problems]


def _problem(column: str, problem: str, suggestion: str, value: str | None = None) -> Problem:
    return Problem(problem, column=column, value=value, suggestion=suggestion)


def _feature_problems(name: str, column: ColumnSpec, file: CohortFile) -> Iterable[Problem]:
    if column.type not in ENCODABLE:
        yield _problem(
            name,
            f"a feature cannot be a {column.type}.",
            f"Set columns.{name}.type to one of {', '.join(ENCODABLE)}, or its role to ignore.",
        )
    if column.known_at is None:
        yield _problem(
            name,
            "a feature must say when its value is known.",
            f"Set columns.{name}.known_at to one of {', '.join(MOMENTS)}.",
        )
        return
    asked: list[tuple[str, Moment, str]] = [
        (f"task '{task.name}'", task.predicted_at, "predicted_at of that task") for task in file.tasks
    ]
    if file.survival is not None:
        asked.append(("survival", file.survival.predicted_at, "survival.predicted_at"))
    for what, moment, key in asked:
        if not known_in_time(column.known_at, moment):
            yield _problem(
                name,
                f"known at {column.known_at}, after {what} is predicted ({moment}).",
                f"Set columns.{name}.role: ignore or outcome, or a later {key}.",
            )
    for task in file.tasks:
        if task.column == name and not column.allow_as_feature:
            yield _problem(
                name,
                f"this feature is the label of task '{task.name}'.",
                f"Set columns.{name}.role: label; to use it all the same, its allow_as_feature: true.",
            )


def _table_problems(file: CohortFile) -> Iterable[Problem]:
    table = file.clinical
    if table is None:
        if file.columns or file.tasks or file.survival:
            yield Problem(
                "columns, tasks and survival need a clinical table.",
                column="tables.clinical",
                suggestion="Set tables.clinical: {path: ..., patient_id: ...}.",
            )
        return
    identifier = file.columns.get(table.patient_id)
    if identifier is not None and identifier.role != "id":
        yield _problem(
            table.patient_id,
            f"this is the patient id, which cannot be a {identifier.role}.",
            f"Set columns.{table.patient_id}.role: id, or leave the column out.",
        )
    named = {"tables.clinical.visit.by": table.visit.by if table.visit else None}
    if file.survival is not None:
        named |= {"survival.time": file.survival.time, "survival.event": file.survival.event}
    for key, column in named.items():
        if column is not None and column not in file.columns:
            yield _undeclared(key, column, file)
    if table.visit and (by := file.columns.get(table.visit.by)) and by.type not in ("number", "date"):
        yield _problem(
            table.visit.by,
            "visits are ordered by a date or a number.",
            f"Set columns.{table.visit.by}.type: date.",
        )


def _survival_problems(file: CohortFile) -> Iterable[Problem]:
    """Time and event are outcomes: neither may enter a model."""
    if file.survival is None or file.clinical is None:
        return
    time, event = file.columns.get(file.survival.time), file.columns.get(file.survival.event)
    if time is not None and time.role not in ("time", "outcome"):
        hint = f"Set columns.{file.survival.time}.role: time (or outcome)."
        yield Problem(f"a time of follow-up cannot be a {time.role}.", column="survival.time", suggestion=hint)
    if time is not None and time.type != "number":
        hint = f"Set columns.{file.survival.time}.type: number, with months or days since one moment."
        yield Problem(f"a time of follow-up is a duration, not a {time.type}.", column="survival.time", suggestion=hint)
    if event is None:
        return
    if event.role not in ("outcome", "label"):
        hint = f"Set columns.{file.survival.event}.role: outcome."
        yield Problem(f"an event cannot be a {event.role}.", column="survival.event", suggestion=hint)
    if file.survival.positive is None and event.type not in ("boolean", "number"):
        hint = "Set survival.positive: [...] with the values that mean that it happened; all others are censored."
        text = f"columns.{file.survival.event} is a {event.type}, so it must be said which values are events."
        yield Problem(text, column="survival.positive", suggestion=hint)


def _group_problems(file: CohortFile) -> Iterable[Problem]:
    """The column that keeps patients together is a declared one, and not the id, which no two patients share."""
    name = file.splits.group
    if name is None:
        return
    if file.clinical is None:
        hint = "Set tables.clinical, or leave the key out."
        yield Problem("groups are a column of the clinical table.", column="splits.group", suggestion=hint)
    elif name == file.clinical.patient_id:
        hint = "Name the column whose value the patients of one group share, or leave the key out."
        yield Problem("every patient has another id.", column="splits.group", value=name, suggestion=hint)
    elif name not in file.columns:
        yield _undeclared("splits.group", name, file)


def _mask_problems(file: CohortFile) -> Iterable[Problem]:
    if file.masks is not None and file.masks.path is not None and file.images.index is not None:
        hint = "Name their column with index.mask; masks.values may stay."
        yield Problem("slices of an index have their masks in the index.", column="masks.path", suggestion=hint)


def _undeclared(key: str, column: str, file: CohortFile) -> Problem:
    close = nearest(column, list(file.columns))
    hint = f"Did you mean '{close[0]}'?" if close else f"Declare columns.{column}: {{role: ..., type: ...}}."
    return Problem(f"no column '{column}' is declared.", column=key, value=column, suggestion=hint)


def _task_problems(file: CohortFile) -> Iterable[Problem]:
    names = Counter([task.name for task in file.tasks] + [task.name for task in file.slice_tasks])
    for name in [name for name, count in names.items() if count > 1]:
        yield Problem("two tasks have this name.", column="tasks", value=name, suggestion="Rename one of them.")
    if sum(task.primary for task in file.tasks) > 1:
        yield Problem("more than one task is primary.", column="tasks", suggestion="Leave 'primary: true' on one.")
    for name in file.splits.stratify or []:
        if name not in [task.name for task in file.tasks]:
            close = nearest(name, [task.name for task in file.tasks])
            hint = f"Did you mean '{close[0]}'?" if close else "Name tasks of this file, or leave the key out."
            yield Problem("no such task.", column="splits.stratify", value=name, suggestion=hint)
    if file.slice_tasks and file.images.index is None:
        yield Problem(
            "slice tasks read their labels from an index table.",
            column="slice_tasks",
            suggestion="Set images.index.",
        )
    for task in file.tasks:
        key = f"tasks.{task.name}"
        column = file.columns.get(task.column)
        if column is None:
            yield _undeclared(f"{key}.label", task.column, file)
            continue
        if column.role not in ("label", "outcome", "feature"):
            yield Problem(
                f"column '{task.column}' has the role {column.role}.",
                column=f"{key}.label",
                suggestion=f"Set columns.{task.column}.role: label.",
            )
        yield from _positive_problems(task, column, key)


def _positive_problems(task: Task, column: ColumnSpec, key: str) -> Iterable[Problem]:
    where = f"columns.{task.column}"
    if task.threshold is not None and column.type != "number":
        yield Problem(
            f"a threshold needs a number; {where} is a {column.type}.", column=f"{key}.threshold",
            suggestion="List the positive values instead: positive: [...].",
        )  # fmt: skip
    if task.positive is None and column.type in ("category", "ordinal", "text", "set", "date"):
        yield Problem(
            f"{where} is a {column.type}, so it must be said which values are positive.",
            column=f"{key}.positive",
            suggestion="Set positive: [...] with the values that count as 1; all others count as 0.",
        )
    if task.positive is not None and column.type == "set":
        for value in [one for one in task.positive if column.separator in one]:
            hint = "Name one member; a patient is positive who has at least one of them."
            yield Problem(
                f"{where} is compared member by member.", column=f"{key}.positive", value=value, suggestion=hint
            )
    if task.positive is not None and column.type == "ordinal":
        for value in task.positive:
            if value not in (column.levels or []):
                close = nearest(value, column.levels or [])
                hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(column.levels or [])}."
                yield Problem(f"not a level of {where}.", column=f"{key}.positive", value=value, suggestion=hint)
