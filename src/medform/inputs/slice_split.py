"""A split by slices instead of patients: a leak on purpose, to measure what it is worth.

Half of each test patient's slices are learnt from, as where somebody shuffles slices and not patients, in place of as
many slices of training patients. What is judged are the other halves alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from medform.compute.seed import numpy_generator

__all__ = ["SliceSplit", "split_by_slice"]

Rows = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class SliceSplit:
    """Rows of a `SliceStore`, rising: ``train`` is learnt from, ``unseen`` are the test slices that are not."""

    train: Rows
    unseen: Rows


def split_by_slice(
    train: Rows, test: Rows, lesion: Bool[np.ndarray, " t"], series: Int[np.ndarray, " t"], seed: int
) -> SliceSplit:
    """Put half of the slices ``test`` (rows of a store of T slices) in the place of as many of the slices ``train``.

    The halves are random, rounded down, of each series and of its slices with ``lesion`` and without by themselves: so
    as many slices of either kind are learnt from as ``train`` holds, and a series with a lesion keeps a slice with
    lesion to be judged on. No more slices of a kind change places than ``train`` has. ``series`` (T,) numbers the
    series. The same arguments give the same split.
    """
    random = numpy_generator(seed, "slice_split")
    learnt, seen = [], []
    for kind in (True, False):
        own, theirs = train[lesion[train] == kind], test[lesion[test] == kind]
        of_series = [theirs[series[theirs] == one] for one in np.unique(series[theirs])]
        halves = [random.permutation(rows)[: len(rows) // 2] for rows in of_series]
        moved = random.permutation(np.concatenate([own[:0], *halves]))[: len(own)]
        learnt += [random.permutation(own)[len(moved) :], moved]
        seen.append(moved)
    return SliceSplit(np.sort(np.concatenate(learnt)), np.setdiff1d(test, np.concatenate(seen)))
