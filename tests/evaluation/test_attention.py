"""Flat attention has an entropy near its maximum, a selective one has not."""

from __future__ import annotations

import pandas as pd
import pytest

from medform.evaluation.attention import ATTENTION_CASE
from medform.evaluation.evaluate import evaluate

from .conftest import Example


@pytest.mark.proves("U10")
def test_every_bag_has_a_case(example: Example) -> None:
    rows = []
    for patient in range(3):
        for model, weights in (("aligned", [0.26, 0.25, 0.25, 0.24]), ("sharp", [0.97, 0.01, 0.01, 0.01])):
            rows += [(f"P00{patient}", 0, model, 0, f"s{k}", weight) for k, weight in enumerate(weights)]
    rows.append(("P000", 0, "single", 0, "s0", 1.0))
    attention = pd.DataFrame(rows, columns=["patient_id", "fold", "model", "seed", "slice_id", "weight"])
    small = example.embeddings[example.embeddings["model"] == "image_only"]
    found = evaluate(small, example.labels, example.split, example.settings, attention=attention)
    cases = found.cases[found.cases["metric"] == ATTENTION_CASE]
    assert cases.groupby("model").size().to_dict() == {"aligned": 3, "sharp": 3}
    assert (cases.set_index("model")["value"].loc["aligned"] > 0.95).all()
    assert (cases.set_index("model")["value"].loc["sharp"] < 0.2).all()
