"""Follow-up: what counts as a time and an event, who is left out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort.cohort_file import CohortFile, parse_cohort_file
from medform.cohort.survival import survival_faults, survival_frame, survival_notes
from medform.errors import InputError
from medform.ingestion.clinical import read_join

COLUMNS: dict[str, Any] = {
    "months": {"role": "time", "type": "number", "unit": "month"},
    "dead": {"role": "outcome", "type": "boolean"},
    "code": {"role": "outcome", "type": "number"},
    "status": {"role": "outcome", "type": "category"},
}


def cohort_file(root: Path | None = None, columns: dict[str, Any] | None = None, **survival: Any) -> CohortFile:
    tree = {
        "name": "followed", "licence": "CC0-1.0", "images": {}, "columns": COLUMNS | (columns or {}),
        "tables": {"clinical": {"path": "clinical.csv", "patient_id": "id", "missing": ["", "NA"]}},
        "survival": {"time": "months", "event": "dead"} | survival,
    }  # fmt: skip
    return parse_cohort_file(tree, "cohort.yaml", root)


def table(**columns: list[Any]) -> pd.DataFrame:
    frame = pd.DataFrame({"months": [12.0, 3.5, np.nan, 40.0]}, index=pd.Index(list("ABCD"), name="patient_id"))
    given = {"dead": pd.array([True, False, True, None], dtype="boolean"), **columns}
    return frame.assign(**given)


@pytest.mark.proves("A2.1")
def test_patients_with_a_time_and_an_event_are_there() -> None:
    frame = survival_frame(cohort_file(), table())
    assert frame.index.tolist() == ["A", "B"] and frame.index.name == "patient_id"
    assert frame["time"].tolist() == [12.0, 3.5] and frame["event"].tolist() == [1, 0]
    assert frame.dtypes.tolist() == [np.float64, np.int64]
    assert survival_faults(cohort_file(), table()) == []
    assert survival_notes(cohort_file(), table()) == [
        "survival: 2 patients have only one of months and dead; they are left out."
    ]


@pytest.mark.proves("A2.1")
def test_an_event_may_be_a_word_or_a_number() -> None:
    words = pd.array(["dead of disease", "alive", "dead", "lost"], dtype="string")
    file = cohort_file(event="status", positive=["dead", "dead of disease"])
    assert survival_frame(file, table(status=words))["event"].tolist() == [1, 0, 0]
    coded = cohort_file(event="code", positive=[2])
    assert survival_frame(coded, table(code=[2.0, 1.0, 1.0, 2.0]))["event"].tolist() == [1, 0, 1]
    plain = cohort_file(event="code")
    assert survival_frame(plain, table(code=[1.0, 0.0, 0.0, np.nan]))["event"].tolist() == [1, 0]
    everybody = survival_notes(plain, table(code=[1.0, 1.0, 1.0, 1.0]))
    assert everybody[-1] == "survival: the event happened to everybody, all 3 patients."


@pytest.mark.proves("A.input")
def test_cells_that_cannot_be_meant_are_told_all_at_once_with_their_rows(tmp_path: Path) -> None:
    rows = ["id,months,dead,code,status", "A,-2,yes,1,", "B,4,no,2,", "C,9,yes,7,", "D,1,no,0,"]
    (tmp_path / "clinical.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match="3 problems in the table") as caught:
        read_join(cohort_file(tmp_path, event="code"), list("ABCD"))
    found = {(one.row, one.column, one.value) for one in caught.value.problems}
    assert found == {(2, "months", "-2"), (3, "code", "2"), (4, "code", "7")}
    assert "survival.positive" in str(caught.value) and "columns.code.sentinels" in str(caught.value)
    assert "Nothing was written" in str(caught.value)
    clinical = read_join(
        cohort_file(tmp_path, {"months": COLUMNS["months"] | {"sentinels": [-2]}}, event="dead"), list("ABCD")
    )
    assert any(note.startswith("survival: 1 patients") for note in clinical.notes)


@pytest.mark.proves("A.input")
def test_a_limit_is_no_time_but_for_followed_without_the_event(tmp_path: Path) -> None:
    rows = ["id,months,dead,code,status", "A,>60,no,,", "B,>60,yes,,", "C,<3,yes,,", "D,-2,no,,", "E,60+,no,,"]
    (tmp_path / "clinical.csv").write_text("\n".join(rows) + "\n")
    limits = {"months": COLUMNS["months"] | {"censored": "limit"}}
    with pytest.raises(InputError) as caught:
        read_join(cohort_file(tmp_path, limits), list("ABCDE"))
    assert [(one.row, one.value) for one in caught.value.problems] == [(5, "-2"), (3, ">60"), (4, "<3")]
    assert "a limit is no time of follow-up" in str(caught.value) and "columns.months.missing" in str(caught.value)
    signs = pd.array([None, ">", None, None], dtype="string")
    ended = table(dead=pd.array([True, False, True, None], dtype="boolean"))
    assert survival_frame(cohort_file(None, limits), ended.assign(**{"months.censored": signs}))["time"].tolist() == [
        12.0,
        3.5,
    ]
    with pytest.raises(InputError, match="1 times or events are only limits"):
        survival_frame(cohort_file(None, limits), ended.assign(**{"months.censored": signs[[1, 0, 2, 3]]}))


@pytest.mark.proves("A.input")
def test_columns_that_are_useless_are_refused() -> None:
    unknown = survival_faults(
        cohort_file(event="status", positive=["Dead"]), table(status=pd.array(["dead", "alive"] * 2, dtype="string"))
    )
    assert [one.column for one in unknown] == ["status"] and "spelt 'dead'" in unknown[0].problem
    [nobody] = survival_faults(cohort_file(), table(dead=pd.array([None, None, True, None], dtype="boolean")))
    assert "no patient has both" in nobody.problem


@pytest.mark.proves("A.input", "A3.4")
@pytest.mark.parametrize(
    ("columns", "survival", "says"),
    [
        ({"months": {"role": "feature", "type": "number", "known_at": "scan"}}, {}, "role: time"),
        ({"months": {"role": "time", "type": "date"}}, {}, "a duration, not a date"),
        ({"dead": {"role": "feature", "type": "boolean", "known_at": "scan"}}, {}, "role: outcome"),
        ({}, {"event": "status"}, "survival.positive"),
        ({}, {"event": "deed"}, "Did you mean 'dead'"),
    ],
)
def test_follow_up_is_an_outcome(columns: dict[str, Any], survival: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        cohort_file(None, columns, **survival)


def test_a_cohort_without_survival_says_how_to_declare_it() -> None:
    file = cohort_file().model_copy(update={"survival": None})
    assert survival_faults(file, table()) == [] and survival_notes(file, table()) == []
    with pytest.raises(InputError, match="no survival times"):
        survival_frame(file, table())
