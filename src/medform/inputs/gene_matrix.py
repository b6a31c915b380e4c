"""A matrix of expression read in pieces of rows, so that it may be larger than memory: values, moments, ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from medform.cohort.genes import Genes
from medform.errors import InputError

__all__ = ["differing", "moments", "normal_scores", "pieces", "raw_values", "read_shares", "refuse_repeated", "some"]

Codes = Int[np.ndarray, " n"]
PerGene = Float[np.ndarray, " g"]

LOGGED = ("counts", "tpm")  # scales that are taken as log2(x + 1)
PIECE_BYTES = 64e6
_SHOWN = 3


def pieces(rows: Codes, columns: int) -> list[Codes]:
    """``rows`` in pieces, so that a piece of ``columns`` float64 values stays small."""
    length = max(1, int(PIECE_BYTES // (8 * max(columns, 1))))
    return [rows[start : start + length] for start in range(0, len(rows), length)]


def raw_values(
    genes: Genes,
    rows: Codes,
    places: Int[np.ndarray, " g"] | None = None,
    summed: Int[np.ndarray, " s"] | None = None,
) -> Float[np.ndarray, "n g"]:
    """Values as they are standardised: log2(x + 1) of counts a million and of abundances, others as they are.

    Counts are divided by the patient's sum over the genes ``summed`` (None: all of the matrix) first, so that how
    deeply a sample was sequenced is no signal. NaN is missing. Raises `InputError` for a negative count or abundance.
    """
    values = np.asarray(genes.values[rows], np.float64)
    depth = np.nansum(values if summed is None else values[:, summed], axis=1, keepdims=True)
    values = values if places is None else values[:, places]
    if genes.scale not in LOGGED:
        return values
    if (values < 0).any():
        row, column = np.argwhere(values < 0)[0]
        gene = genes.gene_ids[int(column if places is None else places[column])]
        raise InputError(
            f"patient {genes.patient_ids[rows[row]]} has {values[row, column]:g} of gene {gene}: {genes.scale} cannot "
            "be negative.",
            where="genes.scale",
            fix="declare the scale that the values have (zscore, log2p1).",
        )
    if genes.scale == "counts":
        values = values * (1e6 / np.where(depth > 0, depth, 1.0))
    return np.log2(values + 1)


def moments(genes: Genes, rows: Codes) -> tuple[PerGene, PerGene]:
    """Mean and standard deviation of every gene's known values in ``rows``; 0 and 0 where there is none."""
    width = len(genes.gene_ids)
    total, count = np.zeros(width), np.zeros(width)
    for piece in pieces(rows, width):
        raw = raw_values(genes, piece)
        known = np.isfinite(raw)
        total += np.where(known, raw, 0.0).sum(axis=0)
        count += known.sum(axis=0)
    count = np.maximum(count, 1)
    mean, square = total / count, np.zeros(width)
    for piece in pieces(rows, width):
        raw = raw_values(genes, piece)
        square += np.square(np.where(np.isfinite(raw), raw - mean, 0.0)).sum(axis=0)
    return mean, np.sqrt(square / count)


def differing(genes: Genes, rows: Codes) -> Bool[np.ndarray, " g"]:
    """Whether a gene's known values, as they are stored, differ among the patients ``rows``."""
    lowest = np.full(len(genes.gene_ids), np.inf)
    highest = -lowest
    for piece in pieces(rows, len(genes.gene_ids)):
        values = np.asarray(genes.values[piece])
        np.fmin(lowest, np.fmin.reduce(values, axis=0), out=lowest)
        np.fmax(highest, np.fmax.reduce(values, axis=0), out=highest)
    return highest > lowest


def read_shares(genes: Genes, rows: Codes) -> PerGene:
    """Share of every gene in the reads of the patients ``rows``, each patient counting the same; sums to 1."""
    total = np.zeros(len(genes.gene_ids))
    for piece in pieces(rows, len(genes.gene_ids)):
        total += np.nansum(np.exp2(raw_values(genes, piece)) - 1, axis=0)
    return total / total.sum()


def normal_scores(raw: Float[np.ndarray, "n g"], quantiles: Float[np.ndarray, "q g"]) -> Float[np.ndarray, "n g"]:
    """Normal scores of the place of each value among a gene's quantiles; equal values share the middle place."""
    from scipy.special import ndtri

    place = np.empty(raw.shape)
    for gene in range(raw.shape[1]):
        below = np.searchsorted(quantiles[:, gene], raw[:, gene], "left")
        place[:, gene] = (below + np.searchsorted(quantiles[:, gene], raw[:, gene], "right")) / 2
    edge = 0.5 / len(quantiles)
    return ndtri((place / len(quantiles)).clip(edge, 1 - edge))


def refuse_repeated(genes: Genes) -> None:
    """Raise `InputError` where a gene stands twice: it could not be found by its id."""
    if len(set(genes.gene_ids)) == len(genes.gene_ids):
        return
    seen: set[str] = set()
    twice = sorted({one for one in genes.gene_ids if one in seen or seen.add(one)})
    raise InputError(
        f"{some(twice)} stand twice in the matrix.",
        consequence="Nothing was encoded.",
        fix="say what becomes of them: genes.duplicates in the cohort file.",
    )


def some(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    shown = ", ".join(names[:_SHOWN])
    return f"{len(names)} ({shown}{', ...' if len(names) > _SHOWN else ''})"
