"""The header of one DICOM file as plain values, one `DicomImage` a frame (attributes: DICOM standard PS3.3)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID

from medform.ingestion.dicom_file import (
    PIXEL_DATA,
    UNDEFINED_LENGTH,
    ForeignMask,
    NotAnImage,
    PixelElement,
    guard,
    open_header,
)
from medform.ingestion.found_series import Finding, Refused

__all__ = ["DicomImage", "read_header"]

HEADER_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("PatientID", "PatientName", "PatientBirthDate", "StudyDate", "Modality", "Manufacturer"),
    *("SeriesDescription", "ConvolutionKernel", "ImageType", "InstanceNumber"),
    *("AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "AcquisitionTime"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_MASKS = {"SEG": "a DICOM segmentation (SEG)", "RTSTRUCT": "a set of DICOM contours (RTSTRUCT)"}
_NO_SCAN = {"RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG", "DOC", "AU", "ECG"}
LARGEST_FRAME = 1 << 26
"""Pixels of a frame: 8192 x 8192; more is a broken header or a slide, not a scan."""


@dataclass(frozen=True)
class DicomImage:
    """One frame of one file. Positions and spacings in mm (LPS); None where the header says nothing.

    ``pixel_spacing`` is (between rows, between columns); ``acquisition`` what tells repeated scans of one
    place apart; ``person`` a digest of name and birth date and ``person_near`` those that may be the same person
    (`_born_near`); ``padding`` the range of stored values that mean "outside".
    """

    file: str
    frame: int
    frames: int
    series_uid: str
    instance: str
    study_uid: str
    patient_id: str
    person: str
    person_near: tuple[str, ...]
    modality: str
    manufacturer: str
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


def read_header(path: Path, name: str) -> list[DicomImage]:
    """Every frame of one file as `DicomImage`; ``name`` is what findings call the file.

    Raises `NotAnImage` for a file without a scan in it and `Refused` for one that cannot be read.
    """
    dataset, pixels = open_header(path, name, HEADER_TAGS)
    with guard(name):
        modality = _text(dataset, "Modality")
        if modality in _MASKS:
            raise ForeignMask(f"{_MASKS[modality]} is not read; export the mask as NIfTI on the grid of its scan.")
        if modality in _NO_SCAN:
            raise NotAnImage(f"DICOM of modality {modality}, no scan")
        if pixels is None:
            stored_as = UID(dataset.file_meta.get("MediaStorageSOPClassUID") or "").name
            if not _text(dataset, "Rows") and "Image Storage" not in stored_as:
                if not dataset and dataset.preamble is None:
                    raise Refused(Finding("unreadable", "quarantine", "no DICOM element could be read.", name))
                raise NotAnImage("DICOM without pixels")
            if not _text(dataset, "SeriesInstanceUID"):
                raise Refused(_no_pixels(name))
        return _frames(dataset, pixels, name)


def _no_pixels(name: str) -> Finding:
    reason = "the header announces an image and the file holds no pixel data."
    return Finding("no_pixels", "quarantine", reason, name, "PixelData")


def _frames(dataset: FileDataset, pixels: PixelElement | None, name: str) -> list[DicomImage]:
    """One `DicomImage` a frame: from the functional groups of an enhanced file, else all alike."""
    count = _integer(dataset, "NumberOfFrames", 1) or 1
    shared = _items(dataset, "SharedFunctionalGroupsSequence")
    per_frame = _items(dataset, "PerFrameFunctionalGroupsSequence")
    findings = tuple(_encoding_findings(dataset, pixels, name, count))
    if len(per_frame) == count and not any(finding.effect == "quarantine" for finding in findings):
        groups = [(per_frame[frame], *shared[:1]) for frame in range(count)]
        return [_image(dataset, name, frame, count, groups[frame], findings) for frame in range(count)]
    return [_image(dataset, name, 0, count, (), findings)]


@dataclass(frozen=True)
class _Groups:
    """Functional groups of one frame, its own before the shared ones, with the data set itself behind them."""

    dataset: Dataset
    groups: tuple[Dataset, ...]

    def items(self, sequence: str) -> list[Dataset]:
        """Items of a group sequence, the frame's own first; empty for a file of one image."""
        return [item for group in self.groups for item in _items(group, sequence)]

    def numbers(self, sequence: str, tag: str, count: int) -> tuple[float, ...] | None:
        """The first that is given among the frame's groups, else that of the data set."""
        for item in self.items(sequence):
            if (values := _numbers(item, tag, count)) is not None:
                return values
        return _numbers(self.dataset, tag, count)

    def text(self, sequence: str, tag: str, default: str) -> str:
        """The first text that is given among the frame's groups, else that of the data set."""
        found = (_text(item, tag) for item in self.items(sequence))
        return next(filter(None, found), _text(self.dataset, default))


def _image(
    dataset: FileDataset,
    name: str,
    frame: int,
    frames: int,
    groups: tuple[Dataset, ...],
    findings: tuple[Finding, ...],
) -> DicomImage:
    """Plain values of one frame; ``groups`` are its functional groups, its own before the shared ones."""
    of_frame = _Groups(dataset, groups)
    transform, content = "PixelValueTransformationSequence", "FrameContentSequence"
    slope = of_frame.numbers(transform, "RescaleSlope", 1)
    intercept = of_frame.numbers(transform, "RescaleIntercept", 1)
    instance = _text(dataset, "SOPInstanceUID") or name
    birth = _text(dataset, "PatientBirthDate")
    return DicomImage(
        file=name,
        frame=frame,
        frames=frames,
        series_uid=_text(dataset, "SeriesInstanceUID"),
        instance=instance if frames == 1 else f"{instance}/{frame + 1}",
        study_uid=_text(dataset, "StudyInstanceUID"),
        patient_id=_text(dataset, "PatientID"),
        person=_person(dataset, birth),
        person_near=tuple(_person(dataset, near) for near in _born_near(birth)),
        modality=_text(dataset, "Modality"),
        manufacturer=_text(dataset, "Manufacturer"),
        description=_text(dataset, "SeriesDescription"),
        kernel=_text(dataset, "ConvolutionKernel"),
        study_date=_text(dataset, "StudyDate"),
        image_type=tuple(part.strip().upper() for part in _text(dataset, "ImageType").split("\\")),
        instance_number=_integer(dataset, "InstanceNumber", 0),
        acquisition=(
            of_frame.text(content, "FrameAcquisitionNumber", "AcquisitionNumber"),
            of_frame.text(content, "TemporalPositionIndex", "TemporalPositionIdentifier"),
            _text(dataset, "EchoTime"),
            _text(dataset, "AcquisitionTime"),
        ),
        rows=_integer(dataset, "Rows", 0),
        columns=_integer(dataset, "Columns", 0),
        samples=_integer(dataset, "SamplesPerPixel", 1),
        photometric=_text(dataset, "PhotometricInterpretation"),
        bits_stored=_integer(dataset, "BitsStored", 16),
        signed=bool(_integer(dataset, "PixelRepresentation", 0)),
        slope=slope[0] if slope else None,
        intercept=intercept[0] if intercept else None,
        rescale_type=of_frame.text(transform, "RescaleType", "RescaleType"),
        position=of_frame.numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=of_frame.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        pixel_spacing=of_frame.numbers("PixelMeasuresSequence", "PixelSpacing", 2),
        padding=_padding(dataset),
        enhanced=bool(groups),
        findings=findings,
    )


def _encoding_findings(dataset: FileDataset, pixels: PixelElement | None, name: str, frames: int) -> Iterator[Finding]:
    """Faults of the encoding that the header and the file's length show without decoding."""
    if pixels is None:
        yield _no_pixels(name)
        return
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    rows, columns = (_integer(dataset, tag, 0) for tag in ("Rows", "Columns"))
    if dataset.preamble and dataset.preamble[:2] in (b"MZ", b"\x7fE", b"#!"):
        yield Finding("executable_preamble", "note", "the preamble looks like a program; it is never copied.", name)
    if pixels.tag != PIXEL_DATA:
        yield Finding("float_pixels", "quarantine", "floating point pixel data is not read.", name, "FloatPixelData")
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
    stored = _integer(dataset, "BitsStored", 16)
    if (high := _integer(dataset, "HighBit", stored - 1)) != stored - 1:
        reason = (
            f"its {stored} stored bits end at bit {high}, not {stored - 1}, so values cannot be read; export it anew."
        )
        yield Finding("high_bit", "quarantine", reason, name, "HighBit")
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
    ends = sorted(_as_stored(int(end), signed=signed, bits=allocated) for end in (value[0], limit[0]))
    return ends[0], ends[1]


def _as_stored(value: int, *, signed: bool, bits: int) -> int:
    """US and SS are confused in this element: 63536 is -2000 where the pixels are signed 16 bit, and the reverse."""
    if signed and value >= 1 << (bits - 1):
        return value - (1 << bits)
    return value + (1 << bits) if not signed and value < 0 else value


def _person(dataset: Dataset, birth: str) -> str:
    """SHA-256 of name and birth date, '' unless both are there: one person under two ids is found by it.

    Of the name the first group counts (others spell it in other letters), without its padding: DOE^JOHN^^ is DOE^JOHN.
    """
    whole = _text(dataset, "PatientName").upper()
    name = "^".join(part.strip() for part in whole.split("=")[0].split("^")).rstrip("^") or whole
    return hashlib.sha256(f"{name}|{birth}".encode()).hexdigest() if name and birth else ""


def _born_near(birth: str) -> tuple[str, ...]:
    """Birth dates that the same person may have in another scan: 1 January a year before and after 1 January.

    Where only the age is kept, the date is made of it and of the year of the scan, and may move by a year.
    """
    if len(birth) != 8 or not birth.isdecimal() or not birth.endswith("0101"):
        return ()
    return tuple(f"{int(birth[:4]) + step:04d}0101" for step in (-1, 1))
