"""Planned beside spent, and what made the run."""

from __future__ import annotations

import pytest

from medform.reporting.provenance import banners, command, plan_rows, provenance_rows
from medform.reporting.run_files import RunFacts
from medform.runs.scores import ScoreRow


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


@pytest.mark.proves("A7")
@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("/data/St Mary/kim.yaml", "kim.yaml"),
        ("../jane/scans/", "scans"),
        ("--root=/data/KimHospital", "--root=KimHospital"),
        ("genes.path=/home/jane/g.csv", "genes.path=g.csv"),
        ("both=[/home/jane/a,/home/jane/b]", "'both=[a,b]'"),
        (r"C:\Users\jane\RUN", "RUN"),
        ("/data/my scans", "'my scans'"),
        ("stages.segment.inputs.image.intensity=scan", "stages.segment.inputs.image.intensity=scan"),
        ("/", "/"),
    ],
)
def test_the_command_names_no_folder_of_the_machine_it_ran_on(argument: str, shown: str) -> None:
    assert command(["/home/jane/.venv/bin/medform", "run", argument]) == f"medform run {shown}"
    rows = dict(provenance_rows(RunFacts(argv=("/usr/lib/medform/__main__.py", "run", argument))))
    assert rows["Command"] == f"medform run {shown}"


def _row(model: str, note: str | None) -> ScoreRow:
    return ScoreRow("c", "t", "cross_validation", model, "auroc", 0.7, 50, note=note)


@pytest.mark.proves("A4.2", "A7")
def test_genes_standardised_over_all_patients_are_announced_with_the_models_they_reach() -> None:
    rows = [
        _row("mgi - unet", "upstream_transductive"),
        _row("genes_logistic", "interval: newcombe; upstream_transductive"),
        _row("mgi", "upstream_transductive"),
        _row("unet", None),
    ]
    (banner,) = banners(RunFacts(status="complete"), rows)
    assert banner.tone == "amber" and "upstream_transductive" in banner.text
    assert "the figures of “MGI”, “genes alone” and differences to them" in banner.text and "as counts" in banner.text
    assert banners(RunFacts(status="complete"), rows[-1:]) == []


def test_warnings_of_the_plan_are_announced_in_one_banner() -> None:
    (banner,) = banners(RunFacts(status="complete", warnings=("few passes", "50 steps: 200 are wanted")), [])
    assert (banner.tone, banner.text) == (
        "amber",
        "The plan warned before the run: “few passes”, “50 steps: 200 are wanted”.",
    )
