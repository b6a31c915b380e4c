"""From predictions and cases to rows of ``scores.json``: the only place where a row is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.split import patient_order
from medform.evaluation.few_shot import POOL_CASE
from medform.evaluation.retrieval import retrieval_rows
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.tally import FIGURES, Key, Tally, gather
from medform.evaluation.vectors import COLUMN_MODELS
from medform.metrics.bootstrap import (
    SMALL_CLASS,
    Interval,
    PairedDifference,
    Resamples,
    auroc_interval,
    paired_auroc,
    percentile_interval,
    quadratic_resamples,
    resample,
    sign_p_value,
)
from medform.metrics.power import detectable_from_error
from medform.metrics.ranking import Concordance
from medform.runs.scores import FLAT, ScoreRow

__all__ = ["CHANCE", "PAIRS", "score_rows", "tallied_rows"]

Array = NDArray[np.float64]

PAIRS = (
    ("aligned", "image_only"),
    ("fused", "table_logistic"),
    ("fused", "fused_unaligned"),
    ("image_only", "imagenet_encoder"),
    ("aligned", "shuffled_pairs"),
)
"""Paired differences, first minus second."""
CHANCE = "chance"
"""Model name of the rows that say what a guess scores."""
PER_PATIENT = ("cross_validation", "external")
NO_PROBABILITY = "centroid"
"""Readout whose scores order the patients of a fold but are no probabilities: no Brier score, and no AUPRC, which ranks
the patients of all folds together.
"""
SMALL = f"no interval: a class has fewer than {SMALL_CLASS} patients"
POOLED = "the patients of all folds are ranked together"


@dataclass(frozen=True)
class _Patients:
    """Patients of a row by class, in hash order, with their resamples."""

    positive: list[str]
    negative: list[str]
    counts: Resamples
    undefined: str | None
    """Why nothing can be said of these patients, or None."""

    @classmethod
    def of(cls, truth: Mapping[str, float], unscored: Mapping[str, float], settings: EvaluationSettings) -> _Patients:
        order = patient_order(truth, settings.seed)
        positive = [one for one in order if truth[one] == 1]
        negative = [one for one in order if truth[one] != 1]
        reason = None
        if len({*truth.values(), *unscored.values()}) < 2:
            reason = "undefined: one class only"
        elif not positive or not negative:
            reason = "undefined: patients of both classes could not be scored"
        counts = resample(len(positive), len(negative), settings.bootstrap, settings.seed)
        return cls(positive, negative, counts, reason)

    def __len__(self) -> int:
        return len(self.positive) + len(self.negative)

    @property
    def weights(self) -> Array:
        """Multiplicities (B, P + N), positives first."""
        return np.concatenate([self.counts.positive, self.counts.negative], axis=1)

    @property
    def small(self) -> bool:
        """Whether a class is too small for the bootstrap."""
        return min(len(self.positive), len(self.negative)) < SMALL_CLASS


def score_rows(
    predictions: pd.DataFrame | Iterable[pd.DataFrame],
    cases: pd.DataFrame | None = None,
    settings: EvaluationSettings | None = None,
    *,
    train_cohorts: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[ScoreRow]:
    """Every row that these predictions and cases support.

    ``predictions`` is a frame or its chunks (as `read_predictions` gives them); ``train_cohorts`` defaults
    to each row's own cohort; ``notes`` maps a model to a remark that all its rows carry. Rows come task by
    task, each with its chance line, paired differences, and few-shot k that were not possible.
    """
    chunks = [predictions] if isinstance(predictions, pd.DataFrame) else predictions
    settings = settings or EvaluationSettings()
    return tallied_rows(gather(chunks), cases, settings, train_cohorts=train_cohorts, notes=notes)


def tallied_rows(
    tallies: Mapping[Key, Tally],
    cases: pd.DataFrame | None,
    settings: EvaluationSettings,
    *,
    train_cohorts: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[ScoreRow]:
    """As `score_rows`, from predictions that were gathered already."""
    pools = _pools(cases)
    rows: list[ScoreRow] = []
    for tally in tallies.values():
        rows.extend(_rows_of(tally, settings, pools))
    rows.extend(_chance_rows(tallies))
    rows.extend(_difference_rows(tallies, settings, pools))
    rows.extend(_impossible_rows(pools, tallies, settings))
    if cases is not None:
        rows.extend(retrieval_rows(cases, settings))
    rows = [_remarked(row, train_cohorts, notes or {}) for row in rows]
    tasks = list(dict.fromkeys(row.task for row in rows))
    protocols = list(dict.fromkeys(row.protocol for row in rows))
    return sorted(rows, key=lambda row: (tasks.index(row.task), protocols.index(row.protocol)))


def _remarked(row: ScoreRow, train_cohorts: str | None, notes: Mapping[str, str]) -> ScoreRow:
    remarks = [notes[name] for name in dict.fromkeys(row.model.split(" - ")) if name in notes]
    return replace(row, train_cohorts=train_cohorts or row.cohort, note=_joined([row.note, *dict.fromkeys(remarks)]))


def _joined(notes: Sequence[str | None]) -> str | None:
    return "; ".join(note for note in notes if note) or None


def _blank(key: Key, metric: str, n: int, **values: object) -> ScoreRow:
    fields = {
        name: getattr(key, name) for name in ("cohort", "task", "protocol", "model", "readout", "shots", "supports")
    }
    return ScoreRow(metric=metric, value=None, n_patients=n, **{**fields, **values})  # pyright: ignore[reportArgumentType]


def _rows_of(tally: Tally, settings: EvaluationSettings, pools: Mapping[tuple, _Pool]) -> Iterator[ScoreRow]:
    """AUROC, and for whole test sets the other figures, of one model under one condition."""
    key = tally.key
    patients = _Patients.of(tally.truth, tally.unscored, settings)
    lost = len(set(tally.unscored) - set(tally.truth))
    notes = [_overlap(key, pools), f"{lost} patients without a score" if lost else None]
    shared = {"seeds": len(tally.seeds), "n_draws": len(tally.draws) if key.shots is not None else None}
    if key.model == "permuted_labels":
        yield _null_row(tally, len(patients), notes)
        return
    if key.protocol == "slice_probe":
        yield _slice_row(tally, patients, notes)
        return
    base = _blank(key, "auroc", len(patients), **shared)
    yield _auroc_row(base, tally.concordance(patients.positive, patients.negative), patients, notes)
    if key.shots is not None:
        return
    for metric in FIGURES:
        if metric in ("brier", "auprc") and key.readout == NO_PROBABILITY:
            continue
        base = _blank(key, metric, len(patients), **shared)
        if patients.undefined:
            yield replace(base, note=_joined([patients.undefined, *notes]))
            continue
        figure = tally.figure(metric, patients.positive, patients.negative, np.ones((1, len(patients))))
        interval = None
        if not patients.small:
            resampled = tally.figure(metric, patients.positive, patients.negative, patients.weights)
            interval = percentile_interval(resampled)
        said = [SMALL if patients.small else None, POOLED if metric == "auprc" else None]
        yield _filled(base, float(figure[0]), interval, [*said, *notes])


def _filled(row: ScoreRow, value: float, interval: Interval | None, notes: Sequence[str | None]) -> ScoreRow:
    if interval is not None and interval.flat:
        interval, notes = None, [FLAT, *notes]
    method = None if interval is None or interval.method == "bootstrap" else f"interval: {interval.method}"
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return replace(row, value=value, ci_low=low, ci_high=high, note=_joined([method, *notes]))


def _auroc_row(row: ScoreRow, scores: Concordance, patients: _Patients, notes: Sequence[str | None]) -> ScoreRow:
    if scores.value is None:
        reason = patients.undefined or "undefined: no fold tests both classes"
        return replace(row, note=_joined([reason, *notes]))
    return _filled(row, scores.value, auroc_interval(scores, patients.counts), notes)


def _null_row(tally: Tally, n: int, notes: Sequence[str | None]) -> ScoreRow:
    values = tally.null()
    row = _blank(tally.key, "auroc", n, n_draws=len(values), seeds=len(tally.seeds))
    if len(values) == 0:
        return replace(row, note=_joined(["undefined: no permutation left both classes in a fold", *notes]))
    median, low, high = np.quantile(values, [0.5, 0.025, 0.975])
    said = "null: median and 2.5/97.5 % quantiles of the permutations"
    return replace(row, value=float(median), ci_low=float(low), ci_high=float(high), note=_joined([said, *notes]))


def _slice_row(tally: Tally, patients: _Patients, notes: Sequence[str | None]) -> ScoreRow:
    """AUROC over slices of one fold; whole patients are resampled, those with a positive slice and the others apart."""
    everyone = [*patients.positive, *patients.negative]
    scores = tally.concordance(everyone, everyone)
    row = _blank(tally.key, "auroc", len(everyone), seeds=len(tally.seeds))
    if scores.value is None:
        return replace(row, note=_joined(["undefined: no fold holds slices of both classes", *notes]))
    resampled = quadratic_resamples(scores.matrix * scores.pairs, scores.pairs, patients.weights)
    said = f"no interval: fewer than {2 * SMALL_CLASS} patients" if len(everyone) < 2 * SMALL_CLASS else None
    if len(patients.positive) < SMALL_CLASS:
        said = f"no interval: fewer than {SMALL_CLASS} patients have a positive slice"
    interval = None if said else percentile_interval(resampled)
    return _filled(row, scores.value, interval, [said, *notes])


def _chance_rows(tallies: Mapping[Key, Tally]) -> Iterator[ScoreRow]:
    """What a guess scores on the same patients, once for each task and protocol."""
    truths: dict[Key, dict[str, float]] = {}
    for key, tally in tallies.items():
        if key.model != "permuted_labels":
            line = replace(key, model=CHANCE, readout=None, shots=None, supports=None)
            truths.setdefault(line, {}).update(tally.truth)
    for key, truth in truths.items():
        share = float(np.mean([value == 1 for value in truth.values()])) if truth else 0.0
        if not 0 < share < 1 and key.protocol != "slice_probe":
            continue
        known = {"auroc": 0.5}
        if key.protocol in PER_PATIENT:
            known |= {"auprc": share, "balanced_accuracy": 0.5, "brier": share * (1 - share)}
        for metric, value in known.items():
            yield replace(_blank(key, metric, len(truth)), value=value, note="chance")


def _difference_rows(
    tallies: Mapping[Key, Tally], settings: EvaluationSettings, pools: Mapping[tuple, _Pool]
) -> Iterator[ScoreRow]:
    """Paired differences wherever both models were scored under the same condition, on the patients of both."""
    for first_name, second_name in PAIRS:
        for key, first in tallies.items():
            # slices have no difference of patients: their probes judge the encoder, each beside position and intensity
            if key.model != first_name or key.protocol == "slice_probe":
                continue
            second = _partner(key, second_name, tallies)
            if second is None:
                continue
            common = {one: value for one, value in first.truth.items() if one in second.truth}
            patients = _Patients.of(common, {**first.unscored, **second.unscored}, settings)
            line = replace(key, model=f"{first_name} - {second_name}")
            yield from _differences(line, first, second, patients, [_overlap(key, pools)])


def _partner(key: Key, name: str, tallies: Mapping[Key, Tally]) -> Tally | None:
    """The second model under the first one's condition; a model without alignment has one kind of training support."""
    found = tallies.get(replace(key, model=name))
    if found is None and key.supports == "out_of_fold":
        found = tallies.get(replace(key, model=name, supports="aligned"))
    return found


def _differences(
    key: Key, first: Tally, second: Tally, patients: _Patients, notes: Sequence[str | None]
) -> Iterator[ScoreRow]:
    seeds = min(len(first.seeds), len(second.seeds))
    draws = len(first.draws) if key.shots is not None else None
    sides = (patients.positive, patients.negative)
    both = [tally.concordance(*sides) for tally in (first, second)]
    base = _blank(key, "auroc", len(patients), n_draws=draws, seeds=seeds)
    yield _paired_row(base, paired_auroc(both[0], both[1], patients.counts), patients, notes)
    if key.shots is not None:
        return
    for metric in FIGURES:
        base = _blank(key, metric, len(patients), seeds=seeds)
        found = None
        if not patients.undefined:
            once = np.ones((1, len(patients)))
            value = float(first.figure(metric, *sides, once)[0] - second.figure(metric, *sides, once)[0])
            found = PairedDifference(value, None, None, None)
            if not patients.small:
                weights = patients.weights
                values = first.figure(metric, *sides, weights) - second.figure(metric, *sides, weights)
                error = float(np.std(values))
                if error > 0:
                    found = PairedDifference(value, percentile_interval(values), sign_p_value(values), error)
        yield _paired_row(base, found, patients, notes)


def _paired_row(
    row: ScoreRow, found: PairedDifference | None, patients: _Patients, notes: Sequence[str | None]
) -> ScoreRow:
    if found is None:
        return replace(row, note=_joined([patients.undefined or "undefined: no fold tests both classes", *notes]))
    if found.interval is None or found.standard_error is None:
        said = SMALL if patients.small else "no interval: no resample tells the two apart"
        return replace(row, value=found.value, note=_joined([said, *notes]))
    said = f"detectable {detectable_from_error(found.standard_error):.3f}"
    return replace(_filled(row, found.value, found.interval, [said, *notes]), p_value=found.p_value)


@dataclass(frozen=True)
class _Pool:
    """Few-shot pool of one task, model and kind of supports: smallest class over folds, and the seeds."""

    cohort: str
    smaller: int
    seeds: int


def _pools(cases: pd.DataFrame | None) -> dict[tuple, _Pool]:
    """(task, model, supports) -> pool, from the cases."""
    if cases is None or len(cases) == 0:
        return {}
    sizes: dict[tuple, list[tuple[float, int, str]]] = {}
    columns = [cases[name].tolist() for name in ("task", "model", "metric", "value", "seed", "cohort")]
    for task, model, metric, value, seed, cohort in zip(*columns, strict=True):
        if str(metric).startswith(f"{POOL_CASE}."):
            supports = str(metric).removeprefix(f"{POOL_CASE}.")
            sizes.setdefault((str(task), str(model), supports), []).append((value, seed, str(cohort)))
    return {
        key: _Pool(found[0][2], int(min(value for value, _, _ in found)), len({seed for _, seed, _ in found}))
        for key, found in sizes.items()
    }


def _overlap(key: Key, pools: Mapping[tuple, _Pool]) -> str | None:
    """Draws of more than half of the smaller class share most of their patients."""
    pool = pools.get((key.task, key.model, key.supports))
    return "overlapping_draws" if pool and key.shots is not None and 2 * key.shots > pool.smaller else None


def _impossible_rows(
    pools: Mapping[tuple, _Pool], tallies: Mapping[Key, Tally], settings: EvaluationSettings
) -> Iterator[ScoreRow]:
    """Null rows of every k that the pool is too small for."""
    for (task, model, supports), pool in pools.items():
        tested = [t for k, t in tallies.items() if (k.task, k.model) == (task, model) and k.protocol != "slice_probe"]
        n = max((len(tally.truth) for tally in tested), default=0)
        readouts = ("logistic",) if model in COLUMN_MODELS and model != "intensity_stats" else ("logistic", "centroid")
        for shots in settings.shots:
            if shots < pool.smaller:
                continue
            for readout in readouts:
                key = Key(pool.cohort, task, "few_shot", model, readout, shots, supports)
                yield replace(_blank(key, "auroc", n, n_draws=0, seeds=pool.seeds), note="not_possible")
