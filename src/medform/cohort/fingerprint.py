"""Difference hash of a slice: equal or nearly equal for copies of one image, however they were stored.

After the difference hash of N. Krawetz (2013), on 16 x 16 cells with a dead band, so that flat air does not
hash its noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["BITS", "NEAR_BITS", "fingerprint", "near_pairs"]

CELLS = 16
BITS = CELLS * CELLS
NEAR_BITS = 3
"""Two slices are near-duplicates when at most this many of the 256 bits differ."""
DEAD_BAND = 0.02
FEWEST_BITS = 24
"""A hash with fewer set bits is of an almost empty slice: it looks like every other empty one and is not
compared."""


def _cells(values: NDArray[np.generic], rows: int, columns: int) -> NDArray[np.float64]:
    """Area means of (H, W) on a grid of rows x columns cells."""
    row_edge = np.linspace(0, values.shape[0], rows + 1).astype(int)
    column_edge = np.linspace(0, values.shape[1], columns + 1).astype(int)
    summed = np.add.reduceat(values.astype(np.float64), row_edge[:-1], axis=0)
    summed = np.add.reduceat(summed, column_edge[:-1], axis=1)
    count = np.maximum(np.diff(row_edge), 1)[:, None] * np.maximum(np.diff(column_edge), 1)[None, :]
    return summed / count


def fingerprint(values: NDArray[np.generic]) -> str:
    """Hash of one slice (H, W), any scale and offset: 64 hexadecimal digits (256 bits)."""
    cells = _cells(values, CELLS, CELLS + 1)
    span = float(cells.max() - cells.min())
    bits = np.diff(cells, axis=1) > DEAD_BAND * span if span > 0 else np.zeros((CELLS, CELLS), dtype=bool)
    return np.packbits(bits).tobytes().hex()


def near_pairs(prints: list[str], near_bits: int = NEAR_BITS) -> Iterator[tuple[int, int]]:
    """Positions (i < j) of all pairs of hashes that differ in at most ``near_bits`` bits, empty slices left out.

    Bits are dealt into ``near_bits + 1`` bands; such a pair agrees in at least one band, so only equal bands
    are compared.
    """
    if not prints:
        return
    packed = np.frombuffer(bytes.fromhex("".join(prints)), dtype=np.uint8).reshape(len(prints), BITS // 8)
    bits = np.unpackbits(packed, axis=1)
    full = np.flatnonzero(bits.sum(axis=1) >= FEWEST_BITS)
    seen: set[tuple[int, int]] = set()
    for band in range(near_bits + 1):
        part = np.packbits(bits[full, band :: near_bits + 1], axis=1)
        buckets: dict[bytes, list[int]] = {}
        for position, row in zip(full.tolist(), part, strict=True):
            buckets.setdefault(row.tobytes(), []).append(position)
        for members in buckets.values():
            for first, left in enumerate(members[:-1]):
                others = np.array(members[first + 1 :])
                apart = np.count_nonzero(bits[others] != bits[left], axis=1)
                seen.update((left, int(right)) for right in others[apart <= near_bits])
    yield from sorted(seen)
