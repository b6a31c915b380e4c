"""The draft of `init`: types without a problem, writes every guess down, is careful with features."""

from __future__ import annotations

from pathlib import Path

import pytest

from medform.cohort.cohort_file import TableSpec
from medform.ingestion.suspects import table_notes
from medform.ingestion.table_drafts import draft_columns, guess_patient_column
from medform.ingestion.tables import read_table, type_table

TABLE = """Patient ID;age;sex;hb;crp;dx;smoker;stage;remark;days_to_death;plain
00123;61;M;13.2 g/dL;1,5;03.04.2020;yes;T1;came late;;
00045;999;F;12.0 g/dL;12,25;25.12.2019;no;T2;;412;
00046;47;F;11.1 g/dL;<0,3;01.02.2019;no;T1;seen twice by Dr A;;
00047;52;unknown;10.9 g/dL;0,7;11.12.2020;yes;T3;moved away;99;
00048;58;M;;n.a.;12.12.2020;yes;T3;x;;
00049;50;M;9.9 g/dL;3,4;13.12.2020;no;T1;y;;
00050;49;F;9.8 g/dL;3,5;13.12.2020;no;T1;z;;
"""


@pytest.mark.proves("A3.3", "A3.2")
def test_a_draft_types_its_own_table_and_names_what_is_doubtful(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TABLE)
    raw = read_table(path)
    assert guess_patient_column(raw) == "Patient ID"
    drafts = {draft.name: draft for draft in draft_columns(raw, "Patient ID")}
    specs = {name: draft.spec for name, draft in drafts.items()}
    frame, problems = type_table(raw, TableSpec(path="t", patient_id="Patient ID"), specs)
    assert problems == [] and len(frame) == 7
    assert {name: spec.type for name, spec in specs.items()} == {
        "age": "number", "sex": "category", "hb": "number", "crp": "number", "dx": "date",
        "smoker": "boolean", "stage": "category", "remark": "category", "days_to_death": "number",
        "plain": "text",
    }  # fmt: skip
    assert {name for name, spec in specs.items() if spec.role == "feature"} == {"age", "sex", "smoker"}
    assert all(spec.known_at for spec in specs.values() if spec.role == "feature")
    assert specs["stage"].role == specs["days_to_death"].role == "outcome" and specs["hb"].role == "ignore"
    assert specs["age"].sentinels == [999.0] and "999" in drafts["age"].comment
    assert specs["hb"].cell_unit == "g/dL" and drafts["hb"].missing == 1
    assert (specs["crp"].decimal, specs["crp"].censored, specs["crp"].missing) == (",", "limit", ["n.a."])
    assert specs["sex"].missing == ["unknown"] and specs["dx"].format == "DD.MM.YYYY"
    assert frame["crp"].iloc[2] == 0.3 and frame["crp.censored"].iloc[2] == "<"


@pytest.mark.proves("A3.3", "A3.2")
def test_a_mangled_cell_is_no_unit_and_a_point_beside_decimal_commas_is_no_fraction(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for cell in ("2024-02-01", "10-15", "3/4"):
        rows = [f"p{at};{50 + at};{at} /µl;{at},5;{at}.200" for at in range(1, 9)] + [f"p9;{cell};4 /µl;3,5;850"]
        path.write_text("id;age;count;crp;ferritin\n" + "\n".join(rows) + "\n")
        raw = read_table(path)
        drafts = {draft.name: draft for draft in draft_columns(raw, "id")}
        specs = {name: draft.spec for name, draft in drafts.items()}
        assert specs["age"].cell_unit is None and specs["age"].missing == [cell] and cell in drafts["age"].comment
        assert specs["count"].cell_unit == "/µl"
        assert specs["ferritin"].thousands == "." and "read as thousands" in drafts["ferritin"].comment
        frame, problems = type_table(raw, TableSpec(path="t", patient_id="id"), specs)
        assert problems == [] and frame["ferritin"].iloc[0] == 1200.0


@pytest.mark.shared
@pytest.mark.proves("A3.3")
@pytest.mark.parametrize("name", ["nsclc_ct", "ct_ich", "tcga_lgg"])
def test_drafts_of_the_real_tables_type_without_a_problem(shared_data: Path, name: str) -> None:
    raw = read_table(shared_data / name / "clinical.csv")
    assert guess_patient_column(raw) == "patient_id"
    specs = {draft.name: draft.spec for draft in draft_columns(raw, "patient_id")}
    _, problems = type_table(raw, TableSpec(path="t", patient_id="patient_id"), specs)
    assert problems == []


@pytest.mark.proves("A3.3", "A3.2")
def test_a_unit_in_a_few_cells_is_not_drafted_for_the_others(tmp_path: Path) -> None:
    """Creatinine in mg/dl, and three cells in umol/l: the draft leaves them to be problems and says how many."""
    path = tmp_path / "t.csv"
    cells = [f"0.{at + 10}" for at in range(37)] + ["85 umol/l"] * 3
    path.write_text("id;crea;hb\n" + "".join(f"p{at};{cell};<{at + 9} g/m2\n" for at, cell in enumerate(cells)))
    raw = read_table(path)
    drafts = {draft.name: draft for draft in draft_columns(raw, "id")}
    specs = {name: draft.spec for name, draft in drafts.items()}
    assert (specs["crea"].type, specs["crea"].cell_unit, specs["crea"].missing) == ("number", None, [])
    assert drafts["crea"].stops and "3 numbers have a unit ('umol/l') and 37 have none" in drafts["crea"].comment
    assert specs["hb"].cell_unit == "g/m2" and not drafts["hb"].stops
    table = TableSpec(path="t", patient_id="id")
    assert len(type_table(raw, table, specs)[1]) == 3
    specs["crea"] = specs["crea"].model_copy(update={"cell_unit": "umol/l"})
    (note,) = table_notes(raw, table, specs)
    assert "37 numbers without a unit are read as umol/l, like the 3 that have it" in str(note) and note.suggestion


@pytest.mark.proves("A3.3")
def test_a_later_measurement_is_no_feature(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    later = ["weight_12m", "age_last_contact", "bmi 6 months", "weight_t2", "weight post-op", "smoking_fu1"]
    now = ["age (years)", "weight_kg", "gender", "pack_years", "bmi", "weight (kg)", "weight_0m"]
    path.write_text(
        ";".join(["id", *later, *now]) + "\n" + ";".join(["p1", *["61"] * 13]) + "\np2" + ";7.5" * 13 + "\n"
    )
    drafts = {draft.name: draft for draft in draft_columns(read_table(path), "id")}
    assert {name for name, draft in drafts.items() if draft.spec.role == "feature"} == set(now)
    for name in later:
        assert drafts[name].spec.role == "ignore" and "later measurement" in drafts[name].comment
