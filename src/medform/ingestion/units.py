"""What the numbers of a file that does not say so mean: HU, or arbitrary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medform.ingestion.found_series import Finding, FoundSeries, Refused
from medform.ingestion.voxels import VoxelPass

__all__ = ["unit_by_range", "unit_of_cohort"]

AIR = (-1100.0, -700.0)
"""The least voxel of a CT with air around the body, where no padding lies below it."""
PADDING = (-4096.0, -1100.0)
DENSEST = 20000.0
"""Metal in extended HU scales ends below this."""
AIR_SHARE = 0.01


def unit_by_range(root: Path, series: FoundSeries) -> FoundSeries:
    """A NIfTI series taken as HU where its values are those of a CT: air near -1000, nothing beyond the scale.

    Only a file that cannot say what its numbers mean is judged so, and the verdict carries the finding.
    """
    if series.reader != "nifti" or not series.usable:
        return series
    try:
        lowest, highest, air = _range(root, series)
    except Refused as refused:
        return series.with_findings([refused.finding])
    if not _of_a_ct(lowest, highest, air):
        return series
    reason = f"values from {lowest:.0f} to {highest:.0f} with air among them are taken as HU."
    return replace(series, unit="HU").with_findings([Finding("unit_by_range", "note", reason, series.files[0])])


def unit_of_cohort(root: Path, series: FoundSeries, *, declared: bool) -> FoundSeries:
    """A series of a cohort whose unit is HU; only NIfTI and pictures are judged, since DICOM says what its numbers are.

    ``declared``: the cohort file says ``unit: HU``, so values unlike HU are taken as HU with the note
    ``unit_assumed``. Where it says nothing, such a NIfTI file and every picture are refused (``unit_unknown``).
    A series with the values of a CT comes back as it was.
    """
    if series.reader == "dicom" or not series.usable:
        return series
    try:
        like_hu = (declared or series.reader == "nifti") and _like_hu(root, series)
    except Refused as refused:
        return series.with_findings([refused.finding])
    if like_hu:
        return series
    file = series.files[0]
    if declared:
        reason = "its values are not those of a CT with air around the patient; taken as HU, as images.unit says."
        return series.with_findings([Finding("unit_assumed", "note", reason, file)])
    kind = "grey values of a picture" if series.reader == "picture" else "values unlike those of a CT with air"
    reason = f"{kind}, and the cohort file does not say what they mean."
    override = "set images.unit: raw (arbitrary numbers, as in MRI), display (grey 0-255) or HU"
    return series.with_findings([Finding("unit_unknown", "quarantine", reason, file, "images.unit", override)])


def _like_hu(root: Path, series: FoundSeries) -> bool:
    """Whether a series has the values of a CT; raises `Refused` for a file that cannot be read."""
    unsigned = np.dtype(series.dtype).kind == "u" and all(one.slope > 0 <= one.intercept for one in series.slices)
    return not unsigned and _of_a_ct(*_range(root, series))  # what has no negative value has no air: not read


def _of_a_ct(lowest: float, highest: float, air: float) -> bool:
    return PADDING[0] <= lowest <= AIR[1] and highest <= DENSEST and air >= AIR_SHARE


def _range(root: Path, series: FoundSeries) -> tuple[float, float, float]:
    """Least and greatest value of a series, and its share of voxels that are air; `Refused` where it cannot be read."""
    lowest, highest, air = np.inf, -np.inf, 0
    for source, stored in zip(series.slices, VoxelPass(root, series), strict=True):
        values = stored.astype(np.float32) * np.float32(source.slope) + np.float32(source.intercept)
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
        air += int(np.count_nonzero((values >= AIR[0]) & (values <= AIR[1])))
    return lowest, highest, air / int(np.prod(series.shape))
