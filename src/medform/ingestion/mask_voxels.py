"""The labels of a series, slice by slice on its grid: from its label map or from the pictures of its index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medform.ingestion.found_series import Finding, FoundSeries, Refused, SliceSource
from medform.ingestion.nifti import read_nifti_labels
from medform.ingestion.slices import read_mask
from medform.runs.mask_labels import numbers_in

__all__ = ["judged_masks", "read_masks"]

MOST_SHOWN = 6


def judged_masks(root: Path, series: FoundSeries) -> tuple[FoundSeries, NDArray[np.uint8] | None]:
    """The series with what its masks hold added to its findings, and the masks (N, H, W); None without usable ones.

    A label map that cannot be vouched for is set aside and leaves the series as it is. A picture of an index that
    cannot be used refuses the series, since the index calls both one slice. An empty mask is a note, and so are
    slices for which the index names none where it does for others: they count as slices without a lesion.
    """
    try:
        masks = read_masks(root, series)
    except Refused as refused:
        if series.mask is None:
            return series.with_findings([refused.finding]), None
        finding = replace(refused.finding, effect="set_aside")
        return replace(series.with_findings([finding]), mask=None), None
    if masks is not None and not masks.any():
        reason = "no voxel of it is a lesion: an image without one, or an export that failed."
        file = series.mask.file if series.mask else next(one.mask for one in series.slices if one.mask)
        series = series.with_findings([Finding("mask_empty", "note", reason, file)])
    without = sum(one.mask is None for one in series.slices)
    if series.mask is None and masks is not None and without:
        reason = f"{without} of {len(series.slices)} slices have no mask; they count as slices without a lesion."
        series = series.with_findings([Finding("mask_partial", "note", reason, series.slices[0].file)])
    return series, masks


def read_masks(root: Path, series: FoundSeries) -> NDArray[np.uint8] | None:
    """Labels (N, H, W) of a series on its own grid, zeros where an index names no mask; None without masks.

    Raises `Refused` for a file that cannot be read, is of another size, or holds numbers that are not declared.
    """
    if series.mask is not None:
        name = series.mask.file
        stored = _readable(lambda: read_nifti_labels(root / name, name), name)
        masks = np.ascontiguousarray(series.mask.axes.onto(stored).transpose(2, 1, 0))
        _refuse_undeclared(masks, series.mask_values, name)
        return masks
    if not any(source.mask for source in series.slices):
        return None
    masks = np.zeros(series.shape, np.uint8)
    for at, source in enumerate(series.slices):
        if source.mask is not None:
            masks[at] = _picture(root, source, series)
    return masks


def _readable(read: Callable[[], NDArray[np.uint8]], name: str) -> NDArray[np.uint8]:
    try:
        return read()
    except OSError as error:
        reason = f"the mask cannot be read: {error.strerror or error}."
        raise Refused(Finding("bad_mask", "quarantine", reason, name)) from None


def _picture(root: Path, source: SliceSource, series: FoundSeries) -> NDArray[np.uint8]:
    name = source.mask or ""
    values = _readable(lambda: read_mask(root / name, name), name)
    if values.shape != series.shape[1:]:
        reason = f"the mask is {values.shape} where its slice is {series.shape[1:]}."
        raise Refused(Finding("bad_mask", "quarantine", reason, name))
    _refuse_undeclared(values[None], series.mask_values, name)
    return values


def _refuse_undeclared(masks: NDArray[np.uint8], declared: tuple[int, ...] | None, name: str) -> None:
    """Raise `Refused` where numbers other than 0 and the declared ones stand in a mask."""
    if declared is None:
        return
    other = sorted(set(numbers_in(masks)) - set(declared))
    if other:
        shown = ", ".join(map(str, other[:MOST_SHOWN])) + (" ..." if len(other) > MOST_SHOWN else "")
        reason = f"it holds {shown}; declared are {', '.join(map(str, declared))} and 0."
        raise Refused(Finding("mask_values", "quarantine", reason, name, "masks.values", "name them in masks.values"))
