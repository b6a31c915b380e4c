"""What the numbers of a file that does not say so mean: HU, or arbitrary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medform.ingestion.found_series import Finding, FoundSeries, Refused
from medform.ingestion.voxels import VoxelPass

__all__ = ["unit_by_range"]

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
    lowest, highest, air = np.inf, -np.inf, 0
    try:
        for source, stored in zip(series.slices, VoxelPass(root, series), strict=True):
            values = stored.astype(np.float32) * np.float32(source.slope) + np.float32(source.intercept)
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
            air += int(np.count_nonzero((values >= AIR[0]) & (values <= AIR[1])))
    except Refused as refused:
        return series.with_findings([refused.finding])
    voxels = int(np.prod(series.shape))
    if not (PADDING[0] <= lowest <= AIR[1] and highest <= DENSEST and air >= AIR_SHARE * voxels):
        return series
    reason = f"values from {lowest:.0f} to {highest:.0f} with air among them are taken as HU."
    return replace(series, unit="HU").with_findings([Finding("unit_by_range", "note", reason, series.files[0])])
