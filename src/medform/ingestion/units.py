"""What the numbers of a file that does not say so mean: HU, or arbitrary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from medform.ingestion.found_series import Finding, FoundSeries, Refused
from medform.ingestion.voxels import VoxelPass

__all__ = ["SaidBy", "judged_as_hu", "unit_by_range"]

SaidBy = Literal["cohort file", "training", "nobody"]

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
    return replace(series, unit="HU").with_findings([_by_range(lowest, highest, series.files[0])])


def judged_as_hu(root: Path, series: FoundSeries, said_by: SaidBy) -> FoundSeries:
    """A series whose unit is to be HU; only NIfTI and pictures are judged, since DICOM says what its numbers are.

    ``said_by``: who says that they are HU. ``cohort file`` (``images.unit``) or ``training`` (of the model that is to
    read the scan): values unlike HU are taken as HU with the note ``unit_assumed``. ``nobody``: such a file is refused
    (``unit_unknown``). Grey values of a picture are HU only where the cohort file says so. A series with the values of
    a CT comes back as it was, but for the note ``unit_by_range`` where a model is to read it.
    """
    if series.reader == "dicom" or not series.usable:
        return series
    file = series.files[0]
    if series.reader == "picture" and said_by != "cohort file":
        return series.with_findings([_grey(said_by, file)])
    unsigned = np.dtype(series.dtype).kind == "u" and all(one.slope > 0 <= one.intercept for one in series.slices)
    if not unsigned:  # what has no negative value has no air: not read
        try:
            lowest, highest, air = _range(root, series)
        except Refused as refused:
            return series.with_findings([refused.finding])
        if _of_a_ct(lowest, highest, air):
            return series.with_findings([_by_range(lowest, highest, file)]) if said_by == "training" else series
    if said_by == "nobody":
        return series.with_findings([_unknown("values unlike those of a CT with air", file)])
    whose = "as images.unit says" if said_by == "cohort file" else "the unit of the training"
    reason = f"its values are not those of a CT with air around the patient; taken as HU, {whose}."
    return series.with_findings([Finding("unit_assumed", "note", reason, file)])


def _by_range(lowest: float, highest: float, file: str) -> Finding:
    reason = f"values from {lowest:.0f} to {highest:.0f} with air among them are taken as HU."
    return Finding("unit_by_range", "note", reason, file)


def _grey(said_by: SaidBy, file: str) -> Finding:
    """Why a picture cannot be taken as HU."""
    if said_by == "nobody":
        return _unknown("grey values of a picture", file)
    reason = "grey values of a picture are not HU, which the model was trained on."
    return Finding("unit_differs", "quarantine", reason, file)


def _unknown(what: str, file: str) -> Finding:
    reason = f"{what}, and the cohort file does not say what they mean."
    override = "set images.unit: raw (arbitrary numbers, as in MRI), display (grey 0-255) or HU"
    return Finding("unit_unknown", "quarantine", reason, file, "images.unit", override)


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
