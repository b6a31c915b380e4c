"""The control table of a task, its paired differences in words, the verdict and what a reader must not overlook."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medform.reporting.run_files import RunFacts, TaskFacts
from medform.reporting.words import (
    CHANCE,
    COMPARISONS,
    METRICS,
    MODELS,
    between,
    interval,
    model_words,
    not_exported,
    number,
    signed,
)
from medform.runs.scores import ScoreRow, detectable_of, difference_in_words, unseen_in_words

__all__ = [
    "Difference",
    "TaskScores",
    "Verdict",
    "differences",
    "in_order",
    "shuffled_in_words",
    "task_scores",
    "tone_of",
    "verdict",
    "warnings",
]

# What it means where one of these scores as well as the model that is to be quoted.
TELLING_CONTROLS = {
    "intensity_stats": "grey values and the number of slices alone do as well, so it may be the scanner "
    "or the protocol that is read",
    "shuffled_pairs": "rows of other patients do as well, so it is not the pairing of image and table that counts",
    "random_encoder": "an untrained network does as well",
}


@dataclass(frozen=True)
class TaskScores:
    """The cross-validated rows of one task: model -> metric -> row, models and metrics in the order to be shown."""

    task: TaskFacts
    models: list[str]
    metrics: list[str]
    cells: dict[str, dict[str, ScoreRow]]
    centroid: dict[str, ScoreRow]  # model -> its AUROC with the nearest-class-mean readout
    pairs: dict[str, ScoreRow]  # "a - b" -> the paired difference in AUROC
    chance: dict[str, float]  # metric -> what a guess scores on these patients
    selected: str | None = None

    @property
    def not_exported(self) -> str:
        """A sentence where validation chose a model that a model folder of this run does not hold; else empty.

        Vectors that were handed over (`evaluate --embeddings`) have no such folder.
        """
        if "embeddings" in self.models:
            return ""
        own = "aligned" if "aligned" in self.models else "image_only"
        return not_exported(self.selected, (own, "table_logistic", "fused"))

    def row(self, model: str, metric: str = "auroc") -> ScoreRow | None:
        """The row, or None where there is none or it has no value."""
        found = self.cells.get(model, {}).get(metric)
        return found if found is not None and found.value is not None else None


@dataclass(frozen=True)
class Difference:
    """One paired difference: the question, which models, the answer with figures, ``tone`` (gain, loss, none)."""

    question: str
    models: str
    answer: str
    tone: str


@dataclass(frozen=True)
class Verdict:
    """``sentence`` for the head of the page; ``tone`` gain, loss, none or unknown."""

    task: TaskFacts
    sentence: str
    tone: str


def in_order(names: Sequence[str]) -> list[str]:
    """Known models in the report's order, then the others by name, then differences."""
    known = [name for name in MODELS if name in names]
    return known + sorted(set(names) - set(known), key=lambda name: (" - " in name, name))


def task_scores(
    rows: Sequence[ScoreRow], task: TaskFacts, selected: str | None = None, protocol: str = "cross_validation"
) -> TaskScores:
    """Sort the rows of one task and protocol into a table, and its paired differences beside it."""
    cells: dict[str, dict[str, ScoreRow]] = {}
    centroid: dict[str, ScoreRow] = {}
    pairs: dict[str, ScoreRow] = {}
    chance = {"auroc": 0.5}
    for row in rows:
        if row.task != task.name or row.protocol != protocol:
            continue
        if row.model == CHANCE:
            if row.value is not None:
                chance[row.metric] = row.value
            continue
        paired, nearest_mean, area = " - " in row.model, row.readout == "centroid", row.metric == "auroc"
        if not nearest_mean and (not paired or protocol != "cross_validation"):
            cells.setdefault(row.model, {})[row.metric] = row
        elif not paired and area:
            centroid[row.model] = row
        elif paired and area and not nearest_mean and row.value is not None:
            pairs[row.model] = row
    found = {metric for metrics in cells.values() for metric in metrics}
    metrics = [metric for metric in METRICS if metric in found] + sorted(found - set(METRICS))
    return TaskScores(task, in_order(list(cells)), metrics, cells, centroid, pairs, chance, selected)


def differences(scores: TaskScores, detectable: float | None) -> list[Difference]:
    """Every paired difference in AUROC of a task, in words, nulls with what is likely to be missed."""
    names = [name for name in COMPARISONS if name in scores.pairs]
    names += sorted(set(scores.pairs) - set(COMPARISONS))
    # each pair's own standard error decides what it could have shown; the task's figure is that of alignment
    own = {name: detectable_of(scores.pairs[name]) for name in names}
    shuffled = shuffled_in_words(scores.pairs.get("aligned - shuffled_pairs"), "pairs", "the pairing")
    return [_difference(scores.pairs[name], detectable if own[name] is None else own[name], shuffled) for name in names]


def _difference(row: ScoreRow, detectable: float | None, shuffled: str) -> Difference:
    first, second = (model_words(one).label for one in row.model.split(" - ", 1))
    question = COMPARISONS.get(row.model) or f"Is {first} better than {second}?"
    tone = tone_of(row)
    answer = re.sub(r"-(?=\d)", "−", difference_in_words(row, detectable, (first, second)))
    if row.model == "aligned - image_only" and tone == "gain" and shuffled:
        answer += f" But {shuffled}."
    if row.model == "image_only - imagenet_encoder" and tone == "none":
        answer += " About zero is a fair result for a start that was already trained."
    return Difference(question, f"{model_words(first).label} − {model_words(second).label}", answer, tone)


def tone_of(row: ScoreRow | None) -> str:
    """Tone of a difference: gain or loss where its interval leaves out zero, none where it does not.

    It is unknown without a row or an interval.
    """
    if row is None or row.value is None or row.ci_low is None or row.ci_high is None:
        return "unknown"
    return "gain" if row.ci_low > 0 else "loss" if row.ci_high < 0 else "none"


def shuffled_in_words(own: ScoreRow | None, what: str, reason: str) -> str:
    """What forbids to take a gain for one of ``reason``; empty where the model also gains over its shuffled control.

    ``own`` is the difference of the model to that control, ``what`` was shuffled there.
    """
    said = {
        "gain": "",
        "none": f"are not shown to fall behind, so it need not be {reason}",
        "loss": f"do better, so it is not {reason}",
        "unknown": "were not tried" if own is None else "cannot be compared",
    }[tone_of(own)]
    return said and f"shuffled {what} {said}"


def verdict(scores: TaskScores, facts: RunFacts) -> Verdict:
    """One sentence on a task: the aligned score with its interval, the image alone, what the difference says.

    Alignment helps where it gains over the image alone and over an alignment with the rows of other patients.
    """
    name = scores.task.name
    aligned, alone = scores.row("aligned"), scores.row("image_only")
    if aligned is None:
        return Verdict(scores.task, _without_alignment(scores), "unknown")
    score = f"{number(aligned.value)} {interval(aligned.ci_low, aligned.ci_high)}"
    sentence = f"On {name}, aligned scores {score} of 1 (chance 0.50)"
    if alone is not None:
        sentence += f"; image alone {number(alone.value)}"
    pair = scores.pairs.get("aligned - image_only")
    tone = tone_of(pair)
    if pair is None or tone == "unknown":
        return Verdict(scores.task, f"{sentence}; whether alignment helps cannot be said from this run.", tone)
    figures = f"({signed(pair.value)} {between(pair.ci_low, pair.ci_high)})"
    shuffled = shuffled_in_words(scores.pairs.get("aligned - shuffled_pairs"), "pairs", "the pairing")
    if tone == "gain" and shuffled:
        return Verdict(scores.task, f"{sentence}; it seems to gain {figures}, but {shuffled}.", "none")
    unseen = unseen_in_words(facts.detectable.get(name, detectable_of(pair)))
    said = {
        "gain": f"alignment helps on this cohort {figures}",
        "loss": f"alignment makes it worse here {figures}",
        "none": f"this cohort does not show a benefit of alignment{unseen}",
    }
    return Verdict(scores.task, f"{sentence}; {said[tone]}.", tone)


def _without_alignment(scores: TaskScores) -> str:
    best = next(
        (one for one in ("embeddings", scores.selected, "image_only", *scores.models) if one and scores.row(one)),
        None,
    )
    row = scores.row(best) if best else None
    if row is None or best is None:
        return f"On {scores.task.name} nothing could be scored; the reason stands in the notes of the table."
    return (
        f"On {scores.task.name}, {model_words(best).label} scores {number(row.value)} "
        f"{interval(row.ci_low, row.ci_high)} of 1 (chance 0.50); no aligned model was evaluated."
    )


def warnings(scores: TaskScores) -> list[str]:
    """What the controls say against the headline figure, in full sentences; empty where they say nothing."""
    found = []
    aligned = scores.row("aligned") or scores.row("embeddings") or scores.row("image_only")
    if aligned is None or aligned.value is None:
        return []
    label = model_words(aligned.model).label
    if aligned.ci_low is not None and aligned.ci_high is not None and aligned.ci_low <= 0.5 <= aligned.ci_high:
        found.append(f"The interval of “{label}” holds 0.50: the score cannot be told from guessing.")
    null = scores.row("permuted_labels")
    if null is not None and null.ci_high is not None and aligned.value <= null.ci_high:
        found.append(
            f"Labels shuffled at random reach up to {number(null.ci_high)} (97.5 % quantile): "
            f"“{label}” with {number(aligned.value)} lies within what chance gives at this n."
        )
    for control, meaning in TELLING_CONTROLS.items():
        row = scores.row(control)
        if row is not None and row.value is not None and row.value >= aligned.value:
            name = model_words(control).label
            found.append(f"“{name}” scores {number(row.value)}, not less than “{label}”: {meaning}.")
    table, trees = scores.row("table_logistic"), scores.row("table_boosting")
    if table is not None and table.value is not None and table.value > aligned.value:
        found.append(f"The table alone scores {number(table.value)}, more than the image: {_WHERE_HAD}.")
    elif trees is not None and trees.value is not None and trees.value > aligned.value:
        found.append(
            f"Boosted trees on the table alone score {number(trees.value)}, more than the image: {_WHERE_HAD}."
        )
    return found


_WHERE_HAD = "no interval is given for this difference; where the table can be had, judge the image beside it"
