"""Judges predicted risks: concordance within the test patients of a fold, with intervals and paired differences.

A model's risks have a scale of their own in each fold, so only patients of one fold are compared; intervals
resample patients, each keeping its fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medform.cohort.split import patient_order
from medform.evaluation.settings import EvaluationSettings
from medform.metrics.bootstrap import SMALL_CLASS, percentile_interval, quadratic_resamples, resample, sign_p_value
from medform.metrics.concordance import Pairs, harrell_pairs, mean_pairs, uno_pairs
from medform.metrics.power import detectable_from_error
from medform.runs.scores import FLAT, ScoreRow

__all__ = ["BAR", "survival_cases", "survival_rows"]

Array = NDArray[np.float64]

BAR = "table_cox"
"""Cox regression on the clinical table: the model that every other one is compared with."""
RISK, TIME, EVENT = "risk", "time", "event"


def survival_cases(
    patient_ids: Sequence[str],
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    *,
    cohort: str,
    task: str,
    model: str,
    fold: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Cases of one fold's test patients: ``risk`` (higher: earlier), ``time`` and ``event`` (1 seen, 0 censored).

    Patients without time or event are left out; ValueError for a risk that is not finite.
    """
    columns = [np.asarray(one, dtype=np.float64) for one in (risk, time, event)]
    if any(one.shape != (len(patient_ids),) for one in columns):
        raise ValueError(f"{[one.shape for one in columns]} figures for {len(patient_ids)} patients.")
    shared = {"cohort": cohort, "task": task, "protocol": "survival", "model": model, "fold": fold, "seed": seed}
    found = []
    for patient, *values in zip(patient_ids, *columns, strict=True):
        if np.isnan(values[1]) or np.isnan(values[2]):
            continue
        if not np.isfinite(values[0]):
            raise ValueError(f"the risk of a patient under {model} is {values[0]}.")
        for name, value in zip((RISK, TIME, EVENT), values, strict=True):
            found.append({**shared, "patient_id": patient, "metric": name, "value": float(value)})
    return found


class _MakesPairs(Protocol):
    def __call__(self, time: ArrayLike, event: ArrayLike, risk: ArrayLike, fold: ArrayLike) -> Pairs: ...


FIGURES: Mapping[str, tuple[_MakesPairs, str]] = {
    "c_index": (harrell_pairs, "Harrell's C, pairs of one fold"),
    "c_index_uno": (uno_pairs, "Uno's C, pairs of one fold"),
}


@dataclass
class _Model:
    """Seed -> patient -> fold, risk, time and event."""

    seeds: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)

    @property
    def patients(self) -> set[str]:
        """Patients who were tested under every seed."""
        return set.intersection(*(set(found) for found in self.seeds.values()))

    def pairs(self, make: _MakesPairs, ids: Sequence[str]) -> Pairs:
        """Mean over seeds of the pairs of ``ids``."""
        parts = []
        for found in self.seeds.values():
            time, event, risk, fold = ([found[one][name] for one in ids] for name in (TIME, EVENT, RISK, "fold"))
            parts.append(make(time, event, risk, fold))
        return mean_pairs(parts)

    def events(self, ids: Sequence[str]) -> int:
        """How many of ``ids`` had the event."""
        first = next(iter(self.seeds.values()))
        return sum(int(first[one][EVENT]) for one in ids)


def survival_rows(
    cases: pd.DataFrame,
    settings: EvaluationSettings | None = None,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    train_cohorts: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[ScoreRow]:
    """Rows of the survival cases: Harrell's and Uno's C of each model, a chance line, the paired differences.

    ``pairs`` default to every model against `BAR`. With fewer than 5 events there is no interval.
    """
    settings = settings or EvaluationSettings()
    rows: list[ScoreRow] = []
    for (cohort, task), models in _gathered(cases).items():
        base = ScoreRow(cohort, task, "survival", "", "", None, 0, train_cohorts=train_cohorts or cohort)
        compared = [(one, BAR) for one in models if one != BAR and BAR in models] if pairs is None else pairs
        for metric in FIGURES:
            blank = replace(base, metric=metric)
            rows.extend(_row(blank, name, model, settings, notes or {}) for name, model in models.items())
            everybody = set().union(*(model.patients for model in models.values()))
            rows.append(replace(blank, model="chance", value=0.5, n_patients=len(everybody), note="chance"))
            for first, second in compared:
                if first in models and second in models:
                    rows.append(_difference(blank, (first, second), models, settings, notes or {}))
    return rows


def _gathered(cases: pd.DataFrame) -> dict[tuple[str, str], dict[str, _Model]]:
    found: dict[tuple[str, str], dict[str, _Model]] = {}
    names = ("cohort", "task", "protocol", "model", "fold", "seed", "patient_id", "metric", "value")
    columns = zip(*(cases[name].tolist() for name in names), strict=True)
    for cohort, task, protocol, model, fold, seed, patient, metric, value in columns:
        if protocol == "survival" and metric in (RISK, TIME, EVENT):
            one = found.setdefault((str(cohort), str(task)), {}).setdefault(str(model), _Model())
            tested = one.seeds.setdefault(int(seed), {}).setdefault(str(patient), {"fold": float(fold)})
            tested[str(metric)] = float(value)
    return found


def _counts(n: int, settings: EvaluationSettings) -> Array:
    return resample(n, 0, settings.bootstrap, settings.seed).positive


def _joined(notes: Iterable[str | None]) -> str | None:
    return "; ".join(dict.fromkeys(note for note in notes if note)) or None


def _row(base: ScoreRow, name: str, model: _Model, settings: EvaluationSettings, notes: Mapping[str, str]) -> ScoreRow:
    make, said = FIGURES[base.metric]
    ids = patient_order(model.patients, settings.seed)
    found, events = model.pairs(make, ids), model.events(ids)
    row = replace(base, model=name, n_patients=len(ids), seeds=len(model.seeds), value=found.value)
    remarks = [said, f"{events} events", notes.get(name)]
    if found.value is None:
        return replace(row, note=_joined(["undefined: no two patients of a fold can be compared", *remarks]))
    interval = None
    if events >= SMALL_CLASS:
        interval = percentile_interval(quadratic_resamples(found.right, found.weight, _counts(len(ids), settings)))
    if interval is None:
        return replace(row, note=_joined([f"no interval: fewer than {SMALL_CLASS} events", *remarks]))
    if interval.flat:
        return replace(row, note=_joined([FLAT, *remarks]))
    return replace(row, ci_low=interval.low, ci_high=interval.high, note=_joined(remarks))


def _difference(
    base: ScoreRow,
    names: tuple[str, str],
    models: Mapping[str, _Model],
    settings: EvaluationSettings,
    notes: Mapping[str, str],
) -> ScoreRow:
    make, said = FIGURES[base.metric]
    first, second = (models[name] for name in names)
    ids = patient_order(first.patients & second.patients, settings.seed)
    seeds = min(len(first.seeds), len(second.seeds))
    row = replace(base, model=" - ".join(names), n_patients=len(ids), seeds=seeds)
    remarks = [said, *(notes.get(name) for name in names)]
    sides = [model.pairs(make, ids) for model in (first, second)]
    values = [side.value for side in sides]
    if values[0] is None or values[1] is None:
        return replace(row, note=_joined(["undefined: no two patients of a fold can be compared", *remarks]))
    row = replace(row, value=values[0] - values[1])
    if first.events(ids) < SMALL_CLASS:
        return replace(row, note=_joined([f"no interval: fewer than {SMALL_CLASS} events", *remarks]))
    counts = _counts(len(ids), settings)
    resampled = [quadratic_resamples(side.right, side.weight, counts) for side in sides]
    drawn = resampled[0] - resampled[1]
    error, interval = float(np.nanstd(drawn)), percentile_interval(drawn)
    if error == 0 or interval is None:
        return replace(row, note=_joined(["no interval: no resample tells the two apart", *remarks]))
    return replace(
        row,
        ci_low=interval.low,
        ci_high=interval.high,
        p_value=sign_p_value(drawn),
        note=_joined([f"detectable {detectable_from_error(error):.3f}", *remarks]),
    )
