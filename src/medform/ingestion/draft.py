"""The text of a drafted cohort file: what was found, what was guessed, and the keys that a person must fill in."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from medform.cohort.cohort_file import Select, Unit
from medform.errors import InputError
from medform.ingestion.cells import trimmed
from medform.ingestion.find_genes import find_genes, genes_section
from medform.ingestion.find_index import FoundIndex, find_index
from medform.ingestion.found_series import FoundSeries
from medform.ingestion.plan import Plan, ReadSettings, plan_folder
from medform.ingestion.select import select_series
from medform.ingestion.table_drafts import DraftColumn, draft_columns, guess_patient_column
from medform.ingestion.tables import RawTable, read_table
from medform.ingestion.units import unit_by_range
from medform.ingestion.workers import Progress, silent

__all__ = ["draft_cohort_file", "refuse_place_without_table"]

MOST_TASKS = 8
T = TypeVar("T", str, tuple[str, ...])


@dataclass(frozen=True)
class _Table:
    raw: RawTable
    patient_id: str
    columns: list[DraftColumn]


def draft_cohort_file(
    path: Path,
    table: Path | None,
    beside: Path,
    progress: Progress | None = None,
    *,
    sheet: str | None = None,
    header_row: int = 1,
) -> str:
    """YAML text for the images under ``path`` and a clinical ``table``, to be stored in the folder ``beside``.

    ``sheet`` and ``header_row`` (from 1) say where in its file the table is. Raises `InputError` where there is no
    usable image or no table in the file, and with every fault of the table's shape.
    """
    refuse_place_without_table(table, sheet, header_row)
    drafted = None if table is None else _draft_table(table, sheet, header_row)
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
    images, undecided = (_index_section(index), False) if index else _images_section(plan, usable, root)
    todo = ["images.select"] if undecided else []
    todo += [f"the cells of column {one.name!r}" for one in (drafted.columns if drafted else []) if one.stops]
    sections = [
        _head(root, beside, plan, todo),
        images,
        _table_section(drafted, table, root) if drafted and table else NO_TABLE,
        _task_section(drafted),
        _slice_task_section(index) if index else "",
        genes_section(_relative(plan.root / genes, root)) if genes else "",
        SPLITS,
    ]
    return "\n".join(section for section in sections if section)


def refuse_place_without_table(table: Path | str | None, sheet: str | None, header_row: int) -> None:
    """Raise `InputError` where a sheet or a header row is named and no table is given, which would be ignored."""
    if table is None and (sheet is not None or header_row != 1):
        raise InputError("--sheet and --header-row say where a table is.", fix="give the table with --table.")


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


def _head(root: Path, beside: Path, plan: Plan, todo: Sequence[str]) -> str:
    """``todo``: what a person must decide before the draft runs."""
    counts = plan.counts
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", root.name).strip("._-") or "cohort"
    runs = f"does not run before you decide on {', '.join(todo)} (see below)" if todo else "runs as it is"
    lines = [
        f"# Drafted by `medform init` from {counts['found']} files ({counts['image']} images, "
        f"{counts['other']} others, {counts['unreadable']} unreadable).",
        f"# It {runs}. Fill in: licence, the columns' roles and known_at, tasks.",
        f"name: {name}",
        'licence: "not stated"        # of the images; the weights inherit it',
    ]
    if root != beside:
        lines.append(f"root: {_text(_relative(root, beside))}        # all paths below are relative to it")
    return "\n".join(lines) + "\n"


def _images_section(plan: Plan, usable: Sequence[FoundSeries], root: Path) -> tuple[str, bool]:
    """The lines of ``images``, and whether its ``select`` waits for a person."""
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
    selected, undecided = _select_lines(kept)
    return "\n".join([*lines, *selected]) + "\n", undecided


def _reasons(series: FoundSeries) -> list[str]:
    return [finding.code for finding in series.findings if finding.effect == "quarantine"]


def _select_lines(series: Sequence[FoundSeries]) -> tuple[list[str], bool]:
    """Lines on which series is meant, where a patient has several, and whether a person must decide it first."""
    mine: dict[str, list[FoundSeries]] = defaultdict(list)
    for one in series:
        mine[one.patient_id].append(one)
    several = [some for some in mine.values() if len(some) > 1]
    if not several:
        return [], False
    kinds = sum(len({_kind(one) for one in some}) > 1 for some in several)
    visits = sum(len({one.date for one in some if one.date}) > 1 for some in several)
    lines = [
        f"  # {len(several)} of {len(mine)} patients have several usable series: {kinds} have more than one kind, "
        f"{visits} more than one visit.",
        "  # Which one is meant? Found:",
    ]
    for (modality, description, kernel), count in sorted(Counter(map(_kind, series)).items()):
        lines.append(f"  #   {count} x {modality or '-'}, description '{description}', kernel '{kernel}'")
    lines += [
        "  # confirm, or narrow by modality, description, kernel (patterns) and rule:",
        "  # thinnest | most_slices | first_visit | all",
    ]
    if (chosen := _deciding(series)) is None:
        lines += [
            "  # No kind of series, alone or at the first visit, leaves one to every patient. Decide, and remove the",
            "  # '# '; until then ingest stops and shows the candidates of each patient.",
            f"  # select: {{modality: {_text(_frequent(one.modality for one in series)[0])}, rule: first_visit}}",
        ]
        return lines, True
    pairs = ", ".join(f"{key}: {_text(value)}" for key, value in chosen.model_dump().items() if value is not None)
    return [*lines, f"  select: {{{pairs}}}"], False


def _kind(series: FoundSeries) -> tuple[str, str, str]:
    return series.modality, series.description, series.kernel


def _deciding(series: Sequence[FoundSeries]) -> Select | None:
    """The plainest selection that leaves every patient one series for a reason; None if there is none.

    A kind of series decides alone, or at the first visit. `most_slices` and `thinnest` only choose among series of
    one kind and one day: elsewhere the longest is a follow-up scan in one patient and another phase in the next.
    """
    everybody = {one.patient_id for one in series}
    for select in _filters(series):
        try:
            chosen = select_series(series, select).chosen
        except InputError:
            continue
        if {one.patient_id for one in chosen} != everybody:
            continue
        if select.rule in ("most_slices", "thinnest") and not _alike(series, select):
            continue
        return _plainest(series, select)
    return None


def _filters(series: Sequence[FoundSeries]) -> Iterator[Select]:
    """Selections worth a try, the most telling first; only those whose series reach every patient."""
    everybody = {one.patient_id for one in series}
    filters: dict[str, list[Select]] = {}
    for keys in ("mdk", "md", "mk", "m"):
        reached: dict[tuple[str, ...], set[str]] = defaultdict(set)  # patterns do not regard case
        for one in series:
            reached[_folded(_kept(one, keys))].add(one.patient_id)
        kinds = _frequent(_kept(one, keys) for one in series)
        filters[keys] = [_pattern(kind, keys) for kind in kinds if reached[_folded(kind)] == everybody]
    for rule in (None, "first_visit", "most_slices", "thinnest"):
        for keys, some in filters.items():
            if rule is None or "d" in keys:  # without the description, a rule would choose among phases
                yield from (one.model_copy(update={"rule": rule}) for one in some)


def _kept(series: FoundSeries, keys: str) -> tuple[str, ...]:
    """The kind of a series with what ``keys`` (of "mdk") leaves out set to ''."""
    return tuple(text if key in keys else "" for key, text in zip("mdk", _kind(series), strict=True))


def _folded(kind: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.casefold() for text in kind)


def _pattern(kind: tuple[str, ...], keys: str) -> Select:
    modality, description, kernel = kind
    return Select(
        modality=modality or None,
        description=f"^{_escaped(description)}$" if "d" in keys else None,
        kernel=f"^{_escaped(kernel)}$" if "k" in keys else None,
    )


def _alike(series: Sequence[FoundSeries], select: Select) -> bool:
    """Whether all that a patient has of what is selected is of one described kind and one known day."""
    wanted = select_series(series, select.model_copy(update={"rule": "all"})).chosen
    seen: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for one in wanted:
        seen[one.patient_id].add((*_kind(one), one.date))
    return all(one.description and one.date for one in wanted) and all(len(some) == 1 for some in seen.values())


def _plainest(series: Sequence[FoundSeries], select: Select) -> Select:
    """The selection without the filters that change nothing."""
    chosen = select_series(series, select).chosen
    for key in ("kernel", "modality", "description"):
        shorter = select.model_copy(update={key: None})
        try:
            if select_series(series, shorter).chosen == chosen:
                select = shorter
        except InputError:
            continue
    return select


def _escaped(word: str) -> str:
    """A pattern for a literal description that people can still read."""
    return re.sub(r"([^\w\s-])", r"\\\1", word)


def _frequent(values: Iterable[T]) -> list[T]:
    """Distinct values, the most frequent first, equally frequent ones in their order."""
    counts = Counter(values)
    return sorted(counts, key=lambda one: (-counts[one], one))


def _index_section(index: FoundIndex) -> str:
    return (
        f"images: {{layout: slices, index: {_text(index.path)}, unit: display}}"
        "        # unit: display (grey 0-255) | HU | raw: confirm\n"
        f"index: {{patient: {_text(index.patient)}, order: {_text(index.order)}, "
        f"file: {_text(index.file)}}}\n"
    )


def _draft_table(path: Path, sheet: str | None, header_row: int) -> _Table:
    raw = read_table(path, sheet, header_row=header_row)
    if raw.problems:  # every key of the draft would stand for columns that ingest refuses
        raise InputError(
            f"{len(raw.problems)} problem{'s' if len(raw.problems) > 1 else ''} with the shape of the table.",
            where=str(path),
            consequence="Nothing was written.",
            fix="mend the table, or say where it begins with --sheet and --header-row.",
            problems=raw.problems,
        )
    patient = guess_patient_column(raw)
    if patient is None:
        raise InputError(
            "no column looks like a patient id.",
            where=str(path),
            consequence="Nothing was written.",
            fix="give every row a patient id, in a column of its own; if the names stand further down, --header-row.",
        )
    return _Table(raw, patient, draft_columns(raw, patient))


def _table_section(table: _Table, path: Path, root: Path) -> str:
    sheet = f", sheet: {_text(table.raw.sheet)}" if table.raw.sheet else ""
    sheet += f", header_row: {table.raw.header_row}" if table.raw.header_row > 1 else ""
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
        present = {trimmed(text) for _, text in table.raw.cells(one.name)}
        values = sorted(present - {"", *one.spec.missing})
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
        positive, confirm = "", ""
        if one.spec.type != "boolean":
            positive = f", positive: {_text(values[:1])}"
            confirm = "        # confirm: which value counts as 1?"
        primary = ", primary: true" if at == 0 else ""
        label = _text("clinical." + one.name)
        lines.append(f"#   - {{name: {name}, label: {label}, predicted_at: scan{positive}{primary}}}{confirm}")
    return "\n".join(lines) + "\n"


def _slice_task_section(index: FoundIndex) -> str:
    if not index.binary:
        return ""
    lines = ["# Slice labels of the index; they probe the encoder and never train it.", "# slice_tasks:"]
    for name in index.binary:
        task = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
        lines.append(f"#   - {{name: {task}_slice, label: {_text('index.' + name)}}}")
    return "\n".join(lines) + "\n"
