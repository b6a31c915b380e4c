"""tools/join_folds.py: what runs of different folds planned and spent is added up."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.proves("G6.1")
def test_plans_and_spending_of_joined_runs_are_added_and_the_largest_memory_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "tools"))
    tool = importlib.import_module("join_folds")

    def record(folds: list[str], minutes: float, memory: float) -> dict[str, Any]:
        spent = {"cpu_minutes": minutes, "wall_minutes": minutes, "peak_memory_gb": memory}
        planned = {"cpu_minutes": 2 * minutes, "disk_gb": 0.1, "align steps": 200}
        return {"planned": planned, "planned_folds": folds, "spent": spent, "status": "folds", "commit": "c"}

    whole = tool.add([record(["0", "2"], 3.0, 2.0), record(["1"], 4.0, 1.0)])
    assert whole["planned"] == {"cpu_minutes": 14.0, "disk_gb": 0.2, "align steps": 200}
    assert whole["spent"] == {"cpu_minutes": 7.0, "wall_minutes": 7.0, "peak_memory_gb": 2.0}
    assert (whole["planned_folds"], whole["status"], whole["commit"]) == (["0", "2", "1"], "running", "c")
