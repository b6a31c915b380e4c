"""`medform check`: the object of the design, equal to what was planted; the source is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import medform
from medform.errors import InputError
from medform.synthetic.hospital import write_hospital
from medform.synthetic.options import HospitalOptions


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("check") / "hospital"
    write_hospital(out, patients=6, seed=3, options=HospitalOptions(size=32))
    return out


@pytest.mark.proves("A3.3", "A3.1", "D6")
def test_verdicts_and_counts_equal_the_truth(hospital: Path) -> None:
    truth = json.loads((hospital / "truth.json").read_text())
    before = {path: path.stat().st_mtime_ns for path in hospital.rglob("*")}
    found = medform.check(hospital / "images", table=hospital / "clinical.csv")
    assert before == {path: path.stat().st_mtime_ns for path in hospital.rglob("*")}
    assert set(found) == {"files", "series", "tables", "problems"}
    assert found["files"] == truth["files"]
    planted = {one["series_uid"]: one for one in truth["series"]}
    assert {one["series_id"] for one in found["series"]} == set(planted)
    for one in found["series"]:
        expected = planted[one["series_id"]]
        assert one["verdict"] == expected["verdict"], one
        assert one["codes"] == ([] if expected["code"] is None else [expected["code"]])
        assert one["patient_id"] == expected["patient_id"] and len(one["codes"]) == len(one["details"])
        if one["verdict"] == "accepted":
            assert one["shape"] == list(expected["shape"]) and one["n_slices"] == expected["shape"][0]
            assert one["spacing_mm"] == pytest.approx(expected["spacing_mm"], abs=1e-3)
    assert sum(len(one["files"]) for one in found["series"]) == found["files"]["image"]
    assert json.loads(json.dumps(found)) == found and found.exit_code == 0


@pytest.mark.proves("A3.2", "A3.3")
def test_problems_of_a_table_come_with_file_row_column_and_suggestion(hospital: Path, tmp_path: Path) -> None:
    table = tmp_path / "clinic.csv"
    rows = (hospital / "clinical.csv").read_text().splitlines()
    header = rows[0].split(";")
    cells = rows[1].split(";")
    cells[header.index("age (years)")] = "6o"
    table.write_text("\n".join([rows[0], ";".join(cells), *rows[2:]]) + "\n")
    found = medform.check(hospital / "images", table=table)
    (entry,) = found["tables"]
    assert entry["file"] == "clinic.csv" and entry["rows"] == len(rows) - 1
    assert {"name", "type", "missing", "role"} == set(entry["columns"][0]) and entry["columns"][0]["role"] == "id"
    (bad,) = [one for one in found["problems"] if one["value"] == "6o"]
    assert (bad["file"], bad["row"], bad["column"]) == ("clinic.csv", 2, "age (years)") and bad["suggestion"]
    assert set(bad) == {"file", "sheet", "row", "column", "value", "problem", "suggestion"}
    assert any("images but no row" in one["problem"] for one in found["problems"])
    text = "\n".join(found.lines())
    assert "clinic.csv, row 2, column 'age (years)': '6o'" in text and "Next: medform init" in text


def test_privacy_names_attributes_and_never_values(hospital: Path) -> None:
    found = medform.check(hospital / "images", privacy=True)
    columns = {one["column"] for one in found["problems"]}
    assert {"PatientName", "PatientBirthDate", "InstitutionName"} <= columns
    assert "PHANTOM^" not in json.dumps(found["problems"]) and "SYNTHETIC" not in json.dumps(found["problems"])


@pytest.mark.proves("A.input")
def test_nothing_usable_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "page.dcm").write_text("<html>")
    found = medform.check(tmp_path)
    assert found.exit_code == 2 and found["files"] == {"found": 1, "image": 0, "other": 0, "unreadable": 1}
    assert found.lines()[-1].startswith("Nothing here is usable.") and found.exclusions == 1
    with pytest.raises(InputError, match="no such file or folder"):
        medform.check(tmp_path / "missing")
