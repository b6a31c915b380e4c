"""Label maps beside volumes: found by layout or declared pattern, and put on the grid of their series.

A mask belongs to a series if its grid is that of the series but for the order and direction of its axes, to within
half a voxel in millimetres. It is never resampled: a mask of another grid, or of a header that would refuse an image,
is set aside with the reason. What stands in it is judged when its voxels are read (`mask_voxels`).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medform.cohort.cohort_file import CohortFile
from medform.cohort.quarantine import Quarantined
from medform.errors import InputError, Problem, nearest
from medform.ingestion.discover import FoundFile, discover
from medform.ingestion.found_series import Finding, FoundSeries, Refused, SeriesMask
from medform.ingestion.layouts.place import A_MASK, LabelMap, Layout, NotScan
from medform.ingestion.mask_names import matches, owner_by_name, owner_by_pattern, study_by_name
from medform.ingestion.nifti import read_nifti_label_grid
from medform.runs.grids import HALF_VOXEL, AxisMap, Grid, match_grids

__all__ = [
    "FoundMask",
    "MaskRule",
    "declared_masks",
    "layout_masks",
    "mask_note",
    "of_one_visit",
    "refuse_maskless",
    "with_masks",
]

SHIFT_TOLD = 0.05
"""A mask that lies further from its image than this many voxels is used, and the distance is said."""
MOST_SHOWN = 10
MASK_CODES = (
    "mask_size",
    "mask_grid",
    "mask_values",
    "mask_visit",
    "two_masks",
    "mask_without_image",
    "mask_format",
    "affines_differ",
)


@dataclass(frozen=True)
class MaskRule:
    """``masks`` of a cohort file: the folder (None: as the layout has it), the pattern, the numbers that may occur."""

    folder: Path | None
    pattern: str
    numbers: tuple[int, ...] | None

    @classmethod
    def of(cls, file: CohortFile) -> MaskRule | None:
        """The rule of a cohort file; None without ``masks``."""
        if file.masks is None:
            return None
        folder = None if file.masks.path is None else file.path(file.masks.path)
        return cls(folder, file.masks.file_pattern, file.masks.numbers)


@dataclass(frozen=True)
class FoundMask:
    """A file that is a mask. ``file`` is relative to the folder of the images, ``name`` what tells whose it is.

    ``patient_id`` where the layout says it; ``study`` '' where neither layout nor name tells the visit. ``unread``: why
    it cannot be.
    """

    file: str
    name: str
    patient_id: str | None = None
    study: str = ""
    unread: str = ""


def declared_masks(rule: MaskRule, root: Path, files: dict[str, FoundFile]) -> list[FoundMask]:
    """Files below ``masks.path`` that match the pattern; those among the images become ``other`` in ``files``.

    Raises `InputError` where none matches, or where the pattern takes every image.
    """
    assert rule.folder is not None
    base = Path(os.path.relpath(rule.folder, root))
    below = discover(rule.folder).files
    found = []
    for file in below:
        if not matches(file.path, rule.pattern):
            continue
        name = (base / file.path).as_posix()
        unread = "" if file.kind == "nifti" else f"a mask is read from NIfTI; this is {file.reason or file.kind}."
        found.append(FoundMask(name, file.path, unread=unread))
        if name in files and files[name].kind != "unreadable":
            files[name] = replace(files[name], kind="other", reason=A_MASK)
    if not found:
        raise InputError(
            f"no file matches masks.pattern '{rule.pattern}'.",
            where=str(rule.folder),
            consequence="Nothing was written.",
            fix="change masks.path or masks.pattern; {patient} stands for the patient's id, * for any text.",
            problems=[Problem("does not match.", file=file.path) for file in below[:MOST_SHOWN]],
        )
    taken = any(file.reason == A_MASK for file in files.values())
    if taken and not any(file.kind in ("dicom", "nifti", "picture") for file in files.values()):
        raise InputError(
            f"masks.pattern '{rule.pattern}' takes the images too.",
            where=str(rule.folder),
            consequence="Nothing was written.",
            fix="write into the pattern what sets the masks apart, as in '{patient}_mask.nii.gz'.",
        )
    return found


def layout_masks(layout: Layout, files: dict[str, FoundFile]) -> list[FoundMask]:
    """NIfTI files that the layout knows as label maps; they become ``other`` in ``files``."""
    found = []
    for name, file in files.items():
        if file.kind != "nifti":
            continue
        try:
            layout.place(name)
        except LabelMap as label_map:
            files[name] = replace(file, kind="other", reason=A_MASK)
            found.append(FoundMask(name, name, label_map.patient_id, label_map.study))
        except NotScan:
            continue
    return found


def with_masks(
    root: Path,
    series: Sequence[FoundSeries],
    found: Sequence[FoundMask],
    rule: MaskRule | None,
    accept: Collection[str] = (),
) -> tuple[list[FoundSeries], list[Quarantined]]:
    """The series with the masks that lie on their grids, and the masks that belong to none.

    A mask of a patient whose series all have other grids is a finding of the nearest one. ``accept``: codes that the
    user vouches for, in masks as in images. Raises `InputError` where masks are declared and none names a patient with
    images.
    """
    if rule is not None and rule.numbers is not None:
        series = [replace(one, mask_values=rule.numbers) for one in series]
    by_patient: dict[str, list[int]] = defaultdict(list)
    for at, one in enumerate(series):
        by_patient[one.patient_id].append(at)
    patients = sorted(set(by_patient) - {""})
    aside: list[Quarantined] = []
    findings: dict[int, list[Finding]] = defaultdict(list)
    fitting: dict[int, list[SeriesMask]] = defaultdict(list)
    owned = 0
    for given in sorted(found, key=lambda one: one.file):
        owner = _owner(given, patients, rule)
        owned += owner is not None
        mask = _of_visit(given, {series[at].study_id for at in by_patient.get(owner or "", [])})
        mine = [at for at in by_patient.get(owner or "", []) if mask.study in ("", series[at].study_id)]
        usable = [at for at in mine if series[at].usable]
        if mask.unread or owner is None or not usable:
            aside.append(_orphan(mask, owner, mine, patients))
            continue
        _place(root, mask, {at: series[at] for at in usable}, fitting, findings, accept)
    if rule is not None and rule.folder is not None and found and patients and not owned:
        raise _strangers(found, patients, rule)
    placed = []
    for at, one in enumerate(series):
        masks = fitting.get(at, [])
        placed.append(one)
        if len(masks) > 1:
            findings[at] += [_two(mask, masks) for mask in masks]
        elif masks:
            placed[-1] = replace(one, mask=masks[0])
        if findings[at]:
            placed[-1] = placed[-1].with_findings(findings[at])
    return placed, aside


def of_one_visit(chosen: Sequence[FoundSeries], found: Iterable[FoundSeries]) -> list[FoundSeries]:
    """The ``chosen`` series, masks that lie on images of several visits set aside: on which one is not guessed.

    Series of one visit share a mask. Where only one of the visits among all series ``found`` was chosen, the mask is
    taken for that one, with a note.
    """
    known, taken = _visits(found), _visits(chosen)
    told: set[str] = set()
    result = []
    for one in chosen:
        mask = one.mask
        if mask is None or len(known[mask.file]) == 1:
            result.append(one)
            continue
        shown = ", ".join(f"'{visit}'" for visit in sorted(known[mask.file])[:MOST_SHOWN])
        reason = f"the mask lies on images of {len(known[mask.file])} visits ({shown}); "
        if len(taken[mask.file]) == 1:
            note = f"{reason}taken for the one that images.select chooses."
            result.append(one.with_findings([Finding("mask_visit", "note", note, mask.file)]))
            continue
        reason += "on which one it was drawn is not known."
        override = "the visit in the name of the mask"
        aside = [] if mask.file in told else [Finding("mask_visit", "set_aside", reason, mask.file, None, override)]
        told.add(mask.file)
        result.append(replace(one, mask=None).with_findings(aside))
    return result


def _visits(series: Iterable[FoundSeries]) -> dict[str, set[str]]:
    """Mask -> the visits whose usable series it lies on."""
    found: dict[str, set[str]] = defaultdict(set)
    for one in series:
        if one.mask and one.usable:
            found[one.mask.file].add(one.study_id)
    return found


def _owner(mask: FoundMask, patients: Sequence[str], rule: MaskRule | None) -> str | None:
    if mask.patient_id is not None:
        return mask.patient_id if mask.patient_id in patients else None
    if rule is not None and rule.folder is not None:
        return owner_by_pattern(mask.name, rule.pattern, patients)
    return owner_by_name(mask.name, patients)


def _of_visit(mask: FoundMask, studies: set[str]) -> FoundMask:
    """The mask with the visit that its name tells, where the layout did not."""
    return mask if mask.study else replace(mask, study=study_by_name(mask.name, studies) or "")


def _orphan(mask: FoundMask, owner: str | None, mine: Sequence[int], patients: Sequence[str]) -> Quarantined:
    """The row of a mask that no usable image goes with."""
    if mask.unread:
        return Quarantined(owner or "", "", mask.file, "mask_format", "", mask.unread)
    if owner is None:
        close = nearest(mask.patient_id or Path(mask.name).name.split(".")[0], patients, 1)
        hint = f" The nearest name is '{close[0]}'." if close else ""
        reason = f"a mask without an image: no patient with images is named so.{hint}"
    elif mine:
        visit = f", visit '{mask.study}'," if mask.study else ""
        reason = f"a mask without an image: every series of patient '{owner}'{visit} is quarantined."
    else:
        reason = f"a mask without an image: patient '{owner}' has no series of visit '{mask.study}'."
    return Quarantined(owner or "", "", mask.file, "mask_without_image", "", reason)


def _place(
    root: Path,
    mask: FoundMask,
    candidates: dict[int, FoundSeries],
    fitting: dict[int, list[SeriesMask]],
    findings: dict[int, list[Finding]],
    accept: Collection[str],
) -> None:
    """Add a mask to every series on whose grid it lies; else its fault to the series that is nearest to it."""
    try:
        grid, doubts = read_nifti_label_grid(root / mask.file, mask.file)
    except Refused as refused:
        findings[min(candidates)].append(replace(refused.finding, effect="set_aside"))
        return
    except OSError as error:
        reason = f"the mask cannot be read: {error.strerror or error}."
        findings[min(candidates)].append(Finding("bad_mask", "set_aside", reason, mask.file))
        return
    doubt = next((one for one in doubts if one.code not in accept), None)
    if doubt is not None:
        findings[min(candidates)].append(replace(doubt, effect="set_aside"))
        return
    let_through = [
        replace(one, effect="note", override=None, reason=f"{one.reason} Let through by images.accept.")
        for one in doubts
    ]
    faults = []
    for at, one in candidates.items():
        axes = _axes(grid, one)
        fault = _fault(grid, one, axes, mask.file)
        if fault is not None or axes is None:
            distance = axes.shift if axes is not None else float("inf")
            faults.append((distance, at, fault))
            continue
        fitting[at].append(SeriesMask(mask.file, axes))
        findings[at] += let_through
        if axes.shift > SHIFT_TOLD:
            reason = f"its grid lies {axes.shift:.2f} voxels beside that of its image; taken as the same voxels."
            findings[at].append(Finding("mask_shifted", "note", reason, mask.file))
    if len(faults) == len(candidates):
        _, at, fault = min(faults, key=lambda one: one[:2])
        if fault is not None:
            findings[at].append(fault)


def _axes(grid: Grid, series: FoundSeries) -> AxisMap | None:
    """How the axes of the mask become (column, row, slice) of the series; None where the sizes forbid it."""
    wanted = series.shape[::-1]
    if grid.affine_lps is None or series.affine_lps is None:
        return AxisMap() if grid.shape == wanted else None
    return match_grids(grid.shape, grid.affine_lps, wanted, series.affine_lps)


def _fault(grid: Grid, series: FoundSeries, axes: AxisMap | None, file: str) -> Finding | None:
    """Why a mask does not lie on the grid of a series; None if it does."""
    if axes is None:
        sizes = ["x".join(map(str, shape)) for shape in (grid.shape, series.shape[::-1])]
        reason = f"the mask has {sizes[0]} voxels where its image has {sizes[1]} (columns, rows, slices)."
        return Finding("mask_size", "set_aside", reason, file, "dim")
    if (grid.affine_lps is None) != (series.affine_lps is None):
        without = "mask" if grid.affine_lps is None else "image"
        reason = f"the {without} has no affine and the other has one, so their axes cannot be compared."
        return Finding("mask_grid", "set_aside", reason, file, "sform_code")
    if axes.shift > HALF_VOXEL:
        reason = f"the mask lies up to {axes.shift:.2f} voxels beside its image; masks are never resampled."
        return Finding("mask_grid", "set_aside", reason, file, "srow_x")
    return None


def _two(mask: SeriesMask, masks: Iterable[SeriesMask]) -> Finding:
    others = ", ".join(other.file for other in masks if other.file != mask.file)
    reason = f"{others} is a mask of the same image; which one counts is not known."
    override = "masks.pattern in the cohort file, which names one of them"
    return Finding("two_masks", "set_aside", reason, mask.file, None, override)


def _strangers(found: Sequence[FoundMask], patients: Sequence[str], rule: MaskRule) -> InputError:
    masks = ", ".join(f"'{mask.name}'" for mask in found[:5])
    people = ", ".join(f"'{one}'" for one in patients[:5]) or "none"
    return InputError(
        f"none of the {len(found)} masks names a patient with images (masks: {masks}; patients: {people}).",
        where=str(rule.folder),
        consequence="Nothing was written.",
        fix=f"make masks.pattern '{rule.pattern}' say where the patient's id stands in the name of a mask.",
    )


def refuse_maskless(file: CohortFile, series: Sequence[FoundSeries], aside: Sequence[Quarantined]) -> None:
    """Raise `InputError`, with the reasons, where masks are declared and no series that is used has one."""
    if file.masks is None or any(one.mask or any(source.mask for source in one.slices) for one in series):
        return
    rows = [row for one in series for row in one.set_aside()] + list(aside)
    faults = [row for row in rows if row.code in MASK_CODES]
    raise InputError(
        "masks are declared and no image has a usable one.",
        where=f"cohort '{file.name}', masks",
        consequence="Nothing was written.",
        fix="mend the masks or the keys below masks, or leave masks out.",
        problems=[Problem(row.reason, file=row.file) for row in faults[:MOST_SHOWN]],
    )


def mask_note(found: int, series: Sequence[FoundSeries]) -> str:
    """How many masks are used, and how many patients with images have none, in one line."""
    used = {one.mask.file for one in series if one.mask}
    masked = {one.patient_id for one in series if one.mask}
    everybody = {one.patient_id for one in series}
    text = f"masks: {len(used)} of {found} found are used; {len(masked)} of {len(everybody)} patients have one"
    empty = sum("mask_empty" in one.codes for one in series)
    return f"{text}, {empty} of them without a lesion." if empty else f"{text}."
