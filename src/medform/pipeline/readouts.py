"""What makes vectors and table rows into probabilities: fitted at export, as the run's own evaluation fits it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medform.cohort.split import inner_folds, patient_order
from medform.evaluation.vectors import TABLE, readout_of
from medform.metrics.calibration import Calibrator, best_threshold, fit_calibrator
from medform.metrics.linear_probe import Logistic, Scaler, fit_logistic

if TYPE_CHECKING:
    import pandas as pd

    from medform.evaluation.settings import EvaluationSettings

__all__ = [
    "FEWEST",
    "InputSet",
    "Probe",
    "Readout",
    "answers",
    "fit_readouts",
    "from_files",
    "image_model",
    "to_files",
    "without_readout",
]

Array = NDArray[np.float64]
InputSet = Literal["image", "table", "both"]

FEWEST = 5
"""Labelled patients of the rarer class below which a task gets no readout: nothing could be calibrated on fewer."""
FURTHEST = 27.631021115928547
"""Log odds of 1 - 1e-12: no score of a probe counts for more, as in `medform.evaluation.fusion`."""
PLAIN = "inner folds of the readout"
SEEN = f"{PLAIN}, on vectors of patients whom the alignment saw: probabilities may be too sure"
NOT_FOLLOWING = "out-of-fold scores did not follow the label: the probability is the prevalence, and nobody is called"
TURNED = "out-of-fold scores ran against the label and this probability against them: nobody is called, export it again"
"""Of model folders from before a calibration was kept from turning the order of the scores round."""
NEVER = 1.0
"""The threshold where nobody is called: an earlier medform, which compares with it, calls nobody positive either."""


@dataclass(frozen=True)
class Probe:
    """A scaler and the logistic regression behind it, of d columns."""

    scaler: Scaler
    logistic: Logistic

    @classmethod
    def fit(cls, scaler: Scaler, rows: Array, y: Array, c: float) -> Probe:
        """On rows (n, d) with labels ``y`` (n,) of both classes."""
        return cls(scaler, fit_logistic(scaler.transform(rows), y, c))

    def log_odds(self, rows: Array) -> Array:
        """Log odds (n,) of rows (n, d), within +-`FURTHEST`."""
        return np.clip(self.logistic.decision(self.scaler.transform(rows)), -FURTHEST, FURTHEST)


@dataclass(frozen=True)
class Readout:
    """One task from one set of inputs.

    ``probe`` reads an image vector, an encoded table row, or (``both``) the row with the image's score as one more
    column; that score comes from ``image``. ``probability`` is calibrated and compared with ``threshold``, but where
    the out-of-fold scores did not follow the label: a threshold would call patients by noise there.
    ``n``, ``positive``: patients it was fitted on; ``basis``: where the calibrating scores come from.
    """

    probe: Probe
    image: Probe | None
    calibrator: Calibrator
    threshold: float
    n: int
    positive: int
    basis: str

    def score(self, image: Array | None, row: Array | None) -> float:
        """Log odds of one patient before calibration, as in the run's predictions; ValueError for a missing input."""
        parts = []
        if self.image is not None:
            if image is None or row is None:
                raise ValueError("this readout needs an image and a table row")
            parts = [np.append(row, self.image.log_odds(np.asarray(image, np.float64)[None])[0])]
        else:
            parts = [one for one in (image, row) if one is not None]
        if len(parts) != 1:
            raise ValueError("this readout needs exactly one input")
        return float(self.probe.log_odds(np.asarray(parts[0], np.float64)[None])[0])

    def probability(self, score: float) -> float:
        """Calibrated probability of a score."""
        return float(self.calibrator.probability(score))

    def call(self, probability: float) -> bool | None:
        """Whether a probability is a positive finding; None where the scores said nothing of the label."""
        return probability >= self.threshold if self.calibrator.follows else None

    @property
    def caution(self) -> str | None:
        """What whoever reads its probabilities must know of them; None where they are as they should be."""
        if not self.calibrator.follows:
            return TURNED if self.calibrator.slope < 0 else NOT_FOLLOWING
        return None if self.basis == PLAIN else f"calibrated on {self.basis}"


@dataclass(frozen=True)
class _Vectors:
    """One model's vectors of the patients that a readout may see.

    ``given``: as the run embeds them; ``unseen``: the same patients as if they were new, where the run has such
    vectors (out-of-fold alignments), else equal to ``given``. ``scaled``: patients whose vectors fit the scaler.
    """

    given: Mapping[str, Array]
    unseen: Mapping[str, Array]
    scaled: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.given)


Fitted = tuple[Probe, Probe | None]
Fit = Callable[[Sequence[str]], Fitted]
Score = Callable[[Fitted, Sequence[str]], Array]


@dataclass(frozen=True)
class _Task:
    """A task's labels and how its readouts are fitted."""

    labels: Mapping[str, float]
    settings: EvaluationSettings
    seed: str

    def y(self, ids: Sequence[str]) -> Array:
        return np.array([self.labels[one] for one in ids], np.float64)

    def known(self, ids: Iterable[str]) -> list[str]:
        """Those with a label, in an order that does not depend on their names."""
        return patient_order([one for one in ids if one in self.labels], self.settings.seed)

    def enough(self, ids: Sequence[str]) -> bool:
        positive = int(self.y(ids).sum())
        return min(positive, len(ids) - positive) >= FEWEST

    def inner(self, ids: Sequence[str], seed: str) -> list[NDArray[np.intp]]:
        """Places of each inner fold's patients; empty folds left out."""
        part = inner_folds(ids, {one: self.labels[one] for one in ids}, self.settings.inner_folds, seed)
        number = np.array([part[one] for one in ids])
        return [np.flatnonzero(number == fold) for fold in np.unique(number)]

    def readout(self, ids: Sequence[str], fit: Fit, score: Score, basis: str) -> Readout:
        """Fitted on all ``ids``; threshold and calibration from scores by readouts of the other inner folds."""
        scores = np.empty(len(ids))
        for outside in self.inner(ids, f"{self.seed}:calibration"):
            inside = [one for place, one in enumerate(ids) if place not in set(outside.tolist())]
            scores[outside] = score(fit(inside), [ids[int(place)] for place in outside])
        y = self.y(ids)
        calibrator = fit_calibrator(y, scores)
        assert calibrator is not None  # both classes are there, see `enough`
        threshold = best_threshold(y, calibrator.probability(scores)) if calibrator.follows else NEVER
        assert threshold is not None
        return Readout(*fit(ids), calibrator, threshold, len(ids), int(y.sum()), basis)


def _stack(vectors: Mapping[str, Array], ids: Iterable[str]) -> Array:
    return np.stack([vectors[one] for one in ids])


def fit_readouts(
    frame: pd.DataFrame, labels: pd.DataFrame, settings: EvaluationSettings, seed: int, fold: int | None
) -> dict[str, dict[InputSet, Readout]]:
    """Task -> input set -> readout, from a fold's rows of embeddings.parquet (the final model's: ``fold`` None).

    Fitted on training and validation patients; no test patient is looked at. ``labels``: a float column a task, by
    patient. Probabilities before calibration are those of the run's `aligned` (else `image_only`), `table_logistic`
    and `fused` rows. A task with fewer than `FEWEST` labelled patients of a class gets none.
    """
    model = image_model(frame)
    image, unseen = _vectors(frame, model, seed), _vectors(frame, model, seed, "out_of_fold")
    table = _vectors(frame, TABLE, None)
    basis = SEEN if model == "aligned" and not len(unseen) else PLAIN
    image_side = _Vectors(image.given, {**image.given, **unseen.given}, image.scaled)
    made: dict[str, dict[InputSet, Readout]] = {}
    for name in labels.columns:
        column: Any = labels[name].dropna()
        known = {str(one): float(value) for one, value in column.items()}
        task = _Task(known, settings, f"{settings.seed}:{name}:{-1 if fold is None else fold}")
        sets: dict[InputSet, Readout] = {}
        sides: tuple[tuple[InputSet, _Vectors, str, str], ...] = (
            ("image", image_side, model, basis),
            ("table", table, TABLE, PLAIN),
        )
        for kind, side, what, said in sides:
            ids = task.known(side.given)
            if task.enough(ids):
                sets[kind] = _one_side(task, side, what, ids, said)
        both = task.known(one for one in image_side.given if one in table.given)
        if task.enough(both):
            sets["both"] = _both_sides(task, image_side, table, model, both, basis)
        if sets:
            made[str(name)] = sets
    return made


def image_model(frame: pd.DataFrame) -> str:
    """The model of embeddings.parquet whose vectors the image readouts read: the recipe's own."""
    return "aligned" if "aligned" in set(frame["model"]) else "image_only"


def without_readout(
    frame: pd.DataFrame, labels: pd.DataFrame, seed: int, answered: Mapping[str, Mapping[InputSet, Readout]]
) -> dict[str, str]:
    """Task -> why `fit_readouts` gave it none; of counts alone, so that the model folder may say it."""
    sides = (_vectors(frame, image_model(frame), seed), _vectors(frame, TABLE, None))
    said: dict[str, str] = {}
    for name in labels.columns:
        if str(name) in answered:
            continue
        column: Any = labels[name].dropna()
        known = {str(one): float(value) for one, value in column.items()}
        there = [[known[one] for one in side.given if one in known] for side in sides if len(side)]
        if not there:
            said[str(name)] = "there are neither image vectors nor an encoded table to read it from"
            continue
        values = max(there, key=lambda one: (min(sum(one), len(one) - sum(one)), len(one)))
        rarer = int(min(sum(values), len(values) - sum(values)))
        said[str(name)] = f"of {len(values)} labelled patients {rarer} have the rarer answer, {FEWEST} are needed"
    return said


def answers(readouts: Mapping[str, Mapping[InputSet, Readout]], unanswered: Mapping[str, str]) -> list[str]:
    """A line each task for the model's card: from what it is answered and with which cautions, or why it is not."""
    lines = []
    for task, sets in readouts.items():
        counts = ", ".join(f"{name} ({one.n} patients, {one.positive} positive)" for name, one in sets.items())
        lines.append(f"- {task}: from {counts}.")
        lines += [f"  - {name}: {one.caution}." for name, one in sets.items() if one.caution]
    return [*lines, *(f"- {task}: not answered ({why})." for task, why in unanswered.items())]


def _vectors(frame: pd.DataFrame, model: str, seed: int | None, supports: str = "aligned") -> _Vectors:
    """Vectors of all but test patients; the table has no seed of its own."""
    rows = frame[(frame["model"] == model) & (frame["supports"] == supports) & (frame["part"] != "test")]
    if seed is not None:
        rows = rows[rows["seed"] == seed]
    columns = [rows[name].tolist() for name in ("patient_id", "part", "vector")]
    given = {str(one): np.asarray(vector, np.float64) for one, _, vector in zip(*columns, strict=True)}
    scaled = tuple(str(one) for one, part, _ in zip(*columns, strict=True) if part == "train")
    return _Vectors(given, given, scaled)


def _one_side(task: _Task, side: _Vectors, model: str, ids: Sequence[str], basis: str) -> Readout:
    readout = readout_of(model, task.settings)
    scaler = readout.scaler(_stack(side.given, side.scaled))

    def fit(chosen: Sequence[str]) -> Fitted:
        return Probe.fit(scaler, _stack(side.given, chosen), task.y(chosen), readout.c), None

    def score(fitted: Fitted, asked: Sequence[str]) -> Array:
        return fitted[0].log_odds(_stack(side.unseen, asked))

    return task.readout(ids, fit, score, basis)


def _both_sides(
    task: _Task, image: _Vectors, table: _Vectors, model: str, ids: Sequence[str], basis: str
) -> Readout:  # fmt: skip
    """`fused`: the image's out-of-fold score as one more column of the table."""
    image_readout, table_readout = readout_of(model, task.settings), readout_of(TABLE, task.settings)
    image_scaler = image_readout.scaler(_stack(image.unseen, image.scaled))
    table_scaler = table_readout.scaler(_stack(table.given, table.scaled))

    def image_probe(chosen: Sequence[str]) -> Probe:
        return Probe.fit(image_scaler, _stack(image.unseen, chosen), task.y(chosen), image_readout.c)

    def fit(chosen: Sequence[str]) -> Fitted:
        column = np.empty(len(chosen))
        for inside in task.inner(chosen, task.seed):
            others = [one for place, one in enumerate(chosen) if place not in set(inside.tolist())]
            column[inside] = image_probe(others).log_odds(
                _stack(image.unseen, [chosen[int(place)] for place in inside])
            )
        scaler = Scaler(
            np.append(table_scaler.mean, column.mean()), np.append(table_scaler.scale, float(column.std()) or 1.0)
        )
        rows = np.column_stack([_stack(table.given, chosen), column])
        return Probe.fit(scaler, rows, task.y(chosen), table_readout.c), image_probe(chosen)

    def score(fitted: Fitted, asked: Sequence[str]) -> Array:
        probe, first = fitted
        assert first is not None
        column = first.log_odds(_stack(image.unseen, asked))
        return probe.log_odds(np.column_stack([_stack(table.given, asked), column]))

    return task.readout(ids, fit, score, basis)


def to_files(readouts: Mapping[str, Mapping[InputSet, Readout]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by ``task/input set/name`` and the JSON-able numbers beside them, for `medform.runs.model_folder`."""
    arrays: dict[str, np.ndarray] = {}
    numbers: dict[str, Any] = {}
    for task, sets in readouts.items():
        numbers[task] = {}
        for name, one in sets.items():
            for part, probe in (("", one.probe), ("image.", one.image)):
                if probe is not None:
                    arrays |= {
                        f"{task}/{name}/{part}mean": probe.scaler.mean,
                        f"{task}/{name}/{part}scale": probe.scaler.scale,
                        f"{task}/{name}/{part}weight": probe.logistic.weight,
                        f"{task}/{name}/{part}bias": np.array(probe.logistic.bias, np.float64),
                    }
            numbers[task][name] = {
                "slope": one.calibrator.slope,
                "offset": one.calibrator.offset,
                "threshold": one.threshold,
                "n": one.n,
                "positive": one.positive,
                "basis": one.basis,
            }
    return arrays, numbers


def from_files(arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any]) -> dict[str, dict[InputSet, Readout]]:
    """What `to_files` described; KeyError where an array or number is missing."""

    def probe(start: str) -> Probe:
        scaler = Scaler(arrays[f"{start}mean"], arrays[f"{start}scale"])
        return Probe(scaler, Logistic(arrays[f"{start}weight"], float(arrays[f"{start}bias"])))

    return {
        task: {
            name: Readout(
                probe(f"{task}/{name}/"),
                probe(f"{task}/{name}/image.") if name == "both" else None,
                Calibrator(float(one["slope"]), float(one["offset"])),
                float(one["threshold"]),
                int(one["n"]),
                int(one["positive"]),
                str(one["basis"]),
            )
            for name, one in sets.items()
        }
        for task, sets in numbers.items()
    }
