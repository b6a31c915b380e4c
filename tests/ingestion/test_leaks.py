"""Columns and orders that give a label away are found; honest columns pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medform.cohort.cohort_file import CohortFile, ColumnSpec, parse_cohort_file
from medform.cohort.split import inner_folds
from medform.errors import InputError
from medform.ingestion.leaks import cross_fitted_auroc, find_leaks, name_similarity, order_auroc, refuse_leaks

NUMBER = ColumnSpec(role="ignore", type="number")
N = 60


def _file(**columns: dict[str, Any]) -> CohortFile:
    feature = {"role": "feature", "known_at": "scan"}
    tree = {
        "name": "c",
        "licence": "CC0",
        "images": {},
        "tables": {"clinical": {"path": "t.csv", "patient_id": "id"}},
        "columns": {"dead": {"role": "label", "type": "boolean"}} | {n: feature | c for n, c in columns.items()},
        "tasks": [{"name": "death", "label": "clinical.dead", "predicted_at": "scan"}],
    }
    return parse_cohort_file(tree, "c.yaml")


def _table(random: np.random.Generator, **columns: Any) -> pd.DataFrame:
    index = pd.Index([f"P{number:03d}" for number in random.permutation(N)])
    return pd.DataFrame({"dead": pd.array(np.arange(N) % 3 == 0, dtype="boolean")} | columns, index=index)


@pytest.mark.proves("A3.4", "R35", "A.input", "A.tests")
def test_a_column_that_restates_the_label_is_refused_by_name_or_by_what_it_predicts(
    random: np.random.Generator,
) -> None:
    dead = np.arange(N) % 3 == 0
    file = _file(
        age={"type": "number"},
        days_to_death={"type": "number"},
        status={"type": "category"},
        dead_2={"type": "boolean"},
        crp={"type": "number"},
    )
    table = _table(
        random,
        age=random.normal(60, 10, N),
        days_to_death=np.where(dead, random.integers(10, 900, N), np.nan),
        status=pd.array(np.where(dead, random.choice(["died", "deceased"], N), "alive"), dtype="string"),
        dead_2=pd.array(random.random(N) < 0.5, dtype="boolean"),
        crp=random.normal(0, 1, N) + 2.2 * dead,
    )
    leaks = find_leaks(file, table)
    found = {(leak.column, leak.how): leak.verdict for leak in leaks}
    assert found == {
        ("days_to_death", "auroc"): "refused",
        ("status", "auroc"): "refused",
        ("dead_2", "name"): "refused",
        ("crp", "auroc"): "warned",
    }
    with pytest.raises(InputError) as caught:
        refuse_leaks(leaks, "t.csv")
    text = str(caught.value)
    assert "AUROC 1.00" in text and "columns.status.allow_as_feature: true" in text and "'crp'" not in text


@pytest.mark.proves("A3.4")
def test_a_leak_can_be_allowed_by_its_key(random: np.random.Generator) -> None:
    file = _file(marker={"type": "number", "allow_as_feature": True})
    table = _table(random, marker=(np.arange(N) % 3 == 0) * 1.0)
    leaks = find_leaks(file, table)
    assert [leak.verdict for leak in leaks] == ["allowed"]
    refuse_leaks(leaks, "t.csv")


@pytest.mark.proves("R35")
def test_ids_and_rows_sorted_by_diagnosis_are_warned_of(random: np.random.Generator) -> None:
    table = _table(random).sort_values("dead")
    table.index = pd.Index([f"P{number:03d}" for number in range(N)])
    leaks = find_leaks(_file(), table)
    assert {(leak.how, leak.verdict, leak.auroc) for leak in leaks} == {
        ("id_number", "warned", 1.0),
        ("row_order", "warned", 1.0),
    }
    assert find_leaks(_file(), _table(random)) == []


@pytest.mark.proves("A3.4")
def test_the_auroc_equals_a_plain_cross_validation_of_scikit_learn(random: np.random.Generator) -> None:
    y = np.arange(N) % 3 == 0
    labels = pd.Series(y * 1.0, index=[f"P{number}" for number in range(N)])
    values = pd.Series(random.normal(0, 1, N) + y, index=labels.index)
    result = cross_fitted_auroc(values, NUMBER, labels, seed=3)
    assert result is not None and result[1] == 20
    folds = inner_folds(list(labels.index), y * 1.0, 5, 3)
    fold = np.array([folds[one] for one in labels.index])
    won = pairs = 0.0
    for k in range(5):
        test = fold == k
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0)).fit(
            values[~test].to_numpy()[:, None], y[~test]
        )
        count = y[test].sum() * (~y[test]).sum()
        won += count * roc_auc_score(y[test], model.decision_function(values[test].to_numpy()[:, None]))
        pairs += count
    assert result[0] == pytest.approx(won / pairs, abs=1e-12)


@pytest.mark.proves("R35", "R50")
def test_codes_gaps_and_small_classes(random: np.random.Generator) -> None:
    y = np.arange(N) % 2 == 0
    labels = pd.Series(y * 1.0, index=[f"P{number}" for number in range(N)])
    code = pd.Series(np.where(y, 2.0, random.choice([1.0, 3.0], N)), index=labels.index)  # not monotone
    assert cross_fitted_auroc(code, NUMBER, labels) == (1.0, 30)
    gaps = pd.Series(np.where(y, np.nan, random.normal(size=N)), index=labels.index)  # missing is the label
    assert cross_fitted_auroc(gaps, NUMBER, labels) == (1.0, 30)
    members = ColumnSpec(role="ignore", type="set")
    lobes = pd.Series(pd.array(np.where(y, "LLL;RUL", "LLL"), dtype="string"), index=labels.index)
    assert cross_fitted_auroc(lobes, members, labels) == (1.0, 30)
    assert cross_fitted_auroc(code, NUMBER, labels * 0) is None
    few = labels.where(labels.index.isin([f"P{number}" for number in range(8)]))
    result = cross_fitted_auroc(code, NUMBER, few)
    assert result is not None and result[1] == 4
    empty = pd.Series(np.full(N, np.nan), index=labels.index)
    assert cross_fitted_auroc(empty, NUMBER, labels) == (0.5, 30)
    assert order_auroc(np.arange(4), np.array([1.0, 1.0, np.nan, 1.0])) is None


@pytest.mark.proves("A3.4", "A.input")
@pytest.mark.parametrize(
    ("feature", "label", "alike"),
    [
        ("T_stage", "t-stage", True),
        ("t_stage_clinical", "T_stage", True),
        ("histolgy", "histology", True),
        ("age", "stage", False),
        ("sex", "relapse", False),
        ("smoking", "histology", False),
        ("pack_years", "os_years", False),
    ],
)
def test_names_that_are_alike(feature: str, label: str, alike: bool) -> None:
    assert (name_similarity(feature, label) >= 0.85) == alike


def _followed(tasks: list[dict[str, Any]], **columns: dict[str, Any]) -> CohortFile:
    feature = {"role": "feature", "known_at": "scan"}
    tree = {
        "name": "c", "licence": "CC0", "images": {},
        "tables": {"clinical": {"path": "t.csv", "patient_id": "id"}},
        "columns": {"dead": {"role": "outcome", "type": "boolean"}, "months": {"role": "time", "type": "number"}}
        | {name: feature | column for name, column in columns.items()},
        "tasks": tasks, "survival": {"time": "months", "event": "dead"},
    }  # fmt: skip
    return parse_cohort_file(tree, "c.yaml")


def test_columns_that_restate_follow_up_are_refused_without_any_task(random: np.random.Generator) -> None:
    dead, months = np.arange(N) % 3 == 0, random.uniform(1, 60, N)
    table = _table(
        random,
        months=months,
        os_days=np.where(dead, np.round(months * 30.4), random.uniform(1, 2000, N)),
        dead_at_5y=random.random(N),
        status=pd.array(np.where(dead, "gone", "seen"), dtype="string"),
        age=random.normal(60, 10, N),
        months_known=random.random(N),
    )
    number = {"type": "number"}
    kinds = {"os_days": number, "dead_at_5y": number, "status": {"type": "category"}, "age": number}
    leaks = find_leaks(_followed([], **kinds, months_known=number | {"allow_as_feature": True}), table)
    assert {(leak.column, leak.how): leak.verdict for leak in leaks if leak.verdict != "warned"} == {
        ("os_days", "values"): "refused",
        ("dead_at_5y", "name"): "refused",
        ("status", "auroc"): "refused",
        ("months_known", "name"): "allowed",
    }
    assert {leak.task for leak in leaks} == {"survival"} and "age" not in {leak.column for leak in leaks}
    with pytest.raises(InputError, match=r"order of the survival time 'months' \(correlation 1\.00 of 20 patients\)"):
        refuse_leaks(leaks, "t.csv")


def test_a_leak_of_an_event_that_is_a_task_too_is_told_once(random: np.random.Generator) -> None:
    task = {"name": "death", "label": "clinical.dead", "predicted_at": "scan"}
    table = _table(random, months=random.uniform(1, 60, N), marker=(np.arange(N) % 3 == 0) * 1.0)
    leaks = find_leaks(_followed([task], marker={"type": "number"}), table)
    assert [(leak.column, leak.task) for leak in leaks] == [("marker", "death")]


def test_few_times_in_order_are_warned_of_and_fewer_say_nothing(random: np.random.Generator) -> None:
    for count, verdicts in ((4, []), (8, ["warned"]), (12, ["refused"])):
        months = random.uniform(1, 60, N)
        dead = pd.array(np.arange(N) < count, dtype="boolean")
        table = _table(random, months=months, delay=-months).assign(dead=dead)
        table["delay"] = np.where(np.arange(N) < count, -months, random.uniform(-60, -1, N))
        leaks = find_leaks(_followed([], delay={"type": "number"}), table)
        assert [leak.verdict for leak in leaks if leak.how == "values"] == verdicts
