"""One DICOM file, parsed with bounded memory: its header without the pixels, or all of it.

The encoding is that of the DICOM standard, PS3.5. pydicom parses; what it says on its logger or as
warnings may quote names of patients, so both are silenced here and turned into findings of our own.
"""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medform.ingestion.found_series import Finding, Refused

__all__ = [
    "PIXEL_DATA",
    "UNDEFINED_LENGTH",
    "ForeignMask",
    "NotAnImage",
    "PixelElement",
    "guard",
    "open_header",
    "open_pixels",
]

INFLATE_LIMIT = 256 << 20
INFLATE_FLOOR = 64 << 20
INFLATE_RATIO = 200
"""A deflated file may grow to the floor, then to this ratio, never over the limit (bytes): bombs grow
1,000-fold."""
PIXEL_DATA = 0x7FE00010
_PIXEL_TAGS = {PIXEL_DATA, 0x7FE00008, 0x7FE00009}
UNDEFINED_LENGTH = 0xFFFFFFFF


class NotAnImage(Exception):
    """A DICOM file that holds no scan: a report, a plan, a segmentation, an index."""


class ForeignMask(NotAnImage):
    """A DICOM object that outlines lesions in a form that is not read."""


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's warnings and log lines for the time of a read: they quote header values."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data stands: tag, claimed length, bytes that the file still holds behind the element's head."""

    tag: int
    length: int
    available: int
    explicit: bool
    fragments_end: int | None
    """Bytes from the value's start to the end that its fragments claim; None for native pixels."""


def open_pixels(path: Path, name: str) -> FileDataset:
    """Parse a whole file; `Refused` names it if that fails."""
    with guard(name), path.open("rb") as file:
        dataset = pydicom.dcmread(io.BytesIO(_plain(file, name).read()), force=True)
    return _with_meta(dataset)


def open_header(path: Path, name: str, tags: Sequence[str]) -> tuple[FileDataset, PixelElement | None]:
    """Parse some tags, stopping before the pixels; also where the pixels stand, None where there are none."""
    with guard(name), path.open("rb") as file:
        source = _plain(file, name)
        dataset = read_partial(source, _at_pixels, force=True, specific_tags=[Tag(tag) for tag in tags])
        pixels = _pixel_element(dataset, source)
    return _with_meta(dataset), pixels


@contextmanager
def guard(name: str) -> Iterator[None]:
    """Turn whatever a foreign file makes a parser do into a finding that names the file."""
    try:
        with quiet_pydicom():
            yield
    except (Refused, NotAnImage):
        raise
    except Exception as error:  # any fault of a foreign file, RecursionError and MemoryError among them
        reason = f"the DICOM header cannot be read ({type(error).__name__})."
        raise Refused(Finding("unreadable", "quarantine", reason, name)) from None


def _plain(source: BinaryIO, name: str) -> BinaryIO:
    """A deflated file as one of plain explicit little endian, inflated up to the limit; others as they are.

    pydicom inflates without a limit, even to read a header, so this has to come before it.
    """
    head = source.read(2048)
    at = head.find(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(head[at + 6 : at + 8], "little") if at >= 0 else 0
    syntax = head[at + 8 : at + 8 + length].rstrip(b"\0 ") if at >= 0 else b""
    source.seek(0)
    if syntax != DeflatedExplicitVRLittleEndian.encode():
        return source
    raw = source.read()
    start = 144 + int.from_bytes(raw[140:144], "little")
    limit = min(INFLATE_LIMIT, max(INFLATE_FLOOR, INFLATE_RATIO * len(raw)))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(raw[start:], limit)
    if inflater.unconsumed_tail:
        reason = f"{len(raw):,} bytes inflate to more than {limit:,}; it is not read further."
        raise Refused(Finding("bomb", "quarantine", reason, name, "TransferSyntaxUID"))
    plain = ExplicitVRLittleEndian.encode() + b"\0"
    element = b"\x02\x00\x10\x00UI" + len(plain).to_bytes(2, "little") + plain
    group = b"\x02\x00\x00\x00UL\x04\x00" + len(element).to_bytes(4, "little")
    return io.BytesIO(bytes(128) + b"DICM" + group + element + body)


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag in _PIXEL_TAGS


def _pixel_element(dataset: FileDataset, source: BinaryIO) -> PixelElement | None:
    """Read the pixel element's head where `read_partial` stopped and walk the lengths of its fragments."""
    at = source.tell()
    end = source.seek(0, io.SEEK_END)
    source.seek(at)
    head = source.read(12)
    _, little = dataset.original_encoding
    order = "little" if little else "big"
    if len(head) < 8:
        return None
    tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
    if tag not in _PIXEL_TAGS:
        return None
    explicit = head[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN")
    length = int.from_bytes(head[8:12] if explicit else head[4:8], order)
    start = at + (12 if explicit else 8)
    fragments_end = _walk_fragments(source, start, end) if length == UNDEFINED_LENGTH else None
    return PixelElement(tag, length, end - start, explicit, fragments_end)


def _walk_fragments(source: BinaryIO, start: int, end: int) -> int:
    """Bytes that the fragments claim, by their lengths alone; more than the file holds if it was cut."""
    at = start
    while at < end:
        source.seek(at)
        head = source.read(8)
        if len(head) < 8:
            return end - start + 8
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"\xfe\xff\x00\xe0":  # the sequence delimiter, or not a fragment at all: the decoder judges
            break
        at += 8 + length
    return at - start


def _with_meta(dataset: FileDataset) -> FileDataset:
    """A file without meta header, or without the syntax in it, gets the native syntax that its first element shows."""
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        native = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = native
    return dataset
