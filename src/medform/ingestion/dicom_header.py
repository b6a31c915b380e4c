"""The header of one DICOM file as plain values, read with bounded memory and without decoding pixels.

Facts from the DICOM standard PS3.3 (attributes) and PS3.5 (encoding). pydicom parses; what it says on its logger
or as warnings may contain names of patients, so both are silenced here and turned into findings of our own.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medform.ingestion.found_series import Finding, Refused

__all__ = ["DicomImage", "NotAnImage", "open_header", "open_pixels", "quiet_pydicom", "read_header"]

INFLATE_LIMIT = 256 << 20
INFLATE_FLOOR = 64 << 20
INFLATE_RATIO = 200
"""A deflated file may grow to 64 MiB, beyond that to 200 times its size, never over 256 MiB: bombs grow 1,000-fold."""

HEADER_TAGS: list[int | str] = [
    "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "AcquisitionTime", "Modality", "StudyInstanceUID",
    "SeriesDescription", "PatientID", "ConvolutionKernel", "GantryDetectorTilt", "SeriesInstanceUID",
    "AcquisitionNumber", "InstanceNumber", "TemporalPositionIdentifier", "EchoTime", "ImagePositionPatient",
    "ImageOrientationPatient", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
    "PixelSpacing", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "RescaleType", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip

_NO_SCAN = {
    "SEG",
    "RTSTRUCT",
    "RTPLAN",
    "RTDOSE",
    "RTRECORD",
    "SR",
    "PR",
    "KO",
    "REG",
    "DOC",
    "AU",
    "ECG",
    "PLAN",
}
_PIXEL_TAGS = {0x7FE00010, 0x7FE00008, 0x7FE00009}
UNDEFINED_LENGTH = 0xFFFFFFFF
LARGEST_FRAME = 1 << 26
"""Pixels of a frame: 8192 x 8192; more is a broken header or a slide, not a scan."""


class NotAnImage(Exception):
    """A DICOM file that holds no scan: a report, a plan, a segmentation, an index."""


@dataclass(frozen=True)
class DicomImage:
    """One frame of one file. Positions and spacings in mm (LPS); None where the header says nothing."""

    file: str
    frame: int
    frames: int
    series_uid: str
    instance: str
    study_uid: str
    patient_id: str
    modality: str
    description: str
    kernel: str
    study_date: str
    image_type: tuple[str, ...]
    instance_number: int
    acquisition: tuple[str, ...]
    rows: int
    columns: int
    samples: int
    photometric: str
    bits_stored: int
    signed: bool
    slope: float | None
    intercept: float | None
    rescale_type: str
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    padding: tuple[int, int] | None
    enhanced: bool
    findings: tuple[Finding, ...]


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
    with _guard(name), path.open("rb") as file:
        dataset = pydicom.dcmread(io.BytesIO(_plain(file, name).read()), force=True)
    return _with_meta(dataset)


def open_header(path: Path, name: str) -> tuple[FileDataset, PixelElement | None]:
    """Parse the tags that medform uses, stopping before the pixels; also where the pixels stand, None without any."""
    with _guard(name), path.open("rb") as file:
        source = _plain(file, name)
        dataset = read_partial(
            source, _at_pixels, force=True, specific_tags=[Tag(tag) for tag in HEADER_TAGS]
        )
        pixels = _pixel_element(dataset, source)
    return _with_meta(dataset), pixels


@contextmanager
def _guard(name: str) -> Iterator[None]:
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


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
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
        if (
            head[:4] != b"\xfe\xff\x00\xe0"
        ):  # the sequence delimiter, or not a fragment at all: the decoder judges
            break
        at += 8 + length
    return at - start


def _with_meta(dataset: FileDataset) -> FileDataset:
    """A file without meta header, or without the syntax in it, gets the native syntax that its first element shows."""
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        native = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
        dataset.file_meta.TransferSyntaxUID = native
    return dataset


def read_header(path: Path, name: str) -> list[DicomImage]:
    """Every frame of one file as `DicomImage`; ``name`` is what findings call the file.

    Raises `NotAnImage` for a file without a scan in it and `Refused` for one that cannot be read.
    """
    dataset, pixels = open_header(path, name)
    with _guard(name):
        modality = _text(dataset, "Modality")
        if modality in _NO_SCAN:
            raise NotAnImage(f"DICOM of modality {modality}, no scan")
        if pixels is None:
            stored_as = UID(dataset.file_meta.get("MediaStorageSOPClassUID") or "").name
            if _text(dataset, "Rows") or "Image Storage" in stored_as:
                reason = "the header announces an image and the file holds no pixel data."
                raise Refused(Finding("no_pixels", "quarantine", reason, name, "PixelData"))
            if not dataset and dataset.preamble is None:
                raise Refused(Finding("unreadable", "quarantine", "no DICOM element could be read.", name))
            raise NotAnImage("DICOM without pixels")
        return _frames(dataset, pixels, name)


def _frames(dataset: FileDataset, pixels: PixelElement, name: str) -> list[DicomImage]:
    """One `DicomImage` a frame: from the functional groups of an enhanced file, else all alike."""
    count = _integer(dataset, "NumberOfFrames", 1) or 1
    shared = _items(dataset, "SharedFunctionalGroupsSequence")
    per_frame = _items(dataset, "PerFrameFunctionalGroupsSequence")
    findings = tuple(_encoding_findings(dataset, pixels, name, count))
    if len(per_frame) == count and not any(finding.effect == "quarantine" for finding in findings):
        groups = [[per_frame[frame], *shared[:1]] for frame in range(count)]
        return [_image(dataset, name, frame, count, groups[frame], findings) for frame in range(count)]
    return [_image(dataset, name, 0, count, [], findings)]


def _image(
    dataset: FileDataset,
    name: str,
    frame: int,
    frames: int,
    groups: list[Dataset],
    findings: tuple[Finding, ...],
) -> DicomImage:
    """Plain values of one frame; ``groups`` are its functional groups, its own before the shared ones."""

    def nested(sequence: str, tag: str, count: int) -> tuple[float, ...] | None:
        for group in groups:
            for item in _items(group, sequence):
                if (values := _numbers(item, tag, count)) is not None:
                    return values
        return _numbers(dataset, tag, count)

    slope = nested("PixelValueTransformationSequence", "RescaleSlope", 1)
    intercept = nested("PixelValueTransformationSequence", "RescaleIntercept", 1)
    transformed = [item for group in groups for item in _items(group, "PixelValueTransformationSequence")]
    rescale_type = next((_text(item, "RescaleType") for item in transformed), _text(dataset, "RescaleType"))
    context = [item for group in groups for item in _items(group, "FrameContentSequence")]
    acquisition = [
        _text(dataset, tag) for tag in ("AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime")
    ]
    if context:
        acquisition[0] = _text(context[0], "FrameAcquisitionNumber") or acquisition[0]
        acquisition[1] = _text(context[0], "TemporalPositionIndex") or acquisition[1]
    position = nested("PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = nested("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = nested("PixelMeasuresSequence", "PixelSpacing", 2)
    instance = _text(dataset, "SOPInstanceUID") or name
    return DicomImage(
        file=name,
        frame=frame,
        frames=frames,
        series_uid=_text(dataset, "SeriesInstanceUID"),
        instance=instance if frames == 1 else f"{instance}/{frame + 1}",
        study_uid=_text(dataset, "StudyInstanceUID"),
        patient_id=_text(dataset, "PatientID"),
        modality=_text(dataset, "Modality"),
        description=_text(dataset, "SeriesDescription"),
        kernel=_text(dataset, "ConvolutionKernel"),
        study_date=_text(dataset, "StudyDate"),
        image_type=tuple(part.strip().upper() for part in _text(dataset, "ImageType").split("\\")),
        instance_number=_integer(dataset, "InstanceNumber", 0),
        acquisition=(*acquisition, _text(dataset, "AcquisitionTime")),
        rows=_integer(dataset, "Rows", 0),
        columns=_integer(dataset, "Columns", 0),
        samples=_integer(dataset, "SamplesPerPixel", 1),
        photometric=_text(dataset, "PhotometricInterpretation"),
        bits_stored=_integer(dataset, "BitsStored", 16),
        signed=bool(_integer(dataset, "PixelRepresentation", 0)),
        slope=slope[0] if slope else None,
        intercept=intercept[0] if intercept else None,
        rescale_type=rescale_type,
        position=position,
        orientation=orientation,
        pixel_spacing=spacing,
        padding=_padding(dataset),
        enhanced=bool(groups),
        findings=findings,
    )


def _encoding_findings(
    dataset: FileDataset, pixels: PixelElement, name: str, frames: int
) -> Iterator[Finding]:
    """Faults of the encoding that the header and the file's length show without decoding."""
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    rows, columns = (_integer(dataset, tag, 0) for tag in ("Rows", "Columns"))
    if dataset.preamble and dataset.preamble[:2] in (b"MZ", b"\x7fE", b"#!"):
        yield Finding(
            "executable_preamble", "note", "the preamble looks like a program; it is never copied.", name
        )
    if pixels.tag != 0x7FE00010:
        yield Finding(
            "float_pixels", "quarantine", "floating point pixel data is not read.", name, "FloatPixelData"
        )
    if not 0 < rows * columns <= LARGEST_FRAME:
        reason = f"{rows} x {columns} pixels a frame is not an image that can be read."
        yield Finding("bad_size", "quarantine", reason, name, "Rows")
        return
    encapsulated = syntax.is_encapsulated if syntax.is_transfer_syntax else True
    if encapsulated != (pixels.length == UNDEFINED_LENGTH):
        found = "encapsulated" if pixels.length == UNDEFINED_LENGTH else "native"
        reason = f"the meta header says {syntax.name} but the pixels are {found}."
        yield Finding("syntax_mismatch", "quarantine", reason, name, "TransferSyntaxUID")
        return
    if not encapsulated and syntax.is_implicit_VR == pixels.explicit:
        found = "explicit" if pixels.explicit else "implicit"
        reason = f"the meta header says {syntax.name}, the elements have {found} VR; read as they are."
        yield Finding("syntax_relabelled", "repair", reason, name, "TransferSyntaxUID")
    bits = _integer(dataset, "BitsAllocated", 16)
    samples = _integer(dataset, "SamplesPerPixel", 1)
    subsampled = _text(dataset, "PhotometricInterpretation").endswith("_422")
    expected = (rows * columns * (2 if subsampled else samples) * frames * bits + 7) // 8
    claimed = pixels.fragments_end if pixels.fragments_end is not None else max(expected, pixels.length)
    held = pixels.available if pixels.fragments_end is not None else min(pixels.available, pixels.length)
    if held < claimed:
        reason = f"the file is cut: {held:,} bytes of pixel data where {claimed:,} are announced."
        yield Finding("truncated", "quarantine", reason, name, "PixelData")


def _text(dataset: Dataset, tag: str) -> str:
    """A value as stripped text, several joined by a backslash; '' where it is absent or cannot be read."""
    try:
        value = dataset.get(tag)
    except Exception:  # a malformed value counts as absent; the checks say what follows from that
        return ""
    if value is None or isinstance(value, Sequence):
        return ""
    parts = value if isinstance(value, MultiValue) else [value]
    return "\\".join(str(part) for part in parts).replace("\0", "").strip()


def _numbers(dataset: Dataset, tag: str, count: int) -> tuple[float, ...] | None:
    """``count`` finite numbers of an element; None where it is absent, empty, malformed or of another count."""
    try:
        value = dataset.get(tag)
        numbers = tuple(float(part) for part in (value if isinstance(value, MultiValue | list) else [value]))
    except Exception:  # see _text
        return None
    return numbers if len(numbers) == count and all(math.isfinite(number) for number in numbers) else None


def _integer(dataset: Dataset, tag: str, default: int) -> int:
    """One whole number of an element, or ``default``."""
    number = _numbers(dataset, tag, 1)
    return default if number is None else int(number[0])


def _items(dataset: Dataset, tag: str) -> list[Dataset]:
    """Items of a sequence; none where it is absent or malformed."""
    try:
        value = dataset.get(tag)
    except Exception:  # see _text
        return []
    return list(value) if isinstance(value, Sequence) else []


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """The inclusive range of stored values that mean "outside", as the pixels' own sign reads them."""
    value = _numbers(dataset, "PixelPaddingValue", 1)
    if value is None:
        return None
    limit = _numbers(dataset, "PixelPaddingRangeLimit", 1) or value
    signed = bool(_integer(dataset, "PixelRepresentation", 0))
    allocated = _integer(dataset, "BitsAllocated", 16)
    ends = sorted(_as_stored(int(end), signed, allocated) for end in (value[0], limit[0]))
    return ends[0], ends[1]


def _as_stored(value: int, signed: bool, bits: int) -> int:
    """US and SS are confused in this element: 63536 is -2000 where the pixels are signed 16 bit, and the reverse."""
    if signed and value >= 1 << (bits - 1):
        return value - (1 << bits)
    return value + (1 << bits) if not signed and value < 0 else value
