"""Every figure against scikit-learn, with ties and weights, and what is undefined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from medform.metrics.calibration import brier
from medform.metrics.ranking import (
    auroc,
    average_precision,
    balanced_accuracy,
    macro_f1,
    match_ranks,
    median_rank,
    recall_at_k,
    stratified_auroc,
)

rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 4), st.sampled_from([0.5, 1.0, 3.0])), min_size=2, max_size=30
).filter(lambda drawn: len({row[0] for row in drawn}) == 2)


@pytest.mark.proves("A.tests", "A6.1")
@given(rows)
@settings(max_examples=150, deadline=None)
def test_each_figure_equals_scikit_learn_with_ties_and_weights(drawn: list[tuple[int, int, float]]) -> None:
    y, level, weight = (np.array(column) for column in zip(*drawn, strict=True))
    score, predicted = level / 4, (level >= 2).astype(int)
    assert auroc(y, score, weight) == pytest.approx(reference.roc_auc_score(y, score, sample_weight=weight))
    assert average_precision(y, score, weight) == pytest.approx(
        reference.average_precision_score(y, score, sample_weight=weight)
    )
    assert balanced_accuracy(y, predicted, weight) == pytest.approx(
        reference.balanced_accuracy_score(y, predicted, sample_weight=weight)
    )
    assert macro_f1(y, predicted, weight) == pytest.approx(
        reference.f1_score(y, predicted, average="macro", sample_weight=weight, zero_division=0)
    )
    assert brier(y, score, weight) == pytest.approx(reference.brier_score_loss(y, score, sample_weight=weight))


@given(rows)
@settings(max_examples=50, deadline=None)
def test_a_weight_of_two_is_the_row_twice(drawn: list[tuple[int, int, float]]) -> None:
    y, score, _ = (np.array(column) for column in zip(*drawn, strict=True))
    weight = np.arange(len(y)) % 3 + 1.0
    twice = np.repeat(np.arange(len(y)), weight.astype(int))
    for figure in (auroc, average_precision):
        assert figure(y, score, weight) == pytest.approx(figure(y[twice], score[twice]))


@pytest.mark.proves("A6.1")
@given(rows)
@settings(max_examples=50, deadline=None)
def test_fold_stratified_auroc_is_the_mean_of_the_folds_weighted_by_their_pairs(
    drawn: list[tuple[int, int, float]],
) -> None:
    y, score, _ = (np.array(column) for column in zip(*drawn, strict=True))
    fold = np.arange(len(y)) % 3
    top = bottom = 0.0
    for one in range(3):
        inside = fold == one
        if len(set(y[inside])) == 2:
            pairs = int(y[inside].sum()) * int((1 - y[inside]).sum())
            top += pairs * reference.roc_auc_score(y[inside], score[inside])
            bottom += pairs
    expected = top / bottom if bottom else None
    assert stratified_auroc(y, score, fold).value == (None if expected is None else pytest.approx(expected))


def test_scores_of_two_folds_are_never_compared() -> None:
    """Each fold ranks perfectly on a scale of its own: pooled the scores look poor, stratified they do
    not.
    """
    y, fold = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    score = np.array([10.0, 11.0, 1.0, 2.0])
    assert auroc(y, score) == 0.75
    assert stratified_auroc(y, score, fold).value == 1.0


@pytest.mark.proves("R50")
@pytest.mark.parametrize("y", [[1, 1, 1], [0, 0], [1], []])
def test_one_class_or_no_row_is_undefined_not_a_number(y: list[int]) -> None:
    score = np.linspace(0, 1, len(y))
    for figure in (auroc, average_precision, balanced_accuracy, macro_f1):
        assert figure(y, np.round(score)) is None
    assert stratified_auroc(y, score, np.zeros(len(y))).value is None
    assert brier([], []) is None
    assert recall_at_k([], 5) is None and median_rank([]) is None


@pytest.mark.parametrize(
    ("y", "score", "weight", "said"),
    [
        ([0, 2], [0, 1], None, "0 or 1"),
        ([0, 1], [np.nan, 1], None, "not a number"),
        ([0, 1], [0, 1], [1, -1], "negative"),
        ([0, 1], [0, 1, 2], None, "alike"),
    ],
)
def test_what_has_no_meaning_is_refused(y: list, score: list, weight: list | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        auroc(y, score, weight)


def test_ranks_of_matches_share_ties() -> None:
    similarity = np.array([[3.0, 1.0, 2.0], [5.0, 4.0, 4.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(match_ranks(similarity), [1.0, 2.5, 2.0])
    assert recall_at_k([1, 2.5, 2], 2) == pytest.approx(2 / 3)
    assert median_rank([1, 2.5, 2]) == 2
