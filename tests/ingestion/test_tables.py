"""Tables: text first, then typed; every problem of every cell in one run, with its address."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest

from medform.cohort.cohort_file import ColumnSpec, TableSpec, Task
from medform.cohort.labels import task_label
from medform.errors import InputError, Problem
from medform.ingestion.raw_table import filled_sheets, layout_rows
from medform.ingestion.suspects import suspected_sentinels, table_notes
from medform.ingestion.tables import RawTable, read_table, refuse_problems, type_table, undeclared_columns

SPEC = TableSpec(path="t", patient_id="id")


def _csv(folder: Path, text: str, encoding: str = "utf-8") -> RawTable:
    path = folder / "t.csv"
    path.write_bytes(text.encode(encoding))
    return read_table(path)


def _excel(folder: Path, rows: list[list[Any]], **more: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    for name, cells in more.items():
        sheet = book.create_sheet(name)
        for row in cells:
            sheet.append(row)
    book.save(folder / "t.xlsx")
    return folder / "t.xlsx"


def _spec(kind: str, **keys: Any) -> ColumnSpec:
    return ColumnSpec.model_validate({"role": "ignore", "type": kind} | keys)


def _typed(raw: RawTable, table: TableSpec = SPEC, **columns: ColumnSpec) -> pd.DataFrame:
    frame, problems = type_table(raw, table, columns)
    assert problems == []
    return frame


def _problems(raw: RawTable, table: TableSpec = SPEC, **columns: ColumnSpec) -> list[Problem]:
    return type_table(raw, table, columns)[1]


@pytest.mark.proves("R22", "A3.2", "A.tests", "D9")
def test_ids_and_words_stay_as_written(tmp_path: Path) -> None:
    ids = ["00123", "00045", "1e5", "12E3", "9007199254740993", "NA", "None", "nan", "R01.7"]
    words = ["Yes", "007", "NA", "", "None", "1-Mar", "TRUE", "1.0", "no"]
    raw = _csv(tmp_path, "id,w\n" + "".join(f"{a},{b}\n" for a, b in zip(ids, words, strict=True)))
    frame = _typed(raw, w=_spec("category"))
    assert list(frame.index) == ids
    assert frame["w"].isna().tolist() == [False] * 3 + [True] + [False] * 5
    assert frame["w"].dropna().tolist() == [word for word in words if word]
    declared = TableSpec(path="t", patient_id="id", missing=["NA", "None"])
    assert _typed(raw, declared, w=_spec("category"))["w"].isna().sum() == 3


@pytest.mark.proves("R22")
def test_excel_ids_stored_as_numbers_are_flagged_and_text_ids_kept(tmp_path: Path) -> None:
    path = _excel(tmp_path, [["id", "dx", "x"], ["00123", datetime.date(2020, 4, 3), 1.5], [45, "2020-04-05", 2]])
    raw = read_table(path)
    frame = _typed(raw, dx=_spec("date"), x=_spec("number"))
    assert list(frame.index) == ["00123", "45"] and frame["x"].tolist() == [1.5, 2.0]
    assert frame["dx"].tolist() == ["2020-04-03", "2020-04-05"]
    notes = [str(note) for note in table_notes(raw, SPEC, {})]
    assert any("sheet 'Sheet', row 3, column 'id': '45': 1 ids are stored as numbers" in note for note in notes)


@pytest.mark.proves("R23", "A3.2")
@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-8", "Müller"), ("utf-8-sig", "Müller"), ("utf-16", "Müller"), ("utf-16-le", "Müller"),
     ("cp1252", "Müller"), ("cp1252", "Señor Ñandú"), ("cp949", "김철수"), ("cp932", "やまだ カナ")],
)  # fmt: skip
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encodings_and_separators_are_found(tmp_path: Path, encoding: str, name: str, separator: str) -> None:
    text = "id,name,x\na,M,1\nb,M,2\nc,M,3\n".replace(",", separator).replace("M", name)
    raw = _csv(tmp_path, text, encoding)
    assert list(raw.frame.columns) == ["id", "name", "x"] and raw.frame["name"].tolist() == [name] * 3
    assert raw.separator == separator


@pytest.mark.proves("R23")
def test_mixed_encodings_name_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("id,name\na,Müller\n".encode() + "b,Señor\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"line 3, byte 5: not utf-8"):
        read_table(path)
    path.write_bytes("id,name\na,김\n".encode("cp949"))
    with pytest.raises(InputError, match="not utf-8 text"):
        read_table(path, encoding="utf-8")


@pytest.mark.proves("R23", "R24", "A3.2")
def test_a_decimal_comma_is_read_when_declared_or_unambiguous_and_never_guessed(tmp_path: Path) -> None:
    raw = _csv(tmp_path, "id;crp\na;1,5\nb;12,25\n")
    assert _typed(raw, crp=_spec("number"))["crp"].tolist() == [1.5, 12.25]
    assert "2 cells read with a decimal comma" in str(table_notes(raw, SPEC, {"crp": _spec("number")})[0])
    raw = _csv(tmp_path, 'id,plt\na,"150,000"\nb,"89,000"\n')
    first = _problems(raw, plt=_spec("number"))[0]
    assert (first.row, first.column, first.value) == (2, "plt", "150,000") and "thousands" in str(first.suggestion)
    assert _typed(raw, plt=_spec("number", thousands=","))["plt"].tolist() == [150000.0, 89000.0]
    assert _typed(raw, plt=_spec("number", decimal=","))["plt"].tolist() == [150.0, 89.0]
    mixed = _csv(tmp_path, "id;x\na;1,5\nb;2.5\n")
    assert [problem.value for problem in _problems(mixed, x=_spec("number"))] == ["1,5"]


@pytest.mark.proves("R23", "A3.2")
def test_thousands_beside_decimal_commas_are_asked_about(tmp_path: Path) -> None:
    text = "id;crea;ferritin;ldh;ratio;n\na;1,2;850;1.250;1.250;7\nb;0,9;1.200;210;0.125;8\n"
    raw = _csv(tmp_path, text)
    specs = {name: _spec("number") for name in ("crea", "ferritin", "ldh", "ratio", "n")}
    problems = _problems(raw, **specs)
    assert [(one.column, one.value) for one in problems] == [("ldh", "1.250"), ("ferritin", "1.200")]
    assert "columns.ferritin.thousands to ',' or '.'" in str(problems[1])
    own = {"ferritin": _spec("number", thousands="."), "ldh": _spec("number", decimal=".")}
    frame = _typed(raw, **(specs | own))
    assert frame["ferritin"].tolist() == [850.0, 1200.0] and frame["ldh"].tolist() == [1.25, 210.0]
    assert frame["ratio"].tolist() == [1.25, 0.125], "0.125 is no thousand, so the column has decimal points"
    assert _typed(raw, ferritin=_spec("number"))["ferritin"].tolist() == [850.0, 1.2], "nothing tells of commas"
    declared = {"crea": _spec("category"), "n": _spec("number", decimal=","), "ferritin": _spec("number")}
    assert [one.value for one in _problems(raw, **declared)] == ["1.200"]
    english = _csv(tmp_path, 'id;crea;plt\na;1,2;"150,000"\nb;0,9;"89,000"\n')
    assert {one.column for one in _problems(english, crea=_spec("number"), plt=_spec("number"))} == {"plt"}


@pytest.mark.proves("A3.2")
def test_a_spreadsheets_own_numbers_keep_their_point_beside_decimal_commas(tmp_path: Path) -> None:
    raw = read_table(_excel(tmp_path, [["id", "x"], ["a", 1.234], ["b", "1,5"], ["c", "2,125"]]))
    assert _typed(raw, x=_spec("number", decimal=","))["x"].tolist() == [1.234, 1.5, 2.125]


@pytest.mark.proves("R24", "A.input", "A3.2")
def test_units_and_limits_are_problems_until_they_are_declared(tmp_path: Path) -> None:
    raw = _csv(tmp_path, "id,hb,dna\na,13.2 g/dL,<0.3\nb,12.0,1.7\nc,132 g/L,>90\nd,11,3+\n")
    text = "\n".join(map(str, _problems(raw, hb=_spec("number"), dna=_spec("number"))))
    assert "t.csv, row 2, column 'hb': '13.2 g/dL': a number with the unit 'g/dL'." in text
    assert "columns.hb.cell_unit: 'g/dL'" in text and "'<0.3': a limit" in text and "columns.dna.censored" in text
    declared = {"hb": _spec("number", cell_unit="g/dL"), "dna": _spec("number", censored="limit")}
    problems = _problems(raw, **declared)
    assert [(problem.row, problem.value) for problem in problems] == [(4, "132 g/L")]
    assert "the unit is 'g/L'" in problems[0].problem
    frame, _ = type_table(raw, SPEC, declared)
    assert frame["dna"].tolist() == [0.3, 1.7, 90.0, 3.0]
    assert frame["dna.censored"].fillna("").tolist() == ["<", "", ">", ">="]


@pytest.mark.proves("D8")
def test_a_limit_gives_a_label_only_where_it_lies_on_one_side_of_the_threshold(tmp_path: Path) -> None:
    cells = ["<1%", "<= 1 %", "≤0.5%", "<2%", "0%", "1%", ">1%", "≥1%", ">0.5%", "1+", "50%"]
    raw = _csv(tmp_path, "id,pdl1\n" + "".join(f"p{at},{cell}\n" for at, cell in enumerate(cells)))
    spec = _spec("number", cell_unit="%", censored="limit")
    frame = _typed(raw, pdl1=spec)
    assert frame["pdl1.censored"].fillna("").tolist() == ["<", "<=", "<=", "<", "", "", ">", ">=", ">", ">=", ""]
    high = Task(name="t", label="clinical.pdl1", predicted_at="scan", threshold=1)
    labels = task_label(high, frame, spec).to_numpy()
    np.testing.assert_array_equal(labels, [0, np.nan, 0, np.nan, 0, 1, 1, 1, np.nan, 1, 1])
    listed = Task(name="t", label="clinical.pdl1", predicted_at="scan", positive=["1"])
    labels = task_label(listed, frame, spec).to_numpy()
    np.testing.assert_array_equal(labels, np.where(frame["pdl1.censored"].notna(), np.nan, [0] * 5 + [1] + [0] * 5))


@pytest.mark.proves("R25", "A3.2")
def test_sentinels_are_missing_when_declared_and_stop_when_only_suspected(tmp_path: Path) -> None:
    raw = _csv(tmp_path, "id,age,days,stage\na,61,5,unk\nb,999,-1,G1\nc,47,8,G2\nd,999,2,unk\n")
    columns = {"age": _spec("number"), "days": _spec("number"), "stage": _spec("category", role="outcome")}
    problems = _problems(raw, **columns)
    assert [(problem.row, problem.column, problem.value) for problem in problems] == [
        (3, "age", "999"), (3, "days", "-1"), (5, "age", "999"),
    ]  # fmt: skip
    assert "(2 cells)" in problems[0].problem and "columns.age.sentinels: [999]" in str(problems[0].suggestion)
    columns |= {"age": _spec("number", sentinels=["999"]), "days": _spec("number", sentinels=[])}
    frame = _typed(raw, **columns)
    assert np.isnan(frame["age"]["b"]) and frame["days"]["b"] == -1.0
    notes = "\n".join(map(str, table_notes(raw, SPEC, columns)))
    assert "'unk': looks like a word for 'unknown' (2 cells)" in notes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([61, 47, 999], [999.0]), ([61, 47, 99], []), ([40, 45, 99], [99.0]), ([500, 999], []),
        ([1, -1, 2], [-1.0]),
        ([12, -1, -9], [-9.0, -1.0]), ([12, -99, -999], [-999.0, -99.0]), ([3, -1, -9, -4], []), ([-1, -9], []),
        ([0, 1, 9, 1], [9.0]), ([4, 2, 9, np.nan], [9.0]), ([0, 1, 9, 99], [99.0, 9.0]), ([0, 1, -1, 9], [-1.0, 9.0]),
        ([9, 9], []), ([0, 1, 5, 9], []), ([0, 1.5, 9], []), ([0, 1, 2], []),
        ([0.5, -1, -2], []), ([np.nan, 999], []), ([3, 9999, 999], [999.0, 9999.0]), ([-3, -2, 999], []),
    ],
)  # fmt: skip
def test_a_code_for_unknown_stands_apart(values: list[float], expected: list[float]) -> None:
    assert suspected_sentinels(np.array(values, dtype=float)) == expected


@pytest.mark.proves("R26", "A3.2")
def test_booleans_are_mapped_by_a_rule_that_is_reported_and_dates_never_guessed(tmp_path: Path) -> None:
    raw = _csv(tmp_path, "id,smoker,dx\na,yes,03/04/2020\nb,Y,25/12/2019\nc,1,2020-04-03\nd,FALSE,43924\n")
    columns = {"smoker": _spec("boolean"), "dx": _spec("date")}
    problems = _problems(raw, **columns)
    assert [problem.row for problem in problems] == [2, 3, 5]
    assert "either way round" in problems[0].problem and "DD.MM.YYYY" in str(problems[0].suggestion)
    assert "2020-04-03" in str(problems[2].suggestion) and "format: excel" in str(problems[2].suggestion)
    raw = _csv(tmp_path, "id,smoker,dx\na,yes,03/04/2020\nb,Y,25/12/2019\nc,1,2020-04-03\nd,FALSE,\n")
    columns["dx"] = _spec("date", format="DD/MM/YYYY")
    frame = _typed(raw, **columns)
    assert frame["smoker"].tolist() == [True, True, True, False]
    assert frame["dx"].fillna("").tolist() == ["2020-04-03", "2019-12-25", "2020-04-03", ""]
    notes = "\n".join(map(str, table_notes(raw, SPEC, columns)))
    assert "1, Y, yes read as true (3 cells)" in notes and "FALSE read as false (1 cells)" in notes
    raw = _csv(tmp_path, "id,smoker\na,yes\nb,sometimes\n")
    assert "columns.smoker.true_words" in str(_problems(raw, smoker=_spec("boolean"))[0])
    assert _typed(raw, smoker=_spec("boolean", true_words="sometimes"))["smoker"].tolist() == [True, True]


@pytest.mark.proves("R28", "A.input")
@pytest.mark.parametrize(
    ("text", "row", "message"),
    [
        ("id,x\na,1\nb,2,3\n", 3, "3 fields for 2 columns"),
        ("id,x,y\na,1,2\nb,3\n", 3, "2 fields for 3 columns"),
        ("id,x\na,1,2\nb,3,4\n", 1, "every row has more fields"),
        ("id,x,x\na,1,2\n", 1, "2 columns have this name"),
        ("id,,y\na,1,2\n", 1, "column 2 has no name"),
        ("Table 3,,\nid,x,y\na,1,2\n", 1, "does not look like the header"),
    ],
)
def test_a_broken_shape_names_its_line(tmp_path: Path, text: str, row: int, message: str) -> None:
    raw = _csv(tmp_path, text)
    assert any(problem.row == row and message in problem.problem for problem in raw.problems)


@pytest.mark.proves("R28")
def test_title_rows_and_unit_rows_can_be_skipped_and_rows_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('Table 3,\n\nid,hb\n,g/dL\na,"13\n.2"\nb,x\n')
    raw = read_table(path, header_row=3, skip_rows=[4])
    assert (raw.header_row, raw.rows, list(raw.frame.columns)) == (3, (5, 7), ["id", "hb"])
    assert [problem.row for problem in _problems(raw, hb=_spec("number"))] == [5, 7]


@pytest.mark.proves("A.input", "A3.2")
def test_all_problems_of_all_columns_come_in_one_error(tmp_path: Path) -> None:
    raw = _csv(tmp_path, "id,age,grade,day\na,6o,G2,2020-13-01\n,47,g3,x\nc,inf,,\n")
    columns = {
        "age": _spec("number"),
        "grade": _spec("ordinal", levels=["G1", "G2", "G3"]),
        "day": _spec("date"),
        "wieght": _spec("number"),
    }
    with pytest.raises(InputError) as caught:
        refuse_problems(_problems(raw, **columns), "t.csv")
    text = str(caught.value)
    assert "7 problems" in text and caught.value.exit_code == 2
    assert "row 2, column 'age': '6o': not a number. Did you mean 60?" in text
    assert "row 3, column 'id': this row has no patient id" in text
    assert "row 3, column 'grade': 'g3': not among the levels G1, G2, G3. Did you mean 'G3'?" in text
    assert "row 1, column 'wieght': the table has no such column" in text and "'inf'" in text


@pytest.mark.proves("R31", "D9", "A.tests")
def test_a_patient_in_two_rows_is_one_when_they_agree_and_stops_when_not(tmp_path: Path) -> None:
    text = "id,age,seen,remark\na,61,2020-01-05,x\nb,50,2020-01-01,\na,61,2020-01-05,y\n"
    columns = {"age": _spec("number"), "seen": _spec("date")}
    assert list(_typed(_csv(tmp_path, text), **columns).index) == ["a", "b"]
    raw = _csv(tmp_path, text.replace("a,61,2020-01-05,y", "a,16,2019-01-05,y"))
    problem = _problems(raw, **columns)[0]
    assert (problem.row, problem.value) == (
        4,
        "a",
    ) and "row 2 too, with other values of age, seen" in problem.problem
    for keep, age in (("first", 16.0), ("last", 61.0)):
        visit = TableSpec.model_validate({"path": "t", "patient_id": "id", "visit": {"by": "seen", "keep": keep}})
        frame = _typed(raw, visit, **columns)
        assert frame["age"]["a"] == age and len(frame) == 2
    tied = _csv(tmp_path, "id,age,seen\na,61,2020-01-05\na,62,2020-01-05\n")
    assert len(_problems(tied, visit, **columns)) == 1
    undated = _csv(tmp_path, "id,age,seen\na,61,2020-01-05\na,62,\n")
    assert "has no seen" in _problems(undated, visit, **columns)[0].problem


@pytest.mark.proves("A3.2")
def test_blanks_sets_and_spellings(tmp_path: Path) -> None:
    raw = _csv(tmp_path, "id,sex,lobes\nA1\u00a0, Male,RUL; LLL\nA2,male ,LLL;RUL;LLL\nA3, ,\n")
    columns = {"sex": _spec("category", role="feature", known_at="scan"), "lobes": _spec("set")}
    frame = _typed(raw, **columns)
    assert list(frame.index) == ["A1\u00a0", "A2", "A3"]  # an id is never touched: see match_ids
    assert frame["sex"].fillna("").tolist() == ["Male", "male", ""]
    assert frame["lobes"].fillna("").tolist() == ["LLL;RUL", "LLL;RUL", ""]
    notes = "\n".join(map(str, table_notes(raw, SPEC, columns)))
    assert "1 cells begin or end with no-break blanks" in notes and "spelt in 2 ways: Male, male" in notes
    assert undeclared_columns(raw, SPEC, {"sex": columns["sex"]}) == ["lobes"]


@pytest.mark.proves("R27")
def test_gene_names_that_became_dates_are_flagged_and_nan_is_a_name(tmp_path: Path) -> None:
    raw = _csv(tmp_path, "id,x\n1-Mar,1\n2-Sep,2\nnan,3\nTP53,4\n")
    assert list(_typed(raw, x=_spec("number")).index) == ["1-Mar", "2-Sep", "nan", "TP53"]
    flagged = [note.value for note in table_notes(raw, SPEC, {}) if "gene" in note.problem]
    assert flagged == ["1-Mar", "2-Sep"]


@pytest.mark.proves("A.input")
def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    two = _excel(tmp_path, [["id"], ["a"]], labs=[["id"], ["b"]], empty=[])
    assert filled_sheets(two) == ["Sheet", "labs"]
    with pytest.raises(InputError, match="2 sheets hold data: Sheet, labs"):
        read_table(two)
    assert read_table(two, "labs").frame["id"].tolist() == ["b"]
    with pytest.raises(InputError, match=r"no sheet 'Labs'.*\n.*Sheet, labs"):
        read_table(two, "Labs")
    for name, content in (
        ("e.csv", b""),
        ("h.csv", b"id,x\n"),
        ("b.xlsx", b"PK\x03\x04 no"),
        ("n.csv", b"\0\1\2\3\0"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            read_table(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "nowhere.csv")
    renamed = tmp_path / "renamed.csv"
    renamed.write_bytes(_excel(tmp_path, [["id"], ["a"]]).read_bytes())
    assert read_table(renamed).frame["id"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('id,age,note\n1,60,"tumor 5 mm in the upper lo\n2,61,ok\n3,62,"fine"\n4,63,ok\n', 2),
        ('id,age,note\n1,60,ok\n2,61,"tumor in the upper lo\n3,62,ok\n', 3),
        ('id,age,note\n1,60,"a\nb"\n2,61,"x"y\n', 4),
    ],
)
def test_a_lone_quote_swallows_nobody_and_names_the_line_of_its_row(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(InputError, match=f"line {line}: .*quote") as caught:
        _csv(tmp_path, text)
    assert [problem.row for problem in caught.value.problems] == [line]


def test_quotes_that_are_closed_read_as_they_are_meant(tmp_path: Path) -> None:
    raw = _csv(tmp_path, 'id,note\n1,"two\nlines, one cell"\n2,"a ""b"" c"\n3,5\' 6"\n4,\n')
    assert raw.frame["note"].tolist() == ["two\nlines, one cell", 'a "b" c', "5' 6\"", ""]
    assert raw.rows == (2, 4, 5, 6) and raw.problems == ()


def test_all_codes_of_a_column_are_offered_as_its_sentinels_together(tmp_path: Path) -> None:
    raw = _csv(tmp_path, "id,age\na,61\nb,-9\nc,47\nd,-1\n")
    problems = _problems(raw, age=_spec("number"))
    assert [problem.row for problem in problems] == [3, 5]
    assert all("columns.age.sentinels: [-9, -1]" in str(problem.suggestion) for problem in problems)
    assert _typed(raw, age=_spec("number", sentinels=[-9, -1]))["age"].notna().sum() == 2


@pytest.mark.parametrize(
    ("header_row", "skipped", "kept"),
    [
        (1, [], []), (1, [2], [2]), (1, [2, 57], [2]), (1, [57], []), (3, [4, 5, 57, 1], [4, 5, 1]),
        (1, [1, 2, 4, 9], [1, 2, 4]),
    ],
)  # fmt: skip
def test_only_skipped_rows_around_the_header_are_of_the_layout(
    header_row: int, skipped: list[int], kept: list[int]
) -> None:
    assert layout_rows(header_row, skipped) == kept
