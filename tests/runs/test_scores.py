"""scores.json: the design's keys, equal bytes, faults named; and what a difference says in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medform.errors import InputError
from medform.runs.scores import (
    ScoreRow,
    detectable_of,
    difference_in_words,
    read_scores,
    unseen_in_words,
    write_scores,
)

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
def test_a_null_says_which_difference_is_likely_to_be_missed() -> None:
    assert difference_in_words(DIFFERENCE) == (
        "Paired difference +0.09 (95% CI -0.03 to +0.21, 61 patients): "
        "this cohort does not show a difference between aligned and image only; a true difference of 0.14 would be "
        "missed in one of five such cohorts, smaller ones more often."
    )
    assert "difference of 0.20 would be missed" in difference_in_words(DIFFERENCE, detectable=0.2)
    assert detectable_of(replace(DIFFERENCE, note="interval: delong_logit")) is None


def test_no_difference_of_zero_is_said_to_be_missed() -> None:
    assert unseen_in_words(0.0004, 3) == unseen_in_words(None) == "" != unseen_in_words(0.0006, 3)


@pytest.mark.proves("A7")
def test_the_words_of_one_pair_follow_its_interval_and_claim_no_reason() -> None:
    gain = replace(DIFFERENCE, ci_low=0.01)
    assert difference_in_words(gain).endswith(": aligned scores better than image only in this cohort.")
    loss = replace(DIFFERENCE, value=-0.1, ci_low=-0.2, ci_high=-0.02)
    assert difference_in_words(loss).endswith(": aligned scores worse than image only in this cohort.")
    assert "scores worse" in difference_in_words(replace(gain, metric="brier"))
    assert "scores better" in difference_in_words(replace(loss, metric="median_rank"))
    fused = replace(DIFFERENCE, model="fused - table_logistic")
    assert "between table + aligned and table alone;" in difference_in_words(
        fused, names=("table + aligned", "table alone")
    )
    other = replace(DIFFERENCE, model="table_boosting - table_logistic", note=None)
    assert difference_in_words(other).endswith("a difference between table boosting and table logistic.")
    undefined = replace(DIFFERENCE, value=None, ci_low=None, ci_high=None, note="undefined: one class only")
    assert difference_in_words(undefined).endswith("can be given (undefined: one class only).")
