"""What the readers of all image formats hand on: a series with its slices in order, its geometry and its verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from medform.cohort.cohort_file import Unit
from medform.cohort.quarantine import Quarantined, Status, Verdict
from medform.ingestion.orientation import Orientation
from medform.runs.grids import AxisMap

__all__ = ["Finding", "FoundSeries", "Refused", "SeriesMask", "SliceSource", "judge"]

Effect = Literal["note", "repair", "set_aside", "quarantine"]
"""``set_aside``: what goes with the series (its mask) cannot be used, the series can."""


@dataclass(frozen=True)
class Finding:
    """One thing seen about a series: its code, what it does to the verdict, where it stands and how to override it.

    ``tag`` is a DICOM keyword or the name of a header field; ``override`` says what the user can do.
    """

    code: str
    effect: Effect
    reason: str
    file: str | None = None
    tag: str | None = None
    override: str | None = None

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.file, self.tag) if part)
        text = f"{place}: {self.reason}" if place else self.reason
        return f"{text} To use it anyway: {self.override}." if self.override else text


class Refused(Exception):
    """A file whose pixels or header cannot be vouched for; carries the finding that says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding

    def __reduce__(self) -> tuple[type[Refused], tuple[Finding]]:
        return Refused, (self.finding,)


@dataclass(frozen=True)
class SliceSource:
    """Where one slice comes from and what its numbers mean: value in unit = stored x ``slope`` + ``intercept``.

    ``position_mm`` is measured along the slice normal (NaN where unknown). ``padding`` is the inclusive
    range of stored values that mark voxels outside the field of view.
    """

    file: str
    instance: str
    frame: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    position_mm: float = math.nan
    padding: tuple[int, int] | None = None
    labels: tuple[tuple[str, str], ...] = ()
    mask: str | None = None


@dataclass(frozen=True)
class SeriesMask:
    """A label map on the grid of a series: its file, and how its axes become the series' (column, row, slice)."""

    file: str
    axes: AxisMap


@dataclass(frozen=True)
class FoundSeries:
    """One series as found: slices in their final order (feet to head for axial), geometry, verdict and why.

    ``shape`` is (slices, rows, columns) after ``orientation``; ``dtype`` the NumPy name of the stored type;
    ``affine_lps`` maps (column, row, slice) indices to patient millimetres, None where that is unknown.
    ``files`` are all files that belong to it, dropped duplicates included, so that counts in = counts out.
    ``mask`` is its label map and ``mask_values`` the numbers that may stand in it besides 0 (None: any); a series
    without them reads as it did before there were masks, hence stores are found again. ``person`` is a digest of name
    and birth date ('' unless the header has both), ``person_near`` those that may be the same person.
    """

    series_id: str
    patient_id: str
    reader: Literal["dicom", "nifti", "picture"]
    modality: str
    unit: Unit
    slices: tuple[SliceSource, ...]
    shape: tuple[int, int, int]
    dtype: str
    files: tuple[str, ...]
    orientation: Orientation = field(default_factory=Orientation)
    affine_lps: tuple[tuple[float, ...], ...] | None = None
    spacing_mm: tuple[float | None, float, float] | None = None
    study_id: str = ""
    person: str = ""
    description: str = ""
    kernel: str = ""
    manufacturer: str = ""
    date: str = ""
    findings: tuple[Finding, ...] = ()
    mask: SeriesMask | None = field(default=None, repr=False)
    mask_values: tuple[int, ...] | None = field(default=None, repr=False)
    person_near: tuple[str, ...] = field(default=(), repr=False)

    @property
    def verdict(self) -> Verdict:
        """Status with its codes and, at the same places, their details."""
        return Verdict(judge(self.findings), tuple(self.codes), tuple(self.details))

    @property
    def usable(self) -> bool:
        """Whether the series may enter a store."""
        return judge(self.findings) != "quarantined"

    @property
    def codes(self) -> list[str]:
        """Code of each finding."""
        return [finding.code for finding in self.findings]

    @property
    def details(self) -> list[str]:
        """One line a finding: file, tag, reason, how to override."""
        return [str(finding) for finding in self.findings]

    def with_findings(self, findings: Iterable[Finding]) -> FoundSeries:
        """The series with more findings (each once), hence perhaps another verdict."""
        return replace(self, findings=tuple(dict.fromkeys((*self.findings, *findings))))

    def set_aside(self) -> list[Quarantined]:
        """Rows of the quarantine list: one for each finding that keeps the series, or its mask, out."""
        return [
            Quarantined(
                self.patient_id,
                self.series_id,
                finding.file or self.files[0],
                finding.code,
                finding.tag or "",
                finding.reason,
                finding.override or "",
            )
            for finding in self.findings
            if finding.effect in ("quarantine", "set_aside")
        ]


def judge(findings: Sequence[Finding]) -> Status:
    """The verdict that follows from the findings: the gravest one decides."""
    effects = {finding.effect for finding in findings}
    if "quarantine" in effects:
        return "quarantined"
    return "repaired" if "repair" in effects else "accepted"
