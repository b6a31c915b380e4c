"""Joins: equal ids only, unless a rule is declared; nobody vanishes; suggestions are not applied."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medform.cohort.field_types import IdRule
from medform.errors import InputError
from medform.ingestion.identifiers import match_ids, normalised, read_id_map, refuse_strangers

IDS = st.sets(st.text("aA0-_ 1", min_size=1, max_size=4), max_size=12)


@pytest.mark.proves("R29")
def test_ids_that_differ_are_joined_only_by_a_declared_rule_and_each_join_is_listed() -> None:
    images = ["R01-001", "00123", "A1", "x"]
    table = ["r01_001", "123", "A1\u00a0", "x"]
    plain = match_ids(images, table)
    assert plain.matched == {"x": "x"} and plain.by_rule == {}
    offered = {(one.table_id, one.image_id): one.rules for one in plain.suggestions}
    assert offered[("123", "00123")] == ("zeros",) and offered[("A1\u00a0", "A1")] == ("blanks",)
    assert ("r01_001", "R01-001") in offered
    ruled = match_ids(images, table, ["blanks", "case", "separators", "zeros"])
    assert len(ruled.matched) == 4 and set(ruled.by_rule) == {"r01_001", "123", "A1\u00a0"}


@pytest.mark.proves("R29")
def test_many_to_one_stops() -> None:
    match = match_ids(["123"], ["00123", "123"], ["zeros"])
    assert match.matched == {"123": "123"} and len(match.problems) == 1 and "'123'" in str(match.problems[0])
    match = match_ids(["a-1", "a_1"], ["A1"], ["case", "separators"])
    assert match.matched == {} and "id_map" in str(match.problems[0])


@pytest.mark.proves("R30")
@given(IDS, IDS, st.lists(st.sampled_from(["blanks", "case", "separators", "zeros"]), unique=True))
def test_counts_in_equal_counts_out(images: set[str], table: set[str], rules: list) -> None:
    match = match_ids(images, table, rules)
    assert len(match.matched) + len(match.only_table) == len(table)
    assert len(set(match.matched.values())) + len(match.only_images) == len(images)
    assert {one: one for one in images & table}.items() <= match.matched.items()
    for one in match.suggestions:
        assert one.image_id in match.only_images and one.table_id in match.only_table
    assert match == match_ids(sorted(images, reverse=True), sorted(table, reverse=True), rules)


@pytest.mark.proves("A.input", "R29")
def test_ids_that_never_match_are_refused_with_examples_of_both_sides() -> None:
    with pytest.raises(InputError) as caught:
        refuse_strangers(match_ids(["P049", "P050"], ["0049", "0050"]), "t.csv")
    text = str(caught.value)
    assert "'P049'" in text and "'0049'" in text and "not applied" in text and "id_map" in text
    with pytest.raises(InputError, match=r"id_rules: \[zeros\]"):
        refuse_strangers(match_ids(["0049"], ["49"]), "t.csv")
    refuse_strangers(match_ids(["a", "b"], ["a", "c"]), "t.csv")


@pytest.mark.proves("R29")
def test_an_id_map_joins_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("table_id,image_id\n0049,P049\n0050,P050\n")
    match = match_ids(["P049", "P051"], ["0049", "0050"], id_map=read_id_map(path))
    assert match.by_rule == {"0049": "P049"} and match.only_table == ("0050",) and match.only_images == ("P051",)
    path.write_text("table_id,image_id\n0049,P049\n0050,P049\n")
    with pytest.raises(InputError, match="'P049' stands twice"):
        read_id_map(path)


@pytest.mark.proves("R29", "A.input")
def test_a_declared_map_wins_over_equal_ids(caplog: pytest.LogCaptureFixture) -> None:
    """Row 1 is image 2 and the other way round: two archives that number their patients alike."""
    match = match_ids(["1", "2", "3"], ["1", "2", "3"], id_map={"1": "2", "2": "1"})
    assert match.matched == {"1": "2", "2": "1", "3": "3"} and match.problems == () and not caplog.records
    match = match_ids(["1", "2"], ["1", "2"], id_map={"1": "2"})
    assert match.matched == {"1": "2"} and "joins '1' to image id '2', which stands" in str(match.problems[0])
    match = match_ids(["1", "2"], ["1", "2"], ["zeros"], id_map={"1": "9", "x": "y"})
    assert match.matched == {"2": "2"} and match.only_table == match.only_images == ("1",) and match.suggestions == ()
    assert "2 of 2 lines of the id map join nothing" in caplog.text and "'x' to 'y'" in caplog.text


@pytest.mark.proves("A.input", "R29")
def test_an_id_map_is_read_in_the_encoding_and_with_the_separator_it_has(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_bytes("table_id;image_id\r\nMüller-1;P1\r\n002;P2\r\n".encode("cp1252"))
    assert read_id_map(path) == {"Müller-1": "P1", "002": "P2"}
    path.write_text("table;image_id\na;b\n")
    with pytest.raises(InputError, match=r"no column 'table_id' \(found: table, image_id; separator: semicolon\)"):
        read_id_map(path)


def test_ids_written_as_floats_never_become_other_patients() -> None:
    assert normalised("12.0", ["separators"]) == "12.0" and normalised("12.0", ["separators", "zeros"]) != "120"
    images, table = ["120", "130", "12"], ["12.0", "13.0"]
    for rules in ([], ["separators"], ["blanks", "case", "separators", "zeros"]):
        match = match_ids(images, table, rules)
        assert match.matched == {} and match.problems == ()
        assert [(one.table_id, one.image_id, one.rules) for one in match.suggestions] == [("12.0", "12", ("id_map",))]
    assert match_ids(["12"], ["12.0"], ["separators"], {"12.0": "12"}).by_rule == {"12.0": "12"}
    with pytest.raises(InputError, match=r"without '\.0'.*id_map") as caught:
        refuse_strangers(match_ids(["12", "120"], ["12.0", "13.0"]), "t.csv")
    assert "id_rules" not in str(caught.value) and "'12.0': looks like image id '12'" in str(caught.value)


def test_separators_between_digits_tell_ids_apart() -> None:
    rules: list[IdRule] = ["separators", "case"]
    match = match_ids(["1-05", "10-5", "A_2"], ["1_05", "105", "10.5", "a2"], rules)
    assert match.matched == {"1_05": "1-05", "10.5": "10-5", "a2": "A_2"} and match.only_table == ("105",)
    assert match_ids(["2024-001"], ["2024 / 001"], rules).by_rule == {"2024 / 001": "2024-001"}
    assert match_ids(["2024-001"], ["2024001"], rules).matched == {}
