"""The figures of the page: training, controls, few-shot, ROC and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from medform.reporting.controls import TaskScores
from medform.reporting.drawing import COLOURS, INK, MUTED, NARROW_INCH, RULE, Picture, plain, publish, sheet
from medform.reporting.few_shot import Panel
from medform.reporting.montage import MontagePatient
from medform.reporting.words import interval, metric_name, model_words, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_attention_profile", "draw_controls", "draw_few_shot", "draw_roc", "draw_training"]

LINES = {  # curves that may share a picture: colour, dash, marker
    "aligned": (COLOURS["image"], "-", "o"),
    "image_only": ("#3f86a3", (0, (4, 1.5)), "s"),
    "fused": (COLOURS["both"], "-", "D"),
    "table_logistic": (COLOURS["table"], (0, (4, 1.5)), "^"),
    "embeddings": (COLOURS["image"], "-", "o"),
    "imagenet_encoder": (COLOURS["control"], (0, (1, 1)), "v"),
    "shuffled_pairs": (COLOURS["control"], (0, (1, 1)), "x"),
}
ROC_MODELS = ("aligned", "image_only", "embeddings", "fused", "table_logistic")
OTHER_LINE = (COLOURS["control"], "-", ".")


class RocPoint(NamedTuple):
    """A point of a ROC curve, all in [0, 1]; NaN where there is no interval."""

    x: float
    y: float
    ci_low: float
    ci_high: float


def slug(text: str) -> str:
    """A task's or model's name as part of a file name: letters, digits and hyphens."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in text).strip("-").lower()


def chance_line(axes: Axes, value: float, along: str = "y") -> None:
    """A dotted line where a guess would stand."""
    draw = axes.axhline if along == "y" else axes.axvline
    draw(value, color=MUTED, linewidth=1, linestyle=(0, (1.5, 2)), zorder=1)


def draw_controls(run: Path, scores: TaskScores, metric: str) -> Picture | None:
    """One metric of every model as a dot with its interval, the chance line dotted, permuted labels as a band."""
    rows = [row for model in scores.models if (row := scores.row(model, metric)) is not None]
    values = [row.value for row in rows if row.value is not None]  # `scores.row` gives no row without a value
    if not rows:
        return None
    null = next((row for row in rows if row.model == "permuted_labels"), None)
    with sheet(0.62 + 0.235 * len(rows)) as (figure, axes):
        if null is not None and null.ci_low is not None and null.ci_high is not None:
            axes.axvspan(null.ci_low, null.ci_high, color="#eceff1", linewidth=0, zorder=0)
        if metric in scores.chance:
            chance_line(axes, scores.chance[metric], "x")
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            kind = model_words(row.model).kind
            colour = COLOURS[kind]
            if row.ci_low is not None and row.ci_high is not None:
                axes.plot(
                    [row.ci_low, row.ci_high],
                    [place, place],
                    color=colour,
                    solid_capstyle="butt",
                    linewidth=1.6,
                )
            filled = colour if kind != "control" else "white"
            axes.plot(value, place, marker="o", markersize=5.5, markerfacecolor=filled, markeredgecolor=colour)
        axes.set_yticks(range(len(rows)), [plain(model_words(row.model).label) for row in rows])
        axes.tick_params(axis="y", length=0)
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if row.model == "aligned" else "normal")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(metric_name(metric))
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        data = [
            {
                "model": r.model,
                "value": r.value,
                "ci_low": r.ci_low,
                "ci_high": r.ci_high,
                "n_patients": r.n_patients,
            }
            for r in rows
        ]
        text = "; ".join(
            f"{model_words(r.model).label} {number(r.value)} {interval(r.ci_low, r.ci_high)}" for r in rows
        )
        return publish(
            run,
            f"controls-{slug(scores.task.name)}-{metric}",
            figure,
            data,
            f"{metric_name(metric)} of every model",
            "Dot: score. Bar: 95 % interval. Hollow: control. Dotted line: chance."
            + (" Grey band: permuted labels." if null is not None else ""),
            f"{metric_name(metric)} on {scores.task.name}: {text}.",
        )


def draw_roc(run: Path, task: str, curves: Mapping[str, Sequence[RocPoint]]) -> Picture | None:
    """ROC curves of the models worth comparing, with the interval of the first; ``curves`` by model."""
    shown = {model: curves[model] for model in ROC_MODELS if model in curves}
    if not shown:
        return None
    with sheet(3.1, NARROW_INCH) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1.5, 2)))
        for number_of, (model, points) in enumerate(shown.items()):
            colour, dash, _ = LINES[model]
            x, y, low, high = zip(*points, strict=True)
            if number_of == 0:
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(x, y, color=colour, linestyle=dash, label=plain(model_words(model).label))
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="False positive rate", ylabel="True positive rate")
        axes.set_aspect("equal")
        axes.legend(loc="lower right")
        labels = [model_words(model).label for model in shown]
        banded = not any(math.isnan(point.ci_low) for point in next(iter(shown.values())))
        return publish(
            run,
            f"roc-{slug(task)}",
            figure,
            [{"model": model} | point._asdict() for model, points in shown.items() for point in points],
            task,
            "Test patients of the folds that were run. "
            + (f"Band: 95 % interval of {labels[0]}. " if banded else "")
            + "Dotted: chance.",
            f"ROC curves on {task} of {', '.join(labels)}; the areas stand in the table.",
        )


def draw_few_shot(run: Path, panel: Panel, limits: tuple[float, float]) -> Picture:
    """AUROC against the number of supports a class, with intervals, for one kind of supports.

    ``limits`` of the AUROC axis are those of all panels of the task, so that they can be compared by eye.
    """
    shots = sorted({point.shots for line in panel.lines.values() for point in line})
    place = {k: number for number, k in enumerate(shots)}
    with sheet(2.5, NARROW_INCH) as (figure, axes):
        chance_line(axes, 0.5)
        for shift, (model, line) in enumerate(panel.lines.items()):
            colour, dash, marker = LINES.get(model, OTHER_LINE)
            x = [place[point.shots] + (shift - (len(panel.lines) - 1) / 2) * 0.13 for point in line]
            for position, point in zip(x, line, strict=True):
                if point.ci_low is not None and point.ci_high is not None:
                    axes.plot([position] * 2, [point.ci_low, point.ci_high], color=colour, linewidth=1.1, alpha=0.75)
            axes.plot(
                x,
                [point.value for point in line],
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=4.5,
                label=plain(model_words(model).label),
            )
        axes.set_xticks(range(len(shots)), [str(k) for k in shots])
        axes.set_xlabel("Labelled patients a class")
        axes.set_ylabel("AUROC")
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_ylim(*limits)
        figure.legend(loc="outside upper left", ncols=len(panel.lines), handlelength=1.8, columnspacing=1.0)
        return publish(
            run,
            f"few-shot-{slug(panel.task)}-{slug(panel.supports)}",
            figure,
            panel.rows(),
            panel.title,
            panel.caption,
            f"Few-shot AUROC on {panel.task}, {panel.title.lower()}; the figures stand in the table below.",
        )


def draw_training(
    run: Path, stage: str, key: str, label: str, lines: Sequence[Sequence[dict[str, Any]]]
) -> Picture | None:
    """One logged quantity of a stage against the step, a line a fold; the loss with its chance line."""
    lines = [points for line in lines if (points := [row for row in line if row.get(key) is not None])]
    if not lines:
        return None
    with sheet(1.9, NARROW_INCH) as (figure, axes):
        for points in lines:
            steps = [row["step"] for row in points]
            values = [row[key] for row in points]
            axes.plot(
                steps,
                values,
                color=COLOURS["image"],
                linewidth=1.1,
                alpha=0.8,
                marker="" if len(steps) > 1 else "o",
            )
            if key == "loss" and any(row.get("chance") is not None for row in points):
                chance = [row.get("chance", math.nan) for row in points]
                axes.plot(steps, chance, color=MUTED, linewidth=1, linestyle=(0, (1.5, 2)))
        probe = key.startswith("slice_probe.")
        if probe:
            chance_line(axes, 0.5)
        if key == "retrieval_at_1":
            axes.set_ylim(-0.03, 1.03)
        if key == "effective_rank":
            axes.axhline(2, color=COLOURS["red"], linewidth=1, linestyle=(0, (1.5, 2)))
        axes.set_xlabel("Step")
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.margins(x=0.02)
        rows = [
            {"fold": row.get("fold"), "seed": row.get("seed"), "step": row["step"], key: row[key]}
            | ({"chance": row.get("chance")} if key == "loss" else {})
            for points in lines
            for row in points
        ]
        note = {
            "loss": " Dotted: the loss of a guess.",
            "effective_rank": " Red: below 2 the features have collapsed.",
        }
        if probe:
            note[key] = " AUROC within training slices, patients apart: no score. Dotted: a guess."
        ends = ", ".join(number(points[-1][key]) for points in lines)
        return publish(
            run,
            f"training-{slug(stage)}-{slug(key)}",
            figure,
            rows,
            label,
            f"One line a fold and seed.{note.get(key, '')}",
            f"{label} of stage {stage} by step; at the end {ends}.",
        )


def draw_attention_profile(run: Path, patient: MontagePatient) -> Picture:
    """The weight of every slice of a patient, feet to head, beside the weight of an even mean."""
    even = 1 / len(patient.profile)
    with sheet(1.0, NARROW_INCH) as (figure, axes):
        slices = range(len(patient.profile))
        axes.bar(slices, patient.profile, width=0.85, color=COLOURS["image"], linewidth=0)
        chance_line(axes, even)
        axes.set_xlabel("Slice, feet to head")
        axes.set_yticks([0, even], ["0", "even"])
        axes.set_xlim(-0.6, len(patient.profile) - 0.4)
        axes.set_ylim(0, max(*patient.profile, even) * 1.15)
        axes.spines["left"].set_color(INK)
        return publish(
            run,
            f"attention-{slug(patient.pseudonym)}",
            figure,
            [{"index": index, "weight": weight} for index, weight in enumerate(patient.profile)],
            "",
            "",
            f"Attention of {patient.pseudonym} over {len(patient.profile)} slices; "
            f"entropy {number(patient.entropy_ratio)} of its maximum.",
        )
