"""Files -> cohort store: the one way in, for a cohort file and for a bare scan or folder."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from medform.cohort.cohort_file import CohortFile, Images, Select, Unit
from medform.cohort.files import file_sha256
from medform.cohort.quarantine import Quarantined
from medform.cohort.store import Cohort, CohortWriter
from medform.cohort.writer import made_from
from medform.errors import InputError, Problem
from medform.ingestion.changed import changed_files, note_seen, refuse_changed, sizes_and_times
from medform.ingestion.clinical import Clinical, read_join
from medform.ingestion.expression import Expression, expression_digest, read_expression
from medform.ingestion.found_series import Finding, FoundSeries
from medform.ingestion.gene_leaks import find_gene_leaks
from medform.ingestion.leaks import refuse_leaks
from medform.ingestion.masks import MaskRule, mask_note, of_one_visit, refuse_maskless
from medform.ingestion.plan import Plan, ReadSettings, plan_folder, plan_index
from medform.ingestion.select import select_series
from medform.ingestion.store_series import SeriesTask, crashed_series, refuse_gone, store_series
from medform.ingestion.units import SaidBy, judged_as_hu, unit_by_range
from medform.ingestion.voxels import crashed
from medform.ingestion.workers import Progress, run_all, silent
from medform.runs.folder import RunFolder

__all__ = ["ingest", "ingest_scan"]

FORMAT, FORMAT_BESIDE = 2, 4
"""Raised when the same files would give other bytes, so that a store of an older medform is not taken for
a new one: of images and tables; and of a cohort that has genes or masks beside them."""
MOST_SHOWN = 12
UNITS: tuple[Unit, ...] = ("HU", "display", "raw")


@dataclass(frozen=True)
class _Sources:
    """Everything that is known before a voxel is read."""

    file: CohortFile
    plan: Plan
    chosen: tuple[FoundSeries, ...]
    left: tuple[Quarantined, ...]
    clinical: Clinical

    def digest(self) -> str:
        """SHA-256 of what the store follows from, but the pixels: settings, headers, sizes, the table, the split."""
        sizes = [(file.path, file.kind, file.size) for file in self.plan.files]
        masked = bool(self.plan.masks or self.plan.set_aside)
        version = FORMAT_BESIDE if masked or self.file.genes is not None else FORMAT
        facts: tuple[object, ...] = (version, self.file.portable(), sizes, self.plan.series, self.clinical.digest)
        if masked:
            masks = [(one.series_id, one.mask, _size(self.plan.root, one)) for one in self.plan.series if one.mask]
            facts += (masks, self.plan.set_aside)
        if self.file.genes is not None:
            facts += (expression_digest(self.file),)
        if self.file.splits.file is not None:
            split = self.file.path(self.file.splits.file)
            facts += (file_sha256(split) if split.is_file() else "",)  # no file is refused where it is read
        text = repr(facts)
        return hashlib.sha256(text.encode()).hexdigest()

    def expression(self) -> Expression | None:
        """Expression of everybody who has images or a row of the table; None where the cohort file names none.

        Raises `InputError` for what `read_expression` refuses, and for genes that restate a column of the table.
        """
        if self.file.genes is None:
            return None
        table = self.clinical.frame
        rows = set() if table is None else set(table.index.astype(str))
        expression = read_expression(self.file, rows | {one.patient_id for one in self.chosen})
        if table is None:
            return expression
        leaks = find_gene_leaks(self.file, table, expression.record)
        refuse_leaks(leaks, str(self.file.path(self.file.genes.path)), "genes are columns of the clinical table")
        notes = [f"genes: {leak.column}: {leak.message}" for leak in leaks]
        return replace(expression, notes=(*expression.notes, *notes))


def _size(root: Path, series: FoundSeries) -> int:
    """Bytes of the label map of a series."""
    return 0 if series.mask is None else (root / series.mask.file).stat().st_size


def ingest(
    cohort_file: CohortFile,
    out: Path,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    resume: bool = True,
    overwrite: bool = False,
    renew: bool = False,
    renewal: str | None = None,
) -> Cohort:
    """Read images and table of a cohort file into the store ``out`` and open it.

    A store that an earlier run began, or finished from the same files, is continued or taken as it is;
    with ``resume=False`` a begun one is refused. One from other files is refused; ``renew`` replaces it, and
    one that is damaged, ``overwrite`` every store; ``renewal`` is what the refusal advises. The bytes do not
    depend on ``workers`` (processes) or on interruptions. Raises `InputError`, before anything is written, for
    an empty folder, a folder without usable images, faults of the table, ids of which none matches, features
    that give a label away, genes that restate a column of the table, and several candidate series of one patient
    without a rule; and, with what is written kept for the same command, for a source that goes away meanwhile.
    """
    progress = progress or silent
    sources = _read_sources(cohort_file, workers, progress)
    return _write(
        sources, Path(out), workers, progress, resume=resume, overwrite=overwrite, renew=renew, renewal=renewal
    )


def ingest_scan(
    path: Path,
    out: Path,
    *,
    unit: Unit | None = None,
    pictures: bool = False,
    window: tuple[float, float] | None = None,
    layout: str = "auto",
    accept: Sequence[str] = (),
    assume_hu: bool = False,
    select: Select | None = None,
    refused: Mapping[str, str] | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    overwrite: bool = False,
    renew: bool = False,
    renewal: str | None = None,
) -> Cohort:
    """Read a bare scan or folder, without cohort file or table; every usable series is kept unless ``select`` is given.

    Patients are named by the DICOM header, else by folder or file. ``unit`` is what a model takes; by default
    pictures are ``display`` and a NIfTI file is HU if its values are those of a CT with air around it, else ``raw``.
    Neither can say that it is HU: for unit HU a NIfTI file with other values carries the note ``unit_assumed``, and
    pictures are refused unless the model was trained on ``pictures``. ``window``, ``accept``, ``assume_hu`` and
    ``select`` as ``images`` of a cohort file; a patient for whom ``select`` does not decide is set aside
    (``several_series``), the others are read. ``refused``: modality, in capitals -> why the model cannot take a series
    of it, which is set aside (``unit_differs``). ``overwrite``, ``renew`` and ``renewal`` as in `ingest`.
    Raises `InputError` where nothing can be used.
    """
    progress = progress or silent
    path = Path(path)
    settings = ReadSettings(layout, unit, frozenset(accept), assume_hu, workers)
    plan = plan_folder(path, settings, progress)
    if unit is None:
        plan = replace(plan, series=tuple(unit_by_range(plan.root, one) for one in plan.series))
    elif unit == "HU":
        judged = [
            one if pictures and one.reader == "picture" else judged_as_hu(plan.root, one, "training")
            for one in plan.series
        ]
        plan = replace(plan, series=tuple(judged))
    plan = replace(plan, series=tuple(_but_refused(one, refused or {}) for one in plan.series))
    usable = {one.unit for one in plan.series if one.usable}
    present: list[Unit] = [kind for kind in UNITS if kind in usable]
    common: Unit = unit or (present or UNITS)[0]
    if select is not None:  # as in a cohort: what is of another unit is no candidate
        plan = replace(plan, series=_selected([_in_unit(one, common) for one in plan.series], select))
    images = {
        "layout": layout,
        "unit": common,
        "window_hu": window,
        "select": Select(rule="all"),
        "assume_hu": assume_hu,
        "accept": list(accept),
    }
    file = CohortFile(name="scan", licence="not stated", images=Images.model_validate(images), root=plan.root)
    sources = _chosen(file, plan, Clinical())
    return _write(sources, Path(out), workers, progress, resume=True, overwrite=overwrite, renew=renew, renewal=renewal)


def _but_refused(series: FoundSeries, refused: Mapping[str, str]) -> FoundSeries:
    """A series for a model; one of a modality that the model cannot take is refused (``refused``: modality -> why)."""
    reason = refused.get(series.modality.upper())
    if reason is None or not series.usable:
        return series
    override = f"use a model that was trained on {series.modality}"
    return series.with_findings([Finding("unit_differs", "quarantine", reason, series.files[0], None, override)])


def _selected(series: Sequence[FoundSeries], select: Select) -> tuple[FoundSeries, ...]:
    """All series; those that ``select`` does not ask for, and all of a patient for whom it does not decide, refused.

    A patient whose files are no DICOM is chosen by the rule alone, with a note: such files state no kernel.
    """
    by_patient: dict[str, list[FoundSeries]] = defaultdict(list)
    for one in series:
        by_patient[one.patient_id].append(one)
    found: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    asked = [name for name in ("modality", "description", "kernel") if getattr(select, name)]
    for patient, theirs in by_patient.items():
        mine = select
        if asked and all(one.reader != "dicom" for one in theirs):
            mine = Select(rule=select.rule)
            reason = f"it does not state what images.select of the training asks for ({', '.join(asked)})."
            for one in theirs:
                found[patient, one.series_id].append(Finding("select_unchecked", "note", reason, one.files[0]))
        try:
            left = select_series(theirs, mine).left
        except InputError:
            asking = select_series(theirs, mine.model_copy(update={"rule": "all"}))
            reason = f"one of {len(asking.chosen)} series that images.select of the training does not tell apart."
            for one in asking.chosen:
                told = Finding("several_series", "quarantine", reason, one.files[0], None, "give the wanted one alone")
                found[patient, one.series_id].append(told)
            left = asking.left
        for row in left:
            told = Finding("not_selected", "quarantine", row.reason, row.file)
            found[patient, row.series_id].append(told)
    return tuple(one.with_findings(found.get((one.patient_id, one.series_id), ())) for one in series)


def _read_sources(file: CohortFile, workers: int, progress: Progress) -> _Sources:
    images = file.images
    settings = ReadSettings(
        images.layout, images.unit, frozenset(images.accept), images.assume_hu, workers, MaskRule.of(file)
    )
    if images.index is not None:
        plan = plan_index(file, settings)
    else:
        plan = plan_folder(file.path(images.path), settings, progress)
    if images.unit == "HU":
        plan = _in_hu(plan, workers, progress, "cohort file" if "unit" in images.model_fields_set else "nobody")
    imaged = {one.patient_id for one in plan.series if one.usable}
    return _chosen(file, plan, read_join(file, imaged) if file.clinical else Clinical())


def _in_hu(plan: Plan, workers: int, progress: Progress, said_by: SaidBy) -> Plan:
    """The plan with every series that cannot say that it is HU judged by its values (`judged_as_hu`)."""
    mute = [one for one in plan.series if one.reader != "dicom"]
    judge = partial(judged_as_hu, plan.root, said_by=said_by)
    found = iter(run_all(judge, mute, workers=workers, progress=progress, what="units", crashed=crashed))
    return replace(plan, series=tuple(one if one.reader == "dicom" else next(found) for one in plan.series))


def _chosen(file: CohortFile, plan: Plan, clinical: Clinical) -> _Sources:
    """Refuse a source without usable images, then choose each patient's series."""
    plan = replace(plan, series=tuple(_in_unit(one, file.images.unit) for one in plan.series))
    _refuse_unusable(plan)
    selection = select_series(plan.series, file.images.select)
    chosen = tuple(of_one_visit(selection.chosen, plan.series))
    if chosen:
        refuse_maskless(file, chosen, plan.set_aside)
    else:
        raise InputError(
            f"none of the {len(selection.left)} usable series is what images.select asks for.",
            where=str(plan.root),
            consequence="Nothing was written.",
            fix="change images.select; `medform init` lists the descriptions and kernels that there are.",
            problems=[Problem(one.reason, file=one.file) for one in selection.left[:MOST_SHOWN]],
        )
    return _Sources(file, plan, chosen, selection.left, clinical)


def _in_unit(series: FoundSeries, unit: Unit) -> FoundSeries:
    """A series in the unit of the cohort; one whose numbers mean something else is refused."""
    if series.unit == unit or not series.usable:
        return series
    if unit == "raw":
        return replace(series, unit="raw")
    reason = f"its values are {series.unit}, those of the cohort {unit}."
    override = "images.unit: raw (takes all values as they are), or images.select.modality"
    return series.with_findings([Finding("unit_differs", "quarantine", reason, series.files[0], None, override)])


def _refuse_unusable(plan: Plan) -> None:
    """Raise `InputError` where no series can be used: empty folder, no image in it, or every series refused."""
    if any(one.usable for one in plan.series):
        return
    counts = plan.counts
    if counts["found"] == 0:
        raise InputError(
            "the folder holds no file.",
            where=str(plan.root),
            consequence="Nothing was written.",
            fix="give the folder that holds the images.",
        )
    unreadable = [Problem(file.reason, file=file.path) for file in plan.files if file.kind == "unreadable"]
    if not plan.series:
        raise InputError(
            f"no image among {counts['found']} files.",
            where=str(plan.root),
            consequence="Nothing was written.",
            fix="give a folder with DICOM, NIfTI or picture files.",
            problems=unreadable[:MOST_SHOWN],
        )
    problems = [
        Problem(f"{finding.code}: {finding}", column=one.series_id)
        for one in plan.series
        for finding in one.findings
        if finding.effect == "quarantine"
    ]
    raise InputError(
        f"none of the {len(plan.series)} series can be used.",
        where=str(plan.root),
        consequence="Nothing was written.",
        fix="look at the reasons; some can be overridden as they say.",
        problems=(problems + unreadable)[:MOST_SHOWN],
    )


def _write(
    sources: _Sources,
    out: Path,
    workers: int,
    progress: Progress,
    *,
    resume: bool,
    overwrite: bool,
    renew: bool,
    renewal: str | None,
) -> Cohort:
    """Write the store unless it is finished; one process at a time, which the lock beside it sees to."""
    if not resume and not overwrite and (out / "parts").is_dir() and not (out / "cohort.json").is_file():
        raise InputError(
            "a store was begun here and not finished.",
            where=str(out),
            consequence="Nothing was changed.",
            fix="continue it with --resume, or begin anew with --overwrite.",
        )
    absolute = out.resolve()
    root, chosen = sources.plan.root, sources.chosen
    with RunFolder(absolute.with_name(f".{absolute.name}.lock")).lock():
        inputs = sources.digest()
        overwrite = overwrite or (renew and _is_of_others(out, inputs, root, chosen))
        expression = None if made_from(out, inputs) and not overwrite else sources.expression()
        writer = CohortWriter(out, sources.file, inputs=inputs, overwrite=overwrite, renewal=renewal)
        if not writer.finished:
            seen = sizes_and_times(root, chosen)  # before they are read: what changes meanwhile is then compared
            _fill(writer, sources, expression, workers, progress)
            cohort = Cohort.read(out)
            note_seen(cohort, seen)
            return cohort
    cohort = Cohort.read(out)
    refuse_changed(cohort, root, chosen, renewal=renewal)
    return cohort


def _is_of_others(out: Path, inputs: str, root: Path, chosen: Sequence[FoundSeries]) -> bool:
    """Whether a finished store at ``out`` is not, or cannot be told to be, one of these files."""
    if not (out / "cohort.json").is_file():
        return False
    if not made_from(out, inputs):
        return True
    try:
        return bool(changed_files(Cohort.read(out), root, chosen))
    except InputError:
        return True  # damaged: what it was made from is not known


def _fill(
    writer: CohortWriter, sources: _Sources, expression: Expression | None, workers: int, progress: Progress
) -> None:
    """Store the chosen series, then the tables; ``cohort.json`` last."""
    out = writer.root
    seen: set[str] = set()
    tasks = []
    for one in sources.chosen:
        first = one.patient_id not in seen
        seen.add(one.patient_id)
        tasks.append(SeriesTask(sources.plan.root, out, one, first, sources.file.window))
    stored = run_all(store_series, tasks, workers=workers, progress=progress, what="series", crashed=crashed_series)
    refuse_gone(sources.plan.root, [file for one in stored if not one.usable for file in one.files])
    usable = [one for one in stored if one.usable]
    final = {one.series_id: one for one in (*sources.plan.series, *stored)}
    if not usable:
        _empty(out)
        _refuse_unusable(replace(sources.plan, series=tuple(final.values())))
    try:
        refuse_maskless(sources.file, usable, sources.plan.set_aside)
    except InputError:
        _empty(out)
        raise
    clinical = sources.clinical
    notes = [*clinical.notes, mask_note(sources.plan.masks, usable)] if sources.plan.masks else clinical.notes
    counts = _flow(sources, list(final.values()), usable)
    if expression is not None:
        rows = [] if clinical.frame is None else clinical.frame.index.astype(str)
        expression = expression.only({*rows, *(one.patient_id for one in usable)})
        notes, counts = [*notes, *expression.notes], {**counts, **expression.counts}
    writer.finish(
        [one.series_id for one in usable],
        clinical=clinical.frame,
        genes=None if expression is None else expression.record,
        quarantine=_set_aside(sources, final.values()),
        counts=counts,
        undeclared=clinical.undeclared,
        notes=notes,
    )


def _empty(out: Path) -> None:
    """Take back what was written of a store that cannot be finished."""
    for name in ("parts", "voxels", "masks", "previews"):
        shutil.rmtree(out / name, ignore_errors=True)


def _set_aside(sources: _Sources, series: Iterable[FoundSeries]) -> list[Quarantined]:
    """Everything that is not in the store, with its reason: series, series not selected, unreadable files, links."""
    rows = [row for one in series for row in one.set_aside()]
    rows += [*sources.left, *sources.plan.set_aside]
    rows += [
        Quarantined("", "", file.path, "unreadable", "", file.reason)
        for file in sources.plan.files
        if file.kind == "unreadable"
    ]
    rows += [Quarantined("", "", file.path, "skipped", "", file.reason) for file in sources.plan.skipped]
    return rows


def _flow(sources: _Sources, series: Sequence[FoundSeries], usable: Sequence[FoundSeries]) -> dict[str, int]:
    """The cohort flow: files found -> series -> patients -> patients with a row of the table."""
    found = {one.patient_id for one in series if one.patient_id}
    imaged = {one.patient_id for one in usable}
    rows = set() if sources.clinical.frame is None else set(sources.clinical.frame.index.astype(str))
    return {
        **{f"files_{name}": count for name, count in sources.plan.counts.items()},
        "files_skipped": len(sources.plan.skipped),
        "series_found": len(series),
        "series_quarantined": sum(not one.usable for one in series),
        "series_not_selected": len(sources.left),
        "series_used": len(usable),
        "patients_found": len(found),
        "patients_without_usable_images": len(found - imaged),
        "patients_images_only": len(imaged - rows) if sources.clinical.frame is not None else 0,
        "patients_table_only": len(rows - imaged),
        "patients_used": len(imaged & rows) if sources.clinical.frame is not None else len(imaged),
        **_mask_flow(sources, usable),
    }


def _mask_flow(sources: _Sources, usable: Sequence[FoundSeries]) -> dict[str, int]:
    """Label maps found and used, where there are any."""
    if not sources.plan.masks:
        return {}
    used = {one.mask.file for one in usable if one.mask}
    return {"masks_found": sources.plan.masks, "masks_used": len(used)}
