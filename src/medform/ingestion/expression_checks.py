"""Are the numbers of an expression matrix what the cohort file says they are?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medform.cohort.genes_spec import MOST_UNREAD, GeneScale, GenesSpec
from medform.errors import Problem

__all__ = ["NO_VALUE", "Numbers", "check_scale", "uninformative"]

ROWS = 64
"""Patients that are looked at together, so that no copy of the whole matrix is made."""
LARGEST_LOGARITHM = 30.0
"""log2 of any count of reads is below it: 2 ** 30 is more than a sequencing run gives one gene."""
MILLION, FAR = 1e6, 2.0
NO_VALUE = "no value"
TAIL = 10.0


@dataclass(frozen=True)
class Numbers:
    """What the values (n, G) are: extremes, missing cells, those beyond 10 either way.

    ``problems`` contradict the declared scale, ``notes`` are only odd. ``unread``, of counts: patients of whom a part
    of the reads is not known, and which share.
    """

    minimum: float
    maximum: float
    missing: int
    beyond_10: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    unread: Mapping[str, float] = field(default_factory=dict)


def check_scale(
    values: NDArray[np.float32], spec: GenesSpec, patients: Sequence[str], genes: Sequence[str], file: str
) -> Numbers:
    """Compare the values with the declared scale.

    counts: whole and not negative, and of no patient more than 5 % of the reads unknown (what the genes without a
    count have in the other patients); less is noted. tpm: not negative; a sum per patient far from a million is
    noted. log2p1: not negative, at most 30. log2: within -30 and 30. zscore: some are negative. None may be infinite.
    """
    scan = _Scan(values, patients, genes, file)
    lowest, highest, missing, tails = np.inf, -np.inf, 0, 0
    for start in range(0, len(values), ROWS):
        block = values[start : start + ROWS]
        known = np.isfinite(block)
        missing += int(np.isnan(block).sum())
        if known.any():
            lowest = min(lowest, float(block.min(where=known, initial=np.inf)))
            highest = max(highest, float(block.max(where=known, initial=-np.inf)))
            tails += int((np.abs(block, where=known, out=np.zeros_like(block)) > TAIL).sum())
    if lowest > highest:
        text = "no sample of a patient has a value."
        return Numbers(np.nan, np.nan, missing, 0, (Problem(text, file=file),) if len(values) else (), ())
    problems = [
        *scan.refuse(np.isinf, "infinite.", "Mend the cell, or leave it empty."),
        *_contradictions(scan, spec.scale, lowest, highest),
    ]
    notes = _oddities(values, spec.scale, highest)
    unread: dict[str, float] = {}
    if spec.scale == "counts" and missing and not problems:
        shares = _unread(values)
        unread = {one: float(share) for one, share in zip(patients, shares, strict=True) if share}
        problems += _too_little_read(scan, shares)
        notes += _partly_read(shares)
    return Numbers(lowest, highest, missing, tails, tuple(problems), tuple(notes), unread)


@dataclass(frozen=True, eq=False)
class _Scan:
    values: NDArray[np.float32]
    patients: Sequence[str]
    genes: Sequence[str]
    file: str

    def refuse(self, faulty: Callable[[NDArray[np.float32]], NDArray[np.bool_]], text: str, hint: str) -> list[Problem]:
        """One problem for all values that are ``faulty``, naming the first by gene and patient."""
        count, first = 0, None
        for start in range(0, len(self.values), ROWS):
            block = self.values[start : start + ROWS]
            rows, columns = np.nonzero(faulty(block))
            count += len(rows)
            if first is None and len(rows):
                first = (start + int(rows[0]), int(columns[0]))
        if first is None:
            return []
        row, column = first
        many = f" ({count} values)" if count > 1 else ""
        said = f"patient '{self.patients[row]}': {text[:-1]}{many}."
        value = f"{float(self.values[first]):g}"
        return [Problem(said, file=self.file, column=self.genes[column], value=value, suggestion=hint)]


def _contradictions(scan: _Scan, scale: GeneScale, lowest: float, highest: float) -> list[Problem]:
    problems: list[Problem] = []
    if scale in ("counts", "tpm", "log2p1") and lowest < 0:
        hint = {
            "counts": "Reads cannot be negative: declare what the values are (log2, zscore), or mend the file.",
            "tpm": "An abundance cannot be negative: declare log2 or zscore, or mend the file.",
            "log2p1": "log2(x + 1) of an abundance cannot be negative: declare log2 or zscore.",
        }[scale]
        problems += scan.refuse(lambda block: block < 0, f"negative under genes.scale: {scale}.", hint)
    if scale == "counts":
        hint = "Declare tpm for normalised abundances (TPM, FPKM, RSEM), log2p1 or log2 for logarithms."
        problems += scan.refuse(lambda block: np.abs(block - np.rint(block)) > 0, "not a whole number of reads.", hint)
    if scale in ("log2p1", "log2") and max(highest, -lowest) > LARGEST_LOGARITHM:
        text = f"beyond {LARGEST_LOGARITHM:g}, which no logarithm of an abundance is."
        hint = "Declare counts or tpm if the values are not logarithms."
        problems += scan.refuse(lambda block: np.abs(block) > LARGEST_LOGARITHM, text, hint)
    if scale == "zscore" and lowest >= 0:
        text = f"no value is negative ({lowest:g} to {highest:g}), so these are no z-scores."
        hint = "Declare counts, tpm or log2p1."
        problems.append(Problem(text, file=scan.file, column="genes.scale", suggestion=hint))
    return problems


def _oddities(values: NDArray[np.float32], scale: GeneScale, highest: float) -> list[str]:
    if scale != "tpm":
        return []
    notes = []
    if highest < LARGEST_LOGARITHM:
        notes.append(f"genes: the largest value is {highest:g}; are these logarithms (genes.scale: log2p1)?")
    blocks = [values[start : start + ROWS] for start in range(0, len(values), ROWS)]
    sums = np.concatenate([np.nansum(block, axis=1, dtype=np.float64) for block in blocks])
    far = (sums > MILLION * FAR) | (sums < MILLION / FAR)
    if far.any():
        notes.append(
            f"genes: {int(far.sum())} of {len(sums)} patients sum to far from a million TPM "
            f"(median {float(np.median(sums)):.3g}): a part of the genes, or another normalised abundance."
        )
    return notes


def _unread(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share (n,) of a patient's reads that its genes without a count would have had: by their mean share in the others.

    0 for a patient without any value, who has no expression, and for genes that nobody has a count of.
    """
    blocks = [values[start : start + ROWS] for start in range(0, len(values), ROWS)]
    total, known = np.zeros(values.shape[1]), np.zeros(values.shape[1], np.int64)
    for block in blocks:
        depth = np.nansum(block, axis=1, dtype=np.float64, keepdims=True)
        total += np.nansum(block / np.maximum(depth, 1.0), axis=0)
        known += np.isfinite(block).sum(axis=0)
    mean = total / np.maximum(known, 1)
    mean /= max(float(mean.sum()), np.finfo(np.float64).tiny)
    return np.concatenate([np.where(np.isnan(block).all(axis=1), 0.0, np.isnan(block) @ mean) for block in blocks])


def _too_little_read(scan: _Scan, shares: NDArray[np.float64]) -> list[Problem]:
    """One problem for all patients of whom too large a share of the reads is not known, naming the first."""
    faulty = np.flatnonzero(shares > MOST_UNREAD)
    if not len(faulty):
        return []
    first = int(faulty[0])
    lacking = np.flatnonzero(np.isnan(scan.values[first]))
    many = f" ({len(faulty)} such patients)" if len(faulty) > 1 else ""
    text = (
        f"patient '{scan.patients[first]}': {len(lacking)} genes without a count have {shares[first]:.0%} of the reads "
        f"of the others{many}; all other counts a million would be too high."
    )
    hint = "Give the missing counts (a gene without reads is 0), or leave out the genes or the patient."
    return [Problem(text, file=scan.file, column=scan.genes[int(lacking[0])], suggestion=hint)]


def _partly_read(shares: NDArray[np.float64]) -> list[str]:
    """How many patients have genes without a count, and what that does at most."""
    some = shares[(shares > 0) & (shares <= MOST_UNREAD)]
    if not len(some):
        return []
    return [
        f"genes: {len(some)} patients lack counts that have up to {some.max():.2%} of the reads of the others; their "
        "other counts a million are as much too high (see genes_join.csv)."
    ]


def uninformative(values: NDArray[np.float32]) -> dict[int, str]:
    """Number of each gene (column) that does not tell these patients apart, and why.

    That is `NO_VALUE`, all zero, or one value throughout; of one patient only the first, as there is nothing to
    compare with.
    """
    if len(values) < 2:
        empty = np.isnan(values).all(axis=0)
        return {int(column): NO_VALUE for column in np.flatnonzero(empty)}
    lowest = np.full(values.shape[1], np.inf, np.float32)
    highest = np.full(values.shape[1], -np.inf, np.float32)
    for start in range(0, len(values), ROWS):
        block = values[start : start + ROWS]
        np.fmin(lowest, np.fmin.reduce(block, axis=0), out=lowest)
        np.fmax(highest, np.fmax.reduce(block, axis=0), out=highest)
    found = {}
    for column in np.flatnonzero(~(highest > lowest)).tolist():
        low = float(lowest[column])
        found[column] = NO_VALUE if low > highest[column] else "all zero" if low == 0 else f"always {low:g}"
    return found
