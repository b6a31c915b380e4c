"""DICOM frames -> series with a verdict: grouped by SeriesInstanceUID, taken apart where one holds several stacks.

Nothing depends on file names, their order or InstanceNumber: slices are ordered by position along their
normal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from medform.cohort.cohort_file import Unit
from medform.ingestion.checks import SAME_POSITION_MM, StackGeometry, same_direction, stack_geometry
from medform.ingestion.dicom_header import DicomImage
from medform.ingestion.found_series import Finding, FoundSeries, Refused, SliceSource
from medform.ingestion.orientation import Orientation

__all__ = ["group_dicom"]

ReadFrame = Callable[[str, int], np.ndarray]
"""(file, frame) -> stored values (rows, columns)."""

MOST_ORIENTATIONS = 3
_ACQUISITION_NAMES = ("AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "AcquisitionTime")
_INTERLEAVED = _ACQUISITION_NAMES[:3]
"""Those that say which acquisition a slice is of; the time differs from slice to slice within one."""
_ASIDE = {
    "localizer": "a localizer, not a slice of the scan.",
    "colour": "a colour image, which has no grey value that means anything in HU.",
    "mosaic": "a mosaic, many slices in one image (Siemens); export it as enhanced DICOM or as NIfTI.",
    "multiframe": "several frames without a position of their own.",
    "capture": "no position in the patient, unlike the slices of this series.",
}


@dataclass(frozen=True)
class _Stack:
    """Frames that belong to one volume, and what was found on the way to it."""

    images: tuple[DicomImage, ...]
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def group_dicom(images: Iterable[DicomImage], read_frame: ReadFrame, *, assume_hu: bool = False) -> list[FoundSeries]:
    """Series of all frames, ordered by id; every frame given is in exactly one of them.

    ``read_frame`` is asked only for slices that share a position. ``assume_hu`` takes CT values as HU where
    the header does not say what they are.
    """
    by_uid: dict[str, list[DicomImage]] = defaultdict(list)
    for image in images:
        by_uid[image.series_uid or f"no-uid:{image.file}"].append(image)
    found = []
    for uid in sorted(by_uid):
        members = sorted(by_uid[uid], key=lambda image: (image.instance, image.file, image.frame))
        found += _series_of(uid, members, read_frame, assume_hu=assume_hu)
    return found


def _series_of(uid: str, images: list[DicomImage], read_frame: ReadFrame, *, assume_hu: bool) -> list[FoundSeries]:
    """The series under one UID: its stacks, largest first, then what was left out of them."""
    patients = sorted({image.patient_id for image in images})
    if len(patients) > 1:
        other = next(image for image in images if image.patient_id != images[0].patient_id)
        reason = f"one SeriesInstanceUID is shared by {len(patients)} patients; whose slice is whose is unknown."
        finding = Finding("two_patients", "quarantine", reason, other.file, "PatientID")
        return [_refused(uid, _Stack(tuple(images), (finding,)), " & ".join(patients))]
    roles: dict[str, list[DicomImage]] = defaultdict(list)
    positioned = any(image.position for image in images)
    for image in images:
        roles[_role(image, positioned=positioned)].append(image)
    slices = roles.pop("slice", [])
    aside, left_out = [], []
    for role, members in sorted(roles.items()):
        finding = Finding(role, "quarantine", _ASIDE[role], members[0].file)
        aside.append(_refused(f"{uid}#{role}", _Stack(tuple(members), (finding,))))
        names = ", ".join(sorted({image.file for image in members})[:3])
        reason = f"{len(members)} image{'s' if len(members) > 1 else ''} left out ({names}): {_ASIDE[role]}"
        left_out.append(Finding(f"{role}_left_out", "repair", reason))
    if not slices:
        return [replace(aside[0], series_id=uid), *aside[1:]]
    whole = _Stack(tuple(slices), tuple(left_out))
    stacks = [stack for part in _by_orientation(whole) for stack in _by_acquisition(part)]
    stacks.sort(key=lambda stack: -len(stack))
    names = [uid, *(f"{uid}#{at}" for at in range(2, len(stacks) + 1))]
    return [
        *(_build(*pair, read_frame, assume_hu=assume_hu) for pair in zip(names, stacks, strict=True)),
        *aside,
    ]


def _role(image: DicomImage, *, positioned: bool) -> str:
    """What an image is within its series; ``positioned`` says whether the series has images with a position."""
    if image.samples != 1 or image.photometric.startswith(("RGB", "YBR", "PALETTE")):
        return "colour"
    if {"LOCALIZER", "SCOUT"} & set(image.image_type):
        return "localizer"
    if "MOSAIC" in image.image_type:
        return "mosaic"
    if image.frames > 1 and not image.enhanced:
        return "multiframe"
    if positioned and image.position is None and not _refusals(image.findings):
        return "capture"
    return "slice"


def _refusals(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.effect == "quarantine"]


def _by_orientation(stack: _Stack) -> list[_Stack]:
    """Slices of one direction each; too many directions are left together and refused."""
    groups: list[list[DicomImage]] = []
    for image in stack.images:
        for group in groups:
            known = group[0].orientation
            if known is None or image.orientation is None:
                fits = known is image.orientation
            else:
                fits = same_direction(known, image.orientation)
            if fits:
                group.append(image)
                break
        else:
            groups.append([image])
    if len(groups) == 1:
        return [stack]
    tag, count = "ImageOrientationPatient", len(groups)
    if count > MOST_ORIENTATIONS:
        reason = f"the series holds {count} image orientations."
        refusal = Finding("orientation_varies", "quarantine", reason, groups[1][0].file, tag)
        return [_Stack(stack.images, (*stack.findings, refusal))]
    reason = f"the series holds {count} image orientations; each is a volume of its own."
    split = Finding("split_orientation", "repair", reason, None, tag)
    return [_Stack(tuple(group), (*stack.findings, split)) for group in groups]


def _by_acquisition(stack: _Stack) -> list[_Stack]:
    """Acquisitions that cover the same positions, apart; only if one header field separates them completely."""
    spots = {image: _spot(image.position) for image in stack.images}
    if None in spots.values() or len(set(spots.values())) == len(spots):
        return [stack]
    for at, name in enumerate(_ACQUISITION_NAMES):
        groups: dict[str, list[DicomImage]] = defaultdict(list)
        for image in stack.images:
            groups[image.acquisition[at]].append(image)
        covered = [{spots[image] for image in group} for group in groups.values()]
        once = all(len(group) == len(cover) for group, cover in zip(groups.values(), covered, strict=True))
        if len(groups) > 1 and once and all(cover == covered[0] for cover in covered):
            places = f"the same {len(covered[0])} positions"
            reason = f"{len(groups)} acquisitions of {places}, each a volume of its own."
            split = Finding("split_acquisition", "repair", reason, None, name)
            ordered = sorted(groups, key=lambda text: (len(text), text))
            return [_Stack(tuple(groups[key]), (*stack.findings, split)) for key in ordered]
    return [stack]


def _spot(position: tuple[float, ...] | None) -> tuple[int, ...] | None:
    """A position as whole steps of the tolerance, so that equal places are equal keys."""
    return None if position is None else tuple(round(value / SAME_POSITION_MM) for value in position)


def _build(uid: str, stack: _Stack, read_frame: ReadFrame, *, assume_hu: bool) -> FoundSeries:
    """A series from the frames of one stack, checked for everything that the headers can show."""
    findings = [*stack.findings, *_file_findings(stack.images), *_uniformity(stack.images)]
    unit, unit_findings = _unit(stack.images, assume_hu=assume_hu)
    findings += unit_findings
    images = list(stack.images)
    if not _refusals(findings):
        images, duplicate_findings = _without_duplicates(images, read_frame)
        findings += duplicate_findings
    geometry = None if _refusals(findings) else _geometry(images)
    if geometry is None:
        findings += [] if _refusals(findings) else _no_geometry(images)
        images.sort(key=_by_number)
    else:
        images = [images[index] for index in geometry.order]
        findings += [*geometry.findings, *_interleaved(images)]
    if len(images) == 1:
        findings.append(Finding("single_slice", "note", "one image; spacing between slices is unknown."))
    series = _refused(uid, _Stack(stack.images, tuple(findings)))
    orientation = geometry.orientation if geometry else Orientation()
    first = images[0]
    rows, columns = (first.columns, first.rows) if orientation.transpose else (first.rows, first.columns)
    return replace(
        series,
        unit=unit,
        slices=tuple(_source(image, at, geometry, unit) for at, image in enumerate(images)),
        shape=(len(images), rows, columns),
        dtype=_dtype(images),
        orientation=orientation,
        affine_lps=geometry.affine_lps if geometry else None,
        spacing_mm=geometry.spacing_mm if geometry else None,
    )


def _by_number(image: DicomImage) -> tuple[int, str, str, int]:
    """Sort key without positions: frames of one file by their number (as text, frame 10 stands before frame 2)."""
    uid = image.instance if image.frames == 1 else image.instance.rpartition("/")[0]
    return image.instance_number, uid, image.file, image.frame


def _source(image: DicomImage, at: int, geometry: StackGeometry | None, unit: Unit) -> SliceSource:
    """Where slice ``at`` of a series comes from; grey values that mean "black is high" are turned round."""
    slope, intercept = image.slope or 1.0, image.intercept or 0.0
    if unit != "HU" and image.photometric == "MONOCHROME1":
        top = -1 if image.signed else (1 << image.bits_stored) - 1
        slope, intercept = -slope, intercept + slope * top
    return SliceSource(
        file=image.file,
        instance=image.instance,
        frame=image.frame,
        slope=slope,
        intercept=intercept,
        position_mm=geometry.position_mm[at] if geometry else float("nan"),
        padding=image.padding,
    )


def _refused(uid: str, stack: _Stack, patient_id: str | None = None) -> FoundSeries:
    """A series as the headers name it, without geometry; its files are all files of the stack."""
    first = stack.images[0]
    return FoundSeries(
        series_id=uid,
        patient_id=first.patient_id if patient_id is None else patient_id,
        reader="dicom",
        modality=first.modality,
        unit="HU" if first.modality == "CT" else "raw",
        slices=tuple(SliceSource(image.file, image.instance, image.frame) for image in stack.images),
        shape=(len(stack), first.rows, first.columns),
        dtype=_dtype(stack.images),
        files=tuple(sorted({image.file for image in stack.images})),
        study_id=first.study_uid,
        person=first.person,
        person_near=first.person_near,
        description=first.description,
        kernel=first.kernel,
        manufacturer=first.manufacturer,
        date=min(image.study_date for image in stack.images),
        findings=stack.findings,
    )


def _file_findings(images: Sequence[DicomImage]) -> list[Finding]:
    """Findings of single files; of one code the first is kept, with the number of files."""
    by_code: dict[str, list[Finding]] = defaultdict(list)
    for finding in dict.fromkeys(finding for image in images for finding in image.findings):
        by_code[finding.code].append(finding)
    merged = []
    for same in by_code.values():
        more = f" ({len(same)} files alike)" if len(same) > 1 else ""
        merged.append(replace(same[0], reason=same[0].reason + more))
    return merged


def _uniformity(images: Sequence[DicomImage]) -> list[Finding]:
    """Matrix, pixel spacing and modality must be those of the first slice along the whole stack."""
    findings = []
    ordered = sorted(images, key=lambda image: (image.instance_number, image.instance))
    first = ordered[0]
    for code, tag, value in (
        ("matrix_changes", "Rows", lambda image: (image.rows, image.columns)),
        ("pixel_spacing_changes", "PixelSpacing", lambda image: image.pixel_spacing),
        ("modality_changes", "Modality", lambda image: image.modality),
    ):
        for image in ordered:
            if not _alike(value(image), value(first)):
                reason = f"{value(image)} where the series began with {value(first)}."
                findings.append(Finding(code, "quarantine", reason, image.file, tag))
                break
    return findings


def _alike(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return bool(np.allclose(one, other, rtol=1e-4, atol=0))
    return one == other


def _unit(images: Sequence[DicomImage], *, assume_hu: bool) -> tuple[Unit, list[Finding]]:
    """What the numbers mean. CT is HU if every slice says how to get there; other modalities are raw."""
    if images[0].modality != "CT":
        inverted = next((image for image in images if image.photometric == "MONOCHROME1"), None)
        if inverted is None:
            return "raw", []
        reason = "high values are shown dark; turned round, so that bright is high as in other images."
        tag = "PhotometricInterpretation"
        return "raw", [Finding("monochrome1_inverted", "repair", reason, inverted.file, tag)]
    for image in images:
        tag = reason = ""
        if not image.slope or image.intercept is None:
            tag, reason = "RescaleSlope", "no usable rescale slope and intercept, so HU are unknown."
        elif image.rescale_type.upper() not in _hu_types(image):
            tag, reason = "RescaleType", f"values are '{image.rescale_type}', not HU."
        if tag and assume_hu:
            return "HU", [Finding("hu_assumed", "repair", f"{reason} Taken as HU on request.", image.file, tag)]
        if tag:
            override = "images.assume_hu: true (takes the numbers as HU)"
            return "HU", [Finding("hu_unknown", "quarantine", reason, image.file, tag, override)]
    return "HU", []


def _hu_types(image: DicomImage) -> set[str]:
    """Rescale types that mean HU.

    "US" (unspecified) does where the scanner itself made the image, as Siemens writes it; in a derived image it may
    be anything, such as a perfusion map.
    """
    return {"", "HU", "US"} if "ORIGINAL" in image.image_type[:1] else {"", "HU"}


def _without_duplicates(images: list[DicomImage], read_frame: ReadFrame) -> tuple[list[DicomImage], list[Finding]]:
    """One slice a position: equal pixels are dropped, different ones refuse the series."""
    by_spot: dict[object, list[DicomImage]] = defaultdict(list)
    for image in images:
        by_spot[_spot(image.position) or image].append(image)
    kept, dropped = [], []
    for same in by_spot.values():
        kept.append(same[0])
        for other in same[1:]:
            try:
                equal = _same_pixels(same[0], other, read_frame)
            except Refused as refused:
                return images, [refused.finding]
            if not equal:
                reason = f"lies where {same[0].file} lies, with other pixels."
                tag = "ImagePositionPatient"
                return images, [Finding("duplicate_conflict", "quarantine", reason, other.file, tag)]
            dropped.append(other.file)
    if not dropped:
        return images, []
    names = ", ".join(sorted(dropped)[:3])
    reason = f"dropped {len(dropped)} with the position and pixels of another slice ({names})."
    return kept, [Finding("duplicate_dropped", "repair", reason, sorted(dropped)[0], "ImagePositionPatient")]


def _same_pixels(one: DicomImage, other: DicomImage, read_frame: ReadFrame) -> bool:
    if (one.slope, one.intercept) != (other.slope, other.intercept):
        return False
    return np.array_equal(read_frame(one.file, one.frame), read_frame(other.file, other.frame))


def _geometry(images: Sequence[DicomImage]) -> StackGeometry | None:
    """Geometry of the stack, or None where a slice has no position, direction or pixel spacing."""
    first = images[0]
    corners = [image.position for image in images]
    if None in corners or first.orientation is None or first.pixel_spacing is None or min(first.pixel_spacing) <= 0:
        return None
    columns, rows = np.asarray(first.orientation[:3]), np.asarray(first.orientation[3:])
    lengths = np.linalg.norm(columns), np.linalg.norm(rows)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(columns @ rows) > 1e-2:
        return None
    size = first.rows, first.columns
    files = [image.file for image in images]
    return stack_geometry(np.asarray(corners, float), first.orientation, first.pixel_spacing, size, files)


def _interleaved(images: Sequence[DicomImage]) -> list[Finding]:
    """Acquisitions whose slices alternate along the stack: two volumes half a step apart look like one fine one.

    Acquisitions one behind the other are the stations of one volume, and those of MR by their number alone are its
    concatenations, which alternate.
    """
    for at, name in enumerate(_INTERLEAVED):
        if name == "AcquisitionNumber" and images[0].modality == "MR":
            continue
        values = [image.acquisition[at] for image in images]
        runs = 1 + sum(one != other for one, other in pairwise(values))
        if runs > (count := len(set(values))):
            reason = f"slices of {count} acquisitions alternate along the stack; they may be volumes of their own."
            override = "images.accept: [interleaved] (taken as one volume)"
            other = next(image for image, value in zip(images, values, strict=True) if value != values[0])
            return [Finding("interleaved", "quarantine", reason, other.file, name, override)]
    return []


def _no_geometry(images: Sequence[DicomImage]) -> list[Finding]:
    """A single image may lack a position; several cannot be put in order without one."""
    if len(images) == 1:
        return [Finding("no_position", "note", "no position, direction or pixel spacing; no affine.")]
    bad = next((image for image in images if image.position is None), images[0])
    reason = "no usable position, direction or pixel spacing, so the order of its slices is unknown."
    override = "images.accept: [no_position] (ordered by InstanceNumber, no affine)"
    return [Finding("no_position", "quarantine", reason, bad.file, "ImagePositionPatient", override)]


def _dtype(images: Sequence[DicomImage]) -> str:
    """The stored type that holds every slice exactly."""
    widest = max(image.bits_stored for image in images)
    if not any(image.signed for image in images):
        return "uint8" if widest <= 8 else "uint16"
    unsigned = max((image.bits_stored for image in images if not image.signed), default=0)
    return "int16" if unsigned <= 15 and widest <= 16 else "float32"
