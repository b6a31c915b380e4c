"""One series into a store: the unit of work that a pool of processes shares and that a killed run does not repeat."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medform.cohort.files import file_stem, write_bytes
from medform.cohort.writer import SeriesRecord, SliceRecord, series_complete, write_series
from medform.ingestion.found_series import Finding, FoundSeries, Refused
from medform.ingestion.preview import PreviewTap
from medform.ingestion.voxels import VoxelPass, file_digests, masks_of

__all__ = ["SeriesTask", "crashed_series", "store_series"]


@dataclass(frozen=True)
class SeriesTask:
    """What a worker needs to store one series. ``preview`` where it is the patient's first, in ``window``."""

    source: Path
    store: Path
    series: FoundSeries
    preview: bool
    window: tuple[float, float] | None

    def inputs(self) -> str:
        """SHA-256 of everything that the stored bytes follow from, but the pixels: headers, sizes, settings."""
        sizes = [(file, (self.source / file).stat().st_size) for file in self.series.files]
        text = repr((self.series, sizes, self.preview, self.window))
        return hashlib.sha256(text.encode()).hexdigest()


def store_series(task: SeriesTask) -> FoundSeries:
    """Write voxels, record and preview; a series whose voxels cannot be vouched for comes back quarantined.

    What an earlier run finished from the same inputs is left as it is.
    """
    series = task.series
    try:
        inputs = task.inputs()
        if series_complete(task.store, series.series_id, inputs):
            return series
        voxels = VoxelPass(task.source, series)
        digests = file_digests(task.source, series)
        tap = PreviewTap(series)
        slices: Iterator[NDArray[Any]] = iter(voxels)
        if any(source.padding for source in series.slices):
            slices = _read_first(voxels, task.store / "parts")
        record = _record(series.with_findings(voxels.findings), digests)
        masks = masks_of(task.source, series)
        _preview_first = tap.through(slices)
        write_series(task.store, record, _preview_first, inputs=inputs, masks=masks)
        if task.preview:
            name = f"{file_stem(series.patient_id)}.png"
            write_bytes(task.store / "previews" / name, tap.png(task.window))
    except Refused as refused:
        return series.with_findings([refused.finding])
    except FileNotFoundError as error:
        reason = "was there when the folder was listed and is gone now."
        return series.with_findings([Finding("unreadable", "quarantine", reason, str(error.filename))])
    return series.with_findings(voxels.findings)
