"""Masks as arrays: (N, H, W) uint8 label numbers, 0 for nothing; which occur and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

__all__ = ["LESION", "checked_mask", "label_name", "numbers_in"]

LESION: Mapping[int, str] = MappingProxyType({1: "lesion"})
"""Names of label numbers where nothing else is said."""


def checked_mask(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask itself; `ValueError` unless it is (N, H, W) uint8 with no empty axis."""
    if mask.ndim != 3 or mask.dtype != np.uint8 or 0 in mask.shape:
        raise ValueError(f"a mask is (slices, rows, columns) uint8, not {mask.dtype} {mask.shape}")
    return mask


def numbers_in(mask: NDArray[np.uint8]) -> list[int]:
    """The label numbers that occur, ascending, without 0; a slice at a time, in little memory."""
    counts = np.zeros(256, np.int64)
    for one in mask:
        counts += np.bincount(one.ravel(), minlength=256)
    return [number for number in np.flatnonzero(counts).tolist() if number]


def label_name(number: int, labels: Mapping[int, str]) -> str:
    """The name of a label number; 'label 7' where it has none."""
    return labels.get(number, f"label {number}")
