"""TCGA barcodes: whose a sample is, what tissue it is, and which of several samples of one patient counts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from medform.cohort.genes_spec import Tissue

__all__ = ["REPLICATE_RULE", "TISSUES", "Barcode", "is_wanted_tissue", "parse_barcode"]

REPLICATE_RULE = "lowest sample code, then lowest vial, portion, plate"
TUMOUR, NORMAL = range(1, 10), range(10, 20)
TISSUES = {
    **{1: "primary solid tumour", 2: "recurrent solid tumour", 3: "primary blood-derived cancer"},
    **{4: "recurrent blood-derived cancer", 5: "additional new primary", 6: "metastasis"},
    **{7: "additional metastasis", 8: "tumour of human origin", 9: "primary blood-derived cancer, bone marrow"},
    **{10: "blood-derived normal", 11: "solid tissue normal", 12: "buccal cell normal"},
    **{13: "EBV-immortalised normal", 14: "bone marrow normal", 20: "control analyte"},
}
"""Sample codes of the GDC's code table."""
PATTERN = re.compile(
    r"(?P<participant>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})"
    r"(?:-(?P<sample>\d{2})(?P<vial>[A-Z])?"
    r"(?:-(?P<portion>\d{2})(?P<analyte>[A-Z])?"
    r"(?:-(?P<plate>[A-Z0-9]{4})(?:-(?P<centre>[A-Z0-9]{2}))?)?)?)?"
)


@dataclass(frozen=True)
class Barcode:
    """A barcode such as TCGA-CS-4943-01A-11R-1470-07, as far as it was written.

    ``participant`` are its first 12 characters; ``sample`` is the two-digit code of the tissue, None where the
    barcode ends before it.
    """

    participant: str
    sample: int | None = None
    vial: str = ""
    portion: str = ""
    analyte: str = ""
    plate: str = ""
    centre: str = ""

    @property
    def tissue(self) -> str:
        """The tissue in words."""
        return "not stated" if self.sample is None else TISSUES.get(self.sample, "not in the code table")

    @property
    def rank(self) -> tuple[int, str, str, str, str, str]:
        """Order of several samples of one patient; the lowest counts.

        By sample code, vial, portion, plate; analyte and centre decide what is then still equal.
        """
        return (self.sample or 0, self.vial, self.portion, self.plate, self.analyte, self.centre)


def parse_barcode(text: str) -> Barcode | None:
    """Read a barcode with hyphens, or with the points that R puts in column names; None for anything else."""
    found = PATTERN.fullmatch(text.strip().replace(".", "-"))
    if found is None:
        return None
    parts = {name: value or "" for name, value in found.groupdict().items() if name != "sample"}
    code = found["sample"]
    return Barcode(sample=None if code is None else int(code), **parts)


def is_wanted_tissue(barcode: Barcode, tissue: Tissue) -> bool:
    """Whether the sample code is a tumour's (01-09) or a normal tissue's (10-19), as wanted.

    A barcode without a code is taken for what is wanted.
    """
    if barcode.sample is None or tissue == "any":
        return True
    return barcode.sample in (TUMOUR if tissue == "tumour" else NORMAL)
