"""What was planted and what a correct program must find: the contents of ``truth.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medform.errors import InputError

__all__ = ["FileCounts", "PatientTruth", "SeriesTruth", "Truth"]

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class FileCounts:
    """Regular files below the image folder: ``found`` = ``image`` + ``other`` + ``unreadable``."""

    found: int
    image: int
    other: int
    unreadable: int


@dataclass(frozen=True)
class SeriesTruth:
    """One DICOM series. ``verdict``: accepted or quarantined, with ``code`` (gap, localizer) saying why.

    ``selected``: the scan to use, by ``images.select`` of the cohort file. ``shape`` is (slices, rows,
    columns) as handed over, ``spacing_mm`` (z, y, x).
    """

    series_uid: str
    study_uid: str
    patient_id: str
    kind: str
    folder: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    scanner: str
    kernel: str
    turned: bool
    verdict: str
    code: str | None
    selected: bool


@dataclass(frozen=True)
class PatientTruth:
    """One person of the hospital. ``usable``: has a scan that can be vouched for and a row of the table.

    Sizes are in mm3: ``lesion_mm3`` as planted, ``mask_mm3`` as voxels of the mask (None without images).
    ``twin_centre_lps_mm``: of the spot that looks like the lesion and is none (None where none was planted).
    ``lesion_slices`` are indices from feet to head in the full scan. ``table`` holds the true values and
    ``emptied`` the columns whose cell was lost or replaced by a sentinel before export.
    """

    patient_id: str
    usable: bool
    reason: str | None
    severity: float
    malignant: bool
    stage: str
    scanner: str
    marker: float
    lesion_mm3: float
    mask_mm3: float | None
    lesion_centre_lps_mm: tuple[float, float, float] | None
    twin_centre_lps_mm: tuple[float, float, float] | None
    lesion_slices: tuple[int, ...]
    slices: int
    survival_months: float
    died: bool
    has_genes: bool
    table: dict[str, Any] | None
    emptied: tuple[str, ...]


@dataclass(frozen=True)
class Truth:
    """Everything that was planted, as written to ``truth.json`` (``schema_version`` 2)."""

    seed: int
    options: dict[str, Any]
    files: FileCounts
    series: tuple[SeriesTruth, ...]
    patients: tuple[PatientTruth, ...]
    module: tuple[str, ...]
    leaks: tuple[str, ...]
    nuisances: tuple[str, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def usable(self) -> tuple[str, ...]:
        """Ids of the patients whom a correct run uses."""
        return tuple(one.patient_id for one in self.patients if one.usable)

    @property
    def exclusions(self) -> dict[str, str]:
        """Id and reason of everybody else."""
        return {one.patient_id: one.reason for one in self.patients if one.reason is not None}

    def counts(self) -> dict[str, int]:
        """Figures for one line of output: patients, usable, excluded, series by verdict, files."""
        verdicts = [one.verdict for one in self.series]
        return {
            "patients": len(self.patients),
            "usable": len(self.usable),
            "excluded": len(self.exclusions),
            "series": len(self.series),
            "series_accepted": verdicts.count("accepted"),
            "series_quarantined": verdicts.count("quarantined"),
            "files": self.files.found,
        }

    def as_json(self) -> dict[str, Any]:
        """The tree of ``truth.json``: every field, and what follows from them."""
        return {**asdict(self), "usable": self.usable, "exclusions": self.exclusions, "counts": self.counts()}

    def write(self, path: Path) -> None:
        """Write ``truth.json``; equal truths give equal bytes."""
        path.write_text(json.dumps(self.as_json(), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Truth:
        """Read ``truth.json``; `InputError` for another schema version."""
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"schema_version {tree.get('schema_version')} is not known here (known: {SCHEMA_VERSION}).",
                where=str(path),
                fix="write the phantom again with this version of medform.",
            )
        return cls(
            seed=tree["seed"],
            options=tree["options"],
            files=FileCounts(**tree["files"]),
            series=tuple(SeriesTruth(**_tuples(one)) for one in tree["series"]),
            patients=tuple(PatientTruth(**_tuples(one)) for one in tree["patients"]),
            module=tuple(tree["module"]),
            leaks=tuple(tree["leaks"]),
            nuisances=tuple(tree["nuisances"]),
        )


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
