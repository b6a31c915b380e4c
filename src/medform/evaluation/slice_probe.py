"""Probes of single slices: does a frozen encoder see the finding on the slice itself?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.split import Split
from medform.errors import InputError
from medform.evaluation.predictions import prediction_frame
from medform.evaluation.probe import probe_probabilities
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.vectors import Readout, readout_of

__all__ = ["slice_probe"]

Array = NDArray[np.float64]


def slice_probe(
    features: Mapping[str, Array | Mapping[int, Array]],
    slices: pd.DataFrame,
    labels: pd.Series,
    split: Split,
    settings: EvaluationSettings,
    *,
    cohort_name: str = "cohort",
    task: str = "slice",
    seed: int = 0,
    folds: Sequence[int] | None = None,
) -> list[pd.DataFrame]:
    """Predictions (protocol `slice_probe`) of the slices of every fold's test patients.

    features: model -> (T, d), or fold -> (T, d) where each fold has its own encoder; rows in the order of
    ``slices`` (columns slice_id, patient_id). labels: index slice_id, 0, 1 or NaN. The readout is fitted on
    the slices of the fold's training and validation patients and never on another slice of a test patient.
    ``folds`` defaults to all.

    Feed the frames to `score_rows`: the AUROC compares slices of one fold and resamples whole patients.
    """
    slice_ids = np.array([str(one) for one in slices["slice_id"]], dtype=object)
    patients = np.array([str(one) for one in slices["patient_id"]], dtype=object)
    truth = np.array([float(value) for value in labels.reindex(slices["slice_id"]).tolist()])
    frames = []
    for model, given in features.items():
        readout = readout_of(model, settings)
        for fold in range(len(split.folds)) if folds is None else folds:
            matrix = _of_fold(model, given, fold, len(slices))
            if matrix is None:
                continue
            part = split.folds[fold]
            fitted_ids, test_ids = {*part.train, *part.validation}, set(part.test)
            scaling = np.array([one in set(part.train) for one in patients], dtype=bool)
            fitting = np.array([one in fitted_ids for one in patients], dtype=bool) & ~np.isnan(truth)
            test = np.array([one in test_ids for one in patients], dtype=bool) & ~np.isnan(truth)
            if not scaling.any() or not test.any():
                continue
            probability = _probability(matrix, truth, scaling, fitting, test, readout)
            frames.append(
                prediction_frame(
                    int(test.sum()),
                    cohort=cohort_name,
                    task=task,
                    protocol="slice_probe",
                    model=model,
                    readout="logistic",
                    fold=fold,
                    seed=seed,
                    patient_id=patients[test],
                    slice_id=slice_ids[test],
                    y_true=truth[test],
                    y_prob=probability,
                )
            )
    return frames


def _of_fold(model: str, given: Array | Mapping[int, Array], fold: int, count: int) -> Array | None:
    """The (T, d) features of a fold, or None where that fold was not run."""
    matrix = given.get(fold) if isinstance(given, Mapping) else given
    if matrix is not None and len(matrix) != count:
        raise InputError(f"{len(matrix)} slice vectors of {model} for {count} slices.", fix="embed the slices anew.")
    return None if matrix is None else np.asarray(matrix, dtype=np.float64)


def _probability(
    matrix: Array,
    truth: Array,
    scaling: NDArray[np.bool_],
    fitting: NDArray[np.bool_],
    test: NDArray[np.bool_],
    readout: Readout,
) -> Array:
    scaler = readout.scaler(matrix[scaling])
    only = Readout(readout.scaling, readout.c, centroid=False)
    return probe_probabilities(matrix[fitting], truth[fitting], matrix[test], only, scaler)["logistic"]
