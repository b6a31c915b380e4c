"""Schema of the cohort file's ``genes``: where the expression matrix is and what its numbers mean."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from medform.cohort.field_types import IdRule, Words
from medform.config import Config

__all__ = [
    "MOST_UNREAD",
    "ClippedTails",
    "GeneFormat",
    "GeneIdKind",
    "GeneScale",
    "GenesSpec",
    "Orientation",
    "Tails",
    "Tissue",
]

GeneScale = Literal["counts", "tpm", "log2p1", "log2", "zscore"]
GeneFormat = Literal["wide", "cbioportal", "xena", "gdc", "gct", "h5ad"]
GeneIdKind = Literal["symbol", "ensembl", "entrez"]
Orientation = Literal["patients_in_rows", "genes_in_rows"]
Tissue = Literal["tumour", "normal", "any"]

GENES_IN_ROWS: tuple[GeneFormat, ...] = ("cbioportal", "xena", "gct")
MOST_UNREAD = 0.05
"""Share of the reads that a patient's genes without a count may have had in others: counts are divided by the
patient's sum, which is as much too small, and with more every log2 of a count a million is more than
log2(1 / 0.95) = 0.074 too high."""


class ClippedTails(Config):
    """Standardised values are cut at -clip and +clip."""

    clip: float = Field(gt=0)


Tails = ClippedTails | Literal["rank", "none"]


class GenesSpec(Config):
    """Gene expression of the patients: a matrix of text, plain or gz, an ``.h5ad`` file or a folder of GDC files.

    ``scale`` says what the numbers are: ``counts`` of reads; ``tpm`` or another normalised abundance; ``log2p1``,
    log2(x + 1) of either; ``log2``, logarithms without the 1, as of microarrays; ``zscore``, standardised by
    somebody. ``tails`` is what the inputs do about heavy tails after standardising: a clip in standard
    deviations, ``rank`` or ``none``; the stored values stay as they came. ``upstream_transductive`` says that the
    published values were made with all patients at once, those of the test folds included.

    ``patient_id`` names the column of ids where patients are in rows (default: the first). ``samples`` is a table
    that says whose each sample is: cBioPortal's ``data_clinical_sample.txt``, a GDC sample sheet, or any table
    with the columns sample_id and patient_id. ``tissue`` chooses among TCGA barcodes by their sample code and
    among sheets by the sample type. ``duplicates`` says what becomes of genes that stand twice. ``ignore`` names
    columns (patients in rows) or rows (genes in rows) that are no genes. ``missing`` lists the words of a cell
    without a value. ``id_rules`` and ``id_map`` join ids that are not equal, as for the clinical table.
    """

    path: str
    scale: GeneScale
    format: GeneFormat | Literal["auto"] = "auto"
    orientation: Orientation | Literal["auto"] = "auto"
    id_kind: GeneIdKind = "symbol"
    patient_id: str | None = None
    samples: str | None = None
    tissue: Tissue = "tumour"
    tails: Tails = "none"
    duplicates: Literal["refuse", "mean", "first", "max"] = "refuse"
    ignore: Words = []
    missing: Words = ["", "NA", "NaN", "nan"]
    decimal: Literal[".", ","] = "."
    id_rules: list[IdRule] = []
    id_map: str | None = None
    upstream_transductive: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.format == "gdc" and self.samples is None:
            raise ValueError("GDC files are named by UUIDs: set genes.samples to the sample sheet of the download.")
        if self.format == "gdc" and (self.scale not in ("counts", "tpm") or self.id_kind == "entrez"):
            raise ValueError("GDC's STAR files hold scale: counts or tpm, by id_kind: symbol or ensembl.")
        if self.format in GENES_IN_ROWS and self.orientation == "patients_in_rows":
            raise ValueError(f"the format {self.format} has genes in rows: leave genes.orientation out.")
        return self
