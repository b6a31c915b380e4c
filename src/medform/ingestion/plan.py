"""From a folder to series: every file counted once, headers read, nothing written and no voxel kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from medform.cohort.cohort_file import CohortFile, Unit
from medform.cohort.quarantine import Quarantined
from medform.ingestion.dicom import group_dicom
from medform.ingestion.dicom_file import ForeignMask, NotAnImage
from medform.ingestion.dicom_header import DicomImage, read_header
from medform.ingestion.dicom_pixels import DicomPixels
from medform.ingestion.discover import FoundFile, discover
from medform.ingestion.found_series import Finding, FoundSeries, Refused, SliceSource
from medform.ingestion.layouts.folders import FolderLayout
from medform.ingestion.layouts.place import Layout, NotScan
from medform.ingestion.layouts.recognise import layout_of
from medform.ingestion.layouts.slice_index import index_series
from medform.ingestion.masks import FoundMask, MaskRule, declared_masks, layout_masks, with_masks
from medform.ingestion.nifti import read_nifti_header
from medform.ingestion.slices import picture_series
from medform.ingestion.workers import Progress, run_all, silent

__all__ = ["Plan", "ReadSettings", "accepting", "natural", "plan_folder", "plan_index"]

IMAGE_KINDS = ("dicom", "nifti", "picture")
_FORMATS = {"auto": IMAGE_KINDS, "dicom": ("dicom",)}


@dataclass(frozen=True)
class ReadSettings:
    """How files are read.

    ``unit`` of NIfTI and pictures (None: raw and display), codes let through, HU assumed, where masks are (None:
    where the layout has them).
    """

    layout: str = "auto"
    unit: Unit | None = None
    accept: frozenset[str] = frozenset()
    assume_hu: bool = False
    workers: int = 1
    masks: MaskRule | None = None


@dataclass(frozen=True)
class Plan:
    """What lies under ``root``: all regular files (found = image + other + unreadable), what was skipped, the series.

    Every image file is in exactly one series. Label maps count as other: those on the grid of a series belong to it,
    ``set_aside`` lists those that belong to none. ``masks`` is how many label maps of volumes were found.
    """

    root: Path
    files: tuple[FoundFile, ...]
    skipped: tuple[FoundFile, ...]
    series: tuple[FoundSeries, ...]
    set_aside: tuple[Quarantined, ...] = ()
    masks: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Files found, and of these images, others and unreadable ones."""
        kinds = [file.kind for file in self.files]
        image = sum(kind in IMAGE_KINDS for kind in kinds)
        unreadable = kinds.count("unreadable")
        return {
            "found": len(kinds),
            "image": image,
            "other": len(kinds) - image - unreadable,
            "unreadable": unreadable,
        }


def plan_folder(path: Path, settings: ReadSettings, progress: Progress = silent) -> Plan:
    """Series of a folder (or one file); raises `InputError` if there is no such path.

    Layout ``auto`` reads every format; a named layout reads its own and counts images of the others as
    ``other``. Masks are NIfTI files in every layout.
    """
    listing = discover(path)
    files = {file.path: file for file in listing.files}
    masks, layout = _masks(listing.root, files, settings)
    wanted = _FORMATS.get(settings.layout, ("nifti",))
    for name, file in files.items():
        if file.kind in IMAGE_KINDS and file.kind not in wanted:
            reason = f"a {file.kind} file, which layout '{settings.layout}' does not read"
            files[name] = replace(file, kind="other", reason=reason)
    dicoms, volumes, pictures = ([name for name, file in files.items() if file.kind == kind] for kind in IMAGE_KINDS)
    series, aside = _dicom(listing.root, dicoms, files, settings, progress)
    series += _volumes(listing.root, volumes, files, layout, settings)
    series += _pictures(listing.root, pictures, files, layout, settings)
    series = _of_one_person(list(_beside_unreadable(series, files.values())))
    series = [accepting(one, settings.accept) for one in series]
    ordered = sorted(series, key=lambda one: (one.patient_id, one.series_id))
    ordered, orphans = with_masks(listing.root, ordered, masks, settings.masks, settings.accept)
    set_aside = (*aside, *orphans)
    return Plan(listing.root, tuple(files.values()), listing.skipped, tuple(ordered), set_aside, len(masks))


def _masks(root: Path, files: dict[str, FoundFile], settings: ReadSettings) -> tuple[list[FoundMask], Layout]:
    """Label maps, counted as other in ``files``, and the layout of what is left."""
    declared = settings.masks is not None and settings.masks.folder is not None
    masks = declared_masks(settings.masks, root, files) if settings.masks is not None and declared else []
    volumes, pictures = ([name for name, file in files.items() if file.kind == kind] for kind in IMAGE_KINDS[1:])
    layout = layout_of(settings.layout, root, volumes, pictures)
    found = layout_masks(layout, files)
    return masks if declared else found, layout


def accepting(series: FoundSeries, codes: Iterable[str]) -> FoundSeries:
    """The series with findings of the given codes let through, where they can be: the user vouches for them.

    A finding that has another override, or none, stays and says so: the checks behind it were not made.
    """
    allowed = set(codes)
    findings = tuple(
        _accepted(finding) if finding.effect == "quarantine" and finding.code in allowed else finding
        for finding in series.findings
    )
    return replace(series, findings=findings)


def _accepted(finding: Finding) -> Finding:
    if finding.override is None or not finding.override.startswith("images.accept"):
        return replace(finding, reason=f"{finding.reason} images.accept does not let this through.")
    return replace(finding, effect="repair", override=None, reason=f"{finding.reason} Let through by images.accept.")


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``slice_9`` stands before ``slice_10``."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for sign in text:
        if sign.isdecimal():
            digits += sign
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        parts.append((1, 0, sign))
    if digits:
        parts.append((0, int(digits), ""))
    return tuple(parts)


@dataclass(frozen=True)
class _Header:
    """What reading one DICOM header gave: frames, or why there are none."""

    images: tuple[DicomImage, ...] = ()
    other: str = ""
    refused: Finding | None = None
    foreign_mask: bool = False


def _read_one(root: Path, name: str) -> _Header:
    try:
        return _Header(images=tuple(read_header(root / name, name)))
    except NotAnImage as error:
        return _Header(other=str(error), foreign_mask=isinstance(error, ForeignMask))
    except Refused as error:
        return _Header(refused=error.finding)
    except OSError as error:
        return _Header(refused=Finding("unreadable", "quarantine", f"{error.strerror or error}.", name))


def _crashed(name: str) -> _Header:
    reason = "reading it ended the process that tried."
    return _Header(refused=Finding("unreadable", "quarantine", reason, name))


def _dicom(
    root: Path, names: Sequence[str], files: dict[str, FoundFile], settings: ReadSettings, progress: Progress
) -> tuple[list[FoundSeries], list[Quarantined]]:
    """Series of all DICOM files, and masks in a form that is not read.

    Files that hold no scan, or cannot be read, change their kind in ``files``.
    """
    headers = run_all(
        partial(_read_one, root),
        names,
        workers=settings.workers if len(names) > 64 else 1,
        progress=progress,
        what="headers",
        crashed=_crashed,
    )
    images: list[DicomImage] = []
    aside: list[Quarantined] = []
    for name, header in zip(names, headers, strict=True):
        if header.refused is not None:
            files[name] = replace(files[name], kind="unreadable", reason=header.refused.reason)
        elif header.other:
            files[name] = replace(files[name], kind="other", reason=header.other)
        if header.foreign_mask:
            aside.append(Quarantined("", "", name, "mask_format", "Modality", header.other))
        images += header.images
    read_frame = DicomPixels(root).frame
    series = group_dicom(images, read_frame, assume_hu=settings.assume_hu)
    folders = FolderLayout(root.name, [image.file for image in images], [])
    return [one if one.patient_id else _named_by_folder(one, folders) for one in series], aside


def _named_by_folder(series: FoundSeries, folders: FolderLayout) -> FoundSeries:
    """A series whose header names nobody belongs to its patient folder, else to its study alone."""
    file = series.files[0]
    folder = folders.folder(file)
    patient = folder or series.study_id or series.series_id
    reason = f"the header names no patient; taken as '{patient}' after the {'folder' if folder else 'study'}."
    finding = Finding("patient_from_folder", "note", reason, file, "PatientID")
    return replace(series, patient_id=patient).with_findings([finding])


def _volumes(
    root: Path, names: Sequence[str], files: dict[str, FoundFile], layout: Layout, settings: ReadSettings
) -> list[FoundSeries]:
    """A series for each NIfTI file that is a scan."""
    found = []
    for name in names:
        try:
            place = layout.place(name)
        except NotScan as error:
            files[name] = replace(files[name], kind="other", reason=str(error))
            continue
        try:
            series = read_nifti_header(root / name, name, settings.unit or "raw")
        except Refused as error:
            if error.finding.code in ("unreadable", "not_a_volume"):
                files[name] = replace(files[name], kind="unreadable", reason=error.finding.reason)
                continue
            series = FoundSeries(
                name, "", "nifti", "", settings.unit or "raw", (SliceSource(name, name),), (1, 0, 0), "int16",
                (name,), findings=(error.finding,),
            )  # fmt: skip
        found.append(replace(series, patient_id=place.patient_id, study_id=place.study, modality=place.modality))
    return found


def _pictures(
    root: Path, names: Sequence[str], files: dict[str, FoundFile], layout: Layout, settings: ReadSettings
) -> list[FoundSeries]:
    """A series for each folder of pictures, in natural order of their names."""
    stacks: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name in names:
        try:
            place = layout.place(name)
        except NotScan as error:
            files[name] = replace(files[name], kind="other", reason=str(error))
            continue
        stacks[place.patient_id, place.series, place.study].append(name)
    found = []
    for (patient, series_id, study), members in sorted(stacks.items()):
        sources = [SliceSource(name, name) for name in sorted(members, key=natural)]
        series = picture_series(root, series_id, patient, sources, settings.unit or "display")
        found.append(replace(series, study_id=study))
    return found


def _beside_unreadable(series: Iterable[FoundSeries], files: Iterable[FoundFile]) -> Iterable[FoundSeries]:
    """Series whose folder holds unreadable files say so: one of those may have been a slice."""
    bad: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if file.kind == "unreadable":
            bad[file.path.rpartition("/")[0]].append(file.path)
    for one in series:
        beside = sorted({name for file in one.files for name in bad.get(file.rpartition("/")[0], ())})
        if one.reader == "dicom" and beside:
            reason = f"{len(beside)} file(s) of its folder could not be read and may have been slices of it."
            yield one.with_findings([Finding("unreadable_beside", "note", reason, beside[0])])
        else:
            yield one


def _of_one_person(series: Sequence[FoundSeries]) -> list[FoundSeries]:
    """Series of a patient id under which headers name several people carry that finding: two sites may number alike."""
    near: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for one in series:
        if one.person:
            near[one.patient_id][one.person] = one.person_near
    people = {patient: _people(persons) for patient, persons in near.items()}
    return [
        one.with_findings([_two_people(one, count)]) if (count := people.get(one.patient_id, 0)) > 1 else one
        for one in series
    ]


def _people(near: Mapping[str, Sequence[str]]) -> int:
    """How many people the digests are of; ``near`` are those that may be the same person as each."""
    left, count = set(near), 0
    while left:
        count += 1
        reached = [left.pop()]
        while reached:
            same = left.intersection(near[reached.pop()])
            left -= same
            reached += same
    return count


def _two_people(series: FoundSeries, count: int) -> Finding:
    reason = (
        f"headers name {count} people (by name and birth date) under patient id '{series.patient_id}':"
        " two sites number alike, or a name or date was changed."
    )
    override = "images.accept: [two_people] (taken as one person, whose name or birth date was changed)"
    return Finding("two_people", "quarantine", reason, series.files[0], "PatientName", override)


def plan_index(file: CohortFile, settings: ReadSettings) -> Plan:
    """Series of the pictures that the cohort file's index lists; raises `InputError` for a faulty index."""
    listing = discover(file.path(file.images.path))
    files = {found.path: found for found in listing.files}
    series = index_series(file, listing.root, files)
    if settings.masks is not None:
        series = [replace(one, mask_values=settings.masks.numbers) for one in series]
    ordered = sorted((accepting(one, settings.accept) for one in series), key=lambda one: one.series_id)
    return Plan(listing.root, tuple(files.values()), listing.skipped, tuple(ordered))
