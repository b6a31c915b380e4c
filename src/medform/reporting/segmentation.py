"""The section on segmentation: Dice of every model, where it is lost, and whether the genes are the reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from medform.cohort.files import column
from medform.reporting.controls import Difference, in_order, shuffled_in_words, tone_of
from medform.reporting.drawing import COLOURS, INK, RULE, Picture, plain, publish, sheet
from medform.reporting.figures import slug
from medform.reporting.overlays import OverlayPatient, data_address, read_overlays
from medform.reporting.run_files import RunFiles
from medform.reporting.words import COMPARISONS, METRICS, interval, mark, model_words, not_exported, number, signed
from medform.runs.scores import FALSE_LESIONS, ScoreRow, detectable_of, outcome_in_words, unseen_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SegmentationSection", "ShownMasks", "segmentation_sections"]

PROTOCOL = "segmentation"
MAIN_METRIC = "dice_patient"
COUNTED = "dice_patient_below_half"
PLAIN, WITH_GENES, SHUFFLED = "vit_no_genes", "mgi", "mgi_shuffled_genes"
VOXELS = "lesion_voxels"
SMALL_TUMOUR = 3000  # voxels; drawn hollow, as `evaluation.segmentation` counts them
DIGITS = 3
_GOLDEN = 0.6180339887  # its multiples spread evenly, so that dots of equal height do not hide each other


@dataclass(frozen=True)
class ShownMasks:
    """A test patient's slice as two data addresses: outline of the true and of the predicted mask (None: left out)."""

    facts: OverlayPatient
    true: str | None
    predicted: str | None


@dataclass(frozen=True)
class SegmentationSection:
    """Everything the page shows of one segmentation task."""

    task: str
    sentence: str
    tone: str
    selected: str | None
    models: list[str]
    metrics: list[str]
    cells: dict[str, dict[str, ScoreRow]]
    differences: list[Difference]
    figure: Picture | None
    notes: list[str]
    not_exported: str = ""
    masks_of: str | None = None
    masks: tuple[ShownMasks, ...] = ()

    @property
    def tested(self) -> int:
        """The most patients that any model was scored on."""
        return max((row.n_patients for row in self._rows), default=0)

    @property
    def _rows(self) -> list[ScoreRow]:
        return [row for found in self.cells.values() for row in found.values()]

    def note_mark(self, row: ScoreRow) -> str:
        """The letter of a row's note."""
        return mark(self.notes.index(row.note)) if row.note in self.notes else ""

    def shown(self, model: str, metric: str) -> str:
        """A figure as text: numbers of patients whole, scores with three digits."""
        row = self.cells[model].get(metric)
        if row is None or row.value is None:
            return "–"
        if metric == COUNTED:
            return f"{row.value:g} of {row.n_patients}"
        return number(row.value, 1 if metric.startswith("hd95") else DIGITS)

    def spread(self, model: str, metric: str) -> str:
        """The interval of a figure as text."""
        row = self.cells[model].get(metric)
        digits = 0 if metric == COUNTED else 1 if metric.startswith("hd95") else DIGITS
        return "" if row is None else interval(row.ci_low, row.ci_high, digits)


def segmentation_sections(files: RunFiles, *, images: bool = True) -> list[SegmentationSection]:
    """A section for each task that has segmentation rows; draws and saves its figure.

    ``images=False`` leaves out the pictures of patients.
    """
    rows = [row for row in files.rows if row.protocol == PROTOCOL]
    overlays = read_overlays(files.folder) if rows else None
    sections = [_section(files, task, [row for row in rows if (row.task or "") == task]) for task in _tasks(rows)]
    if overlays is None:
        return sections
    masks = tuple(_shown(files, one, images=images) for one in overlays.patients)
    return [
        replace(one, masks_of=overlays.model, masks=masks) if one.task == overlays.task else one for one in sections
    ]


def _shown(files: RunFiles, patient: OverlayPatient, *, images: bool) -> ShownMasks:
    if not images:
        return ShownMasks(patient, None, None)
    return ShownMasks(patient, *(data_address(files.folder / name) for name in (patient.true, patient.predicted)))


def _tasks(rows: Sequence[ScoreRow]) -> list[str]:
    return sorted({row.task or "" for row in rows})


def _section(files: RunFiles, task: str, rows: Sequence[ScoreRow]) -> SegmentationSection:
    cells: dict[str, dict[str, ScoreRow]] = {}
    pairs: dict[str, dict[str, ScoreRow]] = {}
    for row in rows:
        (pairs if " - " in row.model else cells).setdefault(row.model, {})[row.metric] = row
    found = {metric for metrics in cells.values() for metric in metrics}
    metrics = [metric for metric in METRICS if metric in found] + sorted(found - set(METRICS))
    selected = files.facts.selected.get(task)
    sentence, tone = _verdict(task, cells, pairs, selected)
    models = in_order(list(cells))
    own = files.facts.recipe.partition("-")[0]  # what the rows call the recipe's own masks
    shown = [row for model in models for metric in metrics if (row := cells[model].get(metric)) is not None]
    ordered = [name for name in COMPARISONS if name in pairs] + sorted(set(pairs) - set(COMPARISONS))
    return SegmentationSection(
        task=task,
        sentence=sentence,
        tone=tone,
        selected=selected,
        models=models,
        metrics=metrics,
        cells=cells,
        differences=[_difference(name, pairs) for name in ordered if MAIN_METRIC in pairs[name]],
        figure=_strips(files, task, models),
        notes=list(dict.fromkeys(row.note for row in shown if row.note)),
        not_exported=not_exported(selected, [own]) if own in models else "",
    )


def _verdict(
    task: str, cells: dict[str, dict[str, ScoreRow]], pairs: dict[str, dict[str, ScoreRow]], selected: str | None
) -> tuple[str, str]:
    """The sentence at the head of the page, and its tone: that of the genes."""
    wanted = (selected, WITH_GENES, *in_order(list(cells)))
    model = next((one for one in wanted if one in cells and MAIN_METRIC in cells[one]), None)
    row = cells[model][MAIN_METRIC] if model else None
    if model is None or row is None or row.value is None:
        return f"On {task} nothing could be scored; the reason stands in the notes of the table.", "unknown"
    sentence = f"On {task}, {model_words(model).label} reaches a mean Dice of {number(row.value)}"
    sentence += f" {interval(row.ci_low, row.ci_high)}" if row.ci_low is not None else ""
    median, below = cells[model].get("dice_patient_median"), cells[model].get(COUNTED)
    beside = [f"{row.n_patients} patients"]
    if median is not None and median.value is not None:
        beside.insert(0, f"median {number(median.value)}")
    if below is not None and below.value is not None:
        beside.append(f"{below.value:g} below 0.5")
    sentence += f" ({', '.join(beside)})"
    said, tone = _of_genes(pairs)
    return f"{sentence}{said}.", tone


def _of_genes(pairs: dict[str, dict[str, ScoreRow]]) -> tuple[str, str]:
    """Whether genes help: they must gain over the same model without them, and shuffled ones must not."""
    gain = pairs.get(f"{WITH_GENES} - {PLAIN}", {}).get(MAIN_METRIC)
    tone = tone_of(gain)
    if gain is None or tone == "unknown":
        return "", "unknown"
    figures = f"({signed(gain.value, DIGITS)} [{signed(gain.ci_low, DIGITS)}, {signed(gain.ci_high, DIGITS)}])"
    if tone == "gain" and (but := _shuffled(pairs) or _false_lesions(gain)):
        return f"; genes seem to gain {figures}, but {but}", "none"
    unseen = unseen_in_words(detectable_of(gain), DIGITS)
    said = {
        "gain": f"; genes help on this cohort {figures}",
        "loss": f"; genes make it worse on this cohort {figures}",
        "none": f"; this cohort does not show a benefit of genes {figures}{unseen}",
    }
    return said[tone], tone


def _shuffled(pairs: dict[str, dict[str, ScoreRow]]) -> str:
    """What shuffled genes say against a gain of genes; empty where they say nothing."""
    return shuffled_in_words(pairs.get(f"{WITH_GENES} - {SHUFFLED}", {}).get(MAIN_METRIC), "genes", "the genes")


def _false_lesions(row: ScoreRow) -> str:
    """What a difference leaves out: patients without lesion in whom one model alone drew one."""
    return next((part for part in (row.note or "").split("; ") if part.endswith(FALSE_LESIONS)), "")


def _difference(name: str, pairs: dict[str, dict[str, ScoreRow]]) -> Difference:
    """One paired difference in mean Dice, in words; by tumour size where that is known."""
    rows = pairs[name]
    first, second = (model_words(one).label for one in name.split(" - ", 1))
    question = COMPARISONS.get(name) or f"Is {first} better than {second}?"
    row = rows[MAIN_METRIC]
    tone = tone_of(row)
    answer = f"Mean Dice {_figure(row)}, {row.n_patients} patients"
    answer += f" ({found.group(0)})" if (found := re.search(r"higher in \d+ of \d+", row.note or "")) else ""
    if row.value is None or tone == "unknown":
        answer = f"No interval can be given ({row.note})."
    else:
        answer += f": {outcome_in_words(row, (first, second), digits=DIGITS)}."
    if name == f"{WITH_GENES} - {PLAIN}" and tone == "gain" and (but := _shuffled(pairs)):
        answer += f" But {but}."
    parts = []
    for metric, tumours in (("dice_patient_small", "small tumours"), ("dice_patient_large", "other tumours")):
        part = rows.get(metric)
        if part is not None and part.value is not None:
            parts.append(f"{tumours} {_figure(part)}")
    answer += f" By size: {'; '.join(parts)}." if parts else ""
    answer += f" {left_out}." if (left_out := _false_lesions(rows[MAIN_METRIC])) else ""
    return Difference(question, f"{first} − {second}", answer, tone)


def _figure(row: ScoreRow) -> str:
    if row.ci_low is None or row.ci_high is None:
        return signed(row.value, DIGITS)
    return f"{signed(row.value, DIGITS)} [{signed(row.ci_low, DIGITS)}, {signed(row.ci_high, DIGITS)}]"


class _Dot(NamedTuple):
    """A patient of the figure: Dice, the mean over seeds, and the voxels of the true lesion."""

    dice: float
    voxels: float | None

    @property
    def small(self) -> bool:
        return self.voxels is not None and 0 < self.voxels < SMALL_TUMOUR


def _patients(files: RunFiles, task: str) -> dict[str, list[_Dot]]:
    """Model -> its test patients, the worst first; empty where the run holds no cases."""
    path = files.folder / "cases.parquet"
    if not path.is_file():
        return {}
    import pandas as pd

    cases = pd.read_parquet(path)
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    columns = (column(cases, name).tolist() for name in ("protocol", "task", "model", "patient_id", "metric", "value"))
    for protocol, of_task, model, patient, metric, value in zip(*columns, strict=True):
        if (protocol, of_task) == (PROTOCOL, task) and metric in (MAIN_METRIC, VOXELS):
            values.setdefault((model, patient), {}).setdefault(metric, []).append(float(value))
    found: dict[str, list[_Dot]] = {}
    for (model, _), of_patient in values.items():
        if MAIN_METRIC in of_patient:
            sizes = of_patient.get(VOXELS)
            dot = _Dot(fmean(of_patient[MAIN_METRIC]), fmean(sizes) if sizes else None)
            found.setdefault(model, []).append(dot)
    return {model: sorted(dots, key=lambda dot: (dot.dice, dot.voxels or 0.0)) for model, dots in found.items()}


def _strips(files: RunFiles, task: str, models: Sequence[str]) -> Picture | None:
    """Every test patient's Dice as a dot, small tumours hollow, quartiles as a box behind."""
    patients = _patients(files, task)
    shown = [model for model in models if model in patients]
    if not shown:
        return None
    with sheet(0.75 + 0.5 * len(shown)) as (figure, axes):
        for place, model in enumerate(shown):
            _strip(axes, place, patients[model], COLOURS[model_words(model).kind])
        axes.axvline(0.5, color=RULE, linewidth=1)
        axes.set_yticks(range(len(shown)), [plain(model_words(model).label) for model in shown])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(shown) - 0.45, -0.55)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("Dice of a patient")
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        data = [
            {"model": model, "dice": dot.dice, "lesion_voxels": dot.voxels, "small": dot.small}
            for model in shown
            for dot in patients[model]
        ]
        said = "; ".join(f"{model_words(model).label} {len(patients[model])} patients" for model in shown)
        return publish(
            files.folder,
            f"segmentation-{slug(task)}",
            figure,
            data,
            "Dice of every test patient",
            f"Dot: a patient. Hollow: tumour under {SMALL_TUMOUR:,} voxels. Box: quartiles. Bar: median.",
            f"Dice of every test patient on {task}: {said}; the figures stand in the table.",
        )


def _strip(axes: Axes, place: int, patients: Sequence[_Dot], colour: str) -> None:
    import numpy as np

    dice, small = np.array([dot.dice for dot in patients]), np.array([dot.small for dot in patients])
    low, middle, high = np.quantile(dice, [0.25, 0.5, 0.75])
    axes.barh(place, high - low, 0.62, low, color="#eceff1", linewidth=0, zorder=1)
    axes.plot([middle, middle], [place - 0.31, place + 0.31], color=INK, linewidth=1.4, solid_capstyle="butt", zorder=3)
    height = place + ((np.arange(len(dice)) * _GOLDEN) % 1 - 0.5) * 0.5
    for chosen, inside in ((~small, colour), (small, "white")):
        axes.plot(
            dice[chosen],
            height[chosen],
            linestyle="",
            marker="o",
            markersize=3.6,
            markerfacecolor=inside,
            markeredgecolor=colour,
            markeredgewidth=0.9,
            alpha=0.85,
            zorder=2,
        )
