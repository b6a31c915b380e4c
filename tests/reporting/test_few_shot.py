"""Few-shot rows become panels: what each supports kind says, which k could not be done."""

from __future__ import annotations

from typing import Any

import pytest

from medform.reporting.few_shot import common_limits, panels
from medform.runs.scores import ScoreRow


def row(model: str, shots: int, value: float | None, supports: str = "aligned", **more: Any) -> ScoreRow:
    fields = {"readout": "logistic", "n_patients": 40} | more
    low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
    return ScoreRow("c", "t", "few_shot", model, "auroc", value, ci_low=low, ci_high=high, shots=shots,
                    supports=supports, **fields)  # fmt: skip


@pytest.mark.proves("A7")
def test_panels_separate_supports_and_name_impossible_and_overlapping_draws() -> None:
    rows = [
        row("aligned", 5, 0.7),
        row("aligned", 1, 0.6),
        row("aligned", 25, None, note="not_possible"),
        row("aligned", 10, 0.75, note="overlapping_draws"),
        row("aligned", 5, 0.9, readout="centroid"),
        row("table_logistic", 5, 0.8),
        row("aligned - image_only", 5, 0.04),
        row("image_only", 5, 0.65, supports="unseen"),
    ]
    aligned, unseen = panels(rows, "t")
    assert [point.shots for point in aligned.lines["aligned"]] == [1, 5, 10] and list(aligned.lines) == ["aligned"]
    assert aligned.impossible == (25,) and "Too few patients for k = 25." in aligned.caption
    assert "At k = 10 the draws share most" in aligned.caption
    assert aligned.gain[5].value == 0.04 and unseen.gain == {}
    assert unseen.supports == "unseen" and "new hospital" in unseen.caption
    low, high = common_limits([aligned, unseen])
    assert low == pytest.approx(0.46 + 0.02 - 0.0, abs=0.03) and high == pytest.approx(0.87)
    assert panels(rows, "other") == []


def test_image_alone_stands_beside_supports_out_of_fold_with_its_own_draws() -> None:
    rows = [
        row("image_only", 5, 0.6),
        row("aligned", 5, 0.7),
        row("aligned", 5, 0.65, supports="out_of_fold"),
    ]
    _, out_of_fold = panels(rows, "t")
    assert [point.value for point in out_of_fold.lines["image_only"]] == [0.6]
