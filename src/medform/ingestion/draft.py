"""The text of a drafted cohort file: what was found, what was guessed, and the keys that a person must fill in."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medform.cohort.cohort_file import Select, Unit
from medform.errors import InputError
from medform.ingestion.find_genes import find_genes, genes_section
from medform.ingestion.find_index import FoundIndex, find_index
from medform.ingestion.found_series import FoundSeries
from medform.ingestion.plan import Plan, ReadSettings, plan_folder
from medform.ingestion.select import select_series
from medform.ingestion.table_drafts import DraftColumn, draft_columns, guess_patient_column
from medform.ingestion.tables import RawTable, read_table
from medform.ingestion.units import unit_by_range
from medform.ingestion.workers import Progress, silent

__all__ = ["draft_cohort_file"]

MOST_TASKS = 8


@dataclass(frozen=True)
class _Table:
    raw: RawTable
    patient_id: str
    columns: list[DraftColumn]


def draft_cohort_file(path: Path, table: Path | None, beside: Path, progress: Progress | None = None) -> str:
    """YAML text for the images under ``path`` and a clinical ``table``, to be stored in the folder ``beside``.

    Raises `InputError` where there is no usable image or no table in the file.
    """
    plan = plan_folder(path, ReadSettings(), progress or silent)
    plan = replace(plan, series=tuple(unit_by_range(plan.root, one) for one in plan.series))
    usable = [one for one in plan.series if one.usable]
    if not usable:
        raise InputError(
            f"no usable image among {plan.counts['found']} files.",
            where=str(path),
            consequence="Nothing was written.",
            fix="`medform check` says why each series cannot be used.",
        )
    root = _common_root(plan.root, table)
    index = find_index(plan, root)
    genes = find_genes(plan)
    drafted = None if table is None else _draft_table(table)
    sections = [
        _head(root, beside, plan),
        _index_section(index) if index else _images_section(plan, usable, root),
        _table_section(drafted, table, root) if drafted and table else NO_TABLE,
        _task_section(drafted),
        _slice_task_section(index) if index else "",
        genes_section(_relative(plan.root / genes, root)) if genes else "",
        SPLITS,
    ]
    return "\n".join(section for section in sections if section)


NO_TABLE = """\
# No clinical table was given: this file serves pre-training and embedding. With one, add
# tables:
#   clinical: {path: clinical.csv, patient_id: patient_id, missing: ["", "NA"]}
# and describe its columns, or draft this file again with --table.
"""
SPLITS = """\
# How patients are divided (this is the default):
# splits: {name: main, folds: 5, validation: 0.15, stratify: [the primary task], seed: 7}
"""
COLUMNS_HEAD = """\
# role: id | feature | label | outcome | time | group | ignore. Only a feature enters a model, and it must
# say when it is known: known_at: before_scan | scan | before_surgery | after_surgery | follow_up.
columns:"""


def _text(value: object) -> str:
    """A value as YAML on one line."""
    return json.dumps(value, ensure_ascii=False)


def _common_root(images: Path, table: Path | None) -> Path:
    """The deepest folder that holds the images and the table."""
    images = images.resolve()
    if table is None:
        return images
    return Path(os.path.commonpath([images, table.resolve().parent]))


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path.resolve(), root)).as_posix()


def _head(root: Path, beside: Path, plan: Plan) -> str:
    counts = plan.counts
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", root.name).strip("._-") or "cohort"
    lines = [
        f"# Drafted by `medform init` from {counts['found']} files ({counts['image']} images, "
        f"{counts['other']} others, {counts['unreadable']} unreadable).",
        "# It runs as it is. Fill in: licence, the columns' roles and known_at, tasks.",
        f"name: {name}",
        'licence: "not stated"        # of the images; the weights inherit it',
    ]
    if root != beside:
        lines.append(f"root: {_text(_relative(root, beside))}        # all paths below are relative to it")
    return "\n".join(lines) + "\n"


def _images_section(plan: Plan, usable: Sequence[FoundSeries], root: Path) -> str:
    readers = {one.reader for one in usable}
    layout = "dicom" if "dicom" in readers else "auto"
    kept = [one for one in usable if layout != "dicom" or one.reader == "dicom"]
    known: tuple[Unit, ...] = ("HU", "display", "raw")
    unit = next(kind for kind in known if any(one.unit == kind for one in kept))
    kept = [one for one in kept if one.unit == unit]
    lines = ["images:", f"  layout: {layout}", f"  path: {_text(_relative(plan.root, root))}"]
    if unit == "raw":
        lines.append("  unit: raw        # arbitrary numbers; set window_hu: [low, high] for what black and white are")
    elif "nifti" in readers and layout == "auto":
        lines.append(f"  unit: {unit}        # judged by the range of values: confirm")
    else:
        lines.append(f"  unit: {unit}")
    refused = Counter(code for one in plan.series if not one.usable for code in _reasons(one))
    if refused:
        listed = ", ".join(f"{code} {count}" for code, count in sorted(refused.items()))
        lines.append(f"  # quarantined series: {listed} (`medform check` says which, and what can be let through)")
    return "\n".join([*lines, *_select_lines(kept)]) + "\n"


def _reasons(series: FoundSeries) -> list[str]:
    return [finding.code for finding in series.findings if finding.effect == "quarantine"]


def _select_lines(series: Sequence[FoundSeries]) -> list[str]:
    """A rule under which every patient has one series, where that needs one."""
    counts = Counter(one.patient_id for one in series)
    several = sum(count > 1 for count in counts.values())
    if not several:
        return []
    chosen = _deciding(series)
    pairs = ", ".join(f"{key}: {_text(value)}" for key, value in chosen.model_dump().items() if value is not None)
    described = Counter((one.modality, one.description, one.kernel) for one in series)
    lines = [f"  # {several} of {len(counts)} patients have several usable series. Which one is meant? Found:"]
    for (modality, description, kernel), count in sorted(described.items()):
        lines.append(f"  #   {count} x {modality or '-'}, description '{description}', kernel '{kernel}'")
    lines += [
        "  # confirm, or narrow by modality, description, kernel (patterns) and rule:",
        "  # thinnest | most_slices | first_visit | all",
        f"  select: {{{pairs}}}",
    ]
    return lines


def _deciding(series: Sequence[FoundSeries]) -> Select:
    """The plainest selection that leaves one series to every patient; ``all`` if there is none."""
    everybody = {one.patient_id for one in series}
    words = [
        None,
        *(word for word, _ in sorted(Counter(one.description for one in series).items(), key=_frequent) if word),
    ]
    rules = (None, "most_slices", "thinnest", "first_visit")
    for word in words:
        for rule in rules:
            select = Select(description=None if word is None else f"^{_escaped(word)}$", rule=rule)
            try:
                chosen = select_series(series, select).chosen
            except InputError:
                continue
            if {one.patient_id for one in chosen} == everybody:
                return select
    return Select(rule="all")


def _escaped(word: str) -> str:
    """A pattern for a literal description that people can still read."""
    return re.sub(r"([^\w\s-])", r"\\\1", word)


def _frequent(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]


def _index_section(index: FoundIndex) -> str:
    return (
        f"images: {{layout: slices, index: {_text(index.path)}, unit: display}}"
        "        # unit: display (grey 0-255) | HU | raw: confirm\n"
        f"index: {{patient: {_text(index.patient)}, order: {_text(index.order)}, "
        f"file: {_text(index.file)}}}\n"
    )


def _draft_table(path: Path) -> _Table:
    raw = read_table(path)
    patient = guess_patient_column(raw)
    if patient is None:
        raise InputError(
            "no column looks like a patient id.",
            where=str(path),
            consequence="Nothing was written.",
            fix="give every row a patient id, in a column of its own.",
        )
    return _Table(raw, patient, draft_columns(raw, patient))


def _table_section(table: _Table, path: Path, root: Path) -> str:
    sheet = f", sheet: {_text(table.raw.sheet)}" if table.raw.sheet else ""
    lines = [
        "tables:",
        f"  clinical: {{path: {_text(_relative(path, root))}, patient_id: {_text(table.patient_id)}{sheet}, "
        'missing: [""]}',
        COLUMNS_HEAD,
    ]
    for one in table.columns:
        spec = one.spec.model_dump(exclude_defaults=True)
        pairs = ", ".join(
            f"{key}: {value if key in ('role', 'type', 'known_at') else _text(value)}" for key, value in spec.items()
        )
        missing = f"{one.missing} of {len(table.raw.frame)} missing" if one.missing else ""
        comment = "; ".join(part for part in (missing, one.comment.replace("\n", " ")) if part)
        lines.append(f"  {_text(one.name)}: {{{pairs}}}" + (f"        # {comment}" if comment else ""))
    return "\n".join(lines) + "\n"


def _task_section(table: _Table | None) -> str:
    """Tasks in comments: what could be a label, for somebody to choose from."""
    if table is None:
        return ""
    candidates = []
    for one in table.columns:
        values = sorted({text.strip() for _, text in table.raw.cells(one.name) if text.strip()})
        if len(values) > 1 and one.spec.type in ("boolean", "category") and one.spec.role != "feature":
            candidates.append((one.spec.type != "boolean", one, values))
    candidates.sort(key=lambda candidate: candidate[0])
    lines = [
        "# Tasks: set role: label for the column that is to be predicted, and remove the # here. Without a",
        "# task there is pre-training and alignment, and no score.",
        "# tasks:",
    ]
    for at, (_, one, values) in enumerate(candidates[:MOST_TASKS]):
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", one.name).strip("_") or f"task_{at + 1}"
        positive = "" if one.spec.type == "boolean" else f", positive: {_text(values[:1])}"
        primary = ", primary: true" if at == 0 else ""
        label = _text("clinical." + one.name)
        lines.append(f"#   - {{name: {name}, label: {label}, predicted_at: scan{positive}{primary}}}")
    return "\n".join(lines) + "\n"


def _slice_task_section(index: FoundIndex) -> str:
    if not index.binary:
        return ""
    lines = ["# Slice labels of the index; they probe the encoder and never train it.", "# slice_tasks:"]
    for name in index.binary:
        task = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
        lines.append(f"#   - {{name: {task}_slice, label: {_text('index.' + name)}}}")
    return "\n".join(lines) + "\n"
