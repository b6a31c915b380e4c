"""The whole evaluation of a run: every model of the table, every control, every interval.

No network is trained here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medform.cohort.split import Split
from medform.errors import InputError, Problem, nearest
from medform.evaluation.attention import attention_cases
from medform.evaluation.boosting import boosted_table
from medform.evaluation.curves import roc_curves
from medform.evaluation.few_shot import HeldOut, few_shot, held_out_patients
from medform.evaluation.fusion import fuse
from medform.evaluation.permuted import permuted_labels
from medform.evaluation.predictions import case_frame, concat_predictions
from medform.evaluation.probe import (
    Outcome,
    Target,
    cross_validate,
    fold_predictions,
    select_models,
    validation_cases,
)
from medform.evaluation.retrieval import Similarity, retrieval_cases
from medform.evaluation.rows import tallied_rows
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.tally import gather
from medform.evaluation.vectors import TABLE, Vectors
from medform.metrics.power import detectable_difference
from medform.runs.scores import ScoreRow, detectable_of

__all__ = ["Evaluation", "detectable_differences", "evaluate"]

NULL_OF = ("aligned", "embeddings", "image_only", "imagenet_encoder", TABLE)
"""`permuted_labels` refits the probe of the first of these that is there."""
FUSIONS = (("fused_unaligned", ("image_only", "embeddings"), False), ("fused", ("aligned",), True))
"""Name of the row, its image model (the first that is there), and whether it needs out-of-fold vectors."""
Sink = Callable[[pd.DataFrame], None]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    ``predictions`` is None where they were handed to a sink. ``selected`` maps a task to its model with the
    best validation score, ``detectable`` to the smallest paired AUROC difference that this cohort could
    have shown.
    """

    predictions: pd.DataFrame | None
    cases: pd.DataFrame
    curves: pd.DataFrame
    rows: list[ScoreRow]
    selected: dict[str, str]
    detectable: dict[str, float]


def evaluate(
    embeddings: pd.DataFrame,
    labels: pd.DataFrame,
    split: Split,
    settings: EvaluationSettings,
    direct: pd.DataFrame | None = None,
    cohort_name: str = "cohort",
    *,
    projections: pd.DataFrame | None = None,
    similarity: Similarity = "distance",
    attention: pd.DataFrame | None = None,
    notes: Mapping[str, str] | None = None,
    sink: Sink | None = None,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Judge frozen vectors on every task of ``labels``.

    embeddings: frame of ``embeddings.parquet``; labels: index patient_id, one float column of 0, 1 or NaN a
    task. direct: predictions of models that predict themselves, with columns task, model, fold, seed, part
    (validation or test), patient_id, y_prob. projections: both sides of the aligned space, with columns
    patient_id, fold, model, seed, modality (image or clinical), vector, of test patients; they give the
    retrieval rows, by ``similarity`` (that of the recipe's objective). notes: model -> remark on all its
    rows. sink: called with each chunk of predictions (a `PredictionWriter`), which are then not kept.
    progress: called with a line of text at each step.

    Raises `InputError` for vectors that do not fit the split, a table of labels without usable values, or a
    primary task of one class. A secondary task that cannot be scored has rows with a null value and a note.
    """
    targets = _targets(labels, settings, cohort_name)
    vectors = Vectors(embeddings, split, settings.seed)
    if not vectors.models:
        raise InputError("there are no image or table vectors.", fix="run `medform embed` or the recipe first.")
    primary = settings.primary or targets[0].task
    strata = pd.Series(next(one.labels for one in targets if one.task == primary))
    held_out = held_out_patients(vectors, strata, settings)
    cases: list[dict[str, Any]] = []
    kept: list[pd.DataFrame] = []
    outcomes = _outcomes(vectors, targets, held_out, settings, direct, progress)
    tallies = gather(_written(outcomes, cases, sink or kept.append))
    if projections is not None:
        cases.extend(_retrieval(projections, cohort_name, similarity))
    if attention is not None:
        cases.extend(attention_cases(cohort_name, attention))
    found = case_frame(cases)
    rows = tallied_rows(tallies, found, settings, notes=notes)
    return Evaluation(
        predictions=None if sink else concat_predictions(kept),
        cases=found,
        curves=roc_curves(tallies, settings),
        rows=rows,
        selected=select_models(found, labels),
        detectable=detectable_differences(labels, rows),
    )


def _written(
    outcomes: Iterator[Outcome], cases: list[dict[str, Any]], write: Callable[[pd.DataFrame], object]
) -> Iterator[pd.DataFrame]:
    """The chunks as they are written: rows are made from these very chunks, so the file gives them again."""
    for outcome in outcomes:
        cases.extend(outcome.cases)
        for frame in outcome.predictions:
            if len(frame):
                write(frame)
                yield frame


def _targets(labels: pd.DataFrame, settings: EvaluationSettings, cohort: str) -> list[Target]:
    """The tasks, the primary one first; refuses what cannot be judged at all."""
    names = [str(name) for name in labels.columns]
    if not names:
        raise InputError("there is no task to evaluate.", fix="declare `tasks` in the cohort file.")
    if settings.primary is not None and settings.primary not in names:
        close = nearest(settings.primary, names)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}."
        raise InputError(f"the primary task '{settings.primary}' has no labels.", fix=hint)
    problems, targets = [], []
    for name in sorted(names, key=lambda one: one != settings.primary):
        try:
            targets.append(Target.of(cohort, name, labels.index.tolist(), labels[name].tolist()))
        except ValueError as error:
            problems.append(Problem(str(error), column=name))
    if problems:
        raise InputError(f"{len(problems)} tasks have labels that are not 0 or 1.", problems=problems)
    if len(set(targets[0].labels.values())) < 2:
        raise InputError(
            f"all labelled patients of the primary task '{targets[0].task}' belong to one class.",
            consequence="There is nothing to tell apart.",
            fix="check `positive` or `threshold` of the task, or make another task primary.",
        )
    return targets


def _outcomes(
    vectors: Vectors,
    targets: Sequence[Target],
    held_out: HeldOut,
    settings: EvaluationSettings,
    direct: pd.DataFrame | None,
    progress: Callable[[str], None] | None,
) -> Iterator[Outcome]:
    """Every step of the evaluation, task by task."""
    for target in targets:
        if progress:
            progress(f"{target.task}: cross-validated probes of {len(vectors.models)} models")
        for model in vectors.models:
            yield cross_validate(model, vectors, target, settings)
        if vectors.has(TABLE):
            yield boosted_table(vectors, target, settings)
            yield from _fusions(vectors, target, settings)
        if direct is not None:
            yield _direct(direct, target)
        null = next((one for one in NULL_OF if vectors.has(one)), None)
        if null is not None:
            yield Outcome(permuted_labels(null, vectors, target, settings), [])
        for model in vectors.models:
            if progress:
                progress(f"{target.task}: {settings.draws} few-shot draws of {model}")
            yield from few_shot(model, vectors, target, held_out, settings)


def _fusions(vectors: Vectors, target: Target, settings: EvaluationSettings) -> Iterator[Outcome]:
    """The table beside an image vector, where the run has one."""
    for name, images, out_of_fold in FUSIONS:
        image = next((one for one in images if vectors.has(one)), None)
        if image is not None and (not out_of_fold or vectors.has(image, "out_of_fold")):
            yield fuse(name, image, vectors, target, settings, out_of_fold=out_of_fold)


def _direct(predictions: pd.DataFrame, target: Target) -> Outcome:
    """Predictions of models that predict themselves (no readout), test and validation."""
    outcome = Outcome.empty()
    groups: dict[tuple[str, int, int, str], list[tuple[str, float]]] = {}
    names = ("task", "model", "fold", "seed", "part", "patient_id", "y_prob")
    for task, model, fold, seed, part, patient, value in zip(*(predictions[n].tolist() for n in names), strict=True):
        if task == target.task and str(patient) in target.labels:
            groups.setdefault((model, int(fold), int(seed), part), []).append((str(patient), float(value)))
    for (model, fold, seed, part), rows in groups.items():
        ids, values = [one for one, _ in rows], np.array([value for _, value in rows])
        if part == "test":
            truth = target.of_ids(ids)
            outcome.predictions.append(fold_predictions(target, model, None, fold, seed, ids, truth, values))
        elif part == "validation":
            outcome.cases.extend(validation_cases(target, model, fold, seed, ids, values))
    return outcome


BESIDE = {"clinical": "table", "genes": "genes"}
"""What an image is retrieved by and retrieves: modality -> its name in the rows."""


def _retrieval(projections: pd.DataFrame, cohort: str, similarity: Similarity) -> Iterator[dict[str, Any]]:
    """Cases of every model, fold and seed with at least two patients who have both sides."""
    sides: dict[tuple[str, int, int], dict[str, dict[str, Any]]] = {}
    names = ("model", "fold", "seed", "modality", "patient_id", "vector")
    for model, fold, seed, modality, patient, vector in zip(*(projections[n].tolist() for n in names), strict=True):
        sides.setdefault((model, int(fold), int(seed)), {}).setdefault(modality, {})[str(patient)] = vector
    for (model, fold, seed), found in sides.items():
        image = found.get("image", {})
        for modality, name in BESIDE.items():
            other = found.get(modality, {})
            ids = sorted(set(image) & set(other))
            if len(ids) >= 2:
                a, b = (np.stack([np.asarray(side[one], dtype=np.float64) for one in ids]) for side in (image, other))
                yield from retrieval_cases(cohort, model, fold, seed, ids, a, b, similarity=similarity, name=name)


def detectable_differences(labels: pd.DataFrame, rows: Sequence[ScoreRow] = ()) -> dict[str, float]:
    """Task -> smallest paired AUROC difference that these patients show with 80 % power.

    Before a run (no rows): from the numbers of the classes, with correlation 0.5 and AUROC 0.7. After it:
    from the standard error of `aligned - image_only`, which knows how alike the two models are. Tasks of
    one class are left out.
    """
    found: dict[str, float] = {}
    for task in labels.columns:
        values = labels[task].tolist()
        planned = detectable_difference(values.count(1.0), values.count(0.0))
        if planned is not None:
            found[str(task)] = planned
    for row in rows:
        measured = detectable_of(row)
        wanted = (row.model, row.protocol, row.metric) == (
            "aligned - image_only",
            "cross_validation",
            "auroc",
        )
        if wanted and row.readout == "logistic" and row.task is not None and measured is not None:
            found[row.task] = measured
    return found
