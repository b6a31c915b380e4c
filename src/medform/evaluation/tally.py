"""What all rows of one model, task and condition are computed from, gathered chunk by chunk from predictions.

The AUROC's mean over draws and seeds needs only the mean concordance of each pair of patients, a small
matrix, so ten million few-shot predictions leave a few kilobytes a row behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.metrics.ranking import Concordance, average_precisions, concordance, macro_f1s, stratified_auroc

__all__ = ["FIGURES", "Key", "Tally", "gather"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

THRESHOLD = 0.5
"""A probability of 0.5 or more predicts the positive class; the logistic readouts are fitted with that
meaning.
"""


def _balanced(labels: Mask, probability: Array, weights: Array) -> Array:
    right = (probability >= THRESHOLD) == labels
    of_positive, of_negative = weights @ labels, weights @ ~labels
    both = (of_positive > 0) & (of_negative > 0)
    sensitivity = np.divide(weights @ (right & labels), of_positive, out=np.full(len(weights), np.nan), where=both)
    specificity = np.divide(weights @ (right & ~labels), of_negative, out=np.full(len(weights), np.nan), where=both)
    return (sensitivity + specificity) / 2


FIGURES: Mapping[str, Callable[[Mask, Array, Array], Array]] = {
    "auprc": average_precisions,
    "balanced_accuracy": _balanced,
    "macro_f1": lambda labels, probability, weights: macro_f1s(labels, probability >= THRESHOLD, weights),
    "brier": lambda labels, probability, weights: weights @ (probability - labels) ** 2 / weights.sum(axis=1),
}
"""Metrics beside AUROC: labels (n,), probabilities (n,), weights (B, n) -> (B,)."""


@dataclass(frozen=True)
class Key:
    """What a row is about, its metric apart."""

    cohort: str
    task: str
    protocol: str
    model: str
    readout: str | None
    shots: int | None
    supports: str | None


@dataclass(frozen=True)
class _Block:
    """Pairs of one fold's patients: ``total`` (P, N) summed concordance, ``count`` (P, N) how many pairs that was.

    For slices, P and N are patients too and a pair of patients holds all pairs of their slices.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    total: Array
    count: Array


@dataclass
class Tally:
    """Everything of one `Key`. ``truth`` holds the scored patients; for slices, whether any slice is positive."""

    key: Key
    truth: dict[str, float] = field(default_factory=dict)
    unscored: dict[str, float] = field(default_factory=dict)
    draws: set[int] = field(default_factory=set)
    seeds: set[int] = field(default_factory=set)
    blocks: list[_Block] = field(default_factory=list)
    single: dict[int, list[tuple[str, int, float]]] = field(default_factory=dict)
    """Seed -> patient, fold and probability of every prediction of a whole test set."""
    permuted: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def concordance(self, positive: Sequence[str], negative: Sequence[str]) -> Concordance:
        """Mean concordance of the given patients, in the given order."""
        alone = self._one_score_each({*positive, *negative})
        if alone is not None:
            ids = [*positive, *negative]
            labels = np.arange(len(ids)) < len(positive)
            fold, probability = zip(*(alone[one] for one in ids), strict=True) if ids else ((), ())
            return stratified_auroc(labels, probability, np.array(fold))
        row = {one: number for number, one in enumerate(positive)}
        column = {one: number for number, one in enumerate(negative)}
        total = np.zeros((len(positive), len(negative)))
        count = np.zeros_like(total)
        for block in self.blocks:
            rows = [number for number, one in enumerate(block.positive) if one in row]
            columns = [number for number, one in enumerate(block.negative) if one in column]
            place = np.ix_([row[block.positive[i]] for i in rows], [column[block.negative[j]] for j in columns])
            total[place] += block.total[np.ix_(rows, columns)]
            count[place] += block.count[np.ix_(rows, columns)]
        matrix = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        return Concordance(matrix, count / max(float(count.max(initial=0.0)), 1.0))

    def _one_score_each(self, ids: set[str]) -> dict[str, tuple[int, float]] | None:
        """Fold and score of each patient, where each of ``ids`` has one of whole test sets; else None."""
        if len(self.single) != 1:
            return None
        rows = next(iter(self.single.values()))
        found = {one: (fold, probability) for one, fold, probability in rows}
        return found if len(found) == len(rows) and ids <= set(found) else None

    def figure(self, metric: str, positive: Sequence[str], negative: Sequence[str], weights: Array) -> Array:
        """A figure of `FIGURES` (B,) under weights (B, P + N) of the patients, averaged over seeds."""
        place = {one: number for number, one in enumerate([*positive, *negative])}
        values = []
        for rows in self.single.values():
            chosen = [(place[one], probability) for one, _, probability in rows if one in place]
            index = np.array([number for number, _ in chosen])
            probability = np.array([probability for _, probability in chosen])
            values.append(FIGURES[metric](index < len(positive), probability, weights[:, index]))
        return np.mean(values, axis=0)

    def null(self) -> Array:
        """AUROC of each draw of permuted labels, averaged over seeds; undefined draws left out."""
        by_draw: dict[int, list[float]] = {}
        for (draw, _), (total, count) in self.permuted.items():
            if count:
                by_draw.setdefault(draw, []).append(total / count)
        return np.array([float(np.mean(by_draw[draw])) for draw in sorted(by_draw)], dtype=np.float64)


def gather(chunks: Iterable[pd.DataFrame]) -> dict[Key, Tally]:
    """Tallies of all predictions, in the order in which their keys appear."""
    tallies: dict[Key, Tally] = {}
    names = ["cohort", "task", "protocol", "model", "readout", "shots", "supports"]
    for chunk in chunks:
        if len(chunk) == 0:
            continue
        codes = [_codes(chunk[name]) for name in [*names, "fold", "seed"]]
        group = np.zeros(len(chunk), dtype=np.int64)
        for code in codes:
            group = group * (int(code.max()) + 2) + code + 1
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])
        columns = _Columns.of(chunk)
        for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
            rows = order[begin:end]
            first: Any = chunk.iloc[int(rows[0])]
            key = _key(first)
            _add(
                tallies.setdefault(key, Tally(key)),
                columns.take(rows),
                int(first["fold"]),
                int(first["seed"]),
            )
    return tallies


def _key(row: Any) -> Key:
    readout, shots, supports = (None if pd.isna(row[name]) else row[name] for name in ("readout", "shots", "supports"))
    whole = None if shots is None else int(shots)
    return Key(row["cohort"], row["task"], row["protocol"], row["model"], readout, whole, supports)


def _codes(column: Any) -> NDArray[np.int64]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy().astype(np.int64)
    return np.where(column.isna(), -1, column.fillna(-1)).astype(np.int64)


@dataclass(frozen=True)
class _Columns:
    """Plain arrays of some predictions."""

    names: NDArray[Any]
    patient: NDArray[np.int64]
    item: NDArray[np.int64]
    draw: NDArray[np.int64]
    truth: Array
    probability: Array

    @classmethod
    def of(cls, frame: Any) -> _Columns:
        patients = frame["patient_id"].cat
        slices = _codes(frame["slice_id"])
        patient = _codes(frame["patient_id"])
        return cls(
            np.asarray(patients.categories, dtype=object),
            patient,
            np.where(slices >= 0, slices, patient),
            np.maximum(_codes(frame["draw"]), 0),
            frame["y_true"].to_numpy(dtype=np.float64),
            frame["y_prob"].to_numpy(dtype=np.float64),
        )

    def take(self, rows: NDArray[np.int64]) -> _Columns:
        whole = (self.patient[rows], self.item[rows], self.draw[rows])
        return _Columns(self.names, *whole, self.truth[rows], self.probability[rows])

    def ids(self, codes: NDArray[np.int64]) -> list[str]:
        return [str(self.names[code]) for code in codes]


def _add(tally: Tally, columns: _Columns, fold: int, seed: int) -> None:
    """Add the predictions of one fold and seed."""
    tally.seeds.add(seed)
    tally.draws.update(np.unique(columns.draw).tolist())
    missing = np.isnan(columns.probability)
    lost = columns.take(np.flatnonzero(missing))
    tally.unscored.update(zip(columns.ids(lost.patient), lost.truth.tolist(), strict=True))
    columns = columns.take(np.flatnonzero(~missing))
    if tally.key.model == "permuted_labels":
        _add_permuted(tally, columns, seed)
    elif tally.key.protocol == "slice_probe":
        _add_slices(tally, columns)
    else:
        _add_patients(tally, columns)
        if tally.key.shots is None:
            pairs = zip(columns.ids(columns.patient), columns.probability.tolist(), strict=True)
            tally.single.setdefault(seed, []).extend((one, fold, probability) for one, probability in pairs)


def _runs(columns: _Columns) -> Iterable[_Columns]:
    """The draws in blocks of equal items; one block where every draw predicts the same items, as it should."""
    columns = columns.take(np.lexsort((columns.item, columns.draw)))
    size = len(np.unique(columns.item))
    draws = len(np.unique(columns.draw))
    if size * draws == len(columns.item) and (columns.item.reshape(draws, size) == columns.item[:size]).all():
        return [columns]
    return [columns.take(np.flatnonzero(columns.draw == draw)) for draw in np.unique(columns.draw)]


def _add_patients(tally: Tally, columns: _Columns) -> None:
    for run in _runs(columns) if len(columns.item) else []:
        size = len(np.unique(run.item))
        truth = run.truth[:size]
        ids = columns.ids(run.patient[:size])
        tally.truth.update(zip(ids, truth.tolist(), strict=True))
        scores = run.probability.reshape(-1, size)
        positive, negative = truth == 1, truth == 0
        total = concordance(scores[:, positive], scores[:, negative]).sum(axis=0)
        count = np.full(total.shape, float(len(scores)))
        names = np.array(ids, dtype=object)
        tally.blocks.append(_Block(tuple(names[positive]), tuple(names[negative]), total, count))


def _add_slices(tally: Tally, columns: _Columns) -> None:
    positive, negative = columns.truth == 1, columns.truth == 0
    pairs = concordance(columns.probability[positive], columns.probability[negative])
    patients, place = np.unique(columns.patient, return_inverse=True)
    of_positive = np.eye(len(patients))[place[positive]]
    of_negative = np.eye(len(patients))[place[negative]]
    total = of_positive.T @ pairs @ of_negative
    count = np.outer(of_positive.sum(axis=0), of_negative.sum(axis=0))
    ids = columns.ids(patients)
    for one, number in zip(ids, of_positive.sum(axis=0), strict=True):
        tally.truth[one] = float(number > 0 or tally.truth.get(one, 0.0) > 0)
    tally.blocks.append(_Block(tuple(ids), tuple(ids), total, count))


def _add_permuted(tally: Tally, columns: _Columns, seed: int) -> None:
    tally.truth.update(dict.fromkeys(columns.ids(np.unique(columns.patient)), 0.0))
    for draw in np.unique(columns.draw):
        run = columns.take(np.flatnonzero(columns.draw == draw))
        pairs = concordance(run.probability[run.truth == 1], run.probability[run.truth == 0])
        sums = tally.permuted.setdefault((int(draw), seed), [0.0, 0.0])
        sums[0] += float(pairs.sum())
        sums[1] += pairs.size
