"""A folder of GDC STAR-count files and its sample sheet: one file a sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medform.cohort.genes_spec import GenesSpec
from medform.errors import InputError, Problem
from medform.ingestion.expression_formats import Wanted
from medform.ingestion.expression_join import Sample
from medform.ingestion.expression_matrix import Matrix
from medform.ingestion.expression_text import IGNORED, TEXT, Faults, TextMatrix, first_lines, split_line
from medform.ingestion.sample_sheet import SheetRow

__all__ = ["read_gdc"]

VALUE = {"counts": "unstranded", "tpm": "tpm_unstranded"}
IDS = {"symbol": "gene_name", "ensembl": "gene_id"}


def _star_files(folder: Path, sheet: Sequence[SheetRow]) -> list[Path]:
    """File of each row of the sheet; raises `InputError` that lists the missing ones.

    A file is in a folder of its File ID, as the GDC client makes it, or directly in ``folder``.
    """
    found: list[Path] = []
    missing: list[Problem] = []
    for row in sheet:
        choices = [folder / row.folder / row.file, folder / row.file]
        path = next((one for one in choices if one.is_file()), None)
        if path is None:
            missing.append(Problem("no such file.", file=row.file, suggestion=f"Row {row.row} of the sheet names it."))
        else:
            found.append(path)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(sheet)} files of the sample sheet are not there.",
            where=str(folder),
            consequence="Nothing was written.",
            fix="download them again, or take their rows out of the sheet.",
            problems=missing[:20],
        )
    return found


def read_gdc(folder: Path, spec: GenesSpec, sheet: Sequence[SheetRow], wanted: Wanted) -> Matrix:
    """Read the files of the samples that are ``wanted``.

    ``scale`` counts takes the column ``unstranded``, tpm ``tpm_unstranded``; ``id_kind`` ensembl takes ``gene_id``,
    symbol ``gene_name``. Raises `InputError` for other scales and id kinds, files that are missing, and files
    that name other genes than the first.
    """
    if spec.scale not in VALUE or spec.id_kind not in IDS:
        raise InputError(
            "STAR files hold counts and TPM, by symbol or Ensembl id.",
            where=str(folder),
            fix="set genes.scale to counts or tpm, and genes.id_kind to symbol or ensembl.",
        )
    samples = [Sample(row.sample_id, row.file, row.patient_id, row.kind, f"row {row.row}") for row in sheet]
    taken = tuple(number for number, sample in enumerate(samples) if wanted(sample))
    paths = _star_files(folder, [sheet[number] for number in taken])
    genes: tuple[str, ...] = ()
    lines: tuple[int, ...] = ()
    values = np.empty((0, 0), np.float32)
    problems: list[Problem] = []
    for row, number in enumerate(taken):
        name = samples[number].source
        mine, at, column, faults = _star_file(paths[row], spec)
        problems += faults.problems()
        if row == 0:
            genes, lines = mine, at
            values = np.empty((len(taken), len(genes)), np.float32)
        if mine != genes:
            hint = "Take files of one GDC data release."
            problems.append(Problem(f"other genes than '{samples[taken[0]].source}'.", file=name, suggestion=hint))
        else:
            values[row] = column
    return Matrix(folder.name, "gdc", "genes_in_rows", tuple(samples), taken, genes, lines, values, tuple(problems))


def _star_file(path: Path, spec: GenesSpec) -> tuple[tuple[str, ...], tuple[int, ...], NDArray[np.float32], Faults]:
    """Genes, their lines, values and faults of one file."""
    lines = first_lines(path, 12)
    skip = next((at for at, line in enumerate(lines) if not line.startswith("#")), 0)
    names, _ = split_line(lines[skip] if lines else "", "\t")
    needed = ("gene_id", IDS[spec.id_kind], VALUE[spec.scale])
    if missing := [name for name in needed if name not in names]:
        raise InputError(
            f"no column '{missing[0]}'.",
            where=str(path),
            fix="give the files *.rna_seq.augmented_star_gene_counts.tsv.",
        )
    roles = np.full(len(names), IGNORED, np.int64)
    roles[names.index(VALUE[spec.scale])] = 0
    roles[names.index("gene_id")] = TEXT
    roles[names.index(needed[1])] = TEXT if needed[1] == "gene_id" else TEXT - 1
    missing_words = ("", *spec.missing)  # the summary lines at the top have no TPM
    source = TextMatrix(path, "\t", tuple(names), roles, skip + 1, missing_words)
    faults = Faults(path.name, names)
    genes: list[str] = []
    at: list[int] = []
    columns = []
    for block in source.blocks(faults):
        ids, shown = block.texts[0], block.texts[-1]
        genes += [name or one for one, name in zip(ids, shown, strict=True)]
        at += block.lines.tolist()
        columns.append(block.values[:, 0])
    return tuple(genes), tuple(at), np.concatenate(columns) if columns else np.empty(0, np.float32), faults
