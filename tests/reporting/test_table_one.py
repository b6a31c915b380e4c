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


def test_order_of_rows_and_ids_does_not_matter() -> None:
    groups = {"all": IDS}
    shuffled = summarise(TABLE.iloc[::-1], {"all": IDS[::-1]}, ROLES)
    assert summarise(TABLE, groups, ROLES) == shuffled
