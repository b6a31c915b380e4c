"""Planned beside spent, and what made the run."""

from __future__ import annotations

import pytest

from medform.reporting.provenance import banners, plan_rows, provenance_rows
from medform.reporting.run_files import RunFacts


@pytest.mark.proves("A7")
def test_planned_stands_beside_spent_with_their_difference() -> None:
    facts = RunFacts(
        planned={"cpu_minutes": 30.0, "steps": {"pretrain": 1400, "align": 50}, "passes": 5.25},
        spent={"cpu_minutes": 27.0, "steps": {"pretrain": 1400}, "peak_memory_gb": 3.1},
    )
    rows = {row.name: (row.planned, row.spent, row.difference) for row in plan_rows(facts)}
    assert rows == {
        "CPU-minutes": ("30", "27", "−10 %"),
        "Steps, pretrain": ("1,400", "1,400", "+0 %"),
        "Steps, align": ("50", "–", ""),
        "Passes over the slices": ("5.25", "–", ""),
        "Peak memory (GB)": ("–", "3.10", ""),
    }


def test_provenance_leaves_out_what_is_not_known() -> None:
    facts = RunFacts(recipe="r", device={"kind": "cpu", "threads": 2}, folds=5, folds_run=(0, 2), seed=0)
    assert dict(provenance_rows(facts)) == {
        "Recipe": "r",
        "Folds run": "0, 2 of 5",
        "Seed": "0",
        "Device": "kind cpu, threads 2",
        "Status": "unknown",
    }


def test_a_run_that_later_code_judged_says_so() -> None:
    same, later = (dict(provenance_rows(RunFacts(commit="a1", judged_commit=one))) for one in ("a1", "b2"))
    assert same["Commit"] == "a1" and "Judged at commit" not in same
    assert (later["Commit"], later["Judged at commit"]) == ("a1", "b2")


def test_an_unfinished_run_says_so() -> None:
    texts = [banner.text for banner in banners(RunFacts(status="running", folds=5, folds_run=(0, 1)), [])]
    assert texts[0].startswith("Only fold 0, 1 of 5 was run") and "status is “running”" in texts[1]
