"""Few-shot rows of a task as panels: one for each answer to "what did alignment know of the supports?"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medform.reporting.words import FEW_SHOT_MODELS, SUPPORTS
from medform.runs.scores import ScoreRow

__all__ = ["Panel", "Point", "common_limits", "panels"]

PAIR = "aligned - image_only"


@dataclass(frozen=True)
class Point:
    """AUROC of one model at ``shots`` labelled patients a class; ``overlapping`` where draws share most patients."""

    shots: int
    value: float
    ci_low: float | None
    ci_high: float | None
    overlapping: bool = False


@dataclass(frozen=True)
class Panel:
    """The lines of one task and one kind of supports; ``impossible`` are the k that the classes are too small for."""

    task: str
    supports: str
    title: str
    lines: dict[str, list[Point]]
    impossible: tuple[int, ...]
    gain: dict[int, Point]  # k -> aligned minus image alone, paired over the same draws

    @property
    def shots(self) -> list[int]:
        """Every k with a value."""
        return sorted({point.shots for line in self.lines.values() for point in line})

    @property
    def caption(self) -> str:
        """Who the supports are, which k could not be done and which draws overlap."""
        about = SUPPORTS.get(self.supports, ("", ""))[1]
        text = f"{about[:1].upper()}{about[1:]}." if about else ""
        overlapping = sorted({p.shots for line in self.lines.values() for p in line if p.overlapping})
        if overlapping:
            text += f" At k = {', '.join(map(str, overlapping))} the draws share most of their patients."
        if self.impossible:
            text += f" Too few patients for k = {', '.join(map(str, self.impossible))}."
        return text.strip()

    def at(self, model: str, shots: int) -> Point | None:
        """The point of a model at k, or None."""
        return next((point for point in self.lines.get(model, []) if point.shots == shots), None)

    def rows(self) -> list[dict[str, Any]]:
        """The points as rows of a CSV."""
        return [
            {"model": model, "shots": p.shots, "auroc": p.value, "ci_low": p.ci_low, "ci_high": p.ci_high}
            for model, line in self.lines.items()
            for p in line
        ]


def panels(rows: Sequence[ScoreRow], task: str) -> list[Panel]:
    """Panels of a task in the order aligned, out_of_fold, unseen; logistic readout, AUROC, paired rows left out."""
    chosen = [row for row in rows if _belongs(row, task) and row.model in FEW_SHOT_MODELS]
    found = []
    for supports, (title, _) in SUPPORTS.items():
        mine = [row for row in chosen if row.supports == supports]
        lines = {model: _line([row for row in mine if row.model == model]) for model in FEW_SHOT_MODELS}
        if supports == "out_of_fold" and not lines["image_only"]:
            # the same patients and draws; a model without alignment has nothing that could have seen them
            lines["image_only"] = _line([r for r in chosen if (r.model, r.supports) == ("image_only", "aligned")])
        lines = {model: line for model, line in lines.items() if line}
        if lines:
            pairs = [row for row in rows if _belongs(row, task) and row.model == PAIR and row.supports == supports]
            gain = {point.shots: point for point in _line(pairs)}
            impossible = {row.shots for row in mine if row.value is None and row.shots is not None}
            found.append(Panel(task, supports, title, lines, tuple(sorted(impossible)), gain))
    return found


def _belongs(row: ScoreRow, task: str) -> bool:
    few_shot = row.protocol == "few_shot" and row.shots is not None
    return few_shot and row.task == task and row.metric == "auroc" and row.readout != "centroid"


def _line(rows: Sequence[ScoreRow]) -> list[Point]:
    points = [
        Point(row.shots, row.value, row.ci_low, row.ci_high, "overlapping_draws" in (row.note or ""))
        for row in rows
        if row.shots is not None and row.value is not None
    ]
    return sorted(points, key=lambda point: point.shots)


def common_limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """The AUROC range that holds every point and interval of the panels, and the chance line."""
    points = [point for panel in panels for line in panel.lines.values() for point in line]
    ends = [end for p in points for end in (p.value, p.ci_low, p.ci_high) if end is not None]
    return min([0.48, *(end - 0.02 for end in ends)]), max([0.52, *(end + 0.02 for end in ends)])
