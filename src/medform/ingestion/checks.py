"""What the positions of a stack of slices say: order, spacing, tilt, gaps. Thickness and spacing tags are never read.

A stack is good when its corners lie on one straight line at equal steps. A line that leans against the
slice normal is a gantry tilt: every voxel is still known exactly, since the affine leans with it. Unequal
steps cannot be carried by one affine, and are a gap where they are whole multiples of the usual step. They are
judged by where they put each slice, not by the steps alone: small differences add up over a long stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medform.ingestion.found_series import Finding
from medform.ingestion.orientation import Orientation, canonical, index_map

__all__ = ["SAME_POSITION_MM", "StackGeometry", "same_direction", "stack_geometry"]

SAME_POSITION_MM = 0.01
"""Positions nearer than this are one position."""
STRAIGHT_MM = 0.1
"""How far a corner may lie from the line through the stack: headers are rounded to a tenth of a
millimetre or better."""
EVEN_SHARE = 0.02
"""How far a slice may lie from its even place, as a share of the step, where that is more than
``STRAIGHT_MM``."""
MOST_OFF = 0.25
"""The greatest share of the step that any tolerance may be: a missing slice moves another by half a step or more."""
STEEPEST = 45.0
"""Degrees: a gantry leans 30 at most; beyond this the slices lie beside each other, not behind."""
ROUNDING = 1e-6
"""Millimetres by which sums of positions of a tenth of a millimetre miss their tenth."""
SAME_DIRECTION = 1e-3
"""Largest difference of direction cosines within one stack."""


@dataclass(frozen=True)
class StackGeometry:
    """Geometry of a stack. ``order`` sorts the given slices along the normal; ``position_mm`` (N,) is in that order.

    ``affine_lps`` (4, 4) maps canonical (column, row, slice) to millimetres; None where the steps are uneven.
    ``spacing_mm`` is (z along the normal or None, between rows, between columns).
    """

    order: tuple[int, ...]
    position_mm: tuple[float, ...]
    orientation: Orientation
    affine_lps: tuple[tuple[float, ...], ...] | None
    spacing_mm: tuple[float | None, float, float]
    findings: tuple[Finding, ...]


def same_direction(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two image orientations (six direction cosines) are one."""
    return bool(np.max(np.abs(np.subtract(first, second))) < SAME_DIRECTION)


def stack_geometry(
    corners: NDArray[np.float64],
    orientation: Sequence[float],
    pixel_spacing: Sequence[float],
    size: tuple[int, int],
    files: Sequence[str],
) -> StackGeometry:
    """Geometry of slices with distinct positions.

    ``corners`` (N, 3) are the centres of the first stored voxels, ``orientation`` the six direction
    cosines (columns first), ``pixel_spacing`` mm between rows and between columns, ``size`` stored (rows,
    columns), ``files`` (N,) names.
    """
    columns, rows = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    flips, _, _, normal = canonical(columns, rows)
    along = corners @ normal
    order = np.argsort(along, kind="stable")
    corners, along = corners[order], along[order]
    count = len(order)
    step = (corners[-1] - corners[0]) / max(count - 1, 1)
    depth = float(step @ normal)
    named = [files[int(index)] for index in order]
    findings = _side_by_side(along, named)
    if not findings:
        findings = [*_straightness(corners, along, normal, named), *_evenness(along, depth, named)]
    even = count > 1 and not any(finding.effect == "quarantine" for finding in findings)
    affine = None
    if even or count == 1:
        stored = np.eye(4)
        stored[:3, 0], stored[:3, 1] = columns * pixel_spacing[1], rows * pixel_spacing[0]
        stored[:3, 2], stored[:3, 3] = (step if count > 1 else normal), corners[0]
        matrix = stored @ index_map(flips, *size)
        affine = tuple(tuple(float(value) for value in line) for line in matrix)
    between_rows, between_columns = (float(value) for value in pixel_spacing)
    if flips.transpose:
        between_rows, between_columns = between_columns, between_rows
    return StackGeometry(
        order=tuple(int(index) for index in order),
        position_mm=tuple(float(value) for value in along),
        orientation=flips,
        affine_lps=affine,
        spacing_mm=(depth if even else None, between_rows, between_columns),
        findings=tuple(findings),
    )


def _side_by_side(along: NDArray[np.float64], files: Sequence[str]) -> list[Finding]:
    """Slices at one place along the normal lie beside each other in a plane: no stack, whatever their corners."""
    steps = np.diff(along)
    if len(steps) == 0 or steps.min() > SAME_POSITION_MM:
        return []
    reason = "it lies in the plane of another slice, beside it."
    return [_crooked(reason, files[int(steps.argmin()) + 1])]


def _straightness(
    corners: NDArray[np.float64],
    along: NDArray[np.float64],
    normal: NDArray[np.float64],
    files: Sequence[str],
) -> list[Finding]:
    """A lean against the normal is a tilt; corners off every straight line cannot be vouched for."""
    lateral = corners - corners[0] - np.outer(along - along[0], normal)
    if len(corners) < 2 or np.abs(lateral).max() <= STRAIGHT_MM:
        return []
    share = (along - along[0]) / (along[-1] - along[0])
    off = np.linalg.norm(lateral - np.outer(share, lateral[-1]), axis=1)
    if off.max() > STRAIGHT_MM:
        worst = int(off.argmax())
        return [_crooked(f"its corner lies {off[worst]:.2f} mm off the line through the stack.", files[worst])]
    angle = np.degrees(np.arctan2(np.linalg.norm(lateral[-1]), along[-1] - along[0]))
    if angle > STEEPEST:
        return [_crooked(f"the stack leans by {angle:.1f} degrees, which no gantry does.", files[-1])]
    reason = f"slices are sheared by {angle:.1f} degrees; kept as acquired, the affine carries the shear."
    return [Finding("gantry_tilt", "repair", reason, files[0], "ImagePositionPatient")]


def _evenness(along: NDArray[np.float64], depth: float, files: Sequence[str]) -> list[Finding]:
    """Equal steps, or a gap (whole multiples of the usual step), or uneven spacing."""
    if len(along) < 3:
        return []
    steps = np.diff(along)
    usual = float(np.median(steps))
    even = along[0] + depth * np.arange(len(along))
    tolerance = min(max(STRAIGHT_MM, EVEN_SHARE * usual), MOST_OFF * usual) + ROUNDING
    if np.abs(along - even).max() <= tolerance:
        return []
    multiples = steps / usual
    missing = int(np.round(multiples - 1).sum())
    whole = np.abs(multiples - np.round(multiples)) * usual <= tolerance
    if whole.all() and multiples.min() > 0.5 and missing:
        at = int(multiples.argmax())
        where = f"between {along[at]:.2f} and {along[at + 1]:.2f} mm"
        plural = "s" if missing > 1 else ""
        reason = f"{missing} slice{plural} missing, first {where} (usual step {usual:.2f} mm)."
        return [_refusal("gap", reason, files[at], "ImagePositionPatient", "the slices that are there are used")]
    at = int(np.abs(steps - usual).argmax())
    span = f"steps from {steps.min():.2f} to {steps.max():.2f} mm"
    reason = f"{span}; the one that differs most begins at {along[at]:.2f} mm."
    return [
        _refusal(
            "nonuniform_spacing",
            reason,
            files[at],
            "ImagePositionPatient",
            "positions of each slice are kept",
        )
    ]


def _crooked(reason: str, file: str) -> Finding:
    return _refusal("crooked_stack", reason, file, "ImagePositionPatient", "positions of each slice are kept")


def _refusal(code: str, reason: str, file: str, tag: str, effect: str) -> Finding:
    return Finding(code, "quarantine", reason, file, tag, f"images.accept: [{code}] ({effect}, no affine)")
