"""Masks as DICOM segmentation objects (SEG, PS3.3 A.51) that refer to the slices they were drawn on, by highdicom.

Every frame is written, the empty ones too: viewers misplace or refuse segmentations with frames left out. The object
carries the patient's and study's attributes of its source, as the standard demands, so it is as confidential as that.
Its UIDs follow from source and mask; only the date and time of creation differ between two writings.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medform.errors import ExtraMissing, InputError
from medform.runs.folder import write_atomically
from medform.runs.grids import HALF_VOXEL, match_grids
from medform.runs.mask_labels import LESION, checked_mask, label_name, numbers_in

__all__ = ["write_dicom_seg"]

_EMPTY_ALLOWED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""Attributes that a source must have but may leave empty (type 2); some exports leave them out."""
_SERIES_OFFSET = 1000
"""Added to the number of the source series, so that viewers list the segmentation behind it."""


@dataclass(frozen=True)
class _Frame:
    """One source frame: the data set it is in, its number there, and its place in mm (LPS)."""

    dataset: Any
    number: int
    position: NDArray[np.float64]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]


def write_dicom_seg(
    mask: NDArray[np.uint8],
    affine_lps: ArrayLike | None,
    source_files: Sequence[Path],
    path: Path,
    *,
    labels: Mapping[int, str] = LESION,
    instances: Sequence[str] | None = None,
) -> None:
    """Write a mask (N, H, W) uint8 on the frames of the DICOM series it was made from, a segment a label.

    ``source_files`` are the files of that series, in any order; with ``instances`` (the store's ``slices.source``)
    they may be any files, and those of other instances are left out. Raises `InputError` where they are not the series
    of the mask (another number or size of slices, or another place), and `ExtraMissing` without highdicom.
    """
    highdicom = _highdicom(path)
    values = checked_mask(mask)
    with _silence():
        frames = _frames(source_files, instances, path)
        if affine_lps is None or not frames:
            raise _not_its_series("no DICOM slice with a position was found for this mask.", path)
        ordered, stored = _in_source(values, affine_lps, frames, path)
        datasets = list({id(frame.dataset): frame.dataset for frame in ordered}.values())
        content, numbers = _as_segments(stored, labels)
        try:
            segmentation = highdicom.seg.Segmentation(
                source_images=datasets,
                pixel_array=content,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=_descriptions(highdicom, numbers, labels),
                omit_empty_frames=False,
                **_identification(datasets, content, numbers, labels),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            lacking = getattr(error, "name", None)  # the error's text may quote the patient's name
            why = f"they lack {lacking}" if lacking else type(error).__name__
            raise _not_its_series(f"the headers of these files cannot be referred to ({why}).", path) from None
        write_atomically(path, lambda temporary: segmentation.save_as(temporary, enforce_file_format=True))


def _highdicom(path: Path) -> Any:
    try:
        with _silence():
            import highdicom
    except ImportError as error:
        raise ExtraMissing(
            f"DICOM segmentations are written by highdicom, which is not installed ({error}).",
            where=str(path),
            consequence="The file was not written.",
            fix='pip install "medform[seg]"',
        ) from None
    return highdicom


@contextmanager
def _silence() -> Generator[None]:
    """No warnings and log lines of pydicom and highdicom: they quote the names of patients."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _frames(files: Sequence[Path], instances: Sequence[str] | None, path: Path) -> list[_Frame]:
    """Frames of the wanted instances.

    Files that are no DICOM, or another's, are left out only where the instances are named.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    wanted = None if instances is None else set(instances)
    found: list[_Frame] = []
    for file in sorted(files):
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=wanted is not None)
            uid = str(dataset.get("SOPInstanceUID", ""))
            count = int(dataset.get("NumberOfFrames", None) or 1)
        except (InvalidDicomError, OSError, ValueError, TypeError, KeyError, AttributeError):
            if wanted is None:
                raise _not_its_series(f"'{file.name}' is no DICOM file.", path) from None
            continue
        names = [uid] if count == 1 else [f"{uid}/{number + 1}" for number in range(count)]
        numbers = [number for number, name in enumerate(names) if wanted is None or name in wanted]
        if not numbers or not uid:
            continue
        if len(numbers) < count:
            raise _not_its_series(f"the mask is of some frames of '{file.name}' only, which cannot be said.", path)
        for keyword in _EMPTY_ALLOWED:
            if keyword not in dataset:
                setattr(dataset, keyword, None)
        found += [_frame(dataset, number, file, path) for number in numbers]
    return found


def _frame(dataset: Any, number: int, file: Path, path: Path) -> _Frame:
    """The place of one frame, from its own attributes or from the functional groups of an enhanced object."""
    groups = [dataset]
    if "PerFrameFunctionalGroupsSequence" in dataset:
        groups = [dataset.PerFrameFunctionalGroupsSequence[number], *dataset.get("SharedFunctionalGroupsSequence", [])]
        inner = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        groups = [group[name][0] for group in groups for name in inner if name in group]

    def numbers(keyword: str) -> tuple[float, ...]:
        group = next((group for group in groups if keyword in group), {})
        return tuple(float(value) for value in group.get(keyword, None) or ())

    position, orientation = numbers("ImagePositionPatient"), numbers("ImageOrientationPatient")
    spacing = numbers("PixelSpacing")
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        raise _not_its_series(f"'{file.name}' does not say where it lies.", path)
    return _Frame(dataset, number, np.asarray(position), orientation, (spacing[0], spacing[1]))


def _in_source(
    values: NDArray[np.uint8], affine_lps: ArrayLike, frames: Sequence[_Frame], path: Path
) -> tuple[list[_Frame], NDArray[np.uint8]]:
    """The frames in the order in which they are referred to, and the mask (F, rows, columns) as they are stored."""
    first = frames[0]
    columns, rows = np.asarray(first.orientation[:3]), np.asarray(first.orientation[3:])
    normal = np.cross(columns, rows)
    along = sorted(frames, key=lambda frame: float(frame.position @ normal))
    count = len(along)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = columns * first.spacing[1], rows * first.spacing[0]
    affine[:3, 2] = (along[-1].position - along[0].position) / (count - 1) if count > 1 else normal
    affine[:3, 3] = along[0].position
    shape = int(first.dataset.Columns), int(first.dataset.Rows), count
    between = abs(float(affine[:3, 2] @ normal))
    for frame in frames:
        if "SliceThickness" not in frame.dataset:
            frame.dataset.SliceThickness = f"{between:.6g}"  # highdicom asks for one; nothing is read from it
    volume = values.transpose(2, 1, 0)
    axes = None if between < 1e-6 else match_grids(volume.shape, affine_lps, shape, affine)
    if axes is None:
        sizes = [f"{n} slices of {h} x {w}" for w, h, n in (volume.shape, shape)]
        raise _not_its_series(f"the mask has {sizes[0]}, the series {sizes[1]}.", path)
    if axes.shift > HALF_VOXEL:
        raise _not_its_series(f"the mask lies {axes.shift:.2f} voxels beside the series.", path)
    stored = axes.onto(volume).transpose(2, 1, 0)
    if len({id(frame.dataset) for frame in frames}) == 1 and count > 1:  # one file: its frames keep their numbers
        order = sorted(range(count), key=lambda at: along[at].number)
        return [along[at] for at in order], stored[order]
    return along, stored


def _as_segments(stored: NDArray[np.uint8], labels: Mapping[int, str]) -> tuple[NDArray[np.uint8], list[int]]:
    """The mask with its labels counted from 1, as segments are, and the label number of each segment."""
    numbers = sorted({*labels, *numbers_in(stored)})
    lookup = np.zeros(256, np.uint8)
    lookup[numbers] = np.arange(1, len(numbers) + 1)
    return lookup[stored], numbers


def _descriptions(highdicom: Any, numbers: Sequence[int], labels: Mapping[int, str]) -> list[Any]:
    """A segment a label: what it is in SNOMED CT, and that a program drew it."""
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="medform", family=codes.DCM.ArtificialIntelligence, version=version("medform")
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=at,
            segment_label=label_name(number, labels)[:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for at, number in enumerate(numbers, start=1)
    ]


def _identification(
    datasets: Sequence[Any], content: NDArray[np.uint8], numbers: Sequence[int], labels: Mapping[int, str]
) -> dict[str, Any]:
    """Series, instance and equipment; the UIDs are digests of what the object is made of."""
    from pydicom.uid import generate_uid

    facts = [str(dataset.SOPInstanceUID) for dataset in datasets]
    facts += [f"{number}={label_name(number, labels)}" for number in numbers]
    facts += [str(content.shape), hashlib.sha256(content.tobytes()).hexdigest(), version("medform")]
    return {
        "series_instance_uid": generate_uid(entropy_srcs=["series", *facts]),
        "sop_instance_uid": generate_uid(entropy_srcs=["instance", *facts]),
        "series_number": _SERIES_OFFSET + max(0, int(datasets[0].get("SeriesNumber", None) or 0)),
        "instance_number": 1,
        "series_description": "medform segmentation, research use only",
        "manufacturer": "medform",
        "manufacturer_model_name": "medform",
        "software_versions": version("medform"),
        "device_serial_number": "none",
    }


def _not_its_series(reason: str, path: Path) -> InputError:
    return InputError(
        reason,
        where=str(path),
        consequence="The DICOM segmentation was not written.",
        fix="give the DICOM files of the scan that was segmented, or ask for nifti.",
    )
