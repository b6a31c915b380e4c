"""`medform ingest`: images and tables of a cohort file into a cohort store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medform.cohort.cohort_file import CohortFile
    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress

__all__ = ["IngestResult", "ingest", "refuse_output_among_images"]

FLOW = (
    ("files_found", "files found"),
    ("files_unreadable", "files that cannot be read"),
    ("series_found", "series"),
    ("series_quarantined", "series quarantined"),
    ("series_not_selected", "series not selected"),
    ("series_used", "series stored"),
    ("masks_found", "masks found"),
    ("masks_used", "masks stored"),
    ("patients_found", "patients found"),
    ("patients_without_usable_images", "patients without usable images"),
    ("patients_images_only", "patients with images but no row"),
    ("patients_table_only", "patients with a row but no images"),
    ("patients_with_genes", "patients with gene expression"),
    ("patients_used", "patients with all that the cohort file asks for"),
)


@dataclass(frozen=True)
class IngestResult:
    """A finished store: ``cohort`` opens it, ``counts`` is the way from files to patients."""

    store: Path
    counts: dict[str, int]
    codes: dict[str, int]
    notes: list[str]
    cohort: Cohort = field(repr=False)

    @property
    def exclusions(self) -> int:
        """How many series and files were set aside for a fault (those skipped or not selected do not count)."""
        from medform.pipeline.scans import exclusions

        return exclusions(self.cohort)

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "store": str(self.store),
            "digest": self.cohort.digest,
            "counts": self.counts,
            "quarantine": self.codes,
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """The way from files to patients, what was set aside, and the next step."""
        width = max(len(str(self.counts.get(key, 0))) for key, _ in FLOW)
        text = [f"{self.counts[key]:>{width}}  {what}" for key, what in FLOW if self.counts.get(key)]
        if self.codes:
            listed = ", ".join(f"{code} {count}" for code, count in self.codes.items())
            text.append(f"set aside: {listed} (reasons in {self.store / 'quarantine.csv'})")
        text += [f"note: {note}" for note in self.notes]
        text.append(f"{self.store}: cohort '{self.cohort.name}'. Next: medform run, with --store {self.store}")
        return text


def ingest(
    cohort_file: Path | str,
    root: Path | str | None = None,
    out: Path | str = "store",
    workers: int = 1,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> IngestResult:
    """Read the images and tables that ``cohort_file`` names (below ``root``, by default its own folder) into ``out``.

    A killed ingest goes on where it was when the same call is made again (``resume`` only says so); a
    store that is finished from the same files is left as it is; one made from others is refused unless
    ``overwrite``. ``workers`` processes give the same bytes as one. Raises `InputError` with every fault
    of cohort file, index and table, and where ``out`` lies in the folder of the images.
    """
    from collections import Counter

    from medform.cohort.cohort_file import read_cohort_file
    from medform.errors import InputError
    from medform.ingestion.ingest import ingest as ingest_files

    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other.", fix="give one of them.")
    file = read_cohort_file(Path(cohort_file), None if root is None else Path(root))
    refuse_output_among_images(file, Path(out))
    cohort = ingest_files(file, Path(out), workers=workers, progress=progress, overwrite=overwrite)
    return IngestResult(
        store=Path(out),
        counts=dict(cohort.counts),
        codes=dict(sorted(Counter(row.code for row in cohort.quarantine()).items())),
        notes=_notes(cohort),
        cohort=cohort,
    )


def refuse_output_among_images(file: CohortFile, out: Path) -> None:
    """Raise `InputError` where ``out`` is the folder of the cohort's images or lies below it.

    What is written there would be read as a patient the next time. An index lists its files, so that nothing else is.
    """
    from medform.errors import InputError

    images = file.path(file.images.path).resolve()
    if file.images.layout != "slices" and out.resolve().is_relative_to(images):
        raise InputError(
            f"this is inside the folder of the images ({images}); what is written there would be read as a patient.",
            where=str(out),
            consequence="Nothing was written.",
            fix=f"choose a folder outside {images} with -o.",
        )


def _notes(cohort: Cohort) -> list[str]:
    """Notes that the store keeps, and those on the cohort file, which are no part of its digest."""
    import json

    from medform.cohort.columns import group_notes

    tree = json.loads((cohort.root / "columns.json").read_text(encoding="utf-8"))
    return [*map(str, tree["notes"]), *group_notes(cohort.file)]
