"""Plain pictures (PNG, JPEG, TIFF, BMP) as slices: grey values as stored, never rescaled, never resized."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from medform.cohort.cohort_file import Unit
from medform.ingestion.found_series import Finding, FoundSeries, Refused, SliceSource

__all__ = ["picture_series", "read_mask", "read_picture", "read_picture_size"]

LARGEST_PICTURE = 1 << 26
"""Pixels of a picture: 8192 x 8192."""
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_LOSSLESS = ("PNG", "TIFF", "BMP")
_MODES = {"1": "uint8", "L": "uint8", "LA": "uint8", "P": "uint8", "RGB": "uint8", "RGBA": "uint8"}
_DEEP_MODES = {"I;16": "uint16", "I;16B": "uint16", "I;16L": "uint16", "I": "uint16", "F": "float32"}

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of TIFF 6.0, and the value of the second where black is high."""


@contextmanager
def _opened(path: Path, name: str) -> Iterator[ImageFile.ImageFile]:
    """A picture whose size has been checked; whatever Pillow raises becomes a finding that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                if not 0 < image.width * image.height <= LARGEST_PICTURE:
                    reason = f"{image.width} x {image.height} pixels are more than a slice has."
                    raise Refused(Finding("bad_size", "quarantine", reason, name))
                if (frames := getattr(image, "n_frames", 1)) > 1:
                    reason = f"{frames} frames in one picture; write one file a slice."
                    raise Refused(Finding("multiframe", "quarantine", reason, name))
                _refuse_misread(image, name)
                yield image
    except Refused:
        raise
    except Exception as error:  # any fault of a foreign file
        reason = f"the picture cannot be read ({type(error).__name__})."
        raise Refused(Finding("unreadable", "quarantine", reason, name)) from None


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits of a sample as the file states them, which Pillow's mode does not say; 8 where the format has no others."""
    if image.format == "PNG" and image.fp is not None:
        before = image.fp.tell()
        image.fp.seek(24)  # signature 8, length and name of the first chunk 8, width and height 8
        bits = image.fp.read(1)[0]
        image.fp.seek(before)
        return bits
    stated = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 8)
    return int(max(stated) if isinstance(stated, tuple) else stated)


def _refuse_misread(image: ImageFile.ImageFile, name: str) -> None:
    """Raise `Refused` for a picture whose values Pillow changes as it reads them."""
    if image.mode not in _DEEP_MODES and _bits(image) > 8:
        reason = f"a picture of {_bits(image)} bits with several channels would be cut to 8; save it as grey."
        raise Refused(Finding("bad_depth", "quarantine", reason, name))
    if image.mode in _DEEP_MODES and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        reason = "its zero is white, which is turned round only for 8 bits; save it with black as zero."
        raise Refused(Finding("white_is_zero", "quarantine", reason, name, "PhotometricInterpretation"))


def read_picture_size(path: Path, name: str) -> tuple[int, int, str]:
    """(rows, columns, stored type) from the picture's header alone; `Refused` names the file."""
    with _opened(path, name) as image:
        kind = (_MODES | _DEEP_MODES).get(image.mode)
        if kind is None:
            raise Refused(_colour(name, f"pixels of mode {image.mode} are not grey values."))
        return image.height, image.width, kind


def read_picture(path: Path, name: str) -> np.ndarray:
    """Grey values (rows, columns): uint8, uint16 or float32. Three equal channels are grey; others are refused."""
    with _opened(path, name) as image:
        if image.mode in _DEEP_MODES:
            return _deep(np.asarray(image), name)
        if image.mode == "L":
            return np.asarray(image)
        if image.mode not in _MODES:
            raise Refused(_colour(name, f"pixels of mode {image.mode} are not grey values."))
        if image.mode == "1":
            return np.asarray(image.convert("L"))
        channels = np.asarray(image.convert("RGBA"))
    if (channels[..., 3] != 255).any():
        raise Refused(_colour(name, "parts of the picture are transparent."))
    grey = channels[..., 0]
    if (channels[..., 1] != grey).any() or (channels[..., 2] != grey).any():
        raise Refused(_colour(name, "a colour picture has no grey value that means anything; save it as grey."))
    return grey


def _deep(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise Refused(Finding("bad_depth", "quarantine", "grey values beyond 16 bits.", name))
    return values.astype(np.uint16, copy=False)


def _colour(name: str, reason: str) -> Finding:
    return Finding("colour", "quarantine", reason, name)


def read_mask(path: Path, name: str) -> np.ndarray:
    """Label values (rows, columns) uint8 of a mask picture as stored; those of 1, 2 or 4 bits are not spread to 255.

    `Refused` for JPEG, also within TIFF: beside an edge it leaves small numbers that would count as lesion.
    """
    with _opened(path, name) as image:
        if image.format not in _LOSSLESS or "jpeg" in str(image.info.get("compression")):
            reason = "a mask in a lossy format (JPEG), which changes labels at every edge; export it as PNG."
            raise Refused(Finding("bad_mask", "quarantine", reason, name))
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if image.mode == "L" and (bits := _bits(image)) < 8:  # Pillow spreads the 4 or 16 values over 0 to 255
            return np.asarray(image) // np.uint8(255 // ((1 << bits) - 1))
    values = read_picture(path, name)
    if values.dtype != np.uint8:
        raise Refused(Finding("bad_mask", "quarantine", "label values beyond 0..255.", name))
    return values


def picture_series(
    root: Path, series_id: str, patient_id: str, sources: Sequence[SliceSource], unit: Unit
) -> FoundSeries:
    """One patient's pictures, in the given order, as a series; every file's header is read."""
    findings: list[Finding] = []
    kinds: dict[str, str] = {}
    sizes: dict[tuple[int, int], str] = {}
    for source in sources:
        try:
            rows, columns, kind = read_picture_size(root / source.file, source.file)
        except Refused as refused:
            findings.append(refused.finding)
            continue
        kinds.setdefault(kind, source.file)
        sizes.setdefault((rows, columns), source.file)
    if len(sizes) > 1:
        (first, _), (other, file) = list(sizes.items())[:2]
        reason = f"{other[0]} x {other[1]} pixels where the series began with {first[0]} x {first[1]}."
        findings.append(Finding("matrix_changes", "quarantine", reason, file))
    if len(kinds) > 1:
        (first, _), (other, file) = list(kinds.items())[:2]
        reason = f"values of type {other} where the series began with {first}: their black and white are not the same."
        findings.append(Finding("depth_changes", "quarantine", reason, file))
    if len(sources) == 1:
        findings.append(Finding("single_slice", "note", "one image."))
    rows, columns = next(iter(sizes), (0, 0))
    return FoundSeries(
        series_id=series_id,
        patient_id=patient_id,
        reader="picture",
        modality="",
        unit=unit,
        slices=tuple(sources),
        shape=(len(sources), rows, columns),
        dtype=next(iter(kinds), "uint8"),
        files=tuple(sorted({source.file for source in sources})),
        findings=tuple(findings),
    )
