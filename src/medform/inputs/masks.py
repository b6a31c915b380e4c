"""Masks of a cohort at a working size: soft, row for row those of the slices, beside what they hold in full.

A pixel of the working size is rarely all lesion or none, so the share of lesion in it is kept (0 to 255) and
learnt from; nothing is lost to a threshold. What is reported is counted on the full masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8
from numpy.typing import NDArray
from pydantic import Field

from medform.cohort.store import Cohort
from medform.config import Config, digest
from medform.errors import InputError, Problem
from medform.inputs.slices import Side, shrink
from medform.runs.folder import write_atomically

__all__ = ["MaskInputConfig", "MaskStore", "lesion_of", "working_masks"]

_FORMAT = 1  # raised when the same masks would give other pixels
Label = Annotated[int, Field(ge=1, le=255)]


class MaskInputConfig(Config):
    """Which mask values are lesion (``values: null``: all but 0).

    ``size: null`` takes the source size of the images, which the masks must have to be moved with them.
    """

    kind: Literal["masks"] = "masks"
    values: Annotated[list[Label], Field(min_length=1)] | None = None
    size: Side | None = None


@dataclass(frozen=True)
class MaskStore:
    """Masks of the T slices of a `SliceStore`, in its order.

    ``share`` is 255 times the share of lesion in each pixel. ``present``: the slice has a mask, with or without
    lesion; where it has none nothing is known of it, ``share`` is 0 and must not be learnt as empty.
    ``lesion_pixels``: lesion pixels of the full mask.
    """

    share: UInt8[np.ndarray, "t side side"]
    present: Bool[np.ndarray, " t"]
    lesion_pixels: Int[np.ndarray, " t"]
    digest: str

    def __len__(self) -> int:
        return len(self.present)

    @property
    def size(self) -> int:
        """Side of the square masks in pixels."""
        return self.share.shape[-1]


def lesion_of(mask: NDArray[np.uint8], values: Iterable[int] | None) -> NDArray[np.bool_]:
    """Where a label mask shows lesion: one of ``values``, or (None) anything but 0."""
    return mask != 0 if values is None else np.isin(mask, sorted(values))


def working_masks(
    cohort: Cohort,
    size: int,
    values: tuple[int, ...] | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MaskStore:
    """Masks of all slices of ``cohort`` at ``size`` x ``size`` pixels, shrunk as `slices.shrink` does images.

    With ``cache`` (a folder) they are made once and memory-mapped read-only from then on, as `working_slices`.
    Raises `InputError` where no series has a mask, where masks are of another size than their images, and where
    ``values`` stand in no mask.
    """
    masked = _checked(cohort)
    series = cohort.slices["series_id"].to_numpy(object)
    present = np.array([one in masked for one in series], bool)
    name = _digest(cohort, masked, size, values)
    shape = (len(series), size, size)
    if cache is None:
        share = np.empty(shape, np.uint8)
        pixels = _fill(cohort, masked, share, values, progress)
    else:
        path, counts = cache / f"masks-{size}-{name}.npy", cache / f"masks-{size}-{name}-pixels.npy"
        if not (path.is_file() and counts.is_file()):

            def write(temporary: Path) -> None:
                mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
                found = _fill(cohort, masked, mapped, values, progress)
                mapped.flush()
                write_atomically(counts, lambda target: _save(target, found))

            write_atomically(path, write)
        share, pixels = np.load(path, mmap_mode="r"), np.load(counts)
    return MaskStore(share=share, present=present, lesion_pixels=pixels, digest=name)


def _save(target: Path, values: np.ndarray) -> None:
    with target.open("wb") as file:
        np.save(file, values)


def _checked(cohort: Cohort) -> frozenset[str]:
    """Series that have a mask of their own size."""
    masked, problems = [], []
    columns = (cohort.series[name].tolist() for name in ("series_id", "n_slices", "rows", "cols"))
    for series_id, *shape in zip(*columns, strict=True):
        mask = cohort.masks(series_id)
        if mask is None:
            continue
        masked.append(series_id)
        if mask.shape != tuple(shape):
            said = f"its mask is {' x '.join(map(str, mask.shape))}, its image {' x '.join(map(str, shape))}."
            problems.append(Problem(said, column="series", value=series_id))
    where = f"cohort '{cohort.name}'"
    if problems:
        raise InputError(
            f"{len(problems)} masks do not fit their images.",
            where=where,
            consequence="Nothing was trained.",
            fix="give masks in the geometry of their images and ingest again.",
            problems=problems,
        )
    if not masked:
        raise InputError(
            "no series has a mask.",
            where=where,
            consequence="There is nothing to learn a segmentation from.",
            fix="name the masks in the cohort file (masks.path, index.mask) and ingest again.",
        )
    return frozenset(masked)


def _digest(cohort: Cohort, masked: frozenset[str], size: int, values: tuple[int, ...] | None) -> str:
    """Names the pixels of `working_masks`: mask files, which of their slices, what is lesion, working size."""
    files = dict(zip(cohort.series["series_id"], cohort.series["mask_sha256"], strict=True))
    hashed = hashlib.sha256()
    for series, index in zip(cohort.slices["series_id"], cohort.slices["index"], strict=True):
        hashed.update(f"{files[series] if series in masked else None} {index}\n".encode())
    return digest([_FORMAT, hashed.hexdigest(), size, None if values is None else sorted(values)])


def _fill(
    cohort: Cohort,
    masked: frozenset[str],
    share: np.ndarray,
    values: tuple[int, ...] | None,
    progress: Callable[[int, int], None] | None,
) -> Int[np.ndarray, " t"]:
    """Shrink every mask into its row of ``share``, one series open at a time; the lesion pixels of each."""
    pixels = np.zeros(len(share), np.int64)
    opened, mask, found = "", None, np.zeros(256, bool)
    rows = zip(cohort.slices["series_id"], cohort.slices["index"], strict=True)
    for row, (series_id, index) in enumerate(rows):
        if series_id != opened:
            opened, mask = series_id, cohort.masks(series_id) if series_id in masked else None
        lesion = None
        if mask is not None:
            found[np.unique(mask[index])] = True
            lesion = lesion_of(mask[index], values)
            pixels[row] = np.count_nonzero(lesion)
        if lesion is None or pixels[row] == 0:
            share[row] = 0
        else:
            share[row] = np.rint(shrink(lesion.astype(np.float32), share.shape[-1], 0.0) * 255)
        if progress is not None:
            progress(row + 1, len(share))
    if values is not None and not found[list(values)].any():
        there = ", ".join(map(str, np.flatnonzero(found))) or "none"
        raise InputError(
            f"no mask holds any of the values {', '.join(map(str, values))}.",
            where=f"cohort '{cohort.name}'",
            consequence="There is nothing to learn a segmentation from.",
            fix=f"set the mask input's values to some of those that are there: {there}.",
        )
    return pixels
