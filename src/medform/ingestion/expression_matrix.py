"""What every format of expression becomes before it is joined: samples, genes and a block of float32."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medform.cohort.genes_spec import GeneFormat, Orientation
from medform.errors import Problem
from medform.ingestion.expression_join import Sample

__all__ = ["Matrix", "stacked"]


@dataclass(frozen=True, eq=False)
class Matrix:
    """All ``samples`` of the source; ``values`` (n, G) float32, NaN where missing, of those that may be needed.

    ``taken`` (n,) are their numbers in ``samples``; ``gene_ids`` (G,) stand as in the file, ``gene_places`` say
    where (rows or columns, from 1). ``problems`` are faults of cells and rows.
    """

    file: str
    format: GeneFormat
    orientation: Orientation
    samples: tuple[Sample, ...]
    taken: tuple[int, ...]
    gene_ids: tuple[str, ...]
    gene_places: tuple[int, ...]
    values: NDArray[np.float32] = field(repr=False)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def place(self, gene: int) -> dict[str, int | str]:
        """Arguments of a `Problem` that address a gene by its number."""
        if self.orientation == "genes_in_rows":
            return {"row": self.gene_places[gene]}
        return {"column": f"{self.gene_ids[gene]} (column {self.gene_places[gene]})"}


def stacked(blocks: list[NDArray[np.float32]], width: int, turned: bool) -> NDArray[np.float32]:
    """Row blocks (r, width) as one matrix: (rows, width), or ``turned`` (width, rows).

    The list is emptied on the way, so that little more than one copy of the values is in memory at a time: pages
    of the result come into being as they are written.
    """
    rows = sum(len(block) for block in blocks)
    out = np.empty((width, rows) if turned else (rows, width), np.float32)
    at = 0
    blocks.reverse()
    while blocks:
        block = blocks.pop()
        if turned:
            out[:, at : at + len(block)] = block.T
        else:
            out[at : at + len(block)] = block
        at += len(block)
    return out
