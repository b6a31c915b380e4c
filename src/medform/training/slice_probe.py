"""The slice probe in the training log: does the encoder see the finding better as it trains?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int
from scipy.special import expit

from medform.cohort.split import inner_folds
from medform.inputs.slices import SliceStore
from medform.interfaces import Block, Objective
from medform.metrics.linear_probe import fit_logistic, fit_scaler
from medform.metrics.ranking import stratified_auroc
from medform.training.fit import Monitor
from medform.training.infer import embeddings, shrunk

__all__ = ["MOST_SLICES", "SliceProbeMonitor", "together"]

MOST_SLICES = 128
"""So that a log of an EfficientNet-Lite0 costs less than a CPU-second."""
FOLDS = 3
READOUT_C = 30.0
"""C of the logistic readout, as `medform.evaluation` has it for image vectors."""


@dataclass(frozen=True)
class SliceProbeMonitor:
    """AUROC of a linear probe of a few fixed training slices, probed and tested within them, by whole patients.

    ``rows`` (n,) of ``store``; ``labels``: task -> (n,) 0, 1 or NaN; ``parts`` (n,): the part of a slice's patient.
    No patient outside the fold's training patients is looked at, so the figure says how training goes and is no score.
    Slices larger than ``side`` are averaged down to it, as in `medform.training.infer.RankMonitor`.
    """

    store: SliceStore
    rows: Int[np.ndarray, " n"]
    labels: Mapping[str, Float64[np.ndarray, " n"]]
    parts: Int[np.ndarray, " n"]
    modality: str = "image"
    side = 96
    batch = 64

    @classmethod
    def over(
        cls,
        store: SliceStore,
        rows: Int[np.ndarray, " t"],
        labels: Mapping[str, Float64[np.ndarray, " all"]],
        count: int = MOST_SLICES,
    ) -> SliceProbeMonitor:
        """``count`` of the training slices ``rows`` that have a label, evenly spread.

        ``labels``: task -> label of every slice of ``store``, 0, 1 or NaN. Patients are dealt to three parts, those
        with a positive slice of the first task and the others apart, in an order that does not depend on their ids.
        """
        known = np.zeros(len(rows), bool)
        for values in labels.values():
            known |= ~np.isnan(values[rows])
        labelled = rows[known]
        places = np.linspace(0, len(labelled) - 1, min(count, len(labelled))).round().astype(int)
        chosen = labelled[places]
        names = [store.patient_ids[code] for code in store.patient[chosen]]
        found = {task: np.asarray(values, np.float64)[chosen] for task, values in labels.items()}
        return cls(store, chosen, found, _parts(names, next(iter(found.values()), np.zeros(len(chosen)))))

    def __call__(self, objective: Objective) -> Mapping[str, float]:
        """``slice_probe.<task>`` for `fit`'s log; a task whose slices cannot be told apart by parts has no figure."""
        usable = {task: y for task, y in self.labels.items() if _has_both(y)}
        if not usable:
            return {}
        vectors = np.concatenate([self._vectors(objective, first) for first in range(0, len(self.rows), self.batch)])
        if not np.isfinite(vectors).all():  # the loop says so itself, where loss or gradient are not finite
            return {}
        logged = {}
        for task, y in usable.items():
            value = _probed(vectors.astype(np.float64), y, self.parts)
            if value is not None:
                logged[f"slice_probe.{task}"] = value
        return logged

    def _vectors(self, objective: Objective, first: int) -> Float32[np.ndarray, "m d"]:
        rows = self.rows[first : first + self.batch]
        tower: Any = objective.towers[self.modality]
        image = shrunk(torch.from_numpy(self.store.images(rows)), tower, self.side)
        block = Block({"image": image}, torch.from_numpy(self.store.patient[rows]), torch.from_numpy(rows))
        return embeddings(tower, block)


def together(*monitors: Monitor) -> Monitor:
    """One monitor that logs what all of them log."""

    def both(objective: Objective) -> Mapping[str, float]:
        return {name: value for one in monitors for name, value in one(objective).items()}

    return both


def _parts(names: Sequence[str], y: Float64[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The part (0 to 2) of every slice's patient."""
    positive: dict[str, float] = {}
    for name, value in zip(names, y, strict=True):
        positive[name] = max(positive.get(name, 0.0), float(value == 1.0))
    part = inner_folds(list(positive), positive, FOLDS)
    return np.array([part[name] for name in names], np.int64)


def _has_both(y: Float64[np.ndarray, " n"]) -> bool:
    return bool((y == 1).any() and (y == 0).any())


def _probed(
    vectors: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, " n"], parts: Int[np.ndarray, " n"]
) -> float | None:
    """AUROC over pairs of slices of one part, each part scored by a probe of the others; None where there is no pair.

    Vectors are centred and scaled to mean squared norm 1 on the slices that the probe is fitted on.
    """
    known = ~np.isnan(y)
    vectors, y, parts = vectors[known], y[known], parts[known]
    score, scored = np.zeros(len(y)), np.zeros(len(y), bool)
    for part in np.unique(parts):
        tested, fitted = parts == part, parts != part
        if not _has_both(y[fitted]):
            continue
        scaler = fit_scaler(vectors[fitted], "norm")
        probe = fit_logistic(scaler.transform(vectors[fitted]), y[fitted], READOUT_C)
        score[tested], scored[tested] = expit(probe.decision(scaler.transform(vectors[tested]))), True
    if not scored.any():
        return None
    return stratified_auroc(y[scored], score[scored], parts[scored]).value
