"""Reads what a report needs from a run folder, and from nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medform.reporting.flow import Flow, read_flow
from medform.reporting.montage import Montage, read_montage
from medform.reporting.table_one import TableOne, read_table_one
from medform.runs.folder import RunFolder
from medform.runs.log import read_log
from medform.runs.scores import ScoreRow, read_scores

if TYPE_CHECKING:
    import pandas as pd

FINISHED = (
    "complete",
    "folds",
)  # a run whose folds are done is whole, whether or not a final model was asked for
__all__ = ["FINISHED", "RunFacts", "RunFiles", "TaskFacts", "read_run"]


@dataclass(frozen=True)
class TaskFacts:
    """One task of the run: patients with a label and how many of them are positive."""

    name: str
    primary: bool = False
    n: int | None = None
    positive: int | None = None


@dataclass(frozen=True)
class RunFacts:
    """What ``run.json`` says that a reader of the report should know.

    ``planned`` and ``spent`` hold numbers, or mappings of numbers by stage, under free names (cpu_minutes,
    steps, passes, wall_minutes, peak_memory_gb). ``folds_run`` are the folds that were run, ``folds`` how
    many there are. ``warnings`` are those of the plan. ``detectable`` maps a task to the difference in
    AUROC that its n shows with 80 % power. ``commit`` is that of the code which began the run, ``judged_commit``
    of that which made the figures.
    """

    status: str = "unknown"
    recipe: str = "unknown"
    cohort: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    judged_commit: str | None = None
    device: Any = None
    seed: int | None = None
    argv: tuple[str, ...] = ()
    started: str | None = None
    finished: str | None = None
    planned: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, Any] = field(default_factory=dict)
    selected: dict[str, str] = field(default_factory=dict)
    tasks: tuple[TaskFacts, ...] = ()
    detectable: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    transductive: bool = False
    folds: int | None = None
    folds_run: tuple[int, ...] = ()
    collapsed: tuple[Any, ...] = ()


@dataclass(frozen=True)
class RunFiles:
    """Everything a report is made from; parts that the run does not have (yet) are None or empty."""

    folder: Path
    facts: RunFacts
    rows: list[ScoreRow]
    log: list[dict[str, Any]]
    curves: pd.DataFrame | None
    attention: pd.DataFrame | None
    flow: Flow | None
    table_one: TableOne | None
    montage: Montage | None


def read_run(folder: Path) -> RunFiles:
    """Read a run folder.

    Raises `InputError` where there is no ``run.json``, where it is of a newer version, or where a file is
    broken.
    """
    facts = _read_facts(folder)
    scores = folder / "scores.json"
    return RunFiles(
        folder=folder,
        facts=facts,
        rows=read_scores(scores) if scores.is_file() else [],
        log=read_log(folder / "metrics.jsonl"),
        curves=_read_parquet(folder / "curves.parquet"),
        attention=_read_parquet(folder / "attention.parquet"),
        flow=read_flow(folder),
        table_one=read_table_one(folder),
        montage=read_montage(folder),
    )


def _read_facts(folder: Path) -> RunFacts:
    tree = RunFolder(folder).record()
    known = {name: tree[name] for name in RunFacts.__dataclass_fields__ if tree.get(name) is not None}
    for name in ("argv", "notes", "warnings", "folds_run", "collapsed"):
        known[name] = tuple(known.get(name, ()))
    known["tasks"] = tuple(
        TaskFacts(**{key: task[key] for key in TaskFacts.__dataclass_fields__ if key in task})
        for task in known.get("tasks", ())
    )
    return RunFacts(**known)


def _read_parquet(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    import pandas as pd

    return pd.read_parquet(path)
