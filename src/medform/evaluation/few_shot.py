"""Few-shot probes: 200 draws of k labelled patients a class, always tested on the fold's own test patients."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from medform.cohort.split import patient_order, stratified_share
from medform.evaluation.predictions import coded, prediction_frame
from medform.evaluation.probe import Outcome, Target, probe_name
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.vectors import TABLE, Readout, Rows, Supports, Vectors, readout_of
from medform.metrics.linear_probe import centroid_scores, logistic_scores

__all__ = ["POOL_CASE", "HeldOut", "draw_supports", "few_shot", "held_out_patients", "supports_of"]

Array = NDArray[np.float64]

POOL_CASE = "smallest_class_of_pool"
"""Metric prefix of the cases that say how many patients the smaller class of a pool of supports has."""
NEVER_ALIGNED = frozenset({
    *(TABLE, "genes_logistic", "intensity_stats", "image_only", "imagenet_encoder", "random_encoder"),
    *("attention_unaligned", "embeddings"),
})  # fmt: skip
"""Models without an alignment: any training patient is one that alignment did not see."""
HeldOut = dict[tuple[int, int], frozenset[str]]
"""(seed, fold) -> training patients that `unseen` supports come from."""


def draw_supports(labels: Array, shots: int, draws: int, names: Sequence[object]) -> NDArray[np.intp]:
    """Row numbers (draws, 2 * shots) of supports: ``shots`` of label 0, then ``shots`` of label 1, without repeats.

    ``names`` seed the draw (never a model's name, so all models see the same supports); the supports of a
    smaller k are the first of a larger k, which keeps a curve over k from jumping by the luck of the draw.
    """
    digest = hashlib.sha256(":".join(map(str, names)).encode()).digest()
    random = np.random.default_rng(list(digest))
    chosen = []
    for label in (0.0, 1.0):
        members = np.flatnonzero(labels == label)
        if len(members) < shots:
            raise ValueError(f"{len(members)} patients of label {label:.0f} cannot give {shots} supports.")
        order = random.random((draws, len(members))).argsort(axis=1)
        chosen.append(members[order[:, :shots]])
    return np.concatenate(chosen, axis=1)


def supports_of(model: str, vectors: Vectors) -> list[Supports]:
    """Kinds of supports that a model has rows for: `aligned`, and others where its vectors were made for them.

    A model without an alignment has `unseen` ones too. An aligned model without vectors of an alignment that left
    patients out has none: all training patients were aligned.
    """
    made: list[Supports] = ["aligned"]
    if vectors.has(model, "out_of_fold"):
        made.append("out_of_fold")
    if vectors.has(model, "unseen") or model in NEVER_ALIGNED:
        made.append("unseen")
    return made


def held_out_patients(vectors: Vectors, labels: pd.Series | None, settings: EvaluationSettings) -> HeldOut:
    """Training patients that alignment did not see for `unseen` supports.

    Read from the `unseen` vectors where there are any; otherwise a stratified share is drawn. A model that was made
    under fewer seeds takes, under its own, those of the first seed that has the fold.
    """
    held: HeldOut = {}
    trained: dict[int, set[str]] = {}
    for model in vectors.models:
        for seed, fold in vectors.folds(model, "unseen"):
            rows = vectors.rows(model, "unseen", fold, seed, "held_out")
            held[seed, fold] = held.get((seed, fold), frozenset()) | frozenset(rows.ids)
        for seed, fold in vectors.folds(model):
            trained.setdefault(fold, set()).update(vectors.rows(model, "aligned", fold, seed, "train").ids)
    for fold, ids in trained.items():
        if all(fold != known for _, known in held):
            drawn = stratified_share(sorted(ids), labels, settings.held_out, f"{settings.seed}:held_out:{fold}")
            held[0, fold] = frozenset(drawn)
    return held


def _held_out(held: HeldOut, seed: int, fold: int) -> frozenset[str]:
    """Those of the seed, or of the first seed that has the fold."""
    seeds = [one for one, known in sorted(held) if known == fold]
    return held[seed if seed in seeds else seeds[0], fold] if seeds else frozenset()


@dataclass(frozen=True)
class _Setting:
    """One fold of one model and kind of supports: scaled pool and test vectors with their labels."""

    seed: int
    fold: int
    pool: Rows
    labels: Array
    test: Rows
    truth: Array

    @property
    def smaller(self) -> int:
        """Patients in the smaller class of the pool."""
        positives = int(self.labels.sum())
        return min(positives, len(self.labels) - positives)


def few_shot(
    model: str,
    vectors: Vectors,
    target: Target,
    held_out: HeldOut,
    settings: EvaluationSettings,
) -> Iterator[Outcome]:
    """One outcome for each kind of supports: predictions of all k, draws, folds, seeds and readouts, and pool sizes.

    k goes up to the largest of ``settings.shots`` below the smaller class of the pool of every fold.
    """
    readout = readout_of(model, settings)
    for supports in supports_of(model, vectors):
        folds = list(_settings(model, supports, vectors, target, held_out, readout, settings))
        if not folds:
            continue
        shared = {
            "cohort": target.cohort,
            "task": target.task,
            "protocol": "few_shot",
            "model": probe_name(model),
        }
        metric = f"{POOL_CASE}.{supports}"
        cases: list[dict[str, Any]] = [
            {**shared, "fold": one.fold, "seed": one.seed, "metric": metric, "value": float(one.smaller)}
            for one in folds
        ]
        limit = min(one.smaller for one in folds)
        possible = [k for k in settings.shots if k < limit]
        frames = [_predict(folds, k, supports, target, model, readout, settings) for k in possible]
        yield Outcome(frames, cases)


def _settings(
    model: str,
    supports: Supports,
    vectors: Vectors,
    target: Target,
    held_out: HeldOut,
    readout: Readout,
    settings: EvaluationSettings,
) -> Iterator[_Setting]:
    own = supports if vectors.has(model, supports) else "aligned"
    for seed, fold in vectors.folds(model, own):
        train = vectors.rows(model, own, fold, seed, "train", "held_out")
        # out-of-fold vectors exist for training patients only; they share one space with the ordinary ones
        asked = "aligned" if own == "out_of_fold" else own
        test, truth = target.labelled(vectors.rows(model, asked, fold, seed, "test"))
        if len(train) == 0 or len(test) == 0:
            continue
        pool = train
        if own == "unseen":
            pool = vectors.rows(model, own, fold, seed, "held_out", "validation")
        elif supports == "unseen":
            validation = vectors.rows(model, own, fold, seed, "validation")
            hidden = _held_out(held_out, seed, fold) | frozenset(validation.ids)
            outside = vectors.rows(model, own, fold, seed, "train", "validation")
            pool = outside.select([one for one in outside.ids if one in hidden])
        pool, labels = target.labelled(pool.select(patient_order(pool.ids, settings.seed)))
        scaler = readout.scaler(train.matrix)
        pool = Rows(pool.ids, scaler.transform(pool.matrix) if len(pool) else pool.matrix)
        yield _Setting(seed, fold, pool, labels, Rows(test.ids, scaler.transform(test.matrix)), truth)


def _predict(
    folds: Sequence[_Setting],
    shots: int,
    supports: Supports,
    target: Target,
    model: str,
    readout: Readout,
    settings: EvaluationSettings,
) -> pd.DataFrame:
    """Predictions of one k, draw by draw, as one frame."""
    known = sorted({one for fold in folds for one in fold.test.ids})
    code = {one: number for number, one in enumerate(known)}
    pool_name = "unseen" if supports == "unseen" else "train"
    columns: dict[str, list[Any]] = {name: [] for name in ("readout", "draw", "fold", "seed", "patient", "y", "p")}
    y = np.tile(np.repeat([0.0, 1.0], shots), (settings.draws, 1))
    for one in folds:
        names = (settings.seed, target.task, one.fold, pool_name)
        chosen = draw_supports(one.labels, shots, settings.draws, names)
        scores = {"logistic": logistic_scores(one.pool.matrix, one.test.matrix, chosen, y, readout.c)}
        if readout.centroid:
            scores["centroid"] = centroid_scores(one.pool.matrix, one.test.matrix, chosen, y)
        asked = len(one.test)
        patient = np.array([code[name] for name in one.test.ids], dtype=np.int32)
        for kind, score in scores.items():
            size = settings.draws * asked
            columns["readout"].append(np.full(size, 0 if kind == "logistic" else 1, dtype=np.int8))
            columns["draw"].append(np.repeat(np.arange(settings.draws, dtype=np.int16), asked))
            columns["fold"].append(np.full(size, one.fold, dtype=np.int16))
            columns["seed"].append(np.full(size, one.seed, dtype=np.int32))
            columns["patient"].append(np.tile(patient, settings.draws))
            columns["y"].append(np.tile(one.truth.astype(np.float32), settings.draws))
            columns["p"].append(expit(score).astype(np.float32).ravel())
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return prediction_frame(
        len(joined["p"]),
        cohort=target.cohort,
        task=target.task,
        protocol="few_shot",
        model=probe_name(model),
        readout=coded(joined["readout"], ["logistic", "centroid"]),
        shots=shots,
        supports=supports,
        draw=joined["draw"],
        fold=joined["fold"],
        seed=joined["seed"],
        patient_id=coded(joined["patient"], known),
        y_true=joined["y"],
        y_prob=joined["p"],
    )
