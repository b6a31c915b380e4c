"""Slices of a cohort at a working size: one integer array in memory or in the run's cache, its unit kept.

16 bits stay 16 bits, since the window is an augmentation. Nothing here is fitted, so one array serves every
fold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Float32, Int, Shaped
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medform.cohort.store import Cohort
from medform.config import Config, digest
from medform.inputs.augment import AugmentConfig
from medform.runs.folder import write_atomically

__all__ = ["Placement", "Scale", "SliceInputConfig", "SliceStore", "placement", "shrink", "working_slices"]

_FORMAT = 1  # raised when the same slices would give other pixels
Side = Annotated[int, Field(ge=16, le=1024)]


class SliceInputConfig(Config):
    """Two augmented views of single slices. ``size``: side of a view; ``source``: of what it is cut from."""

    kind: Literal["slices"] = "slices"
    size: Side = 128
    source: Side = 192
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _no_aliasing(self) -> Self:
        if self.source > 2 * self.size:
            raise ValueError(f"source {self.source} is more than twice size {self.size}: views would alias.")
        return self


@dataclass(frozen=True)
class Scale:
    """What stored integers mean: value = stored x ``slope`` + ``intercept``; ``window`` becomes [0, 1]."""

    slope: float
    intercept: float
    window: tuple[float, float]

    @property
    def to_unit(self) -> tuple[float, float]:
        """Gain and bias from a stored integer to the unit scale (not clipped)."""
        low, high = self.window
        return self.slope / (high - low), (self.intercept - low) / (high - low)

    def unit(self, stored: NDArray[np.integer]) -> NDArray[np.float32]:
        """Stored integers as float32 in [0, 1]."""
        gain, bias = self.to_unit
        return np.clip(stored.astype(np.float32) * np.float32(gain) + np.float32(bias), 0.0, 1.0)

    def stored(self, value: NDArray[np.float32], kind: np.dtype) -> NDArray[np.integer]:
        """Values in the cohort's unit as the nearest integers of ``kind``; what it cannot hold is cut off."""
        limits = np.iinfo(kind)
        return np.rint((value - self.intercept) / self.slope).clip(limits.min, limits.max).astype(kind)


def _storage(unit: str, window: tuple[float, float]) -> tuple[Scale, np.dtype]:
    """HU as int16, grey values as uint8, anything else on 65,536 steps over twice the window's width."""
    if unit == "HU":
        return Scale(1.0, 0.0, window), np.dtype(np.int16)
    if unit == "display" and window[0] >= 0 and window[1] <= 255:
        return Scale(1.0, 0.0, window), np.dtype(np.uint8)
    width, centre = window[1] - window[0], (window[0] + window[1]) / 2
    return Scale(2 * width / 65535, centre, window), np.dtype(np.int16)


@lru_cache(maxsize=16)
def _weights(before: int, after: int) -> Float32[np.ndarray, "after before"]:
    """Each output pixel as weights of input pixels: their overlap when shrinking, else linear."""
    edges = np.arange(after + 1) * (before / after)
    if after <= before:
        left, right = np.arange(before), np.arange(before) + 1
        overlap = np.minimum(edges[1:, None], right) - np.maximum(edges[:-1, None], left)
        weights = np.maximum(overlap, 0)
    else:
        centre = ((edges[1:] + edges[:-1]) / 2 - 0.5).clip(0, before - 1)
        weights = np.maximum(1 - abs(centre[:, None] - np.arange(before)), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


class Placement(NamedTuple):
    """Where an image lies in its square: ``rows`` x ``columns`` pixels from (``top``, ``left``) on."""

    rows: int
    columns: int
    top: int
    left: int


def placement(height: int, width: int, size: int) -> Placement:
    """Where `shrink` lays an image of ``height`` x ``width`` pixels in a square of ``size``; a square fills it."""
    longer = max(height, width)
    rows, columns = max(1, round(height * size / longer)), max(1, round(width * size / longer))
    return Placement(rows, columns, (size - rows) // 2, (size - columns) // 2)


def shrink(image: Float32[np.ndarray, "height width"], size: int, fill: float) -> Float32[np.ndarray, "size size"]:
    """Area-weighted resampling so that the longer side becomes ``size``; the rest of the square is ``fill``.

    Aspect is kept in pixels; the image lies in the middle. A smaller image is enlarged linearly.
    """
    height, width = image.shape
    rows, columns, top, left = placement(height, width, size)
    small = image
    if rows != height:
        small = _weights(height, rows) @ small
    if columns != width:
        small = small @ _weights(width, columns).T
    if rows == columns:
        return small
    square = np.full((size, size), fill, np.float32)
    square[top : top + rows, left : left + columns] = small
    return square


@dataclass(frozen=True)
class SliceStore:
    """T slices, ordered by patient (in the cohort's hashed order), series and index.

    ``patient`` (T,) points into ``patient_ids``, ``series`` (T,) into the series of the cohort, ``index``
    (T,) is the slice's place in its series and ``z_mm`` (T,) its position (NaN where unknown). ``key`` (T,)
    is a number that belongs to the slice for good, from its id; ``digest`` names the pixels, for caches.
    """

    pixels: Shaped[np.ndarray, "t side side"]
    scale: Scale
    slice_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    patient: Int[np.ndarray, " t"]
    series: Int[np.ndarray, " t"]
    index: Int[np.ndarray, " t"]
    z_mm: Float32[np.ndarray, " t"]
    key: Int[np.ndarray, " t"]
    digest: str

    def __len__(self) -> int:
        return len(self.slice_ids)

    @property
    def size(self) -> int:
        """Side of the square slices in pixels."""
        return self.pixels.shape[-1]

    def codes(self, patients: Iterable[str]) -> Int[np.ndarray, " n"]:
        """Numbers of ``patients`` in ``patient_ids``, in the order given; KeyError for an unknown one."""
        known = {name: code for code, name in enumerate(self.patient_ids)}
        return np.array([known[name] for name in patients], np.int64)

    def rows(self, patients: Iterable[str]) -> Int[np.ndarray, " n"]:
        """Rows of all slices of ``patients``, in the store's order whatever the order given."""
        return np.flatnonzero(np.isin(self.patient, self.codes(patients)))

    def neighbours(self, rows: Int[np.ndarray, " n"], channels: int) -> Int[np.ndarray, "n channels"]:
        """Rows of the ``channels`` (odd) slices around each of ``rows``, in the order of their series.

        Neighbours are the next slices that are in the store. At the ends of a series its last slice repeats;
        another series, and so another patient, is never looked at.
        """
        if channels < 1 or channels % 2 == 0:
            raise ValueError(f"{channels} channels have no slice in their middle.")
        starts = np.flatnonzero(np.diff(self.series, prepend=-1) != 0)
        ends = np.append(starts[1:], len(self)) - 1
        own = np.searchsorted(starts, rows, side="right") - 1
        offset = np.arange(channels) - channels // 2
        return np.clip(np.asarray(rows)[:, None] + offset, starts[own][:, None], ends[own][:, None])

    @cached_property
    def brightness(self) -> Float32[np.ndarray, " t"]:
        """How bright the scan of each slice (T,) is, on the unit scale: the median of what lies above its mean.

        What is darker is air for the most part. 1 where a scan is of one grey value.
        """
        found = np.ones(len(self), np.float32)
        for one in np.unique(self.series):
            rows = np.flatnonzero(self.series == one)
            grey = self.scale.unit(self.pixels[rows][:, ::2, ::2])
            bright = grey[grey > grey.mean()]
            if len(bright):
                found[rows] = np.median(bright)
        return found

    @cached_property
    def height(self) -> Float32[np.ndarray, " t"]:
        """Where each slice (T,) lies in its scan: 0 the first, 1 the last, 0.5 the only one of the store."""
        found = np.full(len(self), 0.5, np.float32)
        for one in np.unique(self.series):
            rows = np.flatnonzero(self.series == one)
            first, last = self.index[rows].min(), self.index[rows].max()
            if last > first:
                found[rows] = (self.index[rows] - first) / (last - first)
        return found

    def images(self, rows: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n 1 side side"]:
        """Slices as a network is to see them at inference: the window mapped to [0, 1], nothing random."""
        return self.scale.unit(self.pixels[rows])[:, None]


def _rows_of(cohort: Cohort) -> Iterator[tuple[str, int]]:
    return zip(cohort.slices["series_id"], cohort.slices["index"], strict=True)


def _digest(cohort: Cohort, size: int, scale: Scale, kind: np.dtype) -> str:
    """Names the pixels of `working_slices`: voxel files, which of their slices, rescale, working size."""
    voxels = dict(zip(cohort.series["series_id"], cohort.series["sha256"], strict=True))
    hashed = hashlib.sha256()
    rescale = zip(cohort.slices["slope"], cohort.slices["intercept"], strict=True)
    for (series, index), (slope, intercept) in zip(_rows_of(cohort), rescale, strict=True):
        hashed.update(f"{voxels[series]} {index} {slope!r} {intercept!r}\n".encode())
    return digest([_FORMAT, hashed.hexdigest(), size, [scale.slope, scale.intercept, scale.window[0]], kind.name])


def _fill(cohort: Cohort, pixels: np.ndarray, scale: Scale, progress: Callable[[int, int], None] | None) -> None:
    """Shrink every slice of the cohort into its row of ``pixels``, one series open at a time."""
    opened, series = "", None
    for row, (series_id, index) in enumerate(_rows_of(cohort)):
        if series is None or series_id != opened:
            opened, series = series_id, cohort.open(series_id)
        small = shrink(series.slice(int(index)), pixels.shape[-1], scale.window[0])
        pixels[row] = scale.stored(small, pixels.dtype)
        if progress is not None:
            progress(row + 1, len(pixels))


def working_slices(
    cohort: Cohort, size: int, cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> SliceStore:
    """All slices of ``cohort`` at ``size`` x ``size`` pixels.

    With ``cache`` (a folder) the array is made once, one slice at a time, and memory-mapped read-only from
    then on; its file name holds the digest of what it was made from. ``progress(done, total)`` is called
    after every slice.
    """
    scale, kind = _storage(cohort.unit, cohort.window)
    shape = (len(cohort.slices), size, size)
    name = _digest(cohort, size, scale, kind)
    if cache is None:
        pixels = np.empty(shape, kind)
        _fill(cohort, pixels, scale, progress)
    else:
        path = cache / f"slices-{size}-{name}.npy"
        if not path.is_file():

            def write(temporary: Path) -> None:
                mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=kind, shape=shape)
                _fill(cohort, mapped, scale, progress)
                mapped.flush()

            write_atomically(path, write)
        pixels = np.load(path, mmap_mode="r")
    slices = cohort.slices
    patient_code = {name: code for code, name in enumerate(cohort.patient_ids)}
    series_code = {name: code for code, name in enumerate(cohort.series["series_id"])}
    return SliceStore(
        pixels=pixels,
        scale=scale,
        slice_ids=tuple(slices["slice_id"]),
        patient_ids=tuple(cohort.patient_ids),
        patient=np.array([patient_code[name] for name in slices["patient_id"]], np.int64),
        series=np.array([series_code[name] for name in slices["series_id"]], np.int64),
        index=slices["index"].to_numpy(np.int64),
        z_mm=slices["position_mm"].to_numpy(np.float32, na_value=np.nan),
        key=np.array([_key(name) for name in slices["slice_id"]], np.int64),
        digest=name,
    )


def _key(slice_id: str) -> int:
    return int.from_bytes(hashlib.sha256(slice_id.encode()).digest()[:7], "big")
