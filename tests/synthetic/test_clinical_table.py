"""The table: Excel equals CSV cell by cell, and it holds every nuisance that a hospital's export has."""

from __future__ import annotations

import zipfile
from datetime import date

import pandas as pd
import pytest
from python_calamine import CalamineWorkbook

from medform.synthetic.clinical_table import FEATURES, MISSING_WORDS


@pytest.fixture(scope="module")
def text(hospital) -> pd.DataFrame:
    return pd.read_csv(hospital.root / "clinical.csv", sep=";", dtype=str, keep_default_na=False)


@pytest.mark.proves("A2.1")
def test_excel_equals_csv_as_text(hospital, text):
    excel = pd.read_excel(hospital.root / "clinical.xlsx", dtype=str, keep_default_na=False, engine="calamine")
    assert list(excel.columns) == list(text.columns)
    excel["scan_date"] = excel["scan_date"].str.removesuffix(" 00:00:00")
    pd.testing.assert_frame_equal(excel, text)


def test_excel_holds_real_numbers_and_dates_and_ids_as_text(hospital):
    book = CalamineWorkbook.from_path(hospital.root / "clinical.xlsx")
    header, *rows = book.get_sheet_by_index(0).to_python()
    types = {name: {type(row[i]) for row in rows if row[i] != ""} for i, name in enumerate(header)}
    assert types["patient_id"] == types["marker"] == types["scanner"] == {str}
    assert types["scan_date"] == {date}
    assert types["follow_up_months"] == {float}


def test_the_workbook_says_nothing_of_time_or_machine(hospital):
    with zipfile.ZipFile(hospital.root / "clinical.xlsx") as book:
        assert {entry.date_time for entry in book.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert b"1980-01-01T00:00:00Z" in book.read("docProps/core.xml")


@pytest.mark.proves("A2.1")
def test_the_table_has_what_hospitals_export(hospital, text):
    people = {one.patient_id: one for one in hospital.truth.patients}
    assert set(text["patient_id"]) == {key for key, one in people.items() if one.table is not None}
    assert text["patient_id"].str.fullmatch(r"0\d{4}").all()
    assert text["marker"].str.fullmatch(r"\d+,\d").sum() > len(text) / 2
    assert (text["ldh (U/L)"] == "999").any()
    missing = text[list(FEATURES)].isin(MISSING_WORDS)
    assert missing.to_numpy().any()
    assert not text.drop(columns=[*FEATURES, "scan_date"]).isin(MISSING_WORDS).to_numpy().any()
    assert "unit" in " ".join(text.columns) and "(kg)" in " ".join(text.columns)


def same(cell: str, true: object) -> bool:
    """Whether the exported text says what is true, up to its decimal sign."""
    if isinstance(true, int | float):
        return cell.replace(",", ".").replace(".", "", 1).isdigit() and float(cell.replace(",", ".")) == true
    return cell == ("" if true is None else str(true))


@pytest.mark.proves("A2.2")
def test_truth_knows_every_cell_that_was_lost(hospital, text):
    people = {one.patient_id: one for one in hospital.truth.patients}
    for row in text.to_dict("records"):
        truth = people[row["patient_id"]]
        assert truth.table is not None
        for column, cell in row.items():
            lost = not same(cell, truth.table[column])
            assert lost == (column in truth.emptied), (row["patient_id"], column)


def test_the_leak_gives_the_label_away(text):
    treated = text["chemo_cycles"].astype(int) > 0
    assert (treated == (text["malignant"] == "yes")).all()


@pytest.mark.proves("A2.2")
def test_genes_have_a_row_for_whom_truth_says(hospital):
    genes = pd.read_csv(hospital.root / "genes.csv", dtype={"patient_id": str}).set_index("patient_id")
    assert set(genes.index) == {one.patient_id for one in hospital.truth.patients if one.has_genes}
    assert genes.shape[1] == 120 and set(hospital.truth.module) <= set(genes.columns)
    assert genes.notna().to_numpy().all()
