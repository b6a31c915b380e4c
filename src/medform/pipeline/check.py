"""`medform check`: what of a folder and a table is usable, and why the rest is not. Writes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medform.errors import Problem
    from medform.ingestion.found_series import FoundSeries
    from medform.ingestion.plan import Plan
    from medform.ingestion.workers import Progress

__all__ = ["CheckReport", "check"]


class CheckReport(dict[str, Any]):
    """The JSON object of ``medform check --json``: files, series, tables, problems (keys as in the design)."""

    @property
    def exclusions(self) -> int:
        """How many series and files cannot be used."""
        refused = [one for one in self["series"] if one["verdict"] == "quarantined"]
        return len(refused) + int(self["files"]["unreadable"])

    @property
    def exit_code(self) -> int:
        """0 if anything is usable, else 2."""
        return 0 if any(one["verdict"] != "quarantined" for one in self["series"]) else 2

    def lines(self) -> list[str]:
        """What a person is told: counts, a line a series that is not simply accepted, the problems, the next step."""
        files, series = self["files"], self["series"]
        verdicts = Counter(one["verdict"] for one in series)
        patients = {one["patient_id"] for one in series if one["verdict"] != "quarantined"}
        text = [
            f"{files['found']} files: {files['image']} images, {files['other']} others, "
            f"{files['unreadable']} unreadable",
            f"{len(series)} series: {verdicts['accepted']} accepted, {verdicts['repaired']} repaired, "
            f"{verdicts['quarantined']} quarantined; {len(patients)} patients with a usable one",
        ]
        for one in series:
            if one["codes"]:
                text.append(f"{one['verdict']}: patient {one['patient_id']}, series {one['series_id']}")
                pairs = zip(one["codes"], one["details"], strict=True)
                text += [f"    {code}: {detail}" for code, detail in pairs]
        for table in self["tables"]:
            sheet = f", sheet '{table['sheet']}'" if table["sheet"] else ""
            text.append(f"{table['file']}{sheet}: {table['rows']} rows, {len(table['columns'])} columns")
        if self["problems"]:
            text.append(f"{len(self['problems'])} problem{'s' if len(self['problems']) > 1 else ''}:")
            text += [f"    {_problem_line(problem)}" for problem in self["problems"]]
        if self.exit_code:
            text.append("Nothing here is usable. Fix: give the folder that holds DICOM, NIfTI or picture files.")
        else:
            text.append("Next: medform init (drafts the cohort file).")
        return text


def check(
    path: Path | str,
    table: Path | str | None = None,
    *,
    sheet: str | None = None,
    header_row: int = 1,
    privacy: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> CheckReport:
    """Verdicts on every series under ``path`` (a folder or one file) and every problem of the clinical ``table``.

    Headers and voxels are read as `ingest` reads them, so the verdicts are the same; nothing is written
    anywhere. ``sheet`` and ``header_row`` (from 1) say where in its file the table is. ``privacy`` adds a
    problem for each DICOM attribute that identifies a person. Returns the object of design 7. Raises
    `InputError` where there is no such path, or no table in the file.
    """
    from medform.ingestion.draft import refuse_place_without_table
    from medform.ingestion.plan import ReadSettings, plan_folder
    from medform.ingestion.voxels import crashed, examine
    from medform.ingestion.workers import run_all, silent

    refuse_place_without_table(table, sheet, header_row)
    progress = progress or silent
    plan = plan_folder(Path(path), ReadSettings(workers=workers), progress)
    series = run_all(
        partial(examine, plan.root),
        plan.series,
        workers=workers,
        progress=progress,
        what="series",
        crashed=crashed,
    )
    problems = _file_problems(plan)
    tables: list[dict[str, Any]] = []
    if table is not None:
        patients = {one.patient_id for one in series if one.usable}
        entry, found = _check_table(Path(table), patients, sheet, header_row)
        tables.append(entry)
        problems += found
    problems += _several(series)
    if privacy:
        from medform.ingestion.identity import identity_problems

        dicoms = sorted({file for one in series if one.reader == "dicom" for file in one.files})
        problems += identity_problems(plan.root, dicoms)
    return CheckReport(
        files=plan.counts,
        series=[_series_entry(one) for one in series],
        tables=tables,
        problems=[_problem_entry(problem) for problem in problems],
    )


def _series_entry(series: FoundSeries) -> dict[str, Any]:
    verdict = series.verdict
    return {
        "series_id": series.series_id,
        "patient_id": series.patient_id,
        "modality": series.modality,
        "n_slices": series.shape[0],
        "shape": list(series.shape),
        "spacing_mm": None if series.spacing_mm is None else list(series.spacing_mm),
        "verdict": verdict.status,
        "codes": list(verdict.codes),
        "details": list(verdict.details),
        "files": list(series.files),
    }


def _problem_entry(problem: Problem) -> dict[str, Any]:
    fields = asdict(problem)
    return {key: fields[key] for key in ("file", "sheet", "row", "column", "value", "problem", "suggestion")}


def _problem_line(entry: dict[str, Any]) -> str:
    from medform.errors import Problem

    return str(Problem(**entry))


def _file_problems(plan: Plan) -> list[Problem]:
    """Files that claim to be images and cannot be read, masks that belong to no image, and what is no regular file."""
    from medform.errors import Problem

    unreadable = [Problem(file.reason, file=file.path) for file in plan.files if file.kind == "unreadable"]
    unreadable += [Problem(f"{row.code}: {row.reason}", file=row.file) for row in plan.set_aside]
    return unreadable + [Problem(f"skipped: {file.reason}.", file=file.path) for file in plan.skipped]


def _several(series: list[FoundSeries]) -> list[Problem]:
    """Patients with several usable series: `images.select` must say which one is meant."""
    from medform.errors import Problem

    usable = Counter(one.patient_id for one in series if one.usable)
    several = sorted(patient for patient, count in usable.items() if count > 1)
    if not several:
        return []
    shown = ", ".join(repr(patient) for patient in several[:5])
    who = "1 patient has" if len(several) == 1 else f"{len(several)} patients have"
    text = f"{who} several usable series (first: {shown})."
    return [Problem(text, suggestion="Set images.select in the cohort file; medform init proposes a rule.")]


def _check_table(
    path: Path, patients: set[str], sheet: str | None, header_row: int
) -> tuple[dict[str, Any], list[Problem]]:
    """The entry of a table (each column's drafted type and role, and missing cells) and every problem in it."""
    from medform.cohort.cohort_file import TableSpec
    from medform.ingestion.suspects import table_notes
    from medform.ingestion.table_drafts import draft_columns, guess_patient_column
    from medform.ingestion.tables import read_table, type_table

    raw = read_table(path, sheet, header_row=header_row)
    patient = guess_patient_column(raw)
    drafts = draft_columns(raw, patient or "")
    columns = [
        {"name": one.name, "type": one.spec.type, "missing": one.missing, "role": one.spec.role} for one in drafts
    ]
    if patient is not None:
        columns.insert(0, {"name": patient, "type": "text", "missing": 0, "role": "id"})
    entry = {"file": raw.file, "sheet": raw.sheet, "rows": len(raw.frame), "columns": columns}
    if patient is None:
        hint = "Give every row a patient id, in a column of its own."
        return entry, [*raw.problems, raw.problem("no column looks like a patient id.", suggestion=hint)]
    spec = TableSpec(path=path.name, patient_id=patient)
    strict = {one.name: one.spec.model_copy(update={"missing": [], "sentinels": None}) for one in drafts}
    frame, problems = type_table(raw, spec, strict)
    notes = [note for note in table_notes(raw, spec, strict) if note.suggestion]
    ids = frame.index.astype(str)
    return entry, [*problems, *notes, *_id_problems(patients, list(ids), raw.file, patient)]


def _id_problems(patients: set[str], ids: list[str], file: str, column: str) -> list[Problem]:
    """Patients on one side only, with ids that look alike; nothing is joined."""
    from medform.errors import Problem
    from medform.ingestion.identifiers import match_ids

    if not patients:
        return []
    match = match_ids(patients, ids)
    problems = []
    for only, total, what in (
        (match.only_images, len(patients), "images but no row"),
        (match.only_table, len(set(ids)), "a row but no images"),
    ):
        if only:
            shown = ", ".join(repr(one) for one in only[:5])
            text = f"{len(only)} of {total} patients have {what} (first: {shown})."
            problems.append(Problem(text, file=file, column=column))
    for one in match.suggestions:
        hint = "Accept with tables.clinical.id_rules or id_map in the cohort file."
        text = f"looks like image id '{one.image_id}'; not joined."
        problems.append(Problem(text, file=file, column=column, value=one.table_id, suggestion=hint))
    return problems
