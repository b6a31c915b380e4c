"""A table of expression for a trained model: genes in columns, a row a patient, with a column of ids or without."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medform.cohort.genes import Genes
from medform.cohort.genes_spec import GenesSpec
from medform.errors import InputError, Problem
from medform.ingestion.expression_checks import check_scale
from medform.ingestion.expression_join import Sample
from medform.ingestion.expression_matrix import Matrix
from medform.ingestion.expression_text import IGNORED, TEXT, Faults, Head, TextMatrix, read_head
from medform.ingestion.gene_ids import VERSION, name_genes
from medform.ingestion.row_numbers import are_row_numbers, listed, other_id_columns

__all__ = ["GeneRows", "read_gene_rows"]

LOOKED_AT = 2000
"""Rows whose ids are compared with the model's genes to see whether the table lies the other way."""
FEWEST_JUDGED = 20
"""Values below which nothing is said of their scale: few z-scores may all be positive."""
SHOWN = 3
REPORT = re.compile(r" \(see genes_join\.csv\)")
DECLARED = re.compile(r"\(genes\.scale: \w+\)")
"""What notes on a cohort's expression speak of, and a table for a model has not."""


@dataclass(frozen=True, eq=False)
class GeneRows:
    """Expression as it was given.

    ``named``: the table says whose each row is; else its rows are only numbered. ``problems`` are to be mended,
    ``notes`` to be known: values that are odd for their scale.
    """

    genes: Genes
    named: bool
    problems: tuple[Problem, ...] = field(default=())
    notes: tuple[str, ...] = ()


def read_gene_rows(path: Path, known: Collection[str], spec: GenesSpec, patients: Collection[str] = ()) -> GeneRows:
    """Read CSV or TSV, plain or gz.

    ``known``: the genes of the model's training; ``spec``: the scale they are in, how ids, missing values and decimals
    are written; ``patients``: those whose rows are looked for. The patients' ids stand in the column that had them in
    training (``spec.patient_id``), where there is one of that name, else in a first column whose head is none of
    ``known``. What is wrong stands in ``problems``: text in cells, ragged rows, genes or patients that stand twice,
    values that contradict the scale, a table that lies the other way, no gene of the model, row numbers in the place
    of ids. Raises `InputError` where there is no table.
    """
    head = read_head(path, LOOKED_AT)
    names = head.names
    genes = set(known)
    ids_at = _ids_at(names, genes, spec)
    named = ids_at is not None
    if strange := _not_a_table(path, names, head, genes, spec):
        return GeneRows(Genes((), (), np.zeros((0, 0), np.float32), spec.scale), named, (strange,))
    guessed = ids_at == 0 and names[0] != spec.patient_id
    others = _other_ids(path, head, genes, spec, patients) if guessed else ()
    columns = [
        place
        for place, name in enumerate(names)
        if place not in (ids_at, *others) and name not in spec.ignore and not are_row_numbers(place, name)
    ]
    roles = np.full(len(names), IGNORED, np.int64)
    roles[columns] = np.arange(len(columns))
    if ids_at is not None:
        roles[ids_at] = TEXT
    source = TextMatrix(path, head.separator, names, roles, head.skip, tuple(spec.missing), spec.decimal)
    faults = Faults(path.name, names)
    ids: list[str] = []
    lines: list[int] = []
    parts = []
    for block in source.blocks(faults):
        lines += block.lines.tolist()
        ids += block.texts[0] if named else [f"row {line}" for line in block.lines.tolist()]
        parts.append(block.values)
    if not ids:
        raise InputError("the table has a header but no row.", where=str(path), fix="give a row of expression.")
    found = _genes(path, tuple(ids), [names[place] for place in columns], columns, np.concatenate(parts), spec)
    numbered = [_numbered(path, head, others)] if others else []
    problems = (*numbered, *faults.problems(), *_twice(path, ids, lines, named=named), *found.problems)
    return replace(found, named=named, problems=problems)


def _ids_at(names: Sequence[str], known: set[str], spec: GenesSpec) -> int | None:
    """Place of the column with the patients' ids; None where rows have none."""
    if spec.patient_id and spec.patient_id in names:
        return names.index(spec.patient_id)
    return None if _plain(names[0], spec) in known else 0


def _other_ids(path: Path, head: Head, known: set[str], spec: GenesSpec, patients: Collection[str]) -> tuple[int, ...]:
    """Columns that may hold the ids of ``patients`` where the first may only number the rows."""
    if len(patients) == 1 and len(head.ids) == 1:
        return ()  # whose the row is does not depend on its id
    genes = [one for one in head.names if _plain(one, spec) in known]
    return other_id_columns(path, head, spec, set(patients).__contains__, genes)


def _numbered(path: Path, head: Head, others: Sequence[int]) -> Problem:
    names = listed([head.names[place] for place in others])
    text = f"the first column may only number the rows: the patients' ids may stand in {names}."
    hint = "Remove the column of row numbers; or, if it holds the ids, name it (patient_id)."
    return Problem(text, file=path.name, row=head.skip, suggestion=hint)


def _genes(
    path: Path, ids: tuple[str, ...], names: Sequence[str], columns: Sequence[int], values: NDArray[np.float32],
    spec: GenesSpec,
) -> GeneRows:  # fmt: skip
    """Genes under the names that are stored, what is wrong with names and values, and what is odd about these."""
    samples = tuple(Sample(one) for one in ids)
    places = tuple(place + 1 for place in columns)
    taken = tuple(range(len(ids)))
    matrix = Matrix(path.name, "wide", "patients_in_rows", samples, taken, tuple(names), places, values)
    named = name_genes(matrix, spec)
    values = values[:, named.kept]
    problems = [replace(one, suggestion=None) for one in named.problems]
    notes: list[str] = []
    if np.isfinite(values).sum() >= FEWEST_JUDGED:
        numbers = check_scale(values, spec, ids, named.ids, path.name)
        problems += [
            replace(one, column=None if one.column == "genes.scale" else one.column, suggestion=None)
            for one in numbers.problems
        ]
        notes += [DECLARED.sub(f"(the model takes {spec.scale})", REPORT.sub("", one)) for one in numbers.notes]
    genes = Genes(ids, named.ids, values, spec.scale)
    return GeneRows(genes, named=True, problems=tuple(problems), notes=tuple(notes))


def _not_a_table(path: Path, names: Sequence[str], head: Head, known: set[str], spec: GenesSpec) -> Problem | None:
    """No gene of the model in the header: the table lies the other way, or its genes are others."""
    if known & {_plain(one, spec) for one in names}:
        return None
    if down := known & {_plain(one, spec) for one in head.ids}:
        text = f"the table lies the other way: {len(down)} genes of the model stand in its first column."
        return Problem(text, file=path.name, suggestion="Give genes as columns and a row a patient.")
    ours, theirs = (", ".join(list(ids)[:SHOWN]) for ids in (sorted(known), names))
    text = f"no gene of the model is in the header (the model has {ours} ...; the header {theirs} ...)."
    return Problem(text, file=path.name, suggestion="Name genes as in training (symbols, Ensembl or Entrez ids).")


def _plain(gene: str, spec: GenesSpec) -> str:
    """The name under which a gene is stored."""
    return VERSION.sub(r"\1", gene) if spec.id_kind == "ensembl" else gene


def _twice(path: Path, ids: Sequence[str], lines: Sequence[int], *, named: bool) -> list[Problem]:
    """Patients that stand twice, or have no id."""
    first: dict[str, int] = {}
    found = []
    for one, line in zip(ids, lines, strict=True):
        if named and not one:
            found.append(Problem("a row without an id.", file=path.name, row=line))
        elif one in first:
            text = f"this patient stands in row {first[one]} as well."
            found.append(Problem(text, file=path.name, row=line, value=one))
        first.setdefault(one, line)
    return found
