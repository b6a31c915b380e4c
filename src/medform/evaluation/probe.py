"""Cross-validated probes of frozen vectors, and which model a run selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from medform.evaluation.predictions import prediction_frame
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.vectors import TABLE, Readout, Rows, Vectors, readout_of
from medform.metrics.linear_probe import Scaler, centroid_scores, logistic_scores
from medform.metrics.ranking import concordance

__all__ = [
    "VALIDATION_CASE",
    "Outcome",
    "Target",
    "cross_validate",
    "probe_name",
    "probe_probabilities",
    "select_models",
]

Array = NDArray[np.float64]

VALIDATION_CASE = "validation_probability"
"""Metric of the cases that hold a validation patient's probability under the probe of the training
patients.
"""

SIMPLEST_FIRST = (
    "table_logistic", "intensity_stats", "imagenet_encoder", "image_only", "embeddings", "table_boosting",
    "aligned", "fused_unaligned", "fused", "supervised_mil",
)  # fmt: skip
"""Models that a run may select, the simpler first. Random, shuffled and permuted rows are never selected."""


@dataclass(frozen=True)
class Target:
    """One task of a cohort: patient id -> 1.0 or 0.0, patients without a label left out."""

    cohort: str
    task: str
    labels: Mapping[str, float]

    @classmethod
    def of(cls, cohort: str, task: str, ids: Sequence[object], values: Sequence[float]) -> Target:
        """From the labels of ``ids``, 0, 1 or NaN (no label); ``ValueError`` for any other value."""
        pairs = zip(ids, values, strict=True)
        labels = {str(one): float(value) for one, value in pairs if not pd.isna(value)}
        odd = sorted(set(labels.values()) - {0.0, 1.0})
        if odd:
            raise ValueError(f"labels of task '{task}' must be 0 or 1, found {', '.join(map(str, odd[:3]))}.")
        return cls(cohort, task, labels)

    def labelled(self, rows: Rows) -> tuple[Rows, Array]:
        """The rows that have a label, and the labels."""
        kept = rows.select([one for one in rows.ids if one in self.labels])
        return kept, self.of_ids(kept.ids)

    def of_ids(self, ids: Sequence[str]) -> Array:
        """Labels of labelled patients."""
        return np.array([self.labels[one] for one in ids], dtype=np.float64)


@dataclass(frozen=True)
class Outcome:
    """Predictions of one step and the cases beside them."""

    predictions: list[pd.DataFrame]
    cases: list[dict[str, Any]]

    @classmethod
    def empty(cls) -> Outcome:
        """Nothing yet."""
        return cls([], [])

    def extend(self, other: Outcome) -> None:
        """Append the frames and cases of ``other``."""
        self.predictions.extend(other.predictions)
        self.cases.extend(other.cases)


def probe_name(model: str) -> str:
    """The name of a model's rows: the encoded table is probed as `table_logistic`."""
    return "table_logistic" if model == TABLE else model


def probe_probabilities(pool: Array, y: Array, queries: Array, readout: Readout, scaler: Scaler) -> dict[str, Array]:
    """Probability (q,) of ``queries`` (q, d) by readout name, fitted on ``pool`` (n, d) with labels ``y`` (n,).

    NaN where the pool holds one class only: then nothing can be said, and 0.5 would be a claim.
    """
    names = ["logistic", "centroid"] if readout.centroid else ["logistic"]
    if len(queries) == 0 or len(np.unique(y)) < 2:
        return {name: np.full(len(queries), np.nan) for name in names}
    scaled, asked = scaler.transform(pool), scaler.transform(queries)
    everyone = np.arange(len(pool))[None]
    found = {"logistic": expit(logistic_scores(scaled, asked, everyone, y[None], readout.c)[0])}
    if readout.centroid:
        found["centroid"] = expit(centroid_scores(scaled, asked, everyone, y[None])[0])
    return found


def cross_validate(model: str, vectors: Vectors, target: Target, settings: EvaluationSettings) -> Outcome:
    """Probabilities of every fold's test patients, and validation probabilities as cases.

    The scaler is fitted on the fold's training patients, labelled or not. The probe of the test rows is
    fitted on training + validation patients, the one for selection on training patients alone.
    """
    readout, name = readout_of(model, settings), probe_name(model)
    outcome = Outcome.empty()
    for seed, fold in vectors.folds(model):
        train = vectors.rows(model, "aligned", fold, seed, "train")
        if len(train) == 0:
            continue
        scaler = readout.scaler(train.matrix)
        test, truth = target.labelled(vectors.rows(model, "aligned", fold, seed, "test"))
        fitting, y = target.labelled(vectors.rows(model, "aligned", fold, seed, "train", "validation"))
        for kind, probability in probe_probabilities(fitting.matrix, y, test.matrix, readout, scaler).items():
            outcome.predictions.append(fold_predictions(target, name, kind, fold, seed, test.ids, truth, probability))
        fitting, y = target.labelled(train)
        held, _ = target.labelled(vectors.rows(model, "aligned", fold, seed, "validation"))
        probability = probe_probabilities(fitting.matrix, y, held.matrix, readout, scaler)["logistic"]
        outcome.cases.extend(validation_cases(target, name, fold, seed, held.ids, probability))
    return outcome


def fold_predictions(
    target: Target,
    model: str,
    readout: str | None,
    fold: int,
    seed: int,
    ids: Sequence[str],
    truth: Array,
    probability: Array,
) -> pd.DataFrame:
    """Cross-validation predictions of one fold's test patients."""
    return prediction_frame(
        len(ids),
        cohort=target.cohort,
        task=target.task,
        protocol="cross_validation",
        model=model,
        readout=readout,
        fold=fold,
        seed=seed,
        patient_id=list(ids),
        y_true=truth,
        y_prob=probability,
    )


def validation_cases(
    target: Target, model: str, fold: int, seed: int, ids: Sequence[str], probability: Array
) -> list[dict[str, Any]]:
    """Cases of validation probabilities, those that could not be given left out."""
    shared = {"cohort": target.cohort, "task": target.task, "protocol": "cross_validation", "model": model}
    return [
        {
            **shared,
            "fold": fold,
            "seed": seed,
            "patient_id": one,
            "metric": VALIDATION_CASE,
            "value": float(value),
        }
        for one, value in zip(ids, probability, strict=True)
        if not np.isnan(value)
    ]


def select_models(cases: pd.DataFrame, labels: pd.DataFrame) -> dict[str, str]:
    """Task -> model with the best validation AUROC, pooled over all folds and seeds; ties go to the simpler.

    Only pairs of validation patients of one fold and seed are compared. Tasks in which no fold's validation
    patients hold both classes are left out: nothing can be selected on them.
    """
    columns = [cases[name].tolist() for name in ("task", "model", "fold", "seed", "patient_id", "metric", "value")]
    scores: dict[tuple[str, str], dict[tuple[int, int], list[tuple[str, float]]]] = {}
    for task, model, fold, seed, patient, metric, value in zip(*columns, strict=True):
        if metric == VALIDATION_CASE and model in SIMPLEST_FIRST:
            scores.setdefault((task, model), {}).setdefault((fold, seed), []).append((str(patient), value))
    selected = {}
    for task in dict.fromkeys(task for task, _ in scores):
        truth = {str(one): label for one, label in zip(labels.index, labels[task].tolist(), strict=True)}
        values = {model: _pooled_auroc(scores.get((task, model), {}), truth) for model in SIMPLEST_FIRST}
        known = {model: value for model, value in values.items() if value is not None}
        if known:
            best = max(known.values())
            selected[task] = next(model for model, value in known.items() if value >= best - 1e-12)
    return selected


def _pooled_auroc(parts: Mapping[tuple[int, int], list[tuple[str, float]]], truth: Mapping[str, float]) -> float | None:
    """AUROC over the pairs inside each part; None without a pair."""
    top = bottom = 0.0
    for rows in parts.values():
        y = np.array([truth[patient] for patient, _ in rows])
        value = np.array([value for _, value in rows])
        matrix = concordance(value[y == 1], value[y == 0])
        top, bottom = top + float(matrix.sum()), bottom + matrix.size
    return top / bottom if bottom else None
