"""Table one: sums by group, missing cells counted, and no value of a person in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medform.reporting.table_one import Cell, read_table_one, summarise, write_table_one

IDS = ["p1", "p2", "p3", "p4"]
TABLE = pd.DataFrame(
    {
        "age": [60.0, 70.0, np.nan, 50.0],
        "sex": pd.array(["f", "m", "m", pd.NA], dtype="string"),
        "smoker": pd.array([True, False, True, pd.NA], dtype="boolean"),
        "note": ["Jane Doe", "x", "y", "z"],
        "id": IDS,
    },
    index=IDS,
)
ROLES = {
    "sex": "feature",
    "age": "feature",
    "smoker": "label",
    "note": "group",
    "id": "id",
    "absent": "feature",
}


@pytest.mark.proves("A7")
def test_columns_are_summed_up_by_group_with_what_is_missing(tmp_path: Path) -> None:
    table = summarise(TABLE, {"all": [*IDS, "p5"], "test": ["p1", "p2"]}, ROLES, {"age": "year"}, {"note": "text"})
    assert table.groups == {"all": 5, "test": 2}
    sex, age, smoker, note = table.columns
    assert age.cells["all"] == Cell(missing=2, median=60.0, q1=55.0, q3=65.0) and age.unit == "year"
    assert sex.cells["all"] == Cell(missing=2, levels=(("m", 2), ("f", 1)))
    assert smoker.cells["all"].levels == (("yes", 2), ("no", 1)) and smoker.role == "label"
    assert note.cells["test"] == Cell(missing=0, distinct=2)
    write_table_one(tmp_path, table)
    assert read_table_one(tmp_path) == table
    text = (tmp_path / "table_one.json").read_text()
    assert "Jane" not in text and json.loads(text)["schema_version"] == 1


def test_a_group_without_any_value_has_cells_of_missing_only() -> None:
    age = summarise(TABLE, {"none": ["p3"]}, {"age": "feature"}).columns[0]
    assert age.cells["none"] == Cell(missing=1)
    sex = summarise(TABLE, {"all": IDS, "none": ["p4"]}, {"sex": "feature"}).columns[0]
    assert sex.cells["none"] == Cell(missing=1)


def test_order_of_rows_and_ids_does_not_matter() -> None:
    groups = {"all": IDS}
    shuffled = summarise(TABLE.iloc[::-1], {"all": IDS[::-1]}, ROLES)
    assert summarise(TABLE, groups, ROLES) == shuffled


def _levels(*counts: int) -> list[Cell]:
    """A column with a level for each count, the first of them called a: all patients, and the first one."""
    values = [chr(ord("a") + place) for place, count in enumerate(counts) for _ in range(count)]
    ids = [f"p{number}" for number in range(len(values))]
    table = pd.DataFrame({"level": values}, index=ids)
    return list(summarise(table, {"all": ids, "first": ids[:1]}, {"level": "feature"}).columns[0].cells.values())


@pytest.mark.proves("A7")
def test_of_many_levels_the_most_frequent_are_named_and_the_others_counted() -> None:
    whole, first = _levels(2, 3, 4, 5, 6, 7, 8, 1, 1)
    assert whole.levels == (("g", 8), ("f", 7), ("e", 6), ("d", 5), ("c", 4), ("b", 3))
    assert whole.others == (3, 4) and whole.known == 37 and whole.distinct is None
    assert first == Cell(missing=0, levels=(), others=(1, 1)), "the groups name the same levels"
    assert _levels(*[1] * 6, 2)[0].others is None, "one level more is named, not counted"


@pytest.mark.proves("A7")
def test_a_level_of_a_single_patient_is_not_named_where_levels_are_many() -> None:
    assert _levels(5, *[1] * 9)[0] == Cell(missing=0, levels=(("a", 5),), others=(9, 9))
    assert _levels(*[1] * 10)[0] == Cell(missing=0, distinct=10)
