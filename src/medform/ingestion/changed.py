"""Whether the files of a finished store are still those that it was made from: by their digests, not by their times.

A file that was replaced by another of the same size may carry any time of change, also an older one. So the times
decide only whether there is something to read: while every file has the size and times that it had when it was last
found unchanged, nothing is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medform.cohort.files import file_sha256
from medform.cohort.frames import digest_of
from medform.cohort.store import Cohort
from medform.cohort.writer import renewal_by_ingest
from medform.errors import InputError, Problem
from medform.ingestion.found_series import FoundSeries, Refused
from medform.ingestion.mask_voxels import read_masks

__all__ = ["SEEN", "changed_files", "note_seen", "refuse_changed", "sizes_and_times"]

SEEN = ".sources"
"""File in a store, no part of it: digest of the sizes and times with which its sources were last found unchanged."""
MOST_SHOWN = 12


def sizes_and_times(root: Path, series: Sequence[FoundSeries]) -> str:
    """Digest of size and times (changed, and renamed or replaced) of every image and mask file of the series."""
    names = {source.file for one in series for source in one.slices} | {name for one in series for name in _masks(one)}
    facts: list[tuple[object, ...]] = []
    for name in sorted(names):
        with contextlib.suppress(OSError):  # one that is gone, or cannot be read, is another list
            stat = (root / name).stat()
            facts.append((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return digest_of(facts)


def note_seen(cohort: Cohort, seen: str) -> None:
    """Keep the `sizes_and_times` with which the sources of a store are known to be those that it was made from."""
    with contextlib.suppress(OSError):  # a store that may not be written is compared by content each time
        (cohort.root / SEEN).write_text(_note(cohort, seen), encoding="utf-8")


def changed_files(cohort: Cohort, root: Path, series: Sequence[FoundSeries]) -> list[str]:
    """Images and masks (below ``root``) of the chosen ``series`` that are not what the store holds; none: it is noted.

    A series that the store does not hold, since its voxels could not be read, is not compared.
    """
    seen = sizes_and_times(root, series)
    note = cohort.root / SEEN
    if note.is_file() and note.read_text(encoding="utf-8", errors="replace") == _note(cohort, seen):
        return []
    stored = dict(zip(cohort.slices["source"], cohort.slices["file_digest"], strict=True))
    known = {source.file: stored.get(source.instance) for one in series for source in one.slices}
    changed = [file for file, digest in known.items() if digest and not _is(root / file, str(digest))]
    changed += [file for one in series for file in _changed_masks(root, one, cohort)]
    if not changed:
        note_seen(cohort, seen)
    return changed


def refuse_changed(cohort: Cohort, root: Path, series: Sequence[FoundSeries], *, renewal: str | None = None) -> None:
    """Raise `InputError` where there are `changed_files`; ``renewal`` as in `CohortWriter`."""
    if changed := changed_files(cohort, root, series):
        raise InputError(
            f"{len(changed)} image files changed since this store was made.",
            where=str(cohort.root),
            consequence="Nothing was changed.",
            fix=renewal or renewal_by_ingest(cohort.root),
            problems=[Problem("changed since the store was made.", file=file) for file in changed[:MOST_SHOWN]],
        )


def _note(cohort: Cohort, seen: str) -> str:
    return digest_of([cohort.digest, seen])


def _is(path: Path, digest: str) -> bool:
    """Whether a file is there with the SHA-256 ``digest``."""
    try:
        return file_sha256(path) == digest
    except OSError:
        return False


def _masks(series: FoundSeries) -> list[str]:
    return [series.mask.file] if series.mask else [source.mask for source in series.slices if source.mask]


def _changed_masks(root: Path, series: FoundSeries, cohort: Cohort) -> list[str]:
    """Files of masks of a series where these are not, or no longer, the masks of the store."""
    files = _masks(series)
    held = series.series_id in set(cohort.series["series_id"])
    stored = cohort.masks(series.series_id) if files and held else None
    if stored is None:
        return []
    try:
        now = read_masks(root, series)
    except Refused:
        return files
    return [] if now is not None and np.array_equal(stored, now) else files
