"""Names of genes: summary lines, Ensembl versions, what a spreadsheet did to them, and those that stand twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medform.cohort.genes_spec import GeneIdKind, GenesSpec
from medform.cohort.table_text import looks_like_date
from medform.errors import Problem
from medform.ingestion.cells import SERIALS
from medform.ingestion.expression_matrix import Matrix

__all__ = ["GeneNames", "is_damaged", "merge_duplicates", "name_genes"]

SHOWN = 12
SUMMARY = re.compile(r"__\w+|N_(unmapped|multimapping|noFeature|ambiguous)")
"""Lines that HTSeq and STAR add below or above the genes."""
VERSION = re.compile(r"(ENS[A-Z]*G\d{11})\.\d+")
KINDS: dict[GeneIdKind, re.Pattern[str]] = {
    "ensembl": re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?(_PAR_Y)?"),
    "entrez": re.compile(r"\d+"),
}
DATED = re.compile(r"\d{1,2}[-/. ][A-Za-z]{3}([-/. ]\d{2,4})?|\d{4}-\d{2}-\d{2}( 00:00:00)?|\d{1,2}/\d{1,2}/\d{2,4}")
FLOATED = re.compile(r"\d\.\d+E\+\d+", re.IGNORECASE)
MOST = 0.5
"""A matrix whose ids are of another kind in more than this share was declared wrongly."""


@dataclass(frozen=True)
class GeneNames:
    """The genes of a matrix, by id.

    ``ids`` (G,) as they are stored; ``kept`` their numbers in the matrix; ``summary`` lines were left out;
    ``damaged`` look as if a spreadsheet had changed them.
    """

    ids: tuple[str, ...]
    kept: NDArray[np.int64]
    summary: tuple[str, ...]
    damaged: tuple[str, ...]
    problems: tuple[Problem, ...]


def is_damaged(gene: str, kind: GeneIdKind = "symbol") -> bool:
    """Whether a spreadsheet may have made this of a gene.

    That is a date (``2-Sep``, ``Mar-01``, ``2002-09-02``), the number of a day (44621 among symbols) or a rounded
    number (2.31E+13).
    """
    if looks_like_date(gene) or DATED.fullmatch(gene) or FLOATED.fullmatch(gene):
        return True
    return kind == "symbol" and len(gene) == 5 and gene.isdecimal() and int(gene) in SERIALS


def name_genes(matrix: Matrix, spec: GenesSpec) -> GeneNames:
    """Names to store, and every fault of them: empty, of another kind than declared, doubled without a rule.

    Ids are text: a gene ``NA`` or ``nan`` is a gene. The version of an Ensembl id is taken off. What ``genes.ignore``
    names is left out, whatever the format.
    """
    raw, ignored = matrix.gene_ids, set(spec.ignore)
    taken = [number for number, one in enumerate(raw) if not SUMMARY.fullmatch(one) and one not in ignored]
    kept = np.array(taken, np.int64)
    ids = [raw[number] for number in kept]
    if spec.id_kind == "ensembl":
        ids = [VERSION.sub(r"\1", one) for one in ids]
    places = [matrix.gene_places[number] for number in kept]
    problems = [_addressed(matrix, "a gene without a name.", place, "Name it, or remove it.")
                for one, place in zip(ids, places, strict=True) if not one][:SHOWN]  # fmt: skip
    problems += _kind_problems(matrix.file, ids, spec.id_kind)
    if spec.duplicates == "refuse":
        problems += _duplicates(matrix, ids, places)
    damaged = sorted({one for one in ids if is_damaged(one, spec.id_kind)})
    summary = tuple(one for one in raw if SUMMARY.fullmatch(one))
    return GeneNames(tuple(ids), kept, summary, tuple(damaged), tuple(problems))


def _addressed(matrix: Matrix, text: str, place: int, hint: str, value: str | None = None) -> Problem:
    turned = matrix.orientation == "genes_in_rows"
    return Problem(
        text,
        file=matrix.file,
        row=place if turned else None,
        column=None if turned else f"column {place}",
        value=value,
        suggestion=hint,
    )


def _kind_problems(file: str, ids: Sequence[str], declared: GeneIdKind) -> list[Problem]:
    for kind, pattern in KINDS.items():
        alike = [one for one in ids if pattern.fullmatch(one)]
        if kind != declared and len(alike) > MOST * len(ids):
            text = f"genes.id_kind is {declared}, yet {len(alike)} of {len(ids)} ids look like {kind} ids."
            return [Problem(text, file=file, value=alike[0], suggestion=f"Set genes.id_kind: {kind}.")]
    if declared != "symbol" and not any(KINDS[declared].fullmatch(one) for one in ids) and ids:
        text = f"genes.id_kind is {declared}, yet no id looks like one."
        return [Problem(text, file=file, value=ids[0], suggestion="Set genes.id_kind: symbol.")]
    return []


def _duplicates(matrix: Matrix, ids: Sequence[str], places: Sequence[int]) -> list[Problem]:
    found: dict[str, list[int]] = {}
    for one, place in zip(ids, places, strict=True):
        if one:
            found.setdefault(one, []).append(place)
    twice = sorted((one, mine) for one, mine in found.items() if len(mine) > 1)
    hint = "Set genes.duplicates: mean, first or max (the copy with the largest mean), or rename them."
    what = "rows" if matrix.orientation == "genes_in_rows" else "columns"
    problems = [
        Problem(f"this gene stands in {what} {', '.join(map(str, mine[:6]))}.", file=matrix.file, value=one,
                suggestion=hint if number == 0 else None)
        for number, (one, mine) in enumerate(twice[:SHOWN])
    ]  # fmt: skip
    if len(twice) > SHOWN:
        problems.append(Problem(f"{len(twice) - SHOWN} more genes stand twice.", file=matrix.file))
    return problems


def merge_duplicates(
    ids: Sequence[str], values: NDArray[np.float32], rule: Literal["mean", "first", "max"]
) -> tuple[tuple[str, ...], NDArray[np.float32], dict[str, int]]:
    """Ids (G',) without repeats, values (n, G'), and how many copies each merged gene had.

    The ids are in the order of their first copy. ``mean``: of the copies, missing values apart; ``first``: the first
    copy; ``max``: the copy with the largest mean over the patients. Nothing is copied where no gene stands twice.
    """
    copies: dict[str, list[int]] = {}
    for number, one in enumerate(ids):
        copies.setdefault(one, []).append(number)
    twice = {one: numbers for one, numbers in copies.items() if len(numbers) > 1}
    if not twice:
        return tuple(ids), values, {}
    merged = values[:, [numbers[0] for numbers in copies.values()]]
    place = {one: number for number, one in enumerate(copies)}
    for one, numbers in twice.items():
        several = values[:, numbers].astype(np.float64)
        known = ~np.isnan(several)
        if rule == "mean":
            count = known.sum(axis=1)
            total = np.where(known, several, 0.0).sum(axis=1)
            merged[:, place[one]] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        elif rule == "max":
            means = np.where(known, several, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
            means = np.where(known.any(axis=0), means, -np.inf)
            merged[:, place[one]] = several[:, int(np.argmax(means))]
    return tuple(copies), merged, {one: len(numbers) for one, numbers in twice.items()}
