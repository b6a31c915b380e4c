"""Frames that a fold leaves: rows of embeddings.parquet, attention.parquet, and what models predict themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medform.metrics.linear_maps import pca
from medform.pipeline.companions import GENES, Companions
from medform.training.infer import embeddings

if TYPE_CHECKING:
    from medform.inputs.clinical import EncodedTable
    from medform.inputs.genes import EncodedGenes
    from medform.pipeline.bench import Group
    from medform.pipeline.pairing import Pairing
    from medform.pipeline.stages import ImageSide

__all__ = ["attention_rows", "gene_rows", "prediction_rows", "projection_rows", "rows_of", "table_rows"]

GENE_COMPONENTS = 16
"""Principal components that stand for the genes where they are probed alone."""


def _part_of(group: Group) -> dict[str, str]:
    parts = (("train", group.train), ("validation", group.validation), ("test", group.test))
    return {patient: part for part, patients in parts for patient in patients}


def rows_of(
    group: Group, model: str, supports: str, seed: int, patients: Sequence[str], vectors: np.ndarray,
    part: str | None = None, modality: str = "image",
) -> pd.DataFrame:  # fmt: skip
    """Rows of embeddings.parquet."""
    part_of = _part_of(group)
    return pd.DataFrame(
        {
            "patient_id": list(patients),
            "fold": -1 if group.fold is None else group.fold,
            "part": [part or part_of[patient] for patient in patients],
            "model": model,
            "supports": supports,
            "seed": seed,
            "modality": modality,
            "vector": [row.astype(np.float32) for row in np.asarray(vectors)],
        }
    )


def table_rows(group: Group, table: EncodedTable) -> pd.DataFrame:
    """The encoded table of the group's patients."""
    part_of = _part_of(group)
    kept = [(row, patient) for row, patient in enumerate(table.patient_ids) if patient in part_of]
    values = table.values[[row for row, _ in kept]]
    return rows_of(group, "table", "aligned", 0, [patient for _, patient in kept], values, modality="clinical")


def gene_rows(group: Group, genes: EncodedGenes) -> pd.DataFrame:
    """The genes alone: their principal components, fitted on the training patients who have them."""
    part_of = _part_of(group)
    kept = [(row, patient) for row, patient in enumerate(genes.patient_ids) if patient in part_of]
    values = genes.expression[[row for row, _ in kept]].astype(np.float64)
    fitted = pca(values[[part_of[patient] == "train" for _, patient in kept]], GENE_COMPONENTS)
    vectors = fitted.transform(values)
    return rows_of(group, "genes_logistic", "aligned", 0, [patient for _, patient in kept], vectors, modality=GENES)


def attention_rows(
    group: Group, model: str, seed: int, side: ImageSide, pairing: Pairing, patients: Sequence[str]
) -> pd.DataFrame:
    """Rows of attention.parquet: the weight of every slice of the test patients."""

    def rows() -> Iterator[pd.DataFrame]:
        for patient in patients:
            _, weight = pairing.aligned(side, [patient])
            slices = side.store.rows([patient])
            if weight is not None:
                yield pd.DataFrame(
                    {"patient_id": patient, "fold": group.fold, "model": model, "seed": seed,
                     "slice_id": [side.store.slice_ids[row] for row in slices], "weight": weight.astype(np.float32)}
                )  # fmt: skip

    frames = list(rows())
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def prediction_rows(
    group: Group,
    name: str,
    seed: int,
    side: ImageSide,
    pairing: Pairing,
    labels: pd.Series,
    patients: Sequence[str],
) -> pd.DataFrame:
    """What a supervised model says of validation and test patients: probability of the positive class."""
    part_of = _part_of(group)
    scored = [patient for patient in patients if part_of[patient] != "train"]
    asked = [patient for patient in scored if not np.isnan(labels[patient])]
    device = next(pairing.objective.parameters()).device
    probability = pairing.objective.predict(side.block(asked).to(device)).cpu().numpy()
    return pd.DataFrame(
        {"patient_id": asked, "task": labels.name, "fold": group.fold, "part": [part_of[patient] for patient in asked],
         "model": name, "seed": seed, "y_prob": probability}
    )  # fmt: skip


def projection_rows(
    group: Group, model: str, seed: int, side: ImageSide, companions: Companions, modality: str, pairing: Pairing
) -> list[pd.DataFrame]:
    """Image and companion of the test patients in the shared space, for retrieval."""
    having = set(companions.patients(modality)) & set(group.test)
    tested = [patient for patient in side.patients if patient in having]
    if len(tested) < 2:
        return []
    block = companions.source(modality).block(companions.codes(tested))
    sides = {
        "image": pairing.aligned(side, tested)[0],
        modality: embeddings(pairing.objective.towers[modality], block),
    }
    return [rows_of(group, model, "aligned", seed, tested, vectors, "test", name) for name, vectors in sides.items()]
