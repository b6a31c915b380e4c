"""scores.json: the design's keys, equal bytes, faults named; and what a difference says in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medform.errors import InputError
from medform.runs.scores import ScoreRow, detectable_of, difference_in_words, read_scores, write_scores

KEYS = [
    "cohort",
    "train_cohorts",
    "task",
    "protocol",
    "shots",
    "supports",
    "model",
    "readout",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "p_value",
    "n_patients",
    "n_draws",
    "seeds",
    "note",
]

DIFFERENCE = ScoreRow(
    cohort="a", task="t", protocol="cross_validation", model="aligned - image_only", metric="auroc",
    value=0.09, n_patients=61, readout="logistic", ci_low=-0.03, ci_high=0.21, p_value=0.14, seeds=1,
    note="detectable 0.143",
)  # fmt: skip


@pytest.mark.proves("A6.1")
def test_rows_come_back_as_they_were_with_the_keys_of_the_design(tmp_path: Path) -> None:
    rows = [
        DIFFERENCE,
        replace(DIFFERENCE, value=None, ci_low=None, ci_high=None, p_value=None, note="undefined: Größe <1>"),
    ]
    path = tmp_path / "scores.json"
    write_scores(path, rows)
    first = path.read_bytes()
    assert read_scores(path) == rows
    tree = json.loads(first)
    assert [list(values) for values in tree] == [KEYS, KEYS]
    assert all(not isinstance(value, list | dict) for values in tree for value in values.values())
    write_scores(path, read_scores(path))
    assert path.read_bytes() == first
    write_scores(path, [])
    assert read_scores(path) == []


@pytest.mark.proves("R50")
def test_a_figure_that_is_not_finite_cannot_become_a_row() -> None:
    with pytest.raises(ValueError, match="null with a note"):
        replace(DIFFERENCE, value=float("nan"))
    with pytest.raises(ValueError, match="did you mean cross_validation"):
        replace(DIFFERENCE, protocol="cross-validation")  # type: ignore[arg-type]


def test_a_damaged_file_is_refused_with_every_row_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_scores(path, [DIFFERENCE, DIFFERENCE])
    tree = json.loads(path.read_text())
    del tree[0]["note"]
    tree[1]["protocol"] = "guess"
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError) as caught:
        read_scores(path)
    assert "row 1" in str(caught.value) and "note" in str(caught.value) and "row 2" in str(caught.value)
    for text in ("{}", "no json"):
        path.write_text(text)
        with pytest.raises(InputError, match="medform evaluate"):
            read_scores(path)
    with pytest.raises(InputError, match="no such file"):
        read_scores(tmp_path / "none.json")


@pytest.mark.proves("A6.3", "A7")
def test_a_null_says_what_could_not_have_been_seen() -> None:
    assert difference_in_words(DIFFERENCE) == (
        "Paired difference +0.09 (95% CI -0.03 to +0.21, 61 patients): "
        "this cohort does not show a benefit of alignment; a difference below 0.14 could not have been seen."
    )
    assert "below 0.20" in difference_in_words(DIFFERENCE, detectable=0.2)
    assert detectable_of(replace(DIFFERENCE, note="interval: delong_logit")) is None


def test_words_follow_the_interval() -> None:
    gain = replace(DIFFERENCE, ci_low=0.01)
    assert difference_in_words(gain).endswith("shows a benefit of alignment.")
    loss = replace(DIFFERENCE, value=-0.1, ci_low=-0.2, ci_high=-0.02)
    assert difference_in_words(loss).endswith("alignment makes it worse on this cohort.")
    assert difference_in_words(replace(gain, metric="brier")).endswith("makes it worse on this cohort.")
    fused = replace(DIFFERENCE, model="fused - table_logistic")
    assert "benefit of adding the image to the table;" in difference_in_words(fused)
    other = replace(DIFFERENCE, model="table_boosting - table_logistic", note=None)
    assert difference_in_words(other).endswith("does not show a benefit of table boosting.")
    undefined = replace(DIFFERENCE, value=None, ci_low=None, ci_high=None, note="undefined: one class only")
    assert difference_in_words(undefined).endswith("can be given (undefined: one class only).")
