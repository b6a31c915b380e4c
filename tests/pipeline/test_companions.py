"""What belongs to a fold's patients beside their images: encoded table and genes."""

from __future__ import annotations

import numpy as np

from medform.inputs.genes import EncodedGenes
from medform.pipeline.companions import GENES, Companions


def test_a_value_at_the_mean_and_a_missing_one_are_not_the_same_data() -> None:
    def digest(known: bool) -> str:
        there = np.array([[True, known]])
        genes = EncodedGenes(("A",), ("G1", "G2"), np.array([[1.0, 0.0]], np.float32), there, ())
        return Companions(("A",), None, None, genes, None, ()).digest([GENES])

    assert digest(known=True) != digest(known=False) and digest(known=True) == digest(known=True)
