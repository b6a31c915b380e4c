"""One series into a store: the unit of work that a pool of processes shares and that a killed run does not repeat."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medform.cohort.files import file_stem, write_bytes
from medform.cohort.writer import SeriesRecord, SliceRecord, series_complete, write_series
from medform.errors import InputError
from medform.ingestion.found_series import FoundSeries, Refused
from medform.ingestion.mask_voxels import judged_masks
from medform.ingestion.preview import PreviewTap
from medform.ingestion.voxels import VoxelPass, crashed, file_digests, unreadable

__all__ = ["SeriesTask", "crashed_series", "refuse_gone", "store_series"]

AWAY = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
"""Errors that say that a file, or the disk or share that holds it, is not there; others are faults of the file."""


@dataclass(frozen=True)
class SeriesTask:
    """What a worker needs to store one series from ``source`` in ``store``.

    ``preview`` where it is the patient's first series; the picture then shows ``window`` of the unit.
    """

    source: Path
    store: Path
    series: FoundSeries
    preview: bool
    window: tuple[float, float] | None

    def inputs(self) -> str:
        """SHA-256 of what the stored bytes follow from, but the pixels and masks: headers, file sizes, settings.

        Raises `Refused` for a file that cannot be looked at.
        """
        sizes = [(file, self._size(file)) for file in self.series.files]
        facts: tuple[object, ...] = (self.series, sizes, self.preview, self.window)
        if (mask := self.series.mask) is not None:
            facts += (mask, self._size(mask.file))
        if self.series.mask_values is not None:
            facts += self.series.mask_values
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def refuse_gone(self) -> None:
        """`refuse_gone` for the files of the series and its label map."""
        mask = self.series.mask
        refuse_gone(self.source, self.series.files if mask is None else (*self.series.files, mask.file))

    def _size(self, file: str) -> int:
        try:
            return (self.source / file).stat().st_size
        except OSError as error:
            raise Refused(unreadable(error, file)) from None


def store_series(task: SeriesTask) -> FoundSeries:
    """Write voxels, preview and record of one series; what an earlier run finished from the same is left alone.

    Returns the series with what its voxels showed; it comes back quarantined, and is not in the store,
    where a file of it cannot be vouched for. Raises `InputError` where a file of it is no longer there.
    """
    series = task.series
    try:
        inputs = task.inputs()
        series, masks = judged_masks(task.source, series)
        if not series.usable or series.mask != task.series.mask:
            task.refuse_gone()
        if not series.usable:
            return series
        digests = file_digests(task.source, series)
        files = [digests[source.file] for source in series.slices]
        if series_complete(task.store, series.series_id, inputs, files=files, masks=masks):
            return series
        voxels = VoxelPass(task.source, series)
        slices: Iterator[NDArray[Any]] = iter(voxels)
        if any(source.padding for source in series.slices):
            slices = _spooled(slices, series, task.store / "parts")
        if task.preview:
            path = task.store / "previews" / f"{file_stem(series.patient_id)}.png"
            slices = PreviewTap(series, task.window, lambda png: write_bytes(path, png)).through(slices)
        first = next(slices)  # a spool has read all slices by now, so the findings are complete
        found = series.with_findings(voxels.findings)
        write_series(task.store, _record(found, digests), _again(first, slices), inputs=inputs, masks=masks)
    except Refused as refused:
        task.refuse_gone()
        return series.with_findings([refused.finding])
    return found


def refuse_gone(root: Path, files: Iterable[str] = ()) -> None:
    """Raise `InputError` where the source or one of its files went away while it was read, as a network share does.

    To set aside what is gone would make a finished store of the rest, which later runs take for the whole.
    """
    try:
        os.scandir(root).close()
    except OSError as error:
        raise _gone(root, error) from None
    for file in files:
        try:
            (root / file).stat()
        except OSError as error:
            if error.errno in AWAY:
                raise _gone(root / file, error) from None


def _gone(path: Path, error: OSError) -> InputError:
    return InputError(
        f"the source changed or went away while it was read ({error.strerror or error}).",
        where=str(path),
        consequence="The store is not finished; the series in it are kept.",
        fix="see that the folder is there, then run the same command again, with --resume.",
    )


def crashed_series(task: SeriesTask) -> FoundSeries:
    """The result for a series whose reading ended the process that read it."""
    return crashed(task.series)


def _again(first: NDArray[Any], rest: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    yield first
    yield from rest


def _spooled(slices: Iterator[NDArray[Any]], series: FoundSeries, folder: Path) -> Iterator[NDArray[Any]]:
    """All slices through a temporary file: what they show is known before the first is handed on.

    Only series with declared padding need it (whether any voxel is padding decides the verdict); one
    slice is in memory at a time.
    """
    shape, kind = series.shape[1:], np.dtype(series.dtype)
    size = int(np.prod(shape)) * kind.itemsize
    with tempfile.TemporaryFile(dir=folder) as spool:
        for stored in slices:
            spool.write(np.ascontiguousarray(stored).tobytes())
        spool.seek(0)
        while piece := spool.read(size):
            yield np.frombuffer(piece, kind).reshape(shape)


def _record(series: FoundSeries, digests: Mapping[str, str]) -> SeriesRecord:
    """The store's record of a series; no name, date or number of a person enters it but the ids."""
    return SeriesRecord(
        series_id=series.series_id,
        patient_id=series.patient_id,
        modality=series.modality,
        unit=series.unit,
        verdict=series.verdict,
        slices=tuple(
            SliceRecord(
                position_mm=source.position_mm,
                slope=source.slope,
                intercept=source.intercept,
                source=source.instance,
                file_digest=digests[source.file],
                labels=dict(source.labels),
            )
            for source in series.slices
        ),
        affine_lps=None if series.affine_lps is None else tuple(np.ravel(series.affine_lps).tolist()),
        spacing_mm=series.spacing_mm,
        study=series.study_id,
        person=series.person,
        header={"kernel": series.kernel, "manufacturer": series.manufacturer},
    )
