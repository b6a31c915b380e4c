"""Cohort flow: its file, and a diagram in which every count can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from medform.reporting.flow import Exclusion, Flow, FlowStep, draw_flow, flow_rows, read_flow, write_flow

FLOW = Flow(
    (
        FlowStep("Found", files=1106),
        FlowStep("Accepted", patients=78, series=80),
        FlowStep("Used", patients=1),
    ),
    (Exclusion("not an image", 2, "files", after="Found"), Exclusion("no row", 1, "patients")),
)


@pytest.mark.proves("A7", "A1.5")
def test_flow_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_flow(tmp_path) is None
    write_flow(tmp_path, FLOW)
    assert read_flow(tmp_path) == FLOW


@pytest.mark.proves("A7")
def test_diagram_shows_every_count_below_the_step_it_belongs_to() -> None:
    soup = BeautifulSoup(draw_flow(FLOW), "html.parser")
    texts = {text.get_text(): float(str(text["y"])) for text in soup.find_all("text")}
    assert texts["1,106 files"] < texts["2 files: not an image"] < texts["78 patients"]
    assert texts["80 series"] < texts["1 patient: no row"] < texts["1 patient"]
    svg = soup.find("svg")
    assert svg is not None and max(texts.values()) < float(str(svg["height"]))


def test_long_reasons_are_wrapped_into_their_box() -> None:
    reason = "missing slice between z = -312.5 and -305.0 mm, and a second one further up"
    svg = draw_flow(Flow((FlowStep("a"), FlowStep("b")), (Exclusion(reason, 12, "series"),)))
    lines = [text.get_text() for text in BeautifulSoup(svg, "html.parser").find_all("text", class_="line")]
    assert " ".join(lines) == f"12 series: {reason}" and max(map(len, lines)) <= 25


def test_rows_of_the_csv_hold_steps_and_exclusions() -> None:
    rows = flow_rows(FLOW)
    assert rows[1]["patients"] == 78 and rows[3] == {
        "excluded_after": "Found",
        "reason": "not an image",
        "files": 2,
    }
