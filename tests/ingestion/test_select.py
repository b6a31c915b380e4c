"""Which series is the patient's: by declared filters and rule, never by chance."""

from __future__ import annotations

from typing import Any

import pytest

from medform.cohort.cohort_file import Select
from medform.errors import InputError
from medform.ingestion.found_series import Finding, FoundSeries, SliceSource
from medform.ingestion.select import select_series


def series(name: str, patient: str = "P1", slices: int = 10, **more: Any) -> FoundSeries:
    defaults: dict[str, Any] = {"modality": "CT", "spacing_mm": (3.0, 1.0, 1.0)}
    return FoundSeries(
        name, patient, "dicom", slices=tuple(SliceSource(f"{name}/{at}", "") for at in range(slices)),
        unit="HU", shape=(slices, 4, 4), dtype="int16", files=(f"{name}/0",), **(defaults | more),
    )  # fmt: skip


CANDIDATES = [
    series("thin", slices=40, spacing_mm=(1.0, 1.0, 1.0), description="LUNG", kernel="B70", date="20200301"),
    series(
        "long",
        slices=60,
        spacing_mm=(2.0, 1.0, 1.0),
        description="SOFT TISSUE",
        kernel="B30",
        date="20200201",
    ),
    series("early", slices=20, description="SOFT TISSUE", kernel="B31", date="20200101"),
    series("mr", modality="MR", spacing_mm=(0.5, 1, 1), slices=99, date="20190101"),
]


@pytest.mark.proves("A3.1", "A.input")
def test_several_candidates_without_a_rule_are_shown() -> None:
    with pytest.raises(InputError) as error:
        select_series([*CANDIDATES, series("only", "P2")], Select())
    text = str(error.value)
    assert "1 patient has several candidate series" in text and "P2" not in text
    assert "40 slices, 1.00 mm, CT, 'LUNG', kernel 'B70', date 20200301, series thin" in text
    assert "images.select" in text and error.value.exit_code == 2


@pytest.mark.proves("A3.1")
@pytest.mark.parametrize(
    ("select", "name"),
    [
        (Select(modality="ct", rule="thinnest"), "thin"),
        (Select(modality="CT", rule="most_slices"), "long"),
        (Select(modality="CT", rule="first_visit"), "early"),
        (Select(description="soft", rule="thinnest"), "long"),
        (Select(kernel="^b31$"), "early"),
        (Select(modality="MR"), "mr"),
    ],
)
def test_filters_and_rules(select: Select, name: str) -> None:
    selection = select_series(CANDIDATES[::-1], select)
    assert [one.series_id for one in selection.chosen] == [name]
    assert len(selection.left) == 3 and {row.code for row in selection.left} == {"not_selected"}


def test_a_rule_that_does_not_decide_is_said() -> None:
    twins = [series("a", slices=9), series("b", slices=9)]
    with pytest.raises(InputError, match="rule: most_slices does not tell apart"):
        select_series(twins, Select(rule="most_slices"))
    with pytest.raises(InputError, match="first_visit"):
        select_series([series("a", date="20200101"), series("b")], Select(rule="first_visit"))
    assert len(select_series(twins, Select(rule="all")).chosen) == 2


def test_quarantined_series_are_no_candidates() -> None:
    bad = series("bad").with_findings([Finding("gap", "quarantine", "a slice is missing.", "bad/0")])
    assert [one.series_id for one in select_series([bad, series("good")], Select()).chosen] == ["good"]
