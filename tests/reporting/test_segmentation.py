"""The section on segmentation: there only with its rows, figures as they are, genes judged against their controls."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup

from medform.evaluation.predictions import case_frame
from medform.evaluation.segmentation import segmentation_rows
from medform.evaluation.settings import EvaluationSettings
from medform.reporting.report import make_report
from medform.reporting.run_files import read_run
from medform.reporting.segmentation import segmentation_sections
from medform.reporting.words import signed
from medform.runs.scores import FALSE_LESIONS, read_scores, write_scores

PATIENTS = 40


def cases(gains: dict[str, float]) -> list[dict[str, Any]]:
    """Dice of 40 patients: a common part, a gain a model, noise; the last ten have small tumours."""
    random = np.random.default_rng(0)
    base = np.where(np.arange(PATIENTS) < 30, random.uniform(0.75, 0.93, PATIENTS), random.uniform(0.2, 0.7, PATIENTS))
    rows = []
    for model, gain in gains.items():
        dice = np.clip(base + gain + random.normal(0, 0.01, PATIENTS), 0, 1)
        for number in range(PATIENTS):
            shared = {"cohort": "brains", "task": "tumour", "protocol": "segmentation", "model": model,
                      "fold": number % 5, "seed": 0, "patient_id": f"TCGA-{number}"}  # fmt: skip
            figures = {"lesion_voxels": 6000.0 if number < 30 else 800.0, "dice_patient": dice[number],
                       "iou_patient": dice[number] / (2 - dice[number]), "dice_slice": dice[number] - 0.05,
                       "hd95_px": 20 * (1 - dice[number]), "nsd_px": dice[number]}  # fmt: skip
            rows += [{**shared, "metric": metric, "value": float(value)} for metric, value in figures.items()]
    return rows


def segmented(run: Path, gains: dict[str, float]) -> Path:
    """Add segmentation rows and cases to a run."""
    frame = case_frame(cases(gains))
    frame.to_parquet(run / "cases.parquet")
    known = read_scores(run / "scores.json") if (run / "scores.json").is_file() else []
    write_scores(run / "scores.json", [*known, *segmentation_rows(frame, EvaluationSettings(bootstrap=400))])
    return run


def sentence(run: Path) -> tuple[str, str]:
    (section,) = segmentation_sections(read_run(run))
    return section.sentence, section.tone


GAINS = {"mgi": 0.05, "vit_no_genes": 0.02, "unet": 0.0, "mgi_shuffled_genes": 0.02, "mgi_null_genes": 0.02}


@pytest.mark.parametrize(
    ("selected", "said"),
    [
        ("vit_no_genes", "The model folder holds the recipe's own model (mgi); validation chose vit_no_genes."),
        ("mgi", ""),
    ],
)
def test_the_section_says_where_validation_chose_another_model_than_is_exported(
    make_run: Any, selected: str, said: str
) -> None:
    run = make_run(small=True, montage=False, recipe="mgi-small", selected={"tumour": selected})
    (section,) = segmentation_sections(read_run(segmented(run, {"mgi": 0.05, "vit_no_genes": 0.02})))
    assert section.not_exported == said
    page = BeautifulSoup(make_report(run).read_text(encoding="utf-8"), "html.parser").get_text()
    assert page.count("validation chose") == bool(said) and said in page


@pytest.mark.proves("G4.3", "G6.2", "A7")
def test_the_section_shows_every_model_and_its_paired_differences(make_run: Any) -> None:
    run = segmented(make_run(small=True, montage=False, selected={"tumour": "mgi"}), GAINS)
    soup = BeautifulSoup(make_report(run).read_text(encoding="utf-8"), "html.parser")
    section = soup.select_one("#segmentation")
    assert section is not None and soup.select_one('nav a[href="#segmentation"]') is not None
    text = " ".join(section.get_text().split())
    for name in (*GAINS, "Median Dice", "Patients below 0.5", "40 patients tested", "Do genes help to segment?"):
        assert name in text, name
    rows = {(row.model, row.metric): row for row in read_scores(run / "scores.json")}
    mean, below = rows["mgi", "dice_patient"], rows["mgi", "dice_patient_below_half"]
    assert f"{mean.value:.3f}" in text and f"{below.value:g} of 40" in text
    assert "in pixels: the spacing is unknown" in text and "a missed lesion counts as the image's diagonal" in text
    assert "tumours under 3,000 voxels" in text and section.select_one(".chosen") is not None
    answers = [dd.get_text() for dd in section.select("dd")]
    assert (
        len(answers) == 7
        and "MGI scores better than MGI without genes in this cohort." in answers[0]
        and "By size: small tumours +0.0" in answers[0]
    )
    assert "; a true difference of 0.0" in " ".join(answers)
    assert "TCGA-" not in str(soup), "no id of a patient stands on the page"


@pytest.mark.proves("G6.2", "A7")
def test_the_figure_holds_every_patient_and_no_name(make_run: Any) -> None:
    run = segmented(make_run(scores=False, montage=False), GAINS)
    segmentation_sections(read_run(run))
    with (run / "figures/segmentation-tumour.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * PATIENTS and set(rows[0]) == {"model", "dice", "lesion_voxels", "small"}
    assert sum(row["small"] == "True" for row in rows) == 50
    svg = (run / "figures/segmentation-tumour.svg").read_bytes()
    segmentation_sections(read_run(run))
    assert (run / "figures/segmentation-tumour.svg").read_bytes() == svg


@pytest.mark.proves("G6.2", "A7")
def test_a_false_lesion_is_no_small_tumour_of_the_figure(make_run: Any) -> None:
    run = make_run(scores=False, montage=False)
    frame = case_frame(cases({"mgi": 0.0}))
    frame.loc[(frame["patient_id"] == "TCGA-39") & (frame["metric"] == "lesion_voxels"), "value"] = 0.0
    frame.to_parquet(run / "cases.parquet")
    write_scores(run / "scores.json", segmentation_rows(frame, EvaluationSettings(bootstrap=400)))
    segmentation_sections(read_run(run))
    with (run / "figures/segmentation-tumour.csv").open() as file:
        small = {row["lesion_voxels"]: row["small"] for row in csv.DictReader(file)}
    assert small == {"0.0": "False", "800.0": "True", "6000.0": "False"}


@pytest.mark.proves("G5", "G6.2")
@pytest.mark.parametrize(
    ("gains", "tone", "said"),
    [
        (GAINS, "gain", "genes help on this cohort (+0.0"),
        (GAINS | {"mgi_shuffled_genes": 0.05}, "none", "not shown to fall behind, so it need not be the genes"),
        ({"mgi": 0.05, "vit_no_genes": 0.02}, "none", "shuffled genes were not tried"),
        (GAINS | {"mgi": 0.0205}, "none", "does not show a benefit of genes"),
        (GAINS | {"mgi": 0.0}, "loss", "genes make it worse on this cohort"),
    ],
)
def test_genes_count_only_against_their_controls(make_run: Any, gains: dict[str, float], tone: str, said: str) -> None:
    found, given = sentence(segmented(make_run(scores=False, montage=False), gains))
    assert given == tone and said in found and found.startswith("On tumour, MGI reaches a mean Dice of 0.")
    if "does not show" in said:
        assert "would be missed in one of five such cohorts, smaller ones more often." in found


@pytest.mark.proves("G5", "G6.2")
@pytest.mark.parametrize("what", ["false lesions", "shuffled genes without interval"])
def test_genes_are_not_said_to_help_where_a_control_is_blind(make_run: Any, what: str) -> None:
    run = segmented(make_run(scores=False, montage=False), GAINS)
    rows = read_scores(run / "scores.json")
    for place, row in enumerate(rows):
        if what == "false lesions" and row.model == "mgi - vit_no_genes":
            rows[place] = replace(row, note=f"{row.note}; 3 {FALSE_LESIONS}")
        elif what != "false lesions" and row.model == "mgi - mgi_shuffled_genes":
            rows[place] = replace(row, ci_low=None, ci_high=None)
    write_scores(run / "scores.json", rows)
    said, tone = sentence(run)
    assert tone == "none" and "genes seem to gain" in said
    answer = BeautifulSoup(make_report(run).read_text(encoding="utf-8"), "html.parser").select("#segmentation dd")[0]
    assert ("But shuffled genes cannot be compared." in answer.get_text()) == (what != "false lesions")
    assert (f"3 {FALSE_LESIONS}" if what == "false lesions" else "cannot be compared") in said
    if what == "false lesions":
        page = " ".join(BeautifulSoup(make_report(run).read_text(encoding="utf-8"), "html.parser").get_text().split())
        assert page.count(f"3 {FALSE_LESIONS}") >= 2


@pytest.mark.proves("A7", "G4.3")
def test_the_page_of_a_frozen_model_on_another_cohort_is_an_evaluation_with_its_differences(make_run: Any) -> None:
    run = make_run(scores=False, montage=False, tasks=[], selected={})
    frame = case_frame([{**one, "protocol": "external"} for one in cases({"mgi": 0.05, "mgi_null_genes": 0.0})])
    pairs = [("mgi", "mgi_null_genes")]
    write_scores(run / "scores.json", segmentation_rows(frame, EvaluationSettings(bootstrap=400), pairs=pairs))
    soup = BeautifulSoup(make_report(run).read_text(encoding="utf-8"), "html.parser")
    text = " ".join(soup.get_text().split())
    assert "no evaluation yet" not in text and "No task was evaluated" not in text
    assert "MGI − MGI, genes withheld" in text


@pytest.mark.proves("A7")
def test_a_run_without_segmentation_has_no_such_section(make_run: Any) -> None:
    soup = BeautifulSoup(make_report(make_run(small=True, montage=False)).read_text(encoding="utf-8"), "html.parser")
    assert soup.select_one("#segmentation") is None and soup.select_one('nav a[href="#segmentation"]') is None


@pytest.mark.proves("A7")
def test_a_run_of_segmentation_alone_is_an_evaluation(make_run: Any) -> None:
    run = segmented(make_run(scores=False, montage=False, tasks=[], selected={}), {"unet": 0.0, "vit_no_genes": 0.0})
    soup = BeautifulSoup(make_report(run).read_text(encoding="utf-8"), "html.parser")
    heads = [verdict.get_text() for verdict in soup.select(".verdict")]
    assert len(heads) == 1 and "MGI without genes reaches a mean Dice" in heads[0]
    (run / "cases.parquet").unlink()
    (section,) = segmentation_sections(read_run(run))
    assert section.figure is None and section.models == ["vit_no_genes", "unet"]


def test_a_difference_keeps_its_sign_whatever_its_digits() -> None:
    assert [signed(one, 3) for one in (-0.005, -0.0004, 0.0, 0.0004, 0.0012)] == [
        "−0.005",
        "0.000",
        "0.000",
        "0.000",
        "+0.001",
    ]
    assert [signed(one) for one in (-0.004, -0.006, 0.004, 0.1)] == ["0.00", "−0.01", "0.00", "+0.10"]
    assert signed(None) == "–"


@pytest.mark.proves("G5", "A7")
def test_a_leak_on_purpose_stands_in_the_table_with_its_remark_and_what_it_is_worth(make_run: Any) -> None:
    leaks = {"mgi_slice_split": 0.09, "mgi_on_slice_split": 0.05}
    run = make_run(small=True, montage=False, selected={"tumour": "mgi"})
    frame = case_frame(cases(GAINS | leaks))
    notes = {"mgi": "upstream_transductive"} | {name: f"remark on {name}" for name in leaks}
    write_scores(run / "scores.json", segmentation_rows(frame, EvaluationSettings(bootstrap=400), notes=notes))
    soup = BeautifulSoup(make_report(run).read_text(encoding="utf-8"), "html.parser")
    section = soup.select_one("#segmentation")
    assert section is not None
    text = " ".join(section.get_text().split())
    for said in ("MGI, split by slices", "remark on mgi_slice_split", "What does it gain to have seen other slices"):
        assert said in text
    assert "MGI − MGI, split by slices" not in text, "they are judged on other slices"
    marks = [one.get_text() for one in section.select(".notes sup")]
    assert len(marks) > 26
    assert len(set(marks)) == len(marks), "each remark has its own mark"
