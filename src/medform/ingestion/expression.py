"""Gene expression in: from the file or folder that the cohort file names to one float32 matrix of its patients."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medform.cohort.cohort_file import CohortFile
from medform.cohort.files import file_sha256
from medform.cohort.genes import GenesRecord, JoinRow
from medform.cohort.genes_spec import GenesSpec
from medform.errors import InputError, Problem
from medform.ingestion.expression_checks import NO_VALUE, Numbers, check_scale, uninformative
from medform.ingestion.expression_formats import read_text_matrix, recognise
from medform.ingestion.expression_gdc import read_gdc
from medform.ingestion.expression_h5ad import read_h5ad
from medform.ingestion.expression_join import Joined, Sample, SampleMatcher, sample_counts
from medform.ingestion.expression_matrix import Matrix
from medform.ingestion.gene_ids import GeneNames, merge_duplicates, name_genes
from medform.ingestion.identifiers import read_id_map
from medform.ingestion.sample_sheet import SheetRow, read_sheet

__all__ = ["Expression", "expression_digest", "read_expression"]

SHOWN = 5
STAR = "star_gene_counts"
"""In the names of the files meant; a sheet of a whole download lists others beside them."""


@dataclass(frozen=True, eq=False)
class Expression:
    """What is stored, what a person should know of it, and the counts for the cohort's flow."""

    record: GenesRecord
    notes: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    def only(self, known: Collection[str]) -> Expression:
        """Without the patients that turned out not to be in the store; the counts say how many are left."""
        why = "its patient's images could not be used, and the table has no row."
        rows = [
            row if row.patient_id in known or not row.patient_id else replace(row, status="orphan", reason=why)
            for row in self.record.join
        ]
        left = sum(one in known for one in self.record.patient_ids)
        counts = {**self.counts, **sample_counts(rows), "patients_with_genes": left}
        return replace(self, record=replace(self.record, join=tuple(rows)), counts=counts)


def expression_digest(file: CohortFile) -> str:
    """SHA-256 of what the expression follows from; empty where the cohort file names no genes.

    That is the bytes of its file, or those of GDC's many with their names.
    """
    spec = file.genes
    if spec is None:
        return ""
    path = file.path(spec.path)
    if path.is_dir():
        named = {row.file for row in _sheet(file, spec, files=True)}
        files = [one for one in path.rglob("*") if one.name in named]
        parts = [f"{one.relative_to(path).as_posix()} {file_sha256(one)}" for one in sorted(files)]
    else:
        parts = [file_sha256(path)]
    parts += [file_sha256(file.path(one)) for one in (spec.samples, spec.id_map) if one is not None]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_expression(file: CohortFile, known: Collection[str]) -> Expression:
    """Read, join and check the expression of the patients ``known`` (with images or a row of the table).

    The stored values are those of the file; genes without any value are dropped and listed, doubled genes are merged
    only by a declared rule. A gene that is the same in all these patients is kept and listed: it need not be so in
    others, and a model of theirs may read it. Raises `InputError` with every fault at once: no sample of a known
    patient, a matrix that lies the other way, text in cells, ragged rows, doubled genes or samples, values that
    contradict the declared scale, counts that lack too many reads.
    """
    spec = file.genes
    assert spec is not None
    path = file.path(spec.path)
    format = recognise(path, spec)
    sheet = _sheet(file, spec, files=format == "gdc")
    by_sample = {row.sample_id: row for row in sheet} if spec.samples and format != "gdc" else None
    id_map = read_id_map(file.path(spec.id_map)) if spec.id_map else None
    matcher = SampleMatcher(known, spec, by_sample, id_map)
    if format == "gdc":
        matrix = read_gdc(path, spec, sheet, matcher.wanted)
    elif format == "h5ad":
        matrix = read_h5ad(path, spec, matcher.wanted)
    else:
        matrix = read_text_matrix(path, spec, format, matcher.wanted)
    joined = matcher.join(matrix.samples)
    names = name_genes(matrix, spec)
    patients, values = _patients(matrix, joined, names)
    numbers = check_scale(values, spec, patients, names.ids, matrix.file)
    strangers = _strangers(matrix, matcher, names) if not joined.sample_of else []
    problems = [*strangers, *matrix.problems, *joined.problems, *names.problems, *numbers.problems]
    if problems:
        raise InputError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} with the gene expression.",
            where=str(path),
            consequence="Nothing was written.",
            problems=problems,
        )
    return _expression(spec, matrix, joined, names, numbers, patients, values)


def _sheet(file: CohortFile, spec: GenesSpec, *, files: bool) -> list[SheetRow]:
    if spec.samples is None:
        if files:
            raise InputError(
                "this is a folder; GDC files are named by UUIDs.",
                where=str(file.path(spec.path)),
                fix="set genes.samples to the sample sheet of the download, or genes.path to one file.",
            )
        return []
    rows = read_sheet(file.path(spec.samples), files=files)
    star = [row for row in rows if STAR in row.file]
    return star if files and star else rows


def _patients(matrix: Matrix, joined: Joined, names: GeneNames) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Patients, sorted, and their values without the summary lines; copied only where something is left out."""
    row_of = {number: row for row, number in enumerate(matrix.taken)}
    patients = tuple(sorted(joined.sample_of, key=lambda one: row_of[joined.sample_of[one]]))
    rows = [row_of[joined.sample_of[one]] for one in patients]
    values = matrix.values
    if len(rows) < len(values):
        values = values[rows]
    if len(names.kept) < values.shape[1]:
        values = values[:, names.kept]
    return patients, values


def _strangers(matrix: Matrix, matcher: SampleMatcher, names: GeneNames) -> list[Problem]:
    """No sample is a patient's: is the matrix turned, or are the ids others?"""
    turned = [one for one in names.ids if matcher.wanted(Sample(one))]
    if turned:
        other = "genes_in_rows" if matrix.orientation == "patients_in_rows" else "patients_in_rows"
        text = f"the matrix lies the other way: its genes are read as patients' samples ({_listed(turned)})."
        hint = f"Set genes.orientation: {other}."
        return [Problem(text, file=matrix.file, column="genes.orientation", suggestion=hint)]
    samples = _listed([one.sample_id for one in matrix.samples])
    text = f"no sample is a patient's (samples: {samples}; patients: {_listed(sorted(matcher.known))})."
    hint = "Make the ids equal, or set genes.samples, genes.id_rules or genes.id_map."
    return [Problem(text, file=matrix.file, suggestion=hint)]


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:SHOWN])) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")


def _expression(
    spec: GenesSpec,
    matrix: Matrix,
    joined: Joined,
    names: GeneNames,
    numbers: Numbers,
    patients: tuple[str, ...],
    values: NDArray[np.float32],
) -> Expression:
    genes, merged_of = names.ids, {}
    if spec.duplicates != "refuse":
        genes, values, merged_of = merge_duplicates(names.ids, values, spec.duplicates)
    alike = uninformative(values)
    told = [{"gene": genes[column], "reason": reason} for column, reason in alike.items()]
    lost = [one for one in told if one["reason"] == NO_VALUE]
    constant = [one for one in told if one["reason"] != NO_VALUE]
    if lost:
        kept = [column for column in range(len(genes)) if alike.get(column) != NO_VALUE]
        genes, values = tuple(genes[column] for column in kept), values[:, kept]
    lost += [{"gene": one, "reason": "a summary line of the counter"} for one in names.summary]
    facts: dict[str, Any] = {
        "format": matrix.format,
        "orientation": matrix.orientation,
        "source": spec.path,
        "minimum": numbers.minimum,
        "maximum": numbers.maximum,
        "missing": numbers.missing,
        "beyond_10": numbers.beyond_10,
        "dropped": lost,
        "constant": constant,
        "merged": [{"gene": one, "copies": count, "rule": spec.duplicates} for one, count in merged_of.items()],
        "suspected_damage": list(names.damaged),
    }
    counts = {
        **sample_counts(joined.rows),
        "genes_kept": len(genes),
        "genes_dropped": len(lost),
    }
    record = GenesRecord(patients, genes, values, spec, facts, _told(joined.rows, numbers.unread))
    notes = _notes(spec, matrix, joined, names, numbers, facts, len(genes))
    return Expression(record, (*notes, *numbers.notes), counts)


def _told(rows: Sequence[JoinRow], unread: Mapping[str, float]) -> tuple[JoinRow, ...]:
    """The join report, which says of each patient (of ``unread``) what share of the reads is not known."""
    return tuple(
        replace(row, reason=f"{row.reason} Genes without a count: {unread[row.patient_id]:.2%} of the reads.")
        if row.status == "matched" and row.patient_id in unread
        else row
        for row in rows
    )


def _notes(
    spec: GenesSpec, matrix: Matrix, joined: Joined, names: GeneNames, numbers: Numbers, facts: Any, kept: int
) -> list[str]:
    """What a person should know; no note names a patient."""
    counts, without = sample_counts(joined.rows), sum(not row.sample_id for row in joined.rows)
    turned = matrix.orientation.replace("_", " ")
    notes = [
        f"genes: read as {matrix.format}, {turned}, {spec.scale}; {kept} genes of {len(joined.sample_of)} patients, "
        f"{without} patients without (see genes_join.csv).",
    ]
    if counts["genes_ambiguous"] or counts["genes_orphan"]:
        notes.append(
            f"genes: of {counts['genes_samples']} samples {counts['genes_ambiguous']} are second samples of a patient, "
            f"{counts['genes_orphan']} nobody's (see genes_join.csv)."
        )
    if facts["dropped"]:
        first = ", ".join(one["gene"] for one in facts["dropped"][:SHOWN])
        notes.append(f"genes: {len(facts['dropped'])} without information were dropped (first: {first}).")
    if facts["constant"]:
        first = ", ".join(one["gene"] for one in facts["constant"][:SHOWN])
        notes.append(f"genes: {len(facts['constant'])} are the same in all patients (first: {first}).")
    if facts["merged"]:
        notes.append(f"genes: {len(facts['merged'])} stood more than once and were merged by {spec.duplicates}.")
    if names.damaged:
        notes.append(
            f"genes: {len(names.damaged)} names may have been changed by a spreadsheet ({_listed(names.damaged)}); "
            "they are kept as they are."
        )
    if numbers.beyond_10 and spec.scale == "zscore" and spec.tails == "none":
        notes.append(
            f"genes: {numbers.beyond_10} values are beyond 10 standard deviations (to {numbers.maximum:g}); "
            "genes.tails says what the inputs do about them."
        )
    return notes
