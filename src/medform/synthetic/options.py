"""What the synthetic hospital plants, and how strongly: every signal can be weakened or switched off."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medform.config import Config

__all__ = ["HospitalOptions", "Link"]

Link = Literal["image", "table", "gene", "label", "survival"]


class HospitalOptions(Config):
    """Strengths and shares of the synthetic hospital.

    Every patient has a hidden severity. A strength is the correlation of one visible thing with it, so
    two visible things correlate by the product of their strengths: with the defaults, lesion size (log
    volume) and tumour marker (log) by 0.95 x 0.75 = 0.71.
    """

    signal: Literal["on", "off"] = Field(
        default="on", description="`off` sets all five strengths to 0, whatever they say."
    )
    image_signal: float = Field(default=0.95, ge=0, le=1, description="Severity and the lesion's log volume.")
    table_signal: float = Field(default=0.75, ge=0, le=1, description="Severity and the log of the tumour marker.")
    gene_signal: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Severity (with `twin`: the lesion's place) and every gene of the planted module.",
    )
    label_signal: float = Field(default=0.85, ge=0, le=1, description="Severity and what decides label and stage.")
    survival_signal: float = Field(default=0.7, ge=0, le=1, description="Severity and the log hazard of death.")
    shortcut: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Scanner tied to the label: 0 not at all, 1 every malignant patient on the second one. "
        "Not touched by `signal: off`, so that a hospital can hold nothing but the shortcut.",
    )
    prevalence: float = Field(
        default=0.5, gt=0, lt=1, description="Share of malignant patients (at least one of each class)."
    )
    lesion_slices: int | None = Field(
        default=None,
        ge=1,
        le=8,
        description="Slices that carry the lesion; without it, as many as its sphere crosses.",
    )
    twin: bool = Field(
        default=False,
        description="A second spot in every scan that looks exactly like the lesion: one lies to the front, one to the "
        "back. Which of the two is the lesion follows the module of genes alone, which then says nothing of severity.",
    )
    missing: float = Field(default=0.06, ge=0, le=0.9, description="Share of empty cells in the feature columns.")
    sentinel: float = Field(
        default=0.08, ge=0, le=0.9, description="Share of 999 in the column that uses it for 'not done'."
    )
    genes_missing: float = Field(default=0.1, ge=0, le=0.9, description="Share of patients without gene expression.")
    size: int = Field(default=64, ge=32, le=512, description="Rows and columns of a slice; the field of view stays.")
    localizers: float = Field(
        default=0.4, ge=0, le=1, description="Share of patients with a localizer beside the scan."
    )
    second_kernels: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share with a second, sharper series at twice the slice distance.",
    )
    follow_ups: float = Field(
        default=0.2, ge=0, le=1, description="Share with a later study, after the lesion was removed."
    )
    defects: bool = Field(
        default=True,
        description="Adds three people beyond `patients` who cannot be used: one scan with a slice missing, "
        "one scan without a table row, one table row without a scan; and a text file among the images.",
    )

    def strength(self, link: Link) -> float:
        """Correlation of one visible thing with the hidden severity, 0 where all signal is off."""
        return 0.0 if self.signal == "off" else float(getattr(self, f"{link}_signal"))
