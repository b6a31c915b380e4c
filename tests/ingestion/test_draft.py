"""The drafted cohort file: which series is meant, tasks, and tables that no draft can serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medform.config import read_yaml
from medform.errors import InputError
from medform.ingestion import draft
from medform.ingestion.draft import draft_cohort_file
from medform.ingestion.found_series import FoundSeries, SliceSource
from medform.ingestion.plan import Plan


def series(name: str, patient: str, date: str, description: str, slices: int = 10, **more: Any) -> FoundSeries:
    defaults: dict[str, Any] = {"modality": "CT", "kernel": "B30f", "spacing_mm": (3.0, 1.0, 1.0)}
    return FoundSeries(
        name, patient, "dicom", slices=(SliceSource(f"{name}/0", ""),), unit="HU", shape=(slices, 4, 4),
        dtype="int16", files=(f"{name}/0",), date=date, description=description, **(defaults | more),
    )  # fmt: skip


def drafted(monkeypatch: pytest.MonkeyPatch, root: Path, found: list[FoundSeries], **table: Any) -> str:
    """The draft for a folder in which ``found`` was found."""
    monkeypatch.setattr(draft, "plan_folder", lambda *_: Plan(root, (), (), tuple(found)))
    return draft_cohort_file(root, table.pop("table", None), root, **table)


CASES: dict[str, tuple[list[FoundSeries], dict[str, str] | None]] = {
    "a longer follow-up does not win": (
        [series("a", "1", "20200101", "BODY"), series("b", "1", "20210101", "BODY", 90), series("c", "2", "", "BODY")],
        {"rule": "first_visit"},
    ),
    "a kind decides before a rule": (
        [
            *(series(f"a{at}", at, "20200101", "ARTERIAL", 90) for at in "12"),
            *(series(f"v{at}", at, "20200101", "VENOUS") for at in "123"),
        ],
        {"description": "^VENOUS$"},
    ),
    "a modality decides where words differ": (
        [
            series("c1", "1", "20200101", "BODY"), series("m1", "1", "20200101", "T2", 99, modality="MR"),
            series("c2", "2", "20200101", "Abdomen 5"), series("m2", "2", "20200101", "TSE", 99, modality="MR"),
            series("c3", "3", "20200101", "BODY"),
        ],
        {"modality": "CT"},
    ),
    "a repeated series of one day": (
        [series("a", "1", "20200101", "BODY", 9), series("b", "1", "20200101", "BODY", 90)],
        {"rule": "most_slices"},
    ),
    "phases by chance": (
        [
            series("a", "1", "20200101", "ART 1"), series("b", "1", "20200101", "VEN 1", 90),
            series("c", "2", "20200101", "ART 2", 90), series("d", "2", "20210101", "VEN 2", 80),
        ],
        None,
    ),
    "nothing describes them": ([series("a", "1", "", "", 9), series("b", "1", "", "", 90)], None),
}  # fmt: skip


@pytest.mark.proves("A3.3", "A3.1")
@pytest.mark.parametrize("name", CASES)
def test_a_drafted_rule_never_takes_a_follow_up_or_mixes_kinds(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found, expected = CASES[name]
    text = drafted(monkeypatch, tmp_path, found)
    assert read_yaml(text)["images"].get("select") == expected
    assert ("# It runs as it is" in text) == (expected is not None)
    if expected is None:
        assert "decide on images.select" in text and "\n  # select: {" in text and "until then ingest stops" in text


@pytest.mark.proves("A3.3")
def test_the_draft_says_how_many_patients_have_several_kinds_and_visits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = drafted(monkeypatch, tmp_path, CASES["phases by chance"][0])
    assert "2 of 2 patients have several usable series: 2 have more than one kind, 1 more than one visit." in text


@pytest.mark.proves("A3.3", "A3.2", "A.input")
def test_a_table_with_a_faulty_shape_is_refused_and_one_that_begins_later_is_drafted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [series("a", "1", "20200101", "BODY")]
    table = tmp_path / "t.csv"
    table.write_text("id,hb,hb\n1,2,3\n2,3,4\n")
    with pytest.raises(InputError, match=r"(?s)2 columns have this name.*--header-row"):
        drafted(monkeypatch, tmp_path, found, table=table)
    rows = "".join(f"{at},{word}\n" for at, word in enumerate(["unknown", "yes, a", "no", "unknown"]))
    table.write_text("Export of the registry,\n\nid,fever\n" + rows.replace("yes, a", '"yes, a"'))
    text = drafted(monkeypatch, tmp_path, found, table=table, header_row=3)
    assert read_yaml(text)["tables"]["clinical"]["header_row"] == "3"
    assert '"fever": {role: ignore, type: category, missing: ["unknown"]}' in text
    assert 'positive: ["no"], primary: true}        # confirm: which value counts as 1?' in text
