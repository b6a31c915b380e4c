"""NIfTI files -> series: header first, sizes checked before any voxel is read, orientation by flips and transposes.

Facts from the NIfTI-1 standard: voxel to the length unit of xyzt_units by sform, else qform, RAS; value = stored x
scl_slope + scl_inter. A copy of the same volume stored along other axes ends as the same array.
"""

from __future__ import annotations

import logging
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import BadGzipFile, GzipFile
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medform.cohort.cohort_file import Unit
from medform.ingestion.found_series import Finding, FoundSeries, Refused, SliceSource
from medform.ingestion.orientation import Orientation, canonical, index_map
from medform.runs.grids import Grid

__all__ = [
    "read_nifti_grid",
    "read_nifti_header",
    "read_nifti_label_grid",
    "read_nifti_labels",
    "read_nifti_slices",
]

LARGEST_VOLUME = 4 << 30
"""Bytes of voxels that are read into memory at most."""
GZIP_FLOOR, GZIP_RATIO = 64 << 20, 200
"""A gzip may grow to the floor, then to this ratio: real scans shrink 2- to 20-fold, bombs 1,000-fold."""
THICKEST = 1.5
"""An axis whose voxels are this much longer than the others' is the slice axis; else the one nearest to
the feet."""
NOT_WHOLE = 1e-3
"""Distance to the next whole number up to which a scaled label is that number."""
MOST_APART = 0.5
"""Voxels by which sform and qform may differ at a corner: further apart they are two places."""
_LENGTHS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
"""Codes of xyzt_units (its lowest three bits) for other lengths than millimetres: name and millimetres of one."""
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CHUNK = 4 << 20


@dataclass(frozen=True)
class _Layout:
    """How the stored axes become (slice, row, column): axis numbers, whether slices are reversed, flips of a slice."""

    axes: tuple[int, int, int]
    reverse: bool
    orientation: Orientation

    def slices(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A view (N, H, W) in canonical order before `orientation` is applied to each slice."""
        view = volume.transpose(self.axes)
        return view[::-1] if self.reverse else view


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine_lps: NDArray[np.float64] | None
    zooms: tuple[float, ...]
    findings: tuple[Finding, ...]


def read_nifti_header(path: Path, name: str, unit: Unit) -> FoundSeries:
    """The series of one file, without its voxels; `Refused` names the file if the header cannot be vouched for."""
    header = _header(path, name)
    layout, affine, spacing, positions = _geometry(header)
    count, rows, columns = (header.shape[axis] for axis in layout.axes)
    if layout.orientation.transpose:
        rows, columns = columns, rows
    findings = list(header.findings)
    if affine is None:
        reason = "neither sform nor qform is set; axes are left as stored and nothing is known of left and right."
        findings.append(Finding("no_affine", "note", reason, name, "sform_code"))
    if count == 1:
        findings.append(Finding("single_slice", "note", "one image; spacing between slices is unknown."))
    return FoundSeries(
        series_id=name,
        patient_id="",
        reader="nifti",
        modality="",
        unit=unit,
        slices=tuple(SliceSource(name, name, at, header.slope, header.intercept, positions[at]) for at in range(count)),
        shape=(count, rows, columns),
        dtype=header.dtype.name if header.dtype.name in ("uint8", "int16", "uint16") else "float32",
        files=(name,),
        orientation=layout.orientation,
        affine_lps=affine,
        spacing_mm=spacing,
        findings=tuple(findings),
    )


def read_nifti_slices(path: Path, name: str) -> Iterator[NDArray[Any]]:
    """Stored slices (rows, columns) in canonical order and orientation; `Refused` where voxels are missing."""
    header = _header(path, name)
    layout = _geometry(header)[0]
    for stored in layout.slices(_voxels(path, name, header)):
        yield layout.orientation.apply(stored)


def read_nifti_grid(path: Path, name: str) -> Grid:
    """The grid of one file as it is stored (mm), without its voxels; `Refused` as `read_nifti_header`."""
    header = _header(path, name)
    return Grid(header.shape, header.affine_lps)


def read_nifti_label_grid(path: Path, name: str) -> tuple[Grid, tuple[Finding, ...]]:
    """`read_nifti_grid` of a mask, with the findings that refuse an image whose header is the same."""
    header = _header(path, name)
    faults = tuple(finding for finding in header.findings if finding.effect == "quarantine")
    return Grid(header.shape, header.affine_lps), faults


def read_nifti_labels(path: Path, name: str) -> NDArray[np.uint8]:
    """Label numbers (i, j, k) of a mask, as stored; `Refused` where they are not whole numbers of 0 to 255."""
    header = _header(path, name)
    volume = _voxels(path, name, header)
    labels = np.empty(header.shape, np.uint8)
    plain = header.dtype.kind in "iu" and (header.slope, header.intercept) == (1.0, 0.0)
    for at in range(header.shape[2]):
        values = volume[..., at]
        if not plain:
            values = values * header.slope + header.intercept
            whole = np.rint(values)
            off = np.abs(values - whole)
            if not off.max() <= NOT_WHOLE:  # also where a value is not a number
                first = values.ravel()[int(np.flatnonzero(~(off <= NOT_WHOLE))[0])]
                reason = f"it holds {first:g}, and a label is a whole number."
                raise Refused(Finding("mask_values", "quarantine", reason, name, "datatype"))
            values = whole
        if values.min() < 0 or values.max() > 255:
            reason = f"it holds {values.min():g} to {values.max():g}, and labels are 0 to 255."
            raise Refused(Finding("mask_values", "quarantine", reason, name))
        labels[..., at] = values
    return labels


@contextmanager
def _guard(name: str) -> Iterator[None]:
    """Silence nibabel and turn what a foreign header makes it do into a finding."""
    logger = logging.getLogger("nibabel.global")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Refused:
        raise
    except Exception as error:  # any fault of a foreign file
        reason = f"the NIfTI header cannot be read ({type(error).__name__})."
        raise Refused(Finding("unreadable", "quarantine", reason, name)) from None
    finally:
        logger.disabled = before


def _header(path: Path, name: str) -> _Header:
    """Parse and check: one 3-D volume of real numbers, no larger than the file and the limits allow."""
    import nibabel

    with _guard(name):
        image = nibabel.load(path)
        if type(image) not in (nibabel.Nifti1Image, nibabel.Nifti2Image):
            reason = f"{type(image).__name__} is not an image volume."
            raise Refused(Finding("not_a_volume", "quarantine", reason, name))
        image = cast(Any, image)
        shape = tuple(int(size) for size in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        shape = (*shape, 1) if len(shape) == 2 else shape
        if len(shape) != 3 or min(shape) < 1:
            reason = f"shape {'x'.join(map(str, image.shape))}: one 3-D volume a file is read; split it."
            raise Refused(Finding("not_3d", "quarantine", reason, name, "dim"))
        dtype = image.get_data_dtype()
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            reason = f"voxels of type {dtype} are no grey values."
            raise Refused(Finding("colour", "quarantine", reason, name, "datatype"))
        coded = bool(image.header["sform_code"]) or bool(image.header["qform_code"])
        length, scale = _LENGTHS.get(int(image.header["xyzt_units"]) & 7, ("", 1.0))
        affine = _LPS @ _in_mm(image.affine, scale) if coded else None
        if affine is not None and not (np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 1e-12):
            raise Refused(Finding("bad_affine", "quarantine", "the affine is not invertible.", name, "srow_x"))
        proxy = image.dataobj
        header = _Header(
            shape=(shape[0], shape[1], shape[2]),
            dtype=dtype,
            offset=int(proxy.offset),
            slope=float(proxy.slope),
            intercept=float(proxy.inter),
            affine_lps=affine,
            zooms=tuple(float(zoom) * scale for zoom in image.header.get_zooms()[:3]),
            findings=tuple(_affine_findings(image.header, (shape[0], shape[1], shape[2]), length, name)),
        )
    _check_size(path, name, header)
    return header


def _in_mm(affine: ArrayLike, scale: float) -> NDArray[np.float64]:
    """An affine (4, 4) whose results are ``scale`` times as long."""
    return np.diag([scale, scale, scale, 1.0]) @ np.asarray(affine, np.float64)


def _affine_findings(header: Any, shape: tuple[int, int, int], length: str, name: str) -> Iterator[Finding]:
    """What the header's places need: another unit of length, and two transforms that are not one."""
    if length:
        reason = f"its lengths are {length}; places and spacing are given in millimetres."
        yield Finding("length_unit", "repair", reason, name, "xyzt_units")
    sform, qform = (_transform(header, kind) for kind in ("sform", "qform"))
    if sform is None or qform is None:
        return
    corners = np.array(list(product(*((0, size - 1) for size in shape), (1,))), np.float64)
    apart = float(np.abs(corners @ (np.linalg.solve(sform, qform) - np.eye(4)).T).max())
    if not apart <= MOST_APART:
        reason = f"sform and qform put a corner {apart:.1f} voxels apart; which of them is right is unknown."
        override = "images.accept: [affines_differ] (the sform is used)"
        yield Finding("affines_differ", "quarantine", reason, name, "sform_code", override)


def _transform(header: Any, kind: str) -> NDArray[np.float64] | None:
    """The affine (4, 4) of ``sform`` or ``qform``; None where it is not set or is none."""
    try:
        affine = getattr(header, f"get_{kind}")(coded=True)[0]
    except Exception:  # a quaternion that is no rotation says nothing
        return None
    return None if affine is None else np.asarray(affine, np.float64)


def _check_size(path: Path, name: str, header: _Header) -> None:
    expected = math.prod(header.shape) * header.dtype.itemsize
    size = path.stat().st_size
    if expected > LARGEST_VOLUME:
        reason = f"{expected:,} bytes of voxels are more than the limit of {LARGEST_VOLUME:,}."
        raise Refused(Finding("too_large", "quarantine", reason, name, "dim"))
    if not _is_gzip(path):
        if size < header.offset + expected:
            reason = f"the file is cut: {size:,} bytes where {header.offset + expected:,} are announced."
            raise Refused(Finding("truncated", "quarantine", reason, name, "dim"))
    elif expected > max(GZIP_FLOOR, GZIP_RATIO * size):
        reason = f"{size:,} bytes claim to hold {expected:,}; it is not inflated."
        raise Refused(Finding("bomb", "quarantine", reason, name, "dim"))


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _geometry(
    header: _Header,
) -> tuple[
    _Layout,
    tuple[tuple[float, ...], ...] | None,
    tuple[float | None, float, float] | None,
    tuple[float, ...],
]:
    """Layout, affine of the canonical array, spacing (z, y, x), position of each slice along the normal."""
    affine = header.affine_lps
    if affine is None:
        layout = _Layout((2, 1, 0), reverse=False, orientation=Orientation())
        zooms = header.zooms if len(header.zooms) == 3 and min(header.zooms) > 0 else None
        spacing = None if zooms is None else (zooms[2] if header.shape[2] > 1 else None, zooms[1], zooms[0])
        return layout, None, spacing, (math.nan,) * header.shape[2]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / lengths
    slice_axis = _slice_axis(lengths, directions, header.shape)
    columns_axis, rows_axis = (axis for axis in range(3) if axis != slice_axis)
    orientation, _, _, normal = canonical(directions[:, columns_axis], directions[:, rows_axis])
    reverse = bool(directions[:, slice_axis] @ normal < 0)
    layout = _Layout((slice_axis, rows_axis, columns_axis), reverse, orientation)
    permute = np.zeros((4, 4))  # (column, row, slice) of the view -> stored indices
    permute[columns_axis, 0] = permute[rows_axis, 1] = permute[3, 3] = 1
    permute[slice_axis, 2] = -1 if reverse else 1
    permute[slice_axis, 3] = header.shape[slice_axis] - 1 if reverse else 0
    turn = index_map(orientation, header.shape[rows_axis], header.shape[columns_axis])
    whole = affine @ permute @ turn
    depth = float(whole[:3, 2] @ normal)
    start = float(whole[:3, 3] @ normal)
    count = header.shape[slice_axis]
    between_rows, between_columns = (float(np.linalg.norm(whole[:3, axis])) for axis in (1, 0))
    return (
        layout,
        tuple(tuple(float(value) for value in line) for line in whole),
        (depth if count > 1 else None, between_rows, between_columns),
        tuple(start + depth * at for at in range(count)),
    )


def _slice_axis(lengths: NDArray[np.float64], directions: NDArray[np.float64], shape: tuple[int, int, int]) -> int:
    """The axis across slices: of one voxel, else clearly the thickest, else nearest to feet-head."""
    if shape.count(1) == 1:
        return shape.index(1)
    thickest = int(lengths.argmax())
    if lengths[thickest] >= THICKEST * max(np.delete(lengths, thickest)):
        return thickest
    return int(np.abs(directions[2]).argmax())


def _voxels(path: Path, name: str, header: _Header) -> NDArray[Any]:
    """Voxels (i, j, k) in native byte order, mapped where the file is not compressed."""
    if not _is_gzip(path):
        volume = np.memmap(path, header.dtype, "r", header.offset, header.shape, order="F")
        return volume.astype(header.dtype.newbyteorder("="), copy=False)
    volume = np.empty(math.prod(header.shape), header.dtype)
    try:
        with path.open("rb") as raw, GzipFile(fileobj=raw) as file:
            _fill(cast(BinaryIO, file), header.offset, volume.view(np.uint8))
    except (EOFError, zlib.error, BadGzipFile, OSError) as error:
        reason = f"the compressed stream is cut or damaged ({type(error).__name__})."
        raise Refused(Finding("truncated", "quarantine", reason, name)) from None
    volume = volume.astype(header.dtype.newbyteorder("="), copy=False)
    return volume.reshape(header.shape, order="F")


def _fill(file: BinaryIO, offset: int, target: NDArray[np.uint8]) -> None:
    """Skip ``offset`` bytes, fill ``target`` whole, then read on a little so that the checksum is verified."""
    if len(file.read(offset)) < offset:
        raise EOFError
    at = 0
    while at < len(target):
        piece = file.read(min(_CHUNK, len(target) - at))
        if not piece:
            raise EOFError
        target[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    file.read(_CHUNK)
