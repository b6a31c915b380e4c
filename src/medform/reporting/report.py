"""Run folder to one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medform.cohort.files import column
from medform.metrics.attention import entropy_ratio
from medform.reporting import words
from medform.reporting.controls import (
    Difference,
    TaskScores,
    Verdict,
    differences,
    task_scores,
    verdict,
    warnings,
)
from medform.reporting.drawing import Picture, publish_svg
from medform.reporting.few_shot import Panel, common_limits, panels
from medform.reporting.figures import (
    RocPoint,
    draw_attention_profile,
    draw_controls,
    draw_few_shot,
    draw_roc,
    draw_training,
)
from medform.reporting.flow import Flow, counted, draw_flow, flow_rows
from medform.reporting.montage import FLAT, MontagePatient
from medform.reporting.overlays import data_address
from medform.reporting.provenance import banners, plan_rows, provenance_rows
from medform.reporting.run_files import RunFacts, RunFiles, TaskFacts, read_run
from medform.reporting.segmentation import segmentation_sections
from medform.runs.folder import write_atomically
from medform.runs.scores import ScoreRow

__all__ = ["MOST_BYTES", "make_report"]

MOST_BYTES = 6_000_000
MAIN = "main"  # the variant that is the recipe itself
LOGGED = {"loss": "Loss", "retrieval_at_1": "Retrieval@1", "effective_rank": "Effective rank"}
PROBED = "slice_probe."
"""How the log names the probes of training slices, the task's name after it."""


@dataclass(frozen=True)
class TaskSection:
    """Everything the page shows of one task."""

    scores: TaskScores
    verdict: Verdict
    warnings: list[str]
    differences: list[Difference]
    controls: Picture | None
    notes: list[str]
    few_shot: list[tuple[Panel, Picture]]
    roc: Picture | None

    @property
    def tested(self) -> int:
        """The most patients that any model of the table was scored on."""
        cells = [row for metrics in self.scores.cells.values() for row in metrics.values()]
        return max((row.n_patients for row in cells if row.n_patients), default=0)

    def note_mark(self, row: ScoreRow) -> str:
        """The letter of a row's note."""
        return words.mark(self.notes.index(row.note)) if row.note in self.notes else ""


@dataclass(frozen=True)
class AttentionPatient:
    """A patient of the montage with the tiles as data addresses."""

    facts: MontagePatient
    profile: Picture
    images: list[str | None]


def make_report(run: Path, *, images: bool = True) -> Path:
    """Write ``RUN/report.html`` and ``RUN/figures/*.svg|csv`` from the files of the run alone; returns the page's path.

    ``images=False`` leaves out every picture of a patient. The page asks for nothing from any network, stays
    below `MOST_BYTES` (patients of the montage are left out until it does, and it says so), and is the same
    bytes each time. Raises `InputError` where ``run`` is no run folder or one of its files is broken or of a
    newer version.
    """
    files = read_run(run)
    content = _content(files, images=images)
    patients = _attention(files, images=images)
    shown = len(patients)
    while True:
        page = _render(content | {"attention": patients[:shown], "left_out": len(patients) - shown})
        if len(page.encode()) <= MOST_BYTES or shown == 0:
            break
        shown -= 1
    path = run / "report.html"
    write_atomically(path, page)
    return path


def _render(content: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.globals.update(words=words, counted=counted)
    template = environment.from_string((here / "template.html").read_text(encoding="utf-8"))
    return template.render(css=(here / "report.css").read_text(encoding="utf-8"), **content)


def _content(files: RunFiles, *, images: bool) -> dict[str, Any]:
    """Everything that the template shows but the patients of the montage; draws and saves the figures."""
    facts = files.facts
    return {
        "facts": facts,
        "banners": banners(facts, files.rows),
        "tasks": _tasks(files),
        "segmentation": segmentation_sections(files, images=images),
        "flow": _flow(files.folder, files.flow),
        "exclusions": files.flow.exclusions if files.flow else (),
        "table_one": files.table_one,
        "training": _training(files),
        "other_tables": _other_tables(files),
        "montage": files.montage,
        "attention_words": _attention_words(files),
        "flat": FLAT,
        "images": images,
        "provenance": provenance_rows(facts),
        "plan": plan_rows(facts),
    }


def _tasks(files: RunFiles) -> list[TaskSection]:
    facts = _task_facts(files.facts, files.rows)
    return [_task_section(files, task) for task in facts]


def _task_facts(facts: RunFacts, rows: Sequence[ScoreRow]) -> list[TaskFacts]:
    """The tasks of run.json, primary first, then any that only the scores name."""
    known = sorted(facts.tasks, key=lambda task: not task.primary)
    names = {task.name for task in known}
    judged = {row.task for row in rows if row.protocol in ("cross_validation", "few_shot") and row.task}
    return [*known, *(TaskFacts(name) for name in sorted(judged - names))]


def _task_section(files: RunFiles, task: TaskFacts) -> TaskSection:
    scores = task_scores(files.rows, task, files.facts.selected.get(task.name))
    shown = [row for model in scores.models for metric in scores.metrics if (row := scores.cells[model].get(metric))]
    few_shot = panels(files.rows, task.name)
    limits = common_limits(few_shot)
    return TaskSection(
        scores=scores,
        verdict=verdict(scores, files.facts),
        warnings=warnings(scores),
        differences=differences(scores, files.facts.detectable.get(task.name)),
        controls=draw_controls(files.folder, scores, "auroc"),
        notes=list(dict.fromkeys(row.note for row in shown if row.note)),
        few_shot=[(panel, draw_few_shot(files.folder, panel, limits)) for panel in few_shot],
        roc=_roc(files, task.name),
    )


def _roc(files: RunFiles, task: str) -> Picture | None:
    """The curves named ``roc/<task>/<model>``, a list of points a model."""
    if files.curves is None:
        return None
    lines: dict[str, list[RocPoint]] = {}
    columns = (column(files.curves, key) for key in ("name", "model", "x", "y", "ci_low", "ci_high"))
    for name, model, *point in zip(*columns, strict=True):
        if name == f"roc/{task}/{model}":
            lines.setdefault(str(model), []).append(RocPoint(*(float(value) for value in point)))
    return draw_roc(files.folder, task, lines)


def _other_tables(files: RunFiles) -> list[tuple[str, list[TaskScores]]]:
    """The protocols that have no section of their own, a table of scores for each of their tasks."""
    titles = {
        "slice_probe": "Slice probes",
        "retrieval": "Retrieval",
        "external": "On other cohorts",
        "survival": "Survival",
    }
    found = []
    for protocol, title in titles.items():
        tasks = sorted({row.task or "" for row in files.rows if row.protocol == protocol})
        if tasks:
            found.append((title, [task_scores(files.rows, TaskFacts(task), protocol=protocol) for task in tasks]))
    return found


def _flow(run: Path, flow: Flow | None) -> Picture | None:
    if flow is None or not flow.steps:
        return None
    rows = flow_rows(flow)
    said = "; ".join(f"{step.name}: {', '.join(step.counts)}" for step in flow.steps)
    return publish_svg(run, "flow", draw_flow(flow), rows, "", "", f"Cohort flow. {said}.")


def _training(files: RunFiles) -> list[tuple[str, list[Picture]]]:
    """Pictures of every stage of the recipe itself (variant "main"), folds as lines."""
    lines: dict[str, dict[tuple[Any, Any], list[dict[str, Any]]]] = {}
    for row in files.log:
        if row.get("variant", MAIN) == MAIN and row.get("fold") is not None:
            lines.setdefault(str(row["stage"]), {}).setdefault((row["fold"], row.get("seed", 0)), []).append(row)
    found = []
    for stage, by_fold in lines.items():
        ordered = [by_fold[key] for key in sorted(by_fold)]
        keys = sorted({key for points in ordered for row in points for key in row if key.startswith(PROBED)})
        labels = LOGGED | {key: f"Slice probe, {key.removeprefix(PROBED)}" for key in keys}
        pictures = [draw_training(files.folder, stage, key, label, ordered) for key, label in labels.items()]
        found.append((stage, [picture for picture in pictures if picture is not None]))
    return found


def _attention(files: RunFiles, *, images: bool) -> list[AttentionPatient]:
    if files.montage is None:
        return []
    found = []
    for patient in files.montage.patients:
        tiles = [data_address(files.folder / tile.png) if images else None for tile in patient.tiles]
        found.append(AttentionPatient(patient, draw_attention_profile(files.folder, patient), tiles))
    return found


def _attention_words(files: RunFiles) -> str | None:
    """How even the attention is over all patients; None where there is no attention."""
    if files.attention is None or files.montage is None:
        return None
    weights: dict[tuple[Any, ...], list[float]] = {}
    columns = (column(files.attention, key) for key in ("model", "fold", "seed", "patient_id", "weight"))
    for model, *bag, weight in zip(*columns, strict=True):
        if model == files.montage.model:
            weights.setdefault(tuple(bag), []).append(float(weight))
    if not weights:
        return None
    found = [entropy_ratio(of_a_bag) for of_a_bag in weights.values()]
    ratios = np.array([one for one in found if one is not None])
    if not len(ratios):  # of a single slice there is nothing to choose
        return None
    flat = int((ratios > FLAT).sum())
    text = (
        f"Over {len(ratios)} bags the entropy of the weights is {np.median(ratios):.3f} of its maximum "
        f"(median); it is above {FLAT} in {flat} of them."
    )
    if flat > len(ratios) / 2:
        text += (
            " Such weights are those of a plain mean: the slices below are the highest of a flat profile and "
            "do not show where the model looked. This is the rule where attention starts even, as in "
            "medform-small."
        )
    return text
