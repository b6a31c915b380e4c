"""Genes that restate a column of the clinical table, as in a matrix that was exported together with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, lgamma, log

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.cohort_file import CohortFile, ColumnSpec
from medform.cohort.files import column
from medform.cohort.genes import GenesRecord
from medform.cohort.labels import task_label
from medform.cohort.survival import survival_frame
from medform.ingestion.leaks import FEWEST, NAME_ALIKE, Leak, name_similarity

__all__ = ["find_gene_leaks"]

ANSWERS = ("label", "outcome", "time")
FEWEST_PATIENTS, FEWEST_OF_LEVEL = 10, 3
LUCK = 0.02
"""Above this number of genes that would agree with a column by chance one that does is only warned of."""
MOST_LEVELS = 20
SAME_ORDER = 0.99
"""Spearman's correlation of a column with a copy of it that was rounded, say to whole months."""
AT_FIRST = 4
"""Patients that are looked at first; then twice as many each time, of the genes that still agree: soon hardly any."""

Columns = NDArray[np.int64]
Numbers = NDArray[np.float64]
Fits = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class _Target:
    """A column of the table: ``values`` (n,) of the matrix's patients, numbers or codes of words, NaN where unknown.

    ``ordered``: greater says more. ``answer``: no gene may restate it; else only a gene of its name is compared.
    """

    column: str
    task: str
    what: str
    values: Numbers
    ordered: bool
    answer: bool
    allowed: bool


@dataclass(frozen=True)
class _Match:
    """A gene that agrees with a target in so many patients; ``luck``: how many genes would by chance, at most.

    It is infinite where the patients, or those of the rarer level, are too few to say.
    """

    gene: int
    patients: int
    luck: float


Agreement = Callable[[_Target, NDArray[np.float32], int], _Match | None]


def find_gene_leaks(file: CohortFile, table: pd.DataFrame, genes: GenesRecord) -> list[Leak]:
    """Genes with the values of a label, an outcome, a follow-up, or of any column of their own name.

    ``table`` is typed (`type_table`), its ids are those of ``genes``. Compared are the patients who have both: levels
    may have other names, numbers another unit (the order counts). No name alone is a reason: AFP and IDH1 are genes.
    A binary label is compared with genes of two values, since one of many others may separate a few patients by luck.
    What might agree by luck, and is not named like the column, is warned of, all in one leak; of very few patients
    nothing is said.
    """
    leaks: dict[tuple[str, str], Leak] = {}
    for target in _targets(file, table, genes):
        doubtful: list[str] = []
        for match in _matches(target, genes):
            gene = genes.gene_ids[match.gene]
            if match.luck > LUCK and not _named_alike(gene, target.column):
                doubtful += [gene] if match.luck < np.inf else []
                continue
            text = (
                f"its values restate '{target.column}', {target.what}, in all {match.patients} patients who have both: "
                f"name it in genes.ignore, or allow it with columns.{target.column}.allow_as_feature: true."
            )
            verdict = "allowed" if target.allowed else "refused"
            leaks.setdefault((gene, target.column), Leak(gene, target.task, "values", verdict, None, text))
        if doubtful:
            more = f" and {len(doubtful) - 1} more restate" if len(doubtful) > 1 else " restates"
            text = f"it{more} '{target.column}', {target.what}, which may be chance: look whether it is a gene."
            verdict, gene = "allowed" if target.allowed else "warned", doubtful[0]
            leaks.setdefault((gene, target.column), Leak(gene, target.task, "values", verdict, None, text))
    return list(leaks.values())


def _named_alike(gene: str, name: str) -> bool:
    return gene.casefold() == name.casefold() or name_similarity(gene, name) >= NAME_ALIKE


def _targets(file: CohortFile, table: pd.DataFrame, genes: GenesRecord) -> Iterator[_Target]:
    """Labels and follow-up as they are judged, then every declared column as it stands in the table."""
    ids = list(genes.patient_ids)
    what = {}
    for task in file.tasks:
        name, spec = task.column, file.columns[task.column]
        what[name] = f"the label of task '{task.name}'"
        binary = task_label(task, table, spec).reindex(ids).to_numpy(np.float64)
        yield _Target(name, task.name, what[name], binary, ordered=False, answer=True, allowed=spec.allow_as_feature)
    if file.survival is not None:
        event = file.survival.event
        what |= {event: "the survival event", file.survival.time: "the survival time"}
        happened = survival_frame(file, table)["event"].reindex(ids).to_numpy(np.float64)
        allowed = file.columns[event].allow_as_feature
        yield _Target(event, "survival", what[event], happened, ordered=False, answer=True, allowed=allowed)
    for name, spec in file.columns.items():
        if name not in table.columns:
            continue
        answer = name in what or spec.role in ANSWERS
        said = what.get(name, f"a column with the role {spec.role}")
        values, ordered = _as_numbers(column(table, name).reindex(ids), spec)
        yield _Target(name, "", said, values, ordered=ordered, answer=answer, allowed=spec.allow_as_feature)


def _as_numbers(values: pd.Series, spec: ColumnSpec) -> tuple[Numbers, bool]:
    """Numbers in the precision of the matrix, words as codes, NaN where missing; and whether greater says more."""
    text = values.astype("string")
    numbers = pd.Series(pd.to_numeric(values if spec.type == "number" else text, errors="coerce"), dtype="Float64")
    if numbers.count() == text.count():  # also of a column that is declared as text and holds numbers
        return numbers.to_numpy(np.float32, na_value=np.nan).astype(np.float64), True
    codes = np.asarray(pd.factorize(text, sort=True)[0], np.float64)
    return np.where(codes < 0, np.nan, codes), spec.type == "date"


def _matches(target: _Target, genes: GenesRecord) -> Iterator[_Match]:
    """Genes that divide the patients into the same groups, or put them into the same order, either way round."""
    known = np.flatnonzero(np.isfinite(target.values))
    rows = known[np.argsort(target.values[known], kind="stable")]
    levels = np.unique(target.values[rows])
    if target.answer:
        compared = np.arange(len(genes.gene_ids))
    else:
        name = target.column.casefold()
        compared = np.array([place for place, one in enumerate(genes.gene_ids) if one.casefold() == name], np.int64)
    if len(rows) < FEWEST or len(levels) < 2 or not compared.size:
        return
    best: dict[int, _Match] = {}
    for fits, agreement in _rules(target, levels):
        for gene in _left(genes.values, rows, target.values, compared, fits).tolist():
            match = agreement(target, genes.values, gene)
            if match is not None and (gene not in best or match.luck < best[gene].luck):
                best[gene] = match
    yield from best.values()


def _rules(target: _Target, levels: Numbers) -> Iterator[tuple[Fits, Agreement]]:
    if len(levels) <= MOST_LEVELS:
        yield lambda steps, same: (steps == 0) == same, _same_groups
    if target.ordered and len(levels) > 2:
        yield lambda steps, same: same | (steps >= 0), _same_order
        yield lambda steps, same: same | (steps <= 0), _same_order


def _left(values: NDArray[np.float32], rows: Columns, level: Numbers, left: Columns, fits: Fits) -> Columns:
    """Those of the genes ``left`` that vary and whose every known step from row to row ``fits``.

    ``rows`` are sorted by ``level``; ``fits`` is given the steps (r, genes), and in which the level is the same (r, 1).
    """
    start, length = 0, AT_FIRST
    while start < len(rows) - 1 and left.size:
        part = rows[start : start + length + 1]
        steps = np.diff(values[np.ix_(part, left)], axis=0)
        same = (np.diff(level[part]) == 0)[:, None]
        left = left[(fits(steps, same) | np.isnan(steps)).all(axis=0)]
        start, length = start + length, 2 * length
    there = values[np.ix_(rows, left)]
    return left[np.fmax.reduce(there, axis=0) > np.fmin.reduce(there, axis=0)]


def _same_groups(target: _Target, values: NDArray[np.float32], gene: int) -> _Match | None:
    rows, theirs, mine = _both(target, values, gene)
    sizes, own = (np.unique(one, return_counts=True)[1] for one in (theirs, mine))
    pairs = np.unique(np.stack([theirs, mine]), axis=1).shape[1]
    if len(rows) < FEWEST or not 2 <= len(sizes) == len(own) == pairs:
        return None
    if len(rows) < FEWEST_PATIENTS or np.sort(sizes)[-2] < FEWEST_OF_LEVEL:
        return _Match(gene, len(rows), np.inf)
    chance = exp(lgamma(len(sizes) + 1) + _logs(sizes) - lgamma(len(rows) + 1))
    tried = 1
    if chance <= LUCK < chance * values.shape[1]:  # only then does it matter how many genes have as few values
        ranked = np.sort(values[rows], axis=0)
        tried = int(((np.diff(ranked, axis=0) > 0).sum(axis=0) + 1 == len(sizes)).sum())
    return _Match(gene, len(rows), chance * tried)


def _same_order(target: _Target, values: NDArray[np.float32], gene: int) -> _Match | None:
    from scipy.stats import rankdata

    rows, theirs, mine = _both(target, values, gene)
    sizes, own = (np.unique(one, return_counts=True)[1] for one in (theirs, mine))
    if len(rows) < FEWEST or min(len(sizes), len(own)) <= 2:
        return None
    if abs(np.corrcoef(rankdata(theirs), rankdata(mine))[0, 1]) < SAME_ORDER:
        return None
    if len(rows) < FEWEST_PATIENTS:
        return _Match(gene, len(rows), np.inf)
    chance = exp(min(log(2) + _logs(sizes) + _logs(own) - lgamma(len(rows) + 1), 0.0))
    return _Match(gene, len(rows), chance * values.shape[1])


def _both(target: _Target, values: NDArray[np.float32], gene: int) -> tuple[Columns, Numbers, Numbers]:
    """Patients of whom target and gene are known, and what either says of them."""
    mine = values[:, gene].astype(np.float64)
    rows = np.flatnonzero(np.isfinite(mine) & np.isfinite(target.values))
    return rows, target.values[rows], mine[rows]


def _logs(sizes: NDArray[np.int64]) -> float:
    """Logarithm of the number of ways to arrange patients inside groups of these sizes."""
    return sum(lgamma(int(size) + 1) for size in sizes)
