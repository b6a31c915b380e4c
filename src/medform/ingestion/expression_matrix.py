"""What every format of expression becomes before it is joined: samples, genes and a block of float32."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medform.cohort.genes_spec import GeneFormat, Orientation
from medform.errors import Problem
from medform.ingestion.expression_join import Sample

__all__ = ["GrowingRows", "Matrix"]

SHARE, LEAST = 64, 1 << 20
"""Room is added for a 64th of the rows and a megabyte."""


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


class GrowingRows:
    """Rows (r, width) float32 appended one block after another, with little more than one copy in memory.

    Room is added by a share of what is there: the allocator moves pages, not their content, where it can.
    """

    def __init__(self, width: int) -> None:
        self._rows = 0
        self._held = np.empty((0, width), np.float32)

    def append(self, block: NDArray[np.float32]) -> None:
        """Copy ``block`` behind the rows that are there."""
        end, width = self._rows + len(block), self._held.shape[1]
        if end > len(self._held):
            room = end + end // SHARE + LEAST // max(4 * width, 1)
            self._held.resize((room, width), refcheck=False)
        self._held[self._rows : end] = block
        self._rows = end

    def taken(self) -> NDArray[np.float32]:
        """All rows; the object holds none afterwards."""
        held = self._held
        held.resize((self._rows, held.shape[1]), refcheck=False)
        self.__init__(held.shape[1])
        return held
