"""A patient's slices as one bag: packed at their true length, never padded, never drawn twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int

from medform.inputs.slices import SliceStore
from medform.interfaces import Block

__all__ = ["BagSource"]


@dataclass(frozen=True)
class BagSource:
    """Slice features (T, d) of many patients, given out as packed blocks.

    ``patient`` (T,) are the numbers that patients have in every block; ``index`` (T,) and ``z_mm`` (T,) place
    slices.
    """

    feature: Float32[np.ndarray, "t d"]
    patient: Int[np.ndarray, " t"]
    index: Int[np.ndarray, " t"]
    z_mm: Float32[np.ndarray, " t"]

    @classmethod
    def of(cls, feature: Float32[np.ndarray, "t d"], store: SliceStore) -> BagSource:
        """Features whose rows are the store's slices."""
        return cls(feature, store.patient, store.index, store.z_mm)

    def rows(self, patients: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " t"]]:
        """For each of ``patients`` the rows of its slices, in order; empty where it has none."""
        order = np.argsort(self.patient, kind="stable")
        ordered = self.patient[order]
        first = np.searchsorted(ordered, patients, side="left")
        last = np.searchsorted(ordered, patients, side="right")
        return [order[a:b] for a, b in zip(first, last, strict=True)]

    def block(self, patients: Int[np.ndarray, " n"]) -> Block:
        """The bags of ``patients`` in the order given; a patient without slices has no row in the block."""
        found = [(code, rows) for code, rows in zip(patients, self.rows(patients), strict=True) if len(rows)]
        rows = np.concatenate([rows for _, rows in found]) if found else np.empty(0, np.int64)
        codes = torch.tensor([int(code) for code, _ in found], dtype=torch.int64)
        lengths = torch.tensor([0, *(len(rows) for _, rows in found)], dtype=torch.int64)
        return Block(
            value={"feature": torch.from_numpy(np.ascontiguousarray(self.feature[rows]))},
            patient=codes,
            item=codes,
            cohort=torch.zeros_like(codes),
            z=torch.from_numpy(self.index[rows]),
            z_mm=torch.from_numpy(self.z_mm[rows]),
            offset=lengths.cumsum(0),
        )
