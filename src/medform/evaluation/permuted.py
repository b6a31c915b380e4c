"""The null: the probe refitted on labels that were permuted over all patients of the task."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit

from medform.cohort.split import patient_order
from medform.evaluation.predictions import prediction_frame
from medform.evaluation.probe import Target
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.vectors import Vectors, readout_of
from medform.metrics.linear_probe import logistic_scores

__all__ = ["permuted_labels"]


def permuted_labels(model: str, vectors: Vectors, target: Target, settings: EvaluationSettings) -> list[pd.DataFrame]:
    """Predictions named `permuted_labels`: ``settings.permutations`` draws, each with its own ``y_true``.

    The vectors are those of ``model``; only the probe is refitted (on training + validation patients). A
    draw that leaves a fold's fitting patients with one class has no probability there.
    """
    readout = readout_of(model, settings)
    folds = vectors.folds(model)
    parts = ("train", "validation", "test")
    everyone = {one for seed, fold in folds for one in vectors.rows(model, "aligned", fold, seed, *parts).ids}
    ids = patient_order(everyone & set(target.labels), settings.seed)
    random = np.random.default_rng([settings.seed, len(ids)])
    truth = target.of_ids(ids)
    shuffled = np.stack([random.permutation(truth) for _ in range(settings.permutations)])
    place = {one: number for number, one in enumerate(ids)}
    frames = []
    for seed, fold in folds:
        train = vectors.rows(model, "aligned", fold, seed, "train")
        test, _ = target.labelled(vectors.rows(model, "aligned", fold, seed, "test"))
        fitting, _ = target.labelled(vectors.rows(model, "aligned", fold, seed, "train", "validation"))
        if len(train) == 0 or len(test) == 0 or len(fitting) == 0:
            continue
        scaler = readout.scaler(train.matrix)
        y = shuffled[:, [place[one] for one in fitting.ids]]
        fitted = (y.min(axis=1) == 0) & (y.max(axis=1) == 1)
        probability = np.full((len(y), len(test)), np.nan)
        if fitted.any():
            everybody = np.arange(len(fitting))[None]
            pool, queries = scaler.transform(fitting.matrix), scaler.transform(test.matrix)
            probability[fitted] = expit(logistic_scores(pool, queries, everybody, y[fitted], readout.c))
        draws = len(y)
        frames.append(
            prediction_frame(
                draws * len(test),
                cohort=target.cohort,
                task=target.task,
                protocol="cross_validation",
                model="permuted_labels",
                readout="logistic",
                draw=np.repeat(np.arange(draws), len(test)),
                fold=fold,
                seed=seed,
                patient_id=list(test.ids) * draws,
                y_true=shuffled[:, [place[one] for one in test.ids]].ravel(),
                y_prob=probability.ravel(),
            )
        )
    return frames
