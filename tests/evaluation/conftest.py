"""A small cohort of vectors with a planted signal, in the format of ``embeddings.parquet``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from medform.cohort.split import Split, make_split, stratified_share
from medform.evaluation.settings import EvaluationSettings

WIDTHS = {"image_only": 6, "aligned": 8, "intensity_stats": 11, "imagenet_encoder": 40, "table": 4}
ALIGNED = ("aligned",)


@dataclass(frozen=True)
class Example:
    """Embeddings, labels and split of one made-up cohort."""

    embeddings: pd.DataFrame
    labels: pd.DataFrame
    split: Split
    settings: EvaluationSettings

    def vector(self, model: str, supports: str, fold: int, *parts: str) -> tuple[list[str], np.ndarray]:
        """Ids and vectors, by plain pandas."""
        frame = self.embeddings
        chosen = frame[
            (frame["model"] == model)
            & (frame["supports"] == supports)
            & (frame["fold"] == fold)
            & frame["part"].isin(parts)
        ]
        return chosen["patient_id"].tolist(), np.stack(chosen["vector"].tolist())


def make_example(patients: int = 40, seed: int = 0, folds: int = 3, prevalence: float = 0.4) -> Example:
    random = np.random.default_rng(seed)
    ids = [f"P{number:03d}" for number in range(patients)]
    positive = np.zeros(patients)
    positive[random.permutation(patients)[: round(prevalence * patients)]] = 1.0
    second = np.where(random.random(patients) < 0.1, np.nan, (random.random(patients) < 0.5).astype(float))
    labels = pd.DataFrame({"histology": positive, "stage": second}, index=ids)
    split = make_split(ids, labels["histology"], folds, 0.2, 7)
    signal = random.normal(size=patients) + 1.5 * positive
    rows = []
    for model, width in WIDTHS.items():
        base = random.normal(size=(patients, width)) + 0.5 * signal[:, None] * random.normal(size=width)
        for number, fold in enumerate(split.folds):
            held = set(stratified_share(fold.train, labels["histology"].loc[list(fold.train)], 0.3, number))
            for part in ("train", "validation", "test"):
                for one in fold.part(part):
                    vector = base[ids.index(one)] + 0.01 * number
                    modality = "clinical" if model == "table" else "image"
                    place = (one, number, part, model, "aligned", 0, modality, vector.tolist())
                    rows.append(place)
                    if model not in ALIGNED:
                        continue
                    noisy = (vector + 0.2 * random.normal(size=width)).tolist()
                    if part == "train":
                        rows.append((one, number, part, model, "out_of_fold", 0, modality, noisy))
                    hidden = "held_out" if one in held else part
                    rows.append((one, number, hidden, model, "unseen", 0, modality, noisy))
    names = ["patient_id", "fold", "part", "model", "supports", "seed", "modality", "vector"]
    settings = EvaluationSettings(draws=12, shots=[1, 2, 3, 25], bootstrap=200, permutations=20, primary="histology")
    return Example(pd.DataFrame(rows, columns=names), labels, split, settings)


@pytest.fixture(scope="session")
def example() -> Example:
    return make_example()


@pytest.fixture(scope="session")
def another() -> Callable[..., Example]:
    """Make an example of another size."""
    return make_example
