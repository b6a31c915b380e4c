"""The cohort file: text stays text, every contradiction is named at once with the key that mends it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medform.cohort.cohort_file import CohortFile, parse_cohort_file, read_cohort_file
from medform.cohort.columns import feature_columns, group_notes, known_in_time
from medform.cohort.labels import binary_label, slice_label
from medform.config import dump, parse, read_yaml
from medform.errors import InputError


def _tree(**changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "name": "c",
        "licence": "CC0",
        "images": {"layout": "dicom"},
        "tables": {"clinical": {"path": "clinical.csv", "patient_id": "id"}},
        "columns": {
            "age": {"role": "feature", "type": "number", "known_at": "before_scan"},
            "relapse": {"role": "label", "type": "boolean"},
        },
        "tasks": [{"name": "relapse", "label": "clinical.relapse", "predicted_at": "scan"}],
    }
    return tree | changes


def _columns(**columns: dict[str, Any]) -> dict[str, Any]:
    return _tree(columns=_tree()["columns"] | columns)


YAML = """
name: 00123
licence: Yes
images: {layout: dicom}
tables: {clinical: {path: t.csv, patient_id: 0042, missing: ["", NA, No]}}
columns:
  Yes: {role: label, type: category}
  date: {role: ignore, type: date, format: 2020-01-02}
  old: {role: feature, type: number, known_at: before_scan, sentinels: [0999, -1]}
tasks: [{name: t, label: clinical.Yes, predicted_at: scan, positive: [Yes, NA, 007, null]}]
"""


@pytest.mark.proves("A.tests")
def test_yaml_with_na_leading_zeros_and_yes_stays_text() -> None:
    file = parse_cohort_file(read_yaml(YAML), "c.yaml")
    assert (file.name, file.licence) == ("00123", "Yes")
    assert file.clinical is not None and file.clinical.patient_id == "0042"
    assert file.clinical.missing == ["", "NA", "No"]
    assert list(file.columns) == ["Yes", "date", "old"] and file.columns["date"].format == "2020-01-02"
    assert file.tasks[0].positive == ["Yes", "NA", "007", ""] and file.columns["old"].sentinels == [
        999.0,
        -1.0,
    ]
    assert parse(CohortFile, read_yaml(dump(file)), "again") == file


def test_only_name_licence_and_images_are_required() -> None:
    file = parse_cohort_file({"name": "c", "licence": "not stated", "images": {}}, "c.yaml")
    assert file.primary is None and file.stratify == [] and feature_columns(file) == []
    assert (file.splits.name, file.splits.folds, file.window) == ("main", 5, (-1000.0, 400.0))
    with pytest.raises(InputError) as caught:
        parse_cohort_file({}, "c.yaml")
    assert all(f"'{key}'" in str(caught.value) for key in ("name", "licence", "images"))


@pytest.mark.proves("A3.4", "A.input")
@pytest.mark.parametrize(
    ("tree", "parts"),
    [
        (_columns(age={"role": "feature", "type": "number"}), ["'age'", "columns.age.known_at"]),
        (
            _columns(nodes={"role": "feature", "type": "number", "known_at": "after_surgery"}),
            ["'nodes'", "known at after_surgery, after task 'relapse'", "columns.nodes.role"],
        ),
        (
            _columns(notes={"role": "feature", "type": "text", "known_at": "scan"}),
            ["'notes'", "columns.notes.type"],
        ),
        (
            _columns(relapse={"role": "feature", "type": "boolean", "known_at": "scan"}),
            [
                "'relapse'",
                "is the label of task 'relapse'",
                "columns.relapse.role: label",
                "allow_as_feature",
            ],
        ),
        (_columns(id={"role": "feature", "type": "number", "known_at": "scan"}), ["'id'", "patient id"]),
        (_tree(columns={}), ["tasks.relapse.label", "no column 'relapse'", "columns.relapse"]),
        (
            _columns(relapse={"role": "label", "type": "category"}),
            ["tasks.relapse.positive", "which values are positive"],
        ),
        (_tree(tables={}), ["tables.clinical"]),
        (_tree(splits={"stratify": ["relaps"]}), ["splits.stratify", "'relaps'", "Did you mean 'relapse'"]),
        (_tree(slice_tasks=[{"name": "relapse", "label": "index.x"}]), ["two tasks", "images.index"]),
    ],
)
def test_each_contradiction_names_the_column_and_the_key_to_set(tree: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_cohort_file(tree, "c.yaml")
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.proves("A.input")
@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (_tree(imges={}), "Did you mean 'images'"),
        (_tree(images={"layout": "slices", "index": "i.csv"}), "images.unit"),
        (_tree(images={"layout": "slices", "unit": "display"}), "images.index"),
        (_columns(g={"role": "ignore", "type": "ordinal"}), "levels"),
        (_columns(g={"role": "ignore", "type": "category", "levels": ["a"]}), "levels are for ordinals"),
        (_tree(images={"select": {"description": "("}}), "not a regular expression"),
        (_tree(splits={"folds": 1}), "greater than or equal to 2"),
        (_tree(tables={"labs": {"path": "x", "patient_id": "id"}}), "'labs' would not be read"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_cohort_file(tree, "c.yaml")


@pytest.mark.proves("A.input")
def test_missing_files_are_named_all_at_once_and_root_replaces_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: c\nlicence: CC0\nimages: {layout: slices, unit: display, index: i.csv}\n"
                    "tables: {clinical: {path: t.csv, patient_id: id}}\n")  # fmt: skip
    with pytest.raises(InputError) as caught:
        read_cohort_file(path)
    assert "images.index" in str(caught.value) and "tables.clinical.path" in str(caught.value)
    (tmp_path / "data").mkdir()
    for name in ("i.csv", "t.csv"):
        (tmp_path / "data" / name).write_text("id\n1\n")
    file = read_cohort_file(path, tmp_path / "data")
    assert file.path("t.csv") == tmp_path / "data/t.csv" and "root" not in file.portable()
    with pytest.raises(InputError, match="--root"):
        read_cohort_file(path, tmp_path / "nowhere")


@pytest.mark.proves("A3.4")
def test_a_feature_serves_only_tasks_asked_after_it_is_known() -> None:
    assert (
        known_in_time("scan", "scan") and not known_in_time("after_surgery", "scan") and not known_in_time(None, "scan")
    )
    tree = _columns(weight={"role": "feature", "type": "number", "known_at": "scan"})
    tree["tasks"].append({"name": "later", "label": "clinical.relapse", "predicted_at": "follow_up"})
    file = parse_cohort_file(tree, "c.yaml")
    assert feature_columns(file) == feature_columns(file, "later") == ["age", "weight"]


def _task(**keys: Any) -> Any:
    column = {"role": "label", "type": keys.pop("type")}
    tree = _columns(relapse=column)
    tree["tasks"] = [{"name": "t", "label": "clinical.relapse", "predicted_at": "scan"} | keys]
    file = parse_cohort_file(tree, "c.yaml")
    return file.tasks[0], file.columns["relapse"]


@pytest.mark.proves("D8")
def test_labels_are_one_zero_or_missing() -> None:
    words = pd.Series(["T1", "T2", None], dtype="string")
    task, column = _task(type="category", positive=["T2", "T9"])
    assert binary_label(task, words, column).tolist()[:2] == [0.0, 1.0]
    assert binary_label(task, words, column).isna().tolist() == [False, False, True]
    numbers = pd.Series([2.0, 3.0, float("nan")])
    assert binary_label(*_swap(_task(type="number", threshold=3), numbers)).tolist()[:2] == [0.0, 1.0]
    assert binary_label(*_swap(_task(type="number", positive="2"), numbers)).tolist()[:2] == [1.0, 0.0]
    with pytest.raises(InputError, match="'2', not only 0 and 1"):
        binary_label(*_swap(_task(type="number"), numbers))
    with pytest.raises(InputError, match="'t2' is spelt 'T2'"):
        binary_label(*_swap(_task(type="category", positive=["t2"]), words))
    with pytest.raises(InputError, match=r"no positive value .T8. occurs"):
        binary_label(*_swap(_task(type="category", positive=["T8"]), words))


@pytest.mark.proves("D8")
def test_one_positive_member_of_a_set_is_enough() -> None:
    sets = pd.Series(["EGFR;KRAS", "KRAS", "TP53", None, "EGFR"], dtype="string")
    task, column = _task(type="set", positive=["EGFR"])
    assert binary_label(task, sets, column).tolist()[:3] == [1.0, 0.0, 0.0]
    assert binary_label(task, sets, column).isna().tolist() == [False] * 3 + [True, False]
    with pytest.raises(InputError, match="'egfr' is spelt 'EGFR'"):
        binary_label(*_swap(_task(type="set", positive=["egfr"]), sets.iloc[:2]))
    with pytest.raises(InputError, match=r"no positive value .ALK. occurs"):
        binary_label(*_swap(_task(type="set", positive=["ALK"]), sets))
    with pytest.raises(InputError, match="compared member by member"):
        _task(type="set", positive=["EGFR;KRAS"])


def _swap(task_and_column: Any, values: pd.Series) -> tuple[Any, pd.Series, Any]:
    return task_and_column[0], values, task_and_column[1]


def test_slice_labels_are_counts_words_or_zero_and_one() -> None:
    tree = _tree(images={"layout": "slices", "unit": "display", "index": "i.csv"})
    for positive, expected in (("> 0", [0, 1, 1]), (["5"], [0, 0, 1])):
        tree["slice_tasks"] = [{"name": "s", "label": "index.px", "positive": positive}]
        task = parse_cohort_file(tree, "c.yaml").slice_tasks[0]
        labels = slice_label(task, pd.Series(["0", "3", "5", ""], dtype="string"))
        assert labels.tolist()[:3] == expected and labels.isna().tolist() == [False] * 3 + [True]
    tree["slice_tasks"] = [{"name": "s", "label": "index.px"}]
    with pytest.raises(InputError, match="'3', not only 0 and 1"):
        slice_label(parse_cohort_file(tree, "c.yaml").slice_tasks[0], pd.Series(["0", "3"], dtype="string"))


@pytest.mark.proves("A1.1")
def test_the_page_of_its_keys_is_up_to_date_and_names_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))
    page = importlib.import_module("cohort_file")
    written = page.PAGE.read_text(encoding="utf-8")
    assert written == page.page()
    for key, model in page.parts(CohortFile):
        assert f"`{key}`" in written or not key
        assert all(f"| `{name}` |" in written for name in model.model_fields)


def _followed(**changes: Any) -> dict[str, Any]:
    columns = {"months": {"role": "time", "type": "number"}, "dead": {"role": "outcome", "type": "boolean"}}
    tree = _columns(**columns) | {"survival": {"time": "months", "event": "dead"} | changes}
    return tree | {"tasks": []}


def test_a_feature_must_be_known_in_time_for_survival() -> None:
    late = {"role": "feature", "type": "number", "known_at": "follow_up"}
    tree = _followed()
    tree["columns"]["os_days"] = late
    with pytest.raises(InputError, match=r"known at follow_up, after survival is predicted \(scan\)") as caught:
        parse_cohort_file(tree, "c.yaml")
    assert "a later survival.predicted_at" in str(caught.value)
    assert feature_columns(parse(CohortFile, tree, "c.yaml")) == ["age"]
    tree["survival"]["predicted_at"] = "follow_up"
    assert feature_columns(parse_cohort_file(tree, "c.yaml")) == ["age", "os_days"]


def test_keys_that_are_not_set_are_no_part_of_what_a_store_keeps() -> None:
    plain = parse_cohort_file(_followed(), "c.yaml").portable()
    assert list(plain["survival"]) == ["time", "event", "positive"] and "group" not in plain["splits"]
    assert parse_cohort_file(_followed(predicted_at="scan"), "c.yaml").portable() == plain
    later = parse_cohort_file(_followed(predicted_at="after_surgery") | {"splits": {"group": "dead"}}, "c.yaml")
    kept = later.portable()
    assert kept["survival"]["predicted_at"] == "after_surgery" and kept["splits"]["group"] == "dead"
    assert "survival" in parse_cohort_file(_tree(), "c.yaml").portable()


def test_a_group_role_keeps_nobody_together_unless_the_splits_name_it() -> None:
    tree = _columns(family={"role": "group", "type": "text"})
    [note] = group_notes(parse_cohort_file(tree, "c.yaml"))
    assert note == "column 'family' (role group) does not keep patients together unless splits.group names it."
    assert group_notes(parse_cohort_file(tree | {"splits": {"group": "family"}}, "c.yaml")) == []
    for group, says in (("family_no", "Did you mean 'family'"), ("id", "every patient has another id")):
        with pytest.raises(InputError, match=says) as caught:
            parse_cohort_file(tree | {"splits": {"group": group}}, "c.yaml")
        assert "splits.group" in str(caught.value)


def test_codes_for_unknown_are_pointed_to_the_sentinels() -> None:
    with pytest.raises(InputError) as caught:
        binary_label(*_swap(_task(type="number"), pd.Series([0.0, 1.0, 8.0])))
    assert "columns.relapse.sentinels" in str(caught.value)
