"""In which order genes stand: by correlation among training patients, or by position on the chromosomes.

A sequence model reads genes one after another and patches take neighbours together, so the order is a part of what is
fitted: it is found once and stored by gene id.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from medform.errors import InputError, Problem

__all__ = ["MOST_CLUSTERED", "cluster_order", "position_order"]

MOST_CLUSTERED = 10_000
"""Genes that `cluster_order` takes: its distances and scipy's copy of them stay below 1 GB."""

Order = Int[np.ndarray, " g"]
Place = tuple[int, int, str, int]  # kind of chromosome, its number, its name, start: sorts along the genome

_ATTRIBUTE = re.compile(r'\b(?:gene_id|gene_name|gene)\s+"([^"]+)"|\bGeneID:(\d+)')
_VERSION = re.compile(r"^(ENS[A-Z]*\d+)\.\d+")
_NAMED = {"X": 0, "Y": 1, "M": 2, "MT": 2}
_SHOWN = 5


def cluster_order(standard: Float[np.ndarray, "n g"], gene_ids: Sequence[str]) -> Order:
    """Places of ``gene_ids`` by average-linkage clustering on the distance 1 - correlation over the n rows.

    The leaf order of the tree is deterministic and does not depend on the order in which the genes came. Raises
    `InputError` for more than `MOST_CLUSTERED` genes.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(gene_ids) > MOST_CLUSTERED:
        raise InputError(
            f"{len(gene_ids)} genes are too many to be clustered: memory grows with their square.",
            where="order",
            fix=f"take fewer, `select: {{top_variance: {MOST_CLUSTERED}}}`, or use `order: position` or `given`.",
        )
    by_name = np.array(sorted(range(len(gene_ids)), key=lambda place: gene_ids[place]), np.int64)
    if len(by_name) < 3:
        return by_name
    rows = standard[:, by_name].astype(np.float64)
    rows -= rows.mean(axis=0)
    norm = np.sqrt(np.square(rows).sum(axis=0))
    rows /= np.where(norm > 0, norm, 1.0)
    above = np.triu_indices(len(by_name), 1)
    # rounded, so that the last bit of a matrix product on another machine does not decide between equal distances
    distance = np.round(np.clip(1 - (rows.T @ rows)[above], 0, 2), 9)
    return by_name[leaves_list(linkage(distance, "average"))]


def position_order(gene_ids: Sequence[str], gtf: Path) -> tuple[Order, tuple[str, ...]]:
    """Places of ``gene_ids`` along the chromosomes of an annotation, and the genes that it does not know.

    ``gtf``: a GTF file, plain or gz. A gene is found by name, by Ensembl id with or without its version, or by Entrez
    id; one that stands twice counts at its first place. Chromosomes go 1, 2, ..., X, Y, MT, then all others by name;
    unknown genes come last, by id. Raises `InputError` for a file that cannot be read as GTF, with its lines, and
    where it knows none of the genes.
    """
    placed = _places(gtf, "gene") or _places(gtf, None)
    found = {one: placed.get(one) or placed.get(_unversioned(one)) for one in gene_ids}
    if not any(found.values()):
        known = ", ".join(sorted(placed)[:3]) or "no gene at all"
        raise InputError(
            f"the annotation knows none of the genes: it has {known}; the matrix has {', '.join(gene_ids[:3])}.",
            where=str(gtf),
            consequence="Genes were not ordered.",
            fix="use an annotation of the same species that names genes as the matrix does.",
        )
    last: Place = (3, 0, "", 0)
    order = sorted(range(len(gene_ids)), key=lambda row: (found[gene_ids[row]] or last, gene_ids[row]))
    return np.array(order, np.int64), tuple(sorted(one for one, place in found.items() if place is None))


def _unversioned(gene_id: str) -> str:
    return _VERSION.sub(r"\1", gene_id)


def _chromosome(name: str) -> tuple[int, int, str]:
    plain = name.removeprefix("chr")
    if plain.isdecimal():
        return 0, int(plain), ""
    if plain in _NAMED:
        return 1, _NAMED[plain], ""
    return 2, 0, plain


def _places(gtf: Path, feature: str | None) -> dict[str, Place]:
    """The first place of every name of a gene on the lines of ``feature`` (None: on all lines)."""
    placed: dict[str, Place] = {}
    problems: list[Problem] = []
    for number, line in enumerate(_lines(gtf), start=1):
        if line.startswith("#") or not line.strip():
            continue
        cells = line.rstrip("\r\n").split("\t", 8)
        if len(cells) < 9 or not cells[3].isdecimal():
            fault = "the start is not a number." if len(cells) == 9 else f"{len(cells)} columns, a GTF line has 9."
            problems.append(Problem(fault, file=str(gtf), row=number, value=line[:40].strip()))
            if len(problems) == _SHOWN:
                break
        elif feature is None or cells[2] == feature:
            place = (*_chromosome(cells[0]), int(cells[3]))
            for match in _ATTRIBUTE.finditer(cells[8]):
                for name in {match[1] or match[2], _unversioned(match[1] or match[2])}:
                    placed[name] = min(place, placed.get(name, place))
    if problems:
        raise InputError(
            "this is not a GTF file.",
            where=str(gtf),
            consequence="Genes were not ordered.",
            problems=problems,
            fix="give an annotation in GTF format (as from GENCODE or Ensembl), plain or gz.",
        )
    return placed


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file, plain or gz; `InputError` where it is missing or damaged."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8") as lines:
            yield from lines
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"the annotation cannot be read ({error}).", where=str(path), fix="check the path and the file."
        ) from None
