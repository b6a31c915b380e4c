"""The committed results: every finished run spent what its plan said, within 30 per cent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
TOLERANCE = 0.3


def finished() -> dict[str, dict[str, Any]]:
    records = {path.parent.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/run.json"))}
    return {name: record for name, record in records.items() if record["status"] == "complete"}


@pytest.mark.proves("A7", "A9")
def test_there_are_results_of_finished_runs() -> None:
    assert finished()


@pytest.mark.proves("A7", "A9")
@pytest.mark.parametrize("name", finished())
def test_a_finished_run_spent_what_was_planned_within_thirty_per_cent(name: str) -> None:
    record = finished()[name]
    planned, spent = record["planned"]["cpu_minutes"], record["spent"]["cpu_minutes"]
    assert abs(spent - planned) <= TOLERANCE * planned, f"{name}: planned {planned}, spent {spent} CPU-minutes"
