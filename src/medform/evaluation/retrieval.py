"""Does an image find its own table row among the fold's test patients, and the row its image, better than by chance?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medform.cohort.split import patient_order
from medform.evaluation.settings import EvaluationSettings
from medform.metrics.bootstrap import SMALL_CLASS, percentile_interval, resample, weighted_medians
from medform.metrics.ranking import match_ranks
from medform.runs.scores import FLAT, ScoreRow

__all__ = ["Similarity", "retrieval_cases", "retrieval_rows"]

Array = NDArray[np.float64]
RANK, CANDIDATES = "rank", "candidates"
Similarity = Literal["distance", "cosine"]


def retrieval_cases(
    cohort: str,
    model: str,
    fold: int,
    seed: int,
    patient_ids: list[str],
    image: ArrayLike,
    table: ArrayLike,
    *,
    similarity: Similarity = "distance",
    name: str = "table",
) -> list[dict[str, Any]]:
    """Cases of both directions: the rank of each patient's partner among the test patients of one fold.

    ``image`` and ``table`` (n, d) are the two projections of ``patient_ids``, row by row, in the aligned
    space; ``name`` says what stands beside the image (table or genes).
    """
    a, b = np.asarray(image, dtype=np.float64), np.asarray(table, dtype=np.float64)
    if a.shape != b.shape or len(a) != len(patient_ids):
        raise ValueError(
            f"image {a.shape} and table {b.shape} must be alike, a row for each of {len(patient_ids)} ids."
        )
    if similarity == "cosine":
        a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
        b = b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-12)
    near = -((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    shared = {"cohort": cohort, "protocol": "retrieval", "model": model, "fold": fold, "seed": seed}
    found = []
    for task, matrix in ((f"image_to_{name}", near), (f"{name}_to_image", near.T)):
        for one, rank in zip(patient_ids, match_ranks(matrix), strict=True):
            base = {**shared, "task": task, "patient_id": one}
            found.append({**base, "metric": RANK, "value": float(rank)})
            found.append({**base, "metric": CANDIDATES, "value": float(len(patient_ids))})
    return found


def retrieval_rows(cases: pd.DataFrame, settings: EvaluationSettings) -> Iterator[ScoreRow]:
    """Rows of `recall_at_k` and `median_rank` by model and direction, each with its chance line.

    The intervals resample patients. Ranks of one patient under several seeds count once, by the mean of the
    figures.
    """
    groups: dict[tuple[str, str, str], dict[int, dict[str, tuple[float, float]]]] = {}
    names = ("protocol", "cohort", "task", "model", "seed", "patient_id", "metric", "value")
    values: dict[tuple[Any, ...], dict[str, float]] = {}
    for protocol, *place, metric, value in zip(*(cases[name].tolist() for name in names), strict=True):
        if protocol == "retrieval":
            values.setdefault(tuple(place), {})[str(metric)] = float(value)
    for (cohort, task, model, seed, patient), found in values.items():
        by_seed = groups.setdefault((cohort, task, model), {}).setdefault(int(seed), {})
        by_seed[str(patient)] = (found[RANK], found[CANDIDATES])
    chance_done: set[tuple[str, str]] = set()
    for (cohort, task, model), by_seed in groups.items():
        yield from _rows(cohort, task, model, list(by_seed.values()), settings)
        if (cohort, task) not in chance_done:
            chance_done.add((cohort, task))
            yield from _chance(cohort, task, next(iter(by_seed.values())), settings)


def _rows(
    cohort: str,
    task: str,
    model: str,
    seeds: list[dict[str, tuple[float, float]]],
    settings: EvaluationSettings,
) -> Iterator[ScoreRow]:
    ids = patient_order(set.intersection(*(set(one) for one in seeds)), settings.seed)
    ranks = [np.array([one[patient][0] for patient in ids]) for one in seeds]
    counts = resample(len(ids), 0, settings.bootstrap, settings.seed).positive
    once = np.ones((1, len(ids)))
    few = len(ids) < SMALL_CLASS
    k = settings.recall_at
    for metric in ("recall_at_k", "median_rank"):

        def figure(weights: Array, metric: str = metric) -> Array:
            if metric == "median_rank":
                return np.mean([weighted_medians(rank, weights) for rank in ranks], axis=0)
            return np.mean([weights @ (rank <= k) / weights.sum(axis=1) for rank in ranks], axis=0)

        interval = None if few else percentile_interval(figure(counts))
        notes = [f"k = {k}"] if metric == "recall_at_k" else []
        notes += [f"no interval: fewer than {SMALL_CLASS} patients"] if few else []
        if interval is not None and interval.flat:
            interval, notes = None, [FLAT, *notes]
        yield ScoreRow(
            cohort=cohort,
            task=task,
            protocol="retrieval",
            model=model,
            metric=metric,
            value=float(figure(once)[0]),
            n_patients=len(ids),
            ci_low=interval.low if interval else None,
            ci_high=interval.high if interval else None,
            seeds=len(seeds),
            note="; ".join(notes) or None,
        )


def _chance(
    cohort: str, task: str, patients: dict[str, tuple[float, float]], settings: EvaluationSettings
) -> Iterator[ScoreRow]:
    candidates = np.array([found[1] for found in patients.values()])
    k = settings.recall_at
    known = {
        "recall_at_k": (float(np.minimum(k / candidates, 1.0).mean()), f"chance; k = {k}"),
        "median_rank": (float(np.median((candidates + 1) / 2)), "chance"),
    }
    for metric, (value, note) in known.items():
        yield ScoreRow(
            cohort=cohort,
            task=task,
            protocol="retrieval",
            model="chance",
            metric=metric,
            value=value,
            n_patients=len(patients),
            note=note,
        )
