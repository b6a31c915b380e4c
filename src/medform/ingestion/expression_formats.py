"""Expression matrices as text: wide tables in both orientations, cBioPortal, UCSC Xena, GCT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medform.cohort.genes_spec import GeneFormat, GeneIdKind, GenesSpec, Orientation
from medform.errors import InputError, Problem, nearest
from medform.ingestion.barcodes import parse_barcode
from medform.ingestion.expression_join import Sample
from medform.ingestion.expression_matrix import GrowingRows, Matrix
from medform.ingestion.expression_text import IGNORED, TEXT, Faults, TextMatrix, first_lines, read_head, split_line
from medform.ingestion.row_numbers import are_row_numbers, listed, other_id_columns

__all__ = ["Wanted", "read_text_matrix", "recognise"]

Wanted = Callable[[Sample], bool]
HUGO, ENTREZ = "hugo_symbol", "entrez_gene_id"
CBIOPORTAL_TEXTS = (HUGO, ENTREZ, "cytoband", "composite.element.ref", "gene_symbol", "locus_id")
LOOKED_AT = 200
"""Rows whose ids are compared with the patients' to see which way a matrix lies."""


@dataclass(frozen=True)
class _Layout:
    """How a text file is laid out.

    ``ids`` are the fields that may name a row, the first that is filled counts; ``values`` the fields with numbers.
    ``guessed``: the orientation follows from ids alone. ``other_ids``: fields that may hold the patients' ids instead.
    """

    format: GeneFormat
    orientation: Orientation
    names: tuple[str, ...]
    separator: str
    skip: int
    ids: tuple[int, ...]
    values: tuple[int, ...]
    rows: int | None = None
    guessed: bool = False
    other_ids: tuple[int, ...] = ()


def recognise(path: Path, spec: GenesSpec) -> GeneFormat:
    """The declared format, or the one that the path and its first line show."""
    if spec.format != "auto":
        return spec.format
    if path.is_dir():
        return "gdc"
    with path.open("rb") as file:
        if file.read(4) == b"\x89HDF":
            return "h5ad"
    first = first_lines(path, 1)
    if first and first[0].startswith(("#1.2", "#1.3")):
        return "gct"
    names = {_plain(name) for name in split_line(first[0])[0][:3]} if first else set()
    return "cbioportal" if names & {HUGO, ENTREZ} else "wide"


def read_text_matrix(path: Path, spec: GenesSpec, format: GeneFormat, wanted: Wanted) -> Matrix:
    """Read the samples that are ``wanted``; ids of all the others are kept for the report.

    Raises `InputError` where there is no table, or where it lacks the columns of its format; faults of cells, rows
    and names are in ``problems``, as are ids that may be row numbers and an orientation that nothing decides.
    """
    layout = _layout(path, spec, format, wanted)
    problems = _name_problems(layout, path.name)
    roles = np.full(len(layout.names), IGNORED, np.int64)
    for number, place in enumerate(layout.ids):
        roles[place] = TEXT - number
    turned = layout.orientation == "genes_in_rows"
    header: list[Sample] = []
    if turned:
        header = [Sample(layout.names[place], place=f"column {place + 1}") for place in layout.values]
    taken = tuple(number for number, one in enumerate(header) if wanted(one))
    used = [layout.values[number] for number in taken] if turned else layout.values
    roles[list(used)] = np.arange(len(used))
    source = TextMatrix(path, layout.separator, layout.names, roles, layout.skip, tuple(spec.missing), spec.decimal)
    faults = Faults(path.name, layout.names)
    if turned:
        matrix = _genes_in_rows(source, faults, layout, spec, header, taken)
    else:
        matrix = _patients_in_rows(source, faults, layout, wanted)
    if not faults.rows:
        raise InputError("the matrix has a header but no row.", where=str(path), fix="give the whole table.")
    problems += faults.problems()
    problems += _either_way(matrix, wanted) if layout.guessed else []
    if layout.rows is not None and layout.rows != faults.rows:
        text = f"the second line says {layout.rows} rows; there are {faults.rows}."
        problems.append(Problem(text, file=path.name, row=2, suggestion="Copy the file again: it may be cut short."))
    return replace(matrix, problems=tuple(problems))


def _genes_in_rows(
    source: TextMatrix,
    faults: Faults,
    layout: _Layout,
    spec: GenesSpec,
    samples: Sequence[Sample],
    taken: tuple[int, ...],
) -> Matrix:
    genes: list[str] = []
    places: list[int] = []
    values, ignored = GrowingRows(len(taken)), set(spec.ignore)
    for block in source.blocks(faults):
        ids = [next(filter(None, texts), "") for texts in zip(*block.texts, strict=True)]
        kept = [row for row, one in enumerate(ids) if one not in ignored]
        genes += [ids[row] for row in kept]
        places += block.lines[kept].tolist()
        values.append(block.values if len(kept) == len(ids) else block.values[kept])
    names = (layout.format, layout.orientation)
    return Matrix(faults.file, *names, tuple(samples), taken, tuple(genes), tuple(places), values.taken().T)


def _patients_in_rows(source: TextMatrix, faults: Faults, layout: _Layout, wanted: Wanted) -> Matrix:
    samples: list[Sample] = []
    taken: list[int] = []
    values = GrowingRows(len(layout.values))
    for block in source.blocks(faults):
        ids = block.texts[0]
        mine = [Sample(one, place=f"row {line}") for one, line in zip(ids, block.lines.tolist(), strict=True)]
        kept = [row for row, one in enumerate(mine) if wanted(one)]
        taken += [len(samples) + row for row in kept]
        samples += mine
        values.append(block.values if len(kept) == len(ids) else block.values[kept])
    genes = tuple(layout.names[place] for place in layout.values)
    places = tuple(place + 1 for place in layout.values)
    return Matrix(
        faults.file, layout.format, layout.orientation, tuple(samples), tuple(taken), genes, places, values.taken()
    )


def _layout(path: Path, spec: GenesSpec, format: GeneFormat, wanted: Wanted) -> _Layout:
    if format == "gct":
        return _gct_layout(path, spec.id_kind)
    head = read_head(path, LOOKED_AT)
    names = head.names
    if len(names) < 2:
        raise InputError(
            "the header is a single field.",
            where=str(path),
            fix="separate the columns by tab, comma or semicolon.",
        )
    layout = _Layout(format, "genes_in_rows", names, head.separator, head.skip, (), ())
    if format == "cbioportal":
        return _cbioportal_layout(layout, spec.id_kind, path)
    if format == "xena":
        return _wide_layout(layout, spec, path)
    guessed = spec.orientation == "auto" and spec.patient_id is None
    orientation: Orientation = "patients_in_rows" if spec.orientation == "auto" else spec.orientation
    if guessed:
        orientation = _orientation(names[1:], head.ids, wanted)
    layout = _wide_layout(replace(layout, orientation=orientation, guessed=guessed), spec, path)
    if orientation == "genes_in_rows" or spec.patient_id is not None:
        return layout
    others = other_id_columns(path, head, spec, lambda one: wanted(Sample(one)))
    return replace(layout, other_ids=others, values=tuple(one for one in layout.values if one not in others))


def _orientation(across: Sequence[str], down: Sequence[str], wanted: Wanted) -> Orientation:
    """Which way a wide matrix seems to lie: where most of the patients' ids, else of TCGA barcodes are.

    A header is seen whole, rows only in part; so a matrix without any of them in its header has patients in rows. One
    with patients' ids both ways is refused when all its rows were read (`_either_way`).
    """
    for test in (lambda one: wanted(Sample(one)), lambda one: parse_barcode(one) is not None):
        in_header, in_rows = sum(map(test, across)), sum(map(test, down))
        if in_header or in_rows:
            return "genes_in_rows" if in_header > in_rows else "patients_in_rows"
    return "patients_in_rows"


def _either_way(matrix: Matrix, wanted: Wanted) -> list[Problem]:
    """Patients' ids in the header and in the rows: Entrez ids look like patients who are numbered."""
    genes = sum(wanted(Sample(one)) for one in matrix.gene_ids)
    if not genes or not matrix.taken:
        return []
    turned = matrix.orientation == "genes_in_rows"
    across, down = (len(matrix.taken), genes) if turned else (genes, len(matrix.taken))
    text = f"the matrix may lie either way: {across} names of its header and {down} ids of its rows are patients'."
    hint = "Set genes.orientation: patients_in_rows or genes_in_rows."
    return [Problem(text, file=matrix.file, column="genes.orientation", suggestion=hint)]


def _wide_layout(layout: _Layout, spec: GenesSpec, path: Path) -> _Layout:
    names = layout.names
    if layout.orientation == "genes_in_rows":
        return replace(layout, ids=(0,), values=tuple(range(1, len(names))))
    wanted = spec.patient_id
    if wanted is not None and wanted not in names:
        close = nearest(wanted, list(names))
        hint = f"did you mean '{close[0]}'?" if close else f"columns there: {', '.join(names[:8])} ..."
        raise InputError(f"no column '{wanted}' (genes.patient_id).", where=str(path), fix=hint)
    patient = 0 if wanted is None else names.index(wanted)
    values = [
        place
        for place, name in enumerate(names)
        if place != patient and not are_row_numbers(place, name) and name not in spec.ignore
    ]
    return replace(layout, ids=(patient,), values=tuple(values))


def _cbioportal_layout(layout: _Layout, kind: GeneIdKind, path: Path) -> _Layout:
    plain = [_plain(name) for name in layout.names]
    order = (ENTREZ, HUGO) if kind == "entrez" else (HUGO, ENTREZ)
    ids = tuple(plain.index(name) for name in order if name in plain)
    if not ids or kind == "ensembl":
        raise InputError(
            "a cBioPortal matrix names genes in the columns Hugo_Symbol and Entrez_Gene_Id.",
            where=str(path),
            fix="set genes.id_kind to symbol or entrez, or genes.format: wide.",
        )
    return replace(layout, ids=ids, values=tuple(at for at, name in enumerate(plain) if name not in CBIOPORTAL_TEXTS))


def _gct_layout(path: Path, kind: GeneIdKind) -> _Layout:
    lines = first_lines(path, 4)
    if len(lines) < 4 or not lines[0].startswith(("#1.2", "#1.3")):
        raise InputError("not a GCT file of version 1.2 or 1.3.", where=str(path), fix="set genes.format.")
    counts = [int(text) if text.isdecimal() else -1 for text in split_line(lines[1], "\t")[0]]
    new = lines[0].startswith("#1.3")
    names, _ = split_line(lines[2], "\t")
    about_rows, about_columns = (counts[2], counts[3]) if new and len(counts) >= 4 else (1, 0)
    first = 1 + about_rows
    if min([*counts[:4], 0]) < 0 or len(counts) < (4 if new else 2) or len(names) != first + counts[1]:
        raise InputError(
            f"the second line says {counts[1] if len(counts) > 1 else '?'} samples; the header names "
            f"{len(names) - first}.",
            where=f"{path}:2",
            fix="copy the file again, or mend its second line.",
        )
    sample_row, _ = split_line(lines[3], "\t")
    described = kind == "symbol" and not new and sample_row[0].startswith("ENSG")
    ids = (1, 0) if described else (0,)  # GTEx and others keep the symbol in Description
    values = tuple(range(first, len(names)))
    return _Layout("gct", "genes_in_rows", tuple(names), "\t", 3 + about_columns, ids, values, counts[0])


def _name_problems(layout: _Layout, file: str) -> list[Problem]:
    """Value columns without a name, and (patients in rows) ids that may be row numbers, or no gene at all."""
    problems = [
        Problem(f"column {place + 1} has no name.", file=file, row=layout.skip, suggestion="Name or remove it.")
        for place in layout.values
        if not layout.names[place]
    ]
    if layout.other_ids:
        others = [layout.names[place] for place in layout.other_ids]
        text = f"the first column may only number the rows: the patients' ids may stand in {listed(others)}."
        hint = (
            f"Set genes.patient_id: {others[0]}; if the first column does hold the ids, "
            f'genes.patient_id: "{layout.names[0]}", which is its name.'
        )
        problems.append(Problem(text, file=file, row=layout.skip, column="genes.patient_id", suggestion=hint))
    elif not layout.values:
        problems.append(Problem("there is no column of values.", file=file, row=layout.skip))
    return problems


def _plain(name: str) -> str:
    return "_".join(name.strip().casefold().split())
