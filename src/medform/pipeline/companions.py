"""What goes with a patient's images: the clinical table and the genes, encoded by what training patients fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.cohort.genes_spec import MOST_UNREAD
from medform.config import digest
from medform.inputs.clinical import ClinicalInputConfig, EncodedTable, TableEncoder
from medform.inputs.genes import EncodedGenes, GeneEncoder, GeneInputConfig, GeneSource
from medform.inputs.loader import RowSource

if TYPE_CHECKING:
    from medform.cohort.store import Cohort
    from medform.recipes.recipe import Recipe, Stage

__all__ = ["CLINICAL", "GENES", "Companions", "encode_companions", "wanted"]

CLINICAL = "clinical"
GENES = "genes"


@dataclass(frozen=True)
class Companions:
    """Encoded rows of every patient who has them; None where the cohort, or the recipe, has no such modality.

    ``patient_ids`` are the cohort's, whose places are the codes that the rows of a batch carry.
    """

    patient_ids: tuple[str, ...]
    table: EncodedTable | None = None
    table_encoder: TableEncoder | None = None
    genes: EncodedGenes | None = None
    gene_encoder: GeneEncoder | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def _code(self) -> dict[str, int]:
        return {patient: code for code, patient in enumerate(self.patient_ids)}

    def codes(self, patients: Sequence[str]) -> np.ndarray:
        """Places of ``patients`` (n,) in the cohort."""
        return np.array([self._code[patient] for patient in patients], np.int64)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that are there."""
        there = {CLINICAL: self.table, GENES: self.genes}
        return tuple(name for name, encoded in there.items() if encoded is not None)

    def width(self, modality: str) -> int:
        """Columns of the encoded table, or genes."""
        if modality == CLINICAL:
            assert self.table is not None
            return self.table.values.shape[1]
        assert self.genes is not None
        return self.genes.expression.shape[1]

    def patients(self, modality: str) -> tuple[str, ...]:
        """Who has a row."""
        encoded = self.table if modality == CLINICAL else self.genes
        return () if encoded is None else tuple(encoded.patient_ids)

    def source(self, modality: str) -> RowSource | GeneSource:
        """A row a patient, as the loaders take them."""
        if modality == CLINICAL:
            assert self.table is not None
            return RowSource(self.table.values, self.codes(self.patients(modality)), "table")
        assert self.genes is not None
        return GeneSource.of(self.genes, self._code)

    def digest(self, modalities: Sequence[str]) -> str:
        """Changes with any encoded number of ``modalities``."""
        parts: list[Any] = []
        if CLINICAL in modalities and self.table is not None:
            parts.append(digest([self.table.names, self.table.patient_ids, self.table.values.tobytes().hex()]))
        if GENES in modalities and self.genes is not None:
            genes = self.genes
            parts.append(digest([genes.gene_ids, genes.patient_ids, genes.expression.tobytes().hex()]))
            zeros = genes.known & (genes.expression == 0)  # what is not known is 0 as well
            if zeros.any():
                parts.append(digest(np.packbits(zeros).tobytes().hex()))
        return digest(parts)


def wanted(stage: Stage, companions: Companions) -> list[str]:
    """The modalities beside the image that ``stage`` has a tower for and the cohort has rows of."""
    return [name for name in stage.towers if name in companions.modalities]


def encode_companions(cohort: Cohort, train: Sequence[str], recipe: Recipe) -> Companions:
    """Table and genes as numbers, fitted on the patients ``train``.

    The table is encoded wherever the cohort has feature columns (its probe is a control of every run), the genes where
    a stage of the recipe takes them.
    """
    notes = []
    configs = [config for stage in recipe.stages.values() for config in stage.inputs.values()]
    table, table_encoder = None, None
    if cohort.clinical is not None and (names := cohort.features()):
        config = next((one for one in configs if isinstance(one, ClinicalInputConfig)), None)
        frame: Any = cohort.table()[names]
        table_encoder = TableEncoder.fit(frame, {name: cohort.columns[name] for name in names}, train, config)
        table = table_encoder.encode(frame)
        if table.values.shape[1] == 0:
            notes.append("no feature column varies among the training patients; there is nothing to align with")
            table = None
    genes, gene_encoder = None, None
    config = next((one for one in configs if isinstance(one, GeneInputConfig)), None)
    if config is not None:
        found = cohort.genes()
        if found is None:
            notes.append("the recipe takes genes and the cohort has none: its gene towers see no patient")
        else:
            gene_encoder = GeneEncoder.fit(found, train, config)
            genes = gene_encoder.encode(found)
            if lost := len(found.patient_ids) - len(genes.patient_ids):
                notes.append(_without_genes(lost, len(found.patient_ids), found.scale))
    return Companions(cohort.patient_ids, table, table_encoder, genes, gene_encoder, tuple(notes))


def _without_genes(lost: int, having: int, scale: str) -> str:
    """What to know of a fold in which ``lost`` of the ``having`` patients with genes count as ones without.

    Ingest judges a patient by the reads of all others, a fold by those of its training patients, so that one near the
    limit may have genes in some folds only. The limit holds in folds as well: there the counts would be wrong by more
    than is said anywhere.
    """
    why = "none of the genes taken has a value"
    if scale == "counts":
        why = f"their genes without a count had more than {MOST_UNREAD:.0%} of its training patients' reads, or {why}"
    return f"{lost} of {having} patients with genes count as ones without: {why}"
