"""What a folder's headers say together: one person under one id, and which refusals the user may let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medform.errors import InputError
from medform.ingestion.ingest import ingest_scan
from medform.ingestion.plan import ReadSettings, plan_folder
from medform.pipeline.check import check


def scans(kit: Any, root: Path, *people: tuple[str, str]) -> Path:
    """A series of 0001 for each (name, birth date), as two hospitals send them, and one of 0002."""
    for at, (name, birth) in enumerate((*people, ("Other^One", "19550505"))):
        tags = {"PatientID": "0001" if at < len(people) else "0002", "PatientName": name, "PatientBirthDate": birth}
        tags |= {"SeriesInstanceUID": f"1.2.{at}", "StudyInstanceUID": f"1.3.{at}", "StudyDate": f"20{10 + at}0101"}
        kit.write(root / str(at), kit.stack(8, series=f"s{at}", tags=tags))
    return root


@pytest.mark.proves("A3.1")
def test_two_people_under_one_id_are_set_aside_and_never_one_patient(tmp_path: Path, kit: Any) -> None:
    root = scans(kit, tmp_path / "both", ("Doe^Jane", "19500304"), ("Roe^Rick", "19610708"), ("", ""))
    plan = plan_folder(root, ReadSettings())
    assert [(one.patient_id, one.codes) for one in plan.series] == [("0001", ["two_people"])] * 3 + [("0002", [])]
    detail = plan.series[0].details[0]
    assert "name 2 people" in detail and "or a name or date was changed" in detail
    assert "Doe" not in detail and "1950" not in detail
    cohort = ingest_scan(root, tmp_path / "store")
    assert cohort.patient_ids == ("0002",)
    assert all(row.override.startswith("images.accept: [two_people]") for row in cohort.quarantine())
    shown = check(root)
    assert shown.exclusions == 3 and "two_people: " in "\n".join(shown.lines())
    accepted = plan_folder(root, ReadSettings(accept=frozenset({"two_people"})))
    assert [one.verdict.status for one in accepted.series] == ["repaired"] * 3 + ["accepted"]


@pytest.mark.parametrize(
    "people",
    [
        [("Doe^Jane", "19500304"), ("DOE^JANE^^", "19500304")],
        [("", ""), ("", "")],
        [("ANON", ""), ("Doe^Jane", "19500304")],
        [("0001", "19500101"), ("0001", "19510101")],  # the year of the scan less the age
    ],
)
def test_one_person_and_what_names_nobody_are_one_patient(
    tmp_path: Path, kit: Any, people: list[tuple[str, str]]
) -> None:
    plan = plan_folder(scans(kit, tmp_path, *people), ReadSettings())
    assert {one.verdict.status for one in plan.series} == {"accepted"}


def test_birth_dates_of_1_january_further_apart_are_two_people(tmp_path: Path, kit: Any) -> None:
    plan = plan_folder(scans(kit, tmp_path, ("0001", "19500101"), ("0001", "19530101")), ReadSettings())
    assert [one.codes for one in plan.series] == [["two_people"], ["two_people"], []]


@pytest.mark.proves("R7", "R11")
def test_accepting_unknown_hu_does_not_switch_off_the_checks_of_geometry(tmp_path: Path, kit: Any) -> None:
    """A series with a slice missing: `accept` is not the override of ``hu_unknown`` and says so."""
    gapped = kit.stack(tags={"RescaleSlope": None})
    del gapped[3]
    kit.write(tmp_path / "scans", gapped)
    (series,) = plan_folder(tmp_path / "scans", ReadSettings(accept=frozenset({"hu_unknown"}))).series
    assert not series.usable and series.codes == ["hu_unknown"]
    assert "images.accept does not let this through. To use it anyway: images.assume_hu: true" in series.details[0]
    (series,) = plan_folder(tmp_path / "scans", ReadSettings(assume_hu=True)).series
    assert series.codes == ["hu_assumed", "gap"] and not series.usable
    with pytest.raises(InputError, match=r"images\.accept does not let this through"):
        ingest_scan(tmp_path / "scans", tmp_path / "store", accept=["hu_unknown"])
