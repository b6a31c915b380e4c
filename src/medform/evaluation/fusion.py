"""Image and table together, late: the image's out-of-fold score becomes one more column of the table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from medform.cohort.split import inner_folds
from medform.evaluation.probe import Outcome, Target, fold_predictions, probe_probabilities, validation_cases
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.vectors import TABLE, Rows, Vectors, readout_of
from medform.metrics.linear_probe import Scaler

__all__ = ["fuse"]

Array = NDArray[np.float64]

LIMIT = 1e-12
"""Probabilities are kept this far from 0 and 1 before they become log odds."""


def fuse(
    name: str,
    image_model: str,
    vectors: Vectors,
    target: Target,
    settings: EvaluationSettings,
    *,
    out_of_fold: bool,
) -> Outcome:
    """Predictions of ``table_logistic`` with the score of ``image_model`` as one more column, under ``name``.

    A training patient's score comes from a probe of the other inner folds; with ``out_of_fold`` the
    training patients' vectors come from alignments that did not see them, for an aligned vector carries its
    patient's own table. The patients of this row are those with an image and a table.
    """
    outcome = Outcome.empty()
    for seed, fold in vectors.folds(image_model):
        images = {part: vectors.rows(image_model, "aligned", fold, seed, part) for part in ("validation", "test")}
        images["train"] = vectors.rows(image_model, "out_of_fold" if out_of_fold else "aligned", fold, seed, "train")
        tables = {part: vectors.rows(TABLE, "aligned", fold, seed, part) for part in ("train", "validation", "test")}
        if len(images["train"]) == 0 or len(tables["train"]) == 0:
            continue
        fusion = _Fusion(image_model, images, tables, target, settings, f"{settings.seed}:{target.task}:{fold}")
        ids, probability = fusion.predict(("train", "validation"), "test")
        truth = target.of_ids(ids)
        outcome.predictions.append(fold_predictions(target, name, "logistic", fold, seed, ids, truth, probability))
        ids, probability = fusion.predict(("train",), "validation")
        outcome.cases.extend(validation_cases(target, name, fold, seed, ids, probability))
    return outcome


class _Fusion:
    """The image and table vectors of one fold."""

    def __init__(
        self,
        image_model: str,
        images: dict[str, Rows],
        tables: dict[str, Rows],
        target: Target,
        settings: EvaluationSettings,
        seed: str,
    ) -> None:
        self.images, self.tables, self.target, self.settings, self.seed = (
            images,
            tables,
            target,
            settings,
            seed,
        )
        self.image_readout = readout_of(image_model, settings)
        self.table_readout = readout_of(TABLE, settings)
        self.image_scaler = self.image_readout.scaler(images["train"].matrix)
        self.table_scaler = self.table_readout.scaler(tables["train"].matrix)

    def _both(self, parts: tuple[str, ...]) -> tuple[tuple[str, ...], Array, Array]:
        """Labelled patients of ``parts`` with both sides: ids, image vectors, scaled table."""
        ids: list[str] = []
        image, table = [], []
        for part in parts:
            here = set(self.images[part].ids) & set(self.tables[part].ids) & set(self.target.labels)
            chosen = self.images[part].select([one for one in self.images[part].ids if one in here])
            ids.extend(chosen.ids)
            image.append(chosen.matrix if len(chosen) else np.zeros((0, self.images["train"].matrix.shape[1])))
            rows = self.tables[part].select(chosen.ids)
            table.append(rows.matrix if len(rows) else np.zeros((0, self.tables["train"].matrix.shape[1])))
        return tuple(ids), np.concatenate(image), self.table_scaler.transform(np.concatenate(table))

    def _score(self, pool: Array, y: Array, queries: Array) -> Array:
        """Log odds of the image probe; NaN where the pool has one class."""
        found = probe_probabilities(pool, y, queries, self.image_readout, self.image_scaler)["logistic"]
        return logit(np.clip(found, LIMIT, 1 - LIMIT))

    def predict(self, fitting: tuple[str, ...], asked: str) -> tuple[tuple[str, ...], Array]:
        """Ids and probabilities of the patients of part ``asked``, fitted on the parts ``fitting``."""
        ids, image, table = self._both(fitting)
        y = self.target.of_ids(ids)
        new_ids, new_image, new_table = self._both((asked,))
        column = self._inner_scores(ids, image, y)
        new_column = self._score(image, y, new_image)
        if len(ids) == 0 or np.isnan(column).any() or np.isnan(new_column).any():
            return new_ids, np.full(len(new_ids), np.nan)
        spread = float(column.std()) or 1.0
        pool = np.column_stack([table, (column - column.mean()) / spread])
        queries = np.column_stack([new_table, (new_column - column.mean()) / spread])
        as_is = Scaler(np.zeros(pool.shape[1]), np.ones(pool.shape[1]))
        return new_ids, probe_probabilities(pool, y, queries, self.table_readout, as_is)["logistic"]

    def _inner_scores(self, ids: tuple[str, ...], image: Array, y: Array) -> Array:
        """Each patient's image score by a probe of the other inner folds."""
        folds = inner_folds(ids, y, self.settings.inner_folds, self.seed)
        number = np.array([folds[one] for one in ids])
        column = np.zeros(len(ids))
        for inner in np.unique(number):
            inside = number == inner
            column[inside] = self._score(image[~inside], y[~inside], image[inside])
        return column
