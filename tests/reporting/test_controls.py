"""What the page says in words follows from the rows, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from medform.reporting.controls import differences, task_scores, verdict, warnings
from medform.reporting.run_files import RunFacts, TaskFacts
from medform.reporting.words import model_words
from medform.runs.scores import ScoreRow

TASK = TaskFacts("histology", primary=True, n=76, positive=19)


def row(model: str, value: float | None, low: float | None = None, high: float | None = None, **more: Any) -> ScoreRow:
    fields = {"metric": "auroc", "protocol": "cross_validation", "readout": "logistic"} | more
    return ScoreRow("c", "histology", model=model, value=value, ci_low=low, ci_high=high, n_patients=76, **fields)


def said(*rows: ScoreRow, detectable: float | None = 0.14) -> str:
    facts = RunFacts(detectable={} if detectable is None else {"histology": detectable})
    return verdict(task_scores(rows, TASK), facts).sentence


ALIGNED, ALONE = row("aligned", 0.71, 0.58, 0.83), row("image_only", 0.69, 0.56, 0.81)


@pytest.mark.proves("A7")
@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (
            -0.06,
            0.10,
            "this cohort does not show a benefit of alignment; a true difference of 0.14 would be missed in one of "
            "five such cohorts, smaller ones more often.",
        ),
        (0.01, 0.10, "alignment helps on this cohort (+0.02 [+0.01, +0.10])."),
        (-0.10, -0.01, "alignment makes it worse here (+0.02 [−0.10, −0.01])."),
        (None, None, "whether alignment helps cannot be said from this run."),
    ],
)
def test_verdict_follows_the_interval_of_the_difference(low: float | None, high: float | None, words: str) -> None:
    own = row("aligned - shuffled_pairs", 0.1, 0.02, 0.18)
    sentence = said(ALIGNED, ALONE, row("aligned - image_only", 0.02, low, high), own)
    assert sentence.startswith("On histology, aligned scores 0.71 [0.58, 0.83] of 1 (chance 0.50); image alone 0.69; ")
    assert sentence.endswith(words)


@pytest.mark.proves("A7")
def test_alignment_is_not_said_to_help_where_shuffled_pairs_do_as_well_or_were_not_tried() -> None:
    gain = row("aligned - image_only", 0.08, 0.01, 0.15)
    for own, words in (([], "were not tried."), ([row("aligned - shuffled_pairs", -0.01, -0.1, 0.08)], "the pairing.")):
        sentence = said(ALIGNED, ALONE, gain, *own)
        assert "it seems to gain (+0.08 [+0.01, +0.15]), but shuffled pairs" in sentence and sentence.endswith(words)
        assert verdict(task_scores([ALIGNED, ALONE, gain, *own], TASK), RunFacts()).tone == "none"


def test_verdict_takes_the_detectable_difference_from_the_row_where_the_run_has_none() -> None:
    pair = row("aligned - image_only", 0.0, -0.1, 0.1, note="detectable 0.17")
    assert "; a true difference of 0.17 would be missed in" in said(ALIGNED, ALONE, pair, detectable=None)


def test_verdict_without_alignment_or_without_any_score() -> None:
    assert said(ALONE) == (
        "On histology, image alone scores 0.69 [0.56, 0.81] of 1 (chance 0.50); no aligned model was evaluated."
    )
    assert "nothing could be scored" in said(row("aligned", None, note="one class only"))


@pytest.mark.proves("A7", "A6.3")
def test_every_null_difference_says_what_is_likely_to_be_missed() -> None:
    rows = [
        row("fused - table_logistic", 0.03, -0.05, 0.11),
        row("image_only - imagenet_encoder", 0.09, 0.02, 0.16),
        row("own - other", -0.2, -0.3, -0.1),
        row("aligned - image_only", 0.01, -0.07, 0.09, readout="centroid"),
    ]
    found = differences(task_scores(rows, TASK), 0.14)
    assert [difference.tone for difference in found] == ["none", "gain", "loss"]
    assert "a true difference of 0.14 would be missed" in found[0].answer and "−0.05" in found[0].answer
    assert "missed" not in found[1].answer + found[2].answer
    assert found[2].question == "Is own better than other?"


@pytest.mark.proves("A7")
@pytest.mark.parametrize(
    ("own", "ending"),
    [
        ([row("aligned - shuffled_pairs", 0.1, 0.02, 0.18)], "in this cohort."),
        ([row("aligned - shuffled_pairs", 0.0, -0.1, 0.1)], "fall behind, so it need not be the pairing."),
        ([row("aligned - shuffled_pairs", -0.1, -0.2, -0.02)], "pairs do better, so it is not the pairing."),
        ([row("aligned - shuffled_pairs", 0.1)], "But shuffled pairs cannot be compared."),
        ([], "But shuffled pairs were not tried."),
    ],
)  # fmt: skip
def test_the_sentence_of_one_pair_names_its_two_models_and_leaves_the_reason_to_the_control(
    own: list[ScoreRow], ending: str
) -> None:
    gain = row("aligned - image_only", 0.08, 0.01, 0.15)
    answer = differences(task_scores([ALIGNED, ALONE, gain, *own], TASK), 0.14)[0].answer
    assert "aligned scores better than image alone in this cohort" in answer and answer.endswith(ending)
    assert "benefit" not in answer and "alignment" not in answer


def test_controls_that_reach_the_headline_figure_are_named() -> None:
    rows = [
        row("aligned", 0.6, 0.45, 0.74),
        row("intensity_stats", 0.62, 0.5, 0.7),
        row("shuffled_pairs", 0.6, 0.5, 0.7),
        row("random_encoder", 0.55),
        row("permuted_labels", 0.5, 0.36, 0.64),
        row("table_logistic", 0.7, 0.6, 0.8),
    ]
    text = " ".join(warnings(task_scores(rows, TASK)))
    assert "cannot be told from guessing" in text and "reach up to 0.64" in text
    assert "scanner" in text and "rows of other patients" in text and "table alone scores 0.70" in text
    assert "untrained network" not in text
    assert warnings(task_scores([row("aligned", 0.8, 0.7, 0.9), row("shuffled_pairs", 0.6)], TASK)) == []


def test_table_keeps_a_fixed_order_and_sets_centroid_rows_apart() -> None:
    rows = [
        row("zeta", 0.5),
        row("permuted_labels", 0.5),
        ALONE,
        ALIGNED,
        row("aligned", 0.66, readout="centroid"),
        row("aligned", 0.4, metric="brier"),
        row("aligned", 0.9, protocol="few_shot", shots=5),
    ]
    scores = task_scores(rows, TASK)
    assert scores.models == ["aligned", "image_only", "permuted_labels", "zeta"]
    assert scores.metrics == ["auroc", "brier"]
    assert scores.centroid["aligned"].value == 0.66 and scores.row("aligned") is ALIGNED


def test_chance_rows_become_the_chance_line_and_no_row_of_the_table() -> None:
    rows = [ALIGNED, row("chance", 0.25, metric="auprc", readout=None, note="chance")]
    scores = task_scores(rows, TASK)
    assert scores.models == ["aligned"] and scores.chance == {"auroc": 0.5, "auprc": 0.25}


@pytest.mark.proves("A6.1", "A7")
def test_boosted_trees_on_the_table_stand_in_the_table_in_words_and_warn_where_they_score_more() -> None:
    trees = row("table_boosting", 0.8, 0.7, 0.9, readout=None)
    scores = task_scores([ALIGNED, row("table_logistic", 0.6, 0.5, 0.7), trees], TASK)
    assert scores.models == ["aligned", "table_logistic", "table_boosting"]
    assert scores.row("table_boosting") == trees and model_words("table_boosting").label == "table, boosted trees"
    assert any("Boosted trees on the table alone score 0.80" in line for line in warnings(scores))
    better = task_scores([ALIGNED, row("table_logistic", 0.82, 0.5, 0.9), trees], TASK)
    assert [line for line in warnings(better) if "table alone score" in line] == [
        "The table alone scores 0.82, more than the image: no interval is given for this difference; where the table "
        "can be had, judge the image beside it."
    ]


def test_what_validation_chose_is_held_by_the_model_folder_or_a_sentence_says_that_it_is_not() -> None:
    """A folder holds readouts of the recipe's own vectors, of the table, and of both; given vectors have no folder."""
    rows = [ALIGNED, ALONE, row("table_logistic", 0.6, 0.5, 0.7)]
    said = {one: task_scores(rows, TASK, one).not_exported for one in (None, "aligned", "table_logistic", "fused")}
    assert set(said.values()) == {""}
    assert task_scores(rows, TASK, "image_only").not_exported.endswith("(aligned); validation chose image_only.")
    assert task_scores([ALONE], TASK, "image_only").not_exported == ""
    given = [ALONE, row("embeddings", 0.7)]
    assert task_scores(given, TASK, "embeddings").not_exported == ""
