"""One series into a store: the unit of work that a pool of processes shares and that a killed run does not repeat."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medform.cohort.files import file_stem, write_bytes
from medform.cohort.writer import SeriesRecord, SliceRecord, series_complete, write_series
from medform.ingestion.found_series import Finding, FoundSeries, Refused
from medform.ingestion.mask_voxels import judged_masks
from medform.ingestion.preview import PreviewTap
from medform.ingestion.voxels import VoxelPass, crashed, file_digests

__all__ = ["SeriesTask", "crashed_series", "store_series"]


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
        """SHA-256 of what the stored bytes follow from, but the pixels and masks: headers, file sizes, settings."""
        sizes = [(file, (self.source / file).stat().st_size) for file in self.series.files]
        facts: tuple[object, ...] = (self.series, sizes, self.preview, self.window)
        if (mask := self.series.mask) is not None:
            facts += (mask, (self.source / mask.file).stat().st_size)
        if self.series.mask_values is not None:
            facts += self.series.mask_values
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def store_series(task: SeriesTask) -> FoundSeries:
    """Write voxels, preview and record of one series; what an earlier run finished from the same is left alone.

    Returns the series with what its voxels showed; it comes back quarantined, and is not in the store,
    where a file of it cannot be vouched for.
    """
    series = task.series
    try:
        inputs = task.inputs()
        series, masks = judged_masks(task.source, series)
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
        return series.with_findings([refused.finding])
    except FileNotFoundError as error:
        reason = "was there when the folder was listed and is gone now."
        name = Path(error.filename or series.files[0]).name
        return series.with_findings([Finding("unreadable", "quarantine", reason, name)])
    return found


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
