"""Embeddings by model, supports, fold, seed and part, and which readout belongs to which model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.split import Split, patient_order
from medform.errors import InputError, Problem
from medform.evaluation.settings import EvaluationSettings
from medform.metrics.linear_probe import Scaler, fit_scaler

__all__ = ["COLUMN_MODELS", "EMBEDDING_COLUMNS", "TABLE", "Readout", "Rows", "Vectors", "readout_of"]

Array = NDArray[np.float64]
Supports = Literal["aligned", "out_of_fold", "unseen"]

TABLE = "table"
"""Name of the encoded table among the embeddings; its probe is `table_logistic`."""
COLUMN_MODELS = frozenset({TABLE, "table_logistic", "genes_logistic", "intensity_stats", "position_only"})
"""Models whose columns are standardised one by one; all others are image vectors with one common scale."""
JUDGED = ("image", "genes", "both")
"""Modalities of vectors that a readout is fitted on; the encoded table has a name of its own."""
PARTS = ("train", "held_out", "validation", "test")
EMBEDDING_COLUMNS = ("patient_id", "fold", "part", "model", "supports", "seed", "modality", "vector")
"""Columns of ``embeddings.parquet``."""


@dataclass(frozen=True)
class Readout:
    """How vectors of a model are scaled and how strong the logistic readout is regularised."""

    scaling: Literal["norm", "columns"]
    c: float
    centroid: bool

    def scaler(self, rows: Array) -> Scaler:
        """The scaler, fitted on training rows (n, d) without labels."""
        return fit_scaler(rows, self.scaling)


def readout_of(model: str, settings: EvaluationSettings) -> Readout:
    """How a model's vectors are scaled and read out.

    Image vectors: mean squared norm 1, C 30, also nearest class mean; table columns and statistics: by column, C 1.
    """
    if model in COLUMN_MODELS:
        return Readout("columns", settings.table_c, centroid=model == "intensity_stats")
    return Readout("norm", settings.image_c, centroid=True)


@dataclass(frozen=True)
class Rows:
    """Vectors of some patients: ``ids`` in hash order, ``matrix`` (n, d)."""

    ids: tuple[str, ...]
    matrix: Array

    def select(self, ids: Sequence[str]) -> Rows:
        """The rows of ``ids``, in that order, as far as they are here."""
        place = {one: number for number, one in enumerate(self.ids)}
        kept = tuple(one for one in ids if one in place)
        return Rows(kept, self.matrix[[place[one] for one in kept]])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Row:
    """One row of the frame."""

    patient_id: str
    fold: int
    part: str
    model: str
    supports: str
    seed: int
    vector: Sequence[float]


class Vectors:
    """The embeddings of a run.

    Built from the frame of ``embeddings.parquet`` (patient_id, fold, part, model, supports, seed, modality,
    vector) and the split. Raises `InputError` with every row that stands in another part than the split
    says, or twice, or whose vector has another length than its neighbours or holds a value that is not
    finite.
    """

    def __init__(self, frame: pd.DataFrame, split: Split, seed: int = 0) -> None:
        columns = [frame[name].tolist() for name in EMBEDDING_COLUMNS]
        rows = [
            _Row(str(patient), int(fold), str(part), str(model), str(supports), int(one_seed), vector)
            for patient, fold, part, model, supports, one_seed, modality, vector in zip(*columns, strict=True)
            if modality in JUDGED or model == TABLE
        ]
        _refuse_wrong_parts(rows, split)
        order = {one: number for number, one in enumerate(patient_order({row.patient_id for row in rows}, seed))}
        groups: dict[tuple[str, str, int, int, str], list[_Row]] = {}
        for row in sorted(rows, key=lambda row: order[row.patient_id]):
            groups.setdefault((row.model, row.supports, row.fold, row.seed, row.part), []).append(row)
        self._rows: dict[tuple[str, str, int, int], dict[str, Rows]] = {}
        for (model, supports, fold, one_seed, part), group in groups.items():
            place = f"{model}, supports {supports}, fold {fold}, seed {one_seed}, {part}"
            ids = tuple(row.patient_id for row in group)
            if len(set(ids)) < len(ids):
                twice = sorted({one for one in ids if ids.count(one) > 1})
                raise InputError(f"{len(twice)} patients stand twice ({', '.join(twice[:3])}).", where=place)
            stacked = Rows(ids, _stack([row.vector for row in group], place))
            self._rows.setdefault((model, supports, fold, one_seed), {})[part] = stacked

    @property
    def models(self) -> list[str]:
        """Names of the models that have vectors, sorted."""
        return sorted({key[0] for key in self._rows})

    def has(self, model: str, supports: Supports = "aligned") -> bool:
        """Whether the model has vectors of this kind in any fold."""
        return any(key[:2] == (model, supports) for key in self._rows)

    def folds(self, model: str, supports: Supports = "aligned") -> list[tuple[int, int]]:
        """(seed, fold) pairs that the model has vectors for."""
        return sorted((key[3], key[2]) for key in self._rows if key[:2] == (model, supports))

    def seeds(self, model: str) -> list[int]:
        """Seeds of the model."""
        return sorted({key[3] for key in self._rows if key[0] == model})

    def rows(self, model: str, supports: Supports, fold: int, seed: int, *parts: str) -> Rows:
        """Vectors of the given parts, one after another; empty where there are none.

        The table has no seed of its own.
        """
        found = self._rows.get((model, supports, fold, seed))
        if found is None and model == TABLE:
            seeds = self.seeds(TABLE)
            found = self._rows.get((model, supports, fold, seeds[0])) if seeds else None
        chosen = [found[part] for part in parts if part in found] if found else []
        if not chosen:
            return Rows((), np.zeros((0, 0)))
        return Rows(sum((one.ids for one in chosen), ()), np.concatenate([one.matrix for one in chosen]))


def _stack(vectors: Sequence[Sequence[float]], place: str) -> Array:
    lengths = {len(one) for one in vectors}
    if len(lengths) != 1:
        raise InputError(f"vectors of different lengths: {sorted(lengths)}.", where=place, fix="embed them all anew.")
    matrix = np.stack([np.asarray(one, dtype=np.float64) for one in vectors])
    if not np.isfinite(matrix).all():
        count = int((~np.isfinite(matrix)).any(axis=1).sum())
        raise InputError(f"{count} vectors hold a value that is not finite.", where=place, fix="embed them anew.")
    return matrix


def _refuse_wrong_parts(rows: Sequence[_Row], split: Split) -> None:
    """Vectors called training must be of training patients of that fold; otherwise nothing is scored."""
    parts = [fold.part_of() for fold in split.folds]
    problems = []
    for fold, part, one in sorted({(row.fold, row.part, row.patient_id) for row in rows}):
        if part not in PARTS:
            known = f"Known: {', '.join(PARTS)}."
            problems.append(Problem("unknown part.", column="part", value=part, suggestion=known))
        elif not 0 <= fold < len(parts):
            last = f"The split has folds 0 to {len(parts) - 1}."
            problems.append(Problem("unknown fold.", column="fold", value=str(fold), suggestion=last))
        elif (said := parts[fold].get(one)) != ("train" if part == "held_out" else part):
            stands = f"in {said}" if said else "not in the split"
            problems.append(Problem(f"called {part} in fold {fold}, but {stands}.", column="patient_id", value=one))
    if problems:
        raise InputError(
            f"{len(problems)} embeddings do not fit the split '{split.name}'.",
            consequence="Nothing was scored: test patients could have been trained on.",
            fix="embed with this split, or give the split that the embeddings were made with.",
            problems=problems,
        )
