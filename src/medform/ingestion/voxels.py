"""The one pass over the voxels of a series: stored slices in canonical order and orientation, whatever the format.

On the way voxels marked as outside the field of view become air (the lowest value where there is none), files are
digested, and what only the pixels can show (an undecodable frame, a colour picture, values that cannot be of the
unit) refuses the series.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medform.cohort.files import file_sha256
from medform.ingestion.dicom_pixels import DicomPixels
from medform.ingestion.found_series import Finding, FoundSeries, Refused, SliceSource
from medform.ingestion.mask_voxels import judged_masks
from medform.ingestion.nifti import read_nifti_slices
from medform.ingestion.slices import read_picture

__all__ = ["AIR_HU", "VoxelPass", "crashed", "examine", "file_digests", "unreadable"]

AIR_HU = -1000.0
AIR_RANGE = (-1024.0, -950.0)
"""HU that are air: padding that already reads as air is left as it is."""

HU_RANGE = (-10240.0, 32767.0)
"""What scanners give, also on an extended scale; beyond it stored values were read with the wrong sign or bits."""
BRIGHTEST = 255
"""Grey value of white in unit display."""
DARK = 16
"""Greatest grey value below which a series that was calculated (floats, a slope) is of another range, 0 to 1 mostly."""


@dataclass
class VoxelPass:
    """Iterates a series once. Afterwards ``findings`` says what the voxels showed.

    Yields (H, W) arrays of the series' dtype; raises `Refused` for a file that cannot be vouched for.
    """

    root: Path
    series: FoundSeries
    findings: list[Finding] = field(default_factory=list)
    _padded: int = 0
    _padded_file: str = ""

    def __iter__(self) -> Iterator[NDArray[Any]]:
        kind = np.dtype(self.series.dtype)
        shape = self.series.shape[1:]
        file = self.series.files[0]
        brightest = -np.inf
        try:
            lowest = self._lowest()
            for source, stored in zip(self.series.slices, self._stored(), strict=True):
                file = source.file
                if stored.shape != shape:
                    reason = f"{stored.shape} voxels where {shape} were announced."
                    raise Refused(Finding("matrix_changes", "quarantine", reason, file))
                if self.series.unit == "display":
                    brightest = max(brightest, _refuse_beyond_display(source, stored))
                values = self._without_padding(source, stored, lowest)
                if self.series.reader == "dicom" and self.series.unit == "HU":
                    _refuse_beyond_hu(source, values)
                yield self._exactly(values, kind, source)
        except OSError as error:
            raise Refused(unreadable(error, file)) from None
        if self.series.unit == "display":
            _refuse_dark(self.series, brightest)
        if self._padded:
            code, value = (
                ("padding_to_air", "air") if lowest is None else ("padding_to_lowest", f"{lowest:g}, the lowest")
            )
            reason = f"{self._padded:,} voxels marked as outside the field of view are stored as {value}."
            self.findings.append(Finding(code, "repair", reason, self._padded_file, "PixelPaddingValue"))

    def _stored(self) -> Iterator[NDArray[Any]]:
        """Slices as the files hold them, turned to canonical orientation."""
        if self.series.reader == "nifti":
            yield from read_nifti_slices(self.root / self.series.files[0], self.series.files[0])
        elif self.series.reader == "dicom":
            pixels = DicomPixels(self.root)
            for source in self.series.slices:
                yield self.series.orientation.apply(pixels.frame(source.file, source.frame))
        else:
            for source in self.series.slices:
                yield read_picture(self.root / source.file, source.file)

    def _lowest(self) -> float | None:
        """The lowest value outside the padding, which stands for it where there is no air; None for CT or no padding.

        It takes a pass of its own; few series that are no CT declare a padding.
        """
        if self.series.modality == "CT" or not any(source.padding for source in self.series.slices):
            return None
        lowest = np.inf
        for source, stored in zip(self.series.slices, self._stored(), strict=True):
            low, high = source.padding or (1, 0)
            inside = stored[(stored < low) | (stored > high)]
            if inside.size:
                end = float(inside.min() if source.slope > 0 else inside.max())
                lowest = min(lowest, end * source.slope + source.intercept)
        return float(lowest)

    def _without_padding(self, source: SliceSource, stored: NDArray[Any], lowest: float | None) -> NDArray[Any]:
        """Padding becomes the stored value nearest to air, or to ``lowest``, unless it reads as that already."""
        if source.padding is None or lowest == np.inf:
            return stored
        low, high = source.padding
        values = sorted((low * source.slope + source.intercept, high * source.slope + source.intercept))
        fill = AIR_HU if lowest is None else lowest
        dark = AIR_RANGE if lowest is None else (lowest - abs(source.slope), lowest)  # 0 where all else is 1 or more
        if dark[0] <= values[0] and values[1] <= dark[1]:
            return stored
        outside = (stored >= low) & (stored <= high)
        count = int(np.count_nonzero(outside))
        if count == 0:
            return stored
        self._padded += count
        self._padded_file = self._padded_file or source.file
        limits = np.iinfo(stored.dtype)
        nearest = round((fill - source.intercept) / source.slope)
        return np.where(outside, stored.dtype.type(min(max(nearest, limits.min), limits.max)), stored)

    def _exactly(self, stored: NDArray[Any], kind: np.dtype[Any], source: SliceSource) -> NDArray[Any]:
        """The values in the type of the series; refused if they do not fit it."""
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            raise Refused(Finding("not_finite", "quarantine", "values that are not numbers.", source.file))
        if stored.dtype == kind:
            return stored
        converted = stored.astype(kind)
        if kind.kind in "iu" and not np.array_equal(converted, stored):
            reason = f"values of {stored.min()} to {stored.max()} do not fit the {kind} that the header announces."
            raise Refused(Finding("values_beyond_type", "quarantine", reason, source.file, "BitsStored"))
        return converted


def _ends(source: SliceSource, stored: NDArray[Any]) -> tuple[float, float]:
    """Least and greatest value of a slice, in the unit of its series."""
    one, other = (float(end) * source.slope + source.intercept for end in (stored.min(), stored.max()))
    return min(one, other), max(one, other)


def _refuse_beyond_hu(source: SliceSource, stored: NDArray[Any]) -> None:
    """Raise `Refused` where values are no HU of any scanner."""
    low, high = _ends(source, stored)
    if low < HU_RANGE[0] or high > HU_RANGE[1]:
        reason = f"values of {low:g} to {high:g} HU, which no scanner gives: sign, bits or rescale are not as stated."
        override = "images.unit: raw (takes all values as they are)"
        raise Refused(Finding("beyond_hu", "quarantine", reason, source.file, "PixelRepresentation", override))


def _refuse_beyond_display(source: SliceSource, stored: NDArray[Any]) -> float:
    """The greatest value of a slice; `Refused` where one is not grey 0 to 255: the window would cut it off."""
    low, high = _ends(source, stored)
    if low < 0 or high > BRIGHTEST:
        raise Refused(_beyond_display(f"values of {low:g} to {high:g}", source.file))
    return high


def _refuse_dark(series: FoundSeries, brightest: float) -> None:
    """Raise `Refused` where grey values were scaled, say to 0 to 1: the 8 bits of unit display would make all black."""
    plain = all((one.slope, one.intercept) == (1.0, 0.0) for one in series.slices)
    if brightest < DARK and (np.dtype(series.dtype).kind == "f" or not plain):
        raise Refused(_beyond_display(f"no value above {brightest:g} in the whole series", series.files[0]))


def _beyond_display(what: str, file: str) -> Finding:
    reason = f"{what}, and unit display is grey 0 to {BRIGHTEST}."
    override = "images.unit: raw, with images.window_hu for what black and white are"
    return Finding("beyond_display", "quarantine", reason, file, "images.unit", override)


def unreadable(error: OSError, file: str) -> Finding:
    """What the disk or the share says of a file that it does not give."""
    return Finding("unreadable", "quarantine", f"cannot be read: {error.strerror or error}.", file)


def crashed(series: FoundSeries) -> FoundSeries:
    """The series when reading its voxels ended the process that read them."""
    reason = "decoding it ended the process that tried."
    return series.with_findings([Finding("crashed", "quarantine", reason, series.files[0])])


def examine(root: Path, series: FoundSeries) -> FoundSeries:
    """The series with what its voxels and masks show added to its findings; nothing is kept or written."""
    if series.usable:
        series, _ = judged_masks(root, series)
    if not series.usable:
        return series
    voxels = VoxelPass(root, series)
    try:
        for _ in voxels:
            pass
    except Refused as refused:
        return series.with_findings([refused.finding])
    return series.with_findings(voxels.findings)


def file_digests(root: Path, series: FoundSeries) -> dict[str, str]:
    """SHA-256 of each file that the slices come from; `Refused` for one that cannot be read."""
    digests = {}
    for file in sorted({source.file for source in series.slices}):
        try:
            digests[file] = file_sha256(root / file)
        except OSError as error:
            raise Refused(unreadable(error, file)) from None
    return digests
