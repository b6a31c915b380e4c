"""The page: one file, nothing fetched, the same bytes each time, and honest about what is not there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from medform.errors import InputError
from medform.reporting import report as module
from medform.reporting.report import make_report
from medform.reporting.table_one import summarise, write_table_one


def read(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def page(run: Path, **options: Any) -> BeautifulSoup:
    return read(make_report(run, **options))


@pytest.fixture
def whole(reported_run: Path) -> BeautifulSoup:
    return read(reported_run / "report.html")


@pytest.mark.proves("A7", "U18")
def test_page_is_one_small_file_that_asks_for_nothing(reported_run: Path) -> None:
    path = reported_run / "report.html"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= 6_000_000
    for element in BeautifulSoup(text, "html.parser").find_all(True):
        for attribute in ("src", "href", "data", "action", "srcset", "poster"):
            address = element.get(attribute)
            assert address is None or str(address).startswith(("#", "data:")), element
    assert "http:" not in text and "https:" not in text and "@import" not in text and "<script" not in text
    assert "default-src 'none'" in text  # and the browser is told to refuse what slips through


@pytest.mark.proves("A7")
def test_page_and_figures_are_the_same_bytes_twice_also_from_a_copy(reported_run: Path, tmp_path: Path) -> None:
    run = reported_run
    copy = Path(shutil.copytree(run, tmp_path / "elsewhere" / "copy"))
    (copy / "report.html").unlink()
    for made in [*(copy / "figures").glob("*.svg"), *(copy / "figures").glob("*.csv")]:
        made.unlink()
    make_report(copy)
    files = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
    assert all((run / name).read_bytes() == (copy / name).read_bytes() for name in files)


def test_the_page_says_where_validation_chose_another_model_than_is_exported(whole: BeautifulSoup) -> None:
    """Of the three tasks one chose the aligned vectors, one them with the table: both are in the folder."""
    said = [one.get_text() for one in whole.select("#controls p") if "model folder" in one.get_text()]
    assert said == ["The model folder holds the recipe's own model (aligned); validation chose image_only."]


@pytest.mark.proves("A7")
def test_sections_stand_in_the_order_of_the_data(whole: BeautifulSoup) -> None:
    soup = whole
    order = [section["id"] for section in soup.find_all("section")]
    assert order == [
        "cohort",
        "table-one",
        "training",
        "controls",
        "few-shot",
        "roc",
        "attention",
        "provenance",
    ]
    assert {link["href"][1:] for link in soup.select("nav a")} == set(order)
    text = " ".join(soup.get_text().split())
    for words in (
        "Research use only",
        "1,081 slices",
        "localizer",
        "19 missing",
        "Planned beside spent",
        "+8 %",
        "CC BY 3.0",
    ):
        assert words in text
    ids = [element["id"] for element in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))


@pytest.mark.proves("A7", "A6.3")
def test_verdict_says_which_difference_a_null_is_likely_to_miss(whole: BeautifulSoup) -> None:
    verdict = whole.select_one(".verdict")
    assert verdict is not None
    assert verdict.get_text() == (
        "On histology, aligned scores 0.71 [0.59, 0.83] of 1 (chance 0.50); image alone 0.69; this cohort "
        "does not show a benefit of alignment; a true difference of 0.14 would be missed in one of five such cohorts, "
        "smaller ones more often."
    )


@pytest.mark.proves("A7")
def test_every_figure_lies_beside_the_page_with_its_data(reported_run: Path, whole: BeautifulSoup) -> None:
    run = reported_run
    named = [span.get_text() for span in whole.select(".file")]
    assert named and len(named) == len(set(named))
    for name in named:
        lines = (run / name).read_text().splitlines()
        assert len(lines) > 1 and (run / name).with_suffix(".svg").read_text().rstrip().endswith("</svg>")
    controls = (run / "figures/controls-histology-auroc.csv").read_text().splitlines()
    assert controls[0] == "model,value,ci_low,ci_high,n_patients" and controls[1].startswith("aligned,0.71,")


@pytest.mark.proves("A7")
def test_no_images_leaves_out_every_picture_of_a_patient_and_keeps_the_profiles(
    make_run: Any, whole: BeautifulSoup
) -> None:
    assert len(whole.select("#attention img")) == 24
    bare = page(make_run(small=True), images=False)
    assert bare.find_all("img") == [] and "data:image" not in str(bare)
    assert len(bare.select("#attention .profile svg")) == 6


@pytest.mark.proves("A7")
def test_flat_attention_is_called_flat(whole: BeautifulSoup) -> None:
    text = " ".join(whole.select_one("#attention").get_text().split())  # type: ignore[union-attr]
    assert "above 0.95 in 6 of them" in text and "plain mean" in text


@pytest.mark.proves("A7", "A4.2")
def test_banners_say_what_limits_every_figure(make_run: Any, whole: BeautifulSoup) -> None:
    run = make_run(
        small=True,
        transductive=True,
        folds_run=[0],
        collapsed=[{"stage": "pretrain", "fold": 0, "step": 80}],
        notes=["encoder_untrained: 50 steps of 16 views"],
    )
    soup = page(run)
    red = [banner.get_text() for banner in soup.select(".banner.red")]
    amber = " ".join(banner.get_text() for banner in soup.select(".banner.amber"))
    assert len(red) == 1 and red[0].startswith("Transductive")
    assert (
        "Only fold 0 of 5" in amber and "stage pretrain, fold 0, step 80" in amber and "practically untrained" in amber
    )
    assert whole.select(".banner") == []


@pytest.mark.proves("A7", "A4.2")
def test_warnings_of_the_plan_stand_once_and_above_every_figure(make_run: Any) -> None:
    warning = "3.1 passes over the slices in pretrain: 5 or more are wanted"
    soup = page(make_run(small=True, montage=False, warnings=[warning], notes=["one note of the run"]))
    assert [warning in banner.get_text() for banner in soup.select(".banner")] == [True]
    assert soup.get_text().count(warning) == 1 and soup.get_text().count("one note of the run") == 1


@pytest.mark.proves("A7")
def test_the_page_says_once_beside_the_scores_what_intervals_leave_out(make_run: Any, whole: BeautifulSoup) -> None:
    said = "they leave out what another training or other folds would change"
    assert whole.get_text().count(said) == 1 and "held the truth in 87 %" in whole.select_one("#controls").get_text()  # type: ignore[union-attr]
    assert said not in page(make_run(small=True, montage=False, scores=False, tasks=[])).get_text()


@pytest.mark.proves("A7")
def test_many_levels_of_a_column_become_six_and_the_rest_counted_together(make_run: Any) -> None:
    run = make_run(small=True, montage=False)
    ids = [f"p{number}" for number in range(60)]
    scanners = [f"scanner {max(number - 22, 0) // 2 if number < 58 else number:02d}" for number in range(60)]
    table = pd.DataFrame({"scanner": scanners}, index=ids)
    write_table_one(run, summarise(table, {"all": ids, "test": ids[:3]}, {"scanner": "feature"}))
    cells = [" ".join(cell.get_text().split()) for cell in page(run).select("#table-one tbody td")]
    assert cells[1].startswith("scanner 00: 24 (40 %)scanner 01: 2 (3 %)") and cells[1].count("scanner") == 6
    assert cells[1].endswith("14 other levels: 26 (43 %)") and cells[2] == "scanner 00: 3 (100 %)"


def test_montage_shrinks_until_the_page_fits_and_says_so(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(small=True)
    whole = make_report(run).stat().st_size
    monkeypatch.setattr(module, "MOST_BYTES", whole - 100_000)
    soup = page(run)
    shown = len(soup.select("#attention .patient"))
    assert 0 < shown < 6
    assert f"{6 - shown} more left out" in " ".join(soup.get_text().split())
    assert (run / "report.html").stat().st_size <= whole - 100_000


def test_run_that_was_only_trained_has_a_page_that_says_so(make_run: Any) -> None:
    run = make_run(scores=False, montage=False, tasks=[])
    for name in ("flow.json", "table_one.json", "metrics.jsonl"):
        (run / name).unlink()
    text = " ".join(page(run).get_text().split())
    assert "no evaluation yet" in text and "no cohort flow" in text and "Nothing was trained" in text


def test_names_from_a_users_files_are_text_and_nothing_else(make_run: Any) -> None:
    cohort = {"name": "<b>$x_1$ & 한글</b>", "licence": "<script>alert(1)</script>", "n_patients": 3}
    run = make_run(small=True, montage=False, cohort=cohort, tasks=[{"name": "a/b $y^2$ <i>", "n": 5, "positive": 2}])
    soup = page(run)
    assert soup.find("script") is None
    assert "<b>$x_1$ & 한글</b>" in soup.select_one("h1").get_text()  # type: ignore[union-attr]


@pytest.mark.proves("A1.5")
def test_folders_that_cannot_be_read_are_refused_by_name(make_run: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("no run.json")):
        make_report(tmp_path)
    run = make_run()
    newer = json.loads((run / "flow.json").read_text()) | {"schema_version": 2}
    (run / "flow.json").write_text(json.dumps(newer))
    with pytest.raises(InputError, match="schema_version is 2") as caught:
        make_report(run)
    assert str(run / "flow.json") in str(caught.value)
    (run / "flow.json").write_text('{"schema_version": 1, "steps": [{"nam": "x"}]}')
    with pytest.raises(InputError, match="not a valid Flow"):
        make_report(run)
    (run / "run.json").write_text(json.dumps({"schema_version": 9}))
    with pytest.raises(InputError, match="schema_version 9"):
        make_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.proves("A1.5", "A7")
def test_version_1_run_is_read_and_reporting_never_imports_torch(tmp_path: Path) -> None:
    fixture = Path(__file__).parents[1] / "fixtures" / "run_v1"
    run = Path(shutil.copytree(fixture, tmp_path / "run"))
    script = (
        "import sys; from pathlib import Path; from medform.reporting.report import make_report;"
        "print(make_report(Path(sys.argv[1])));"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(run / "report.html")
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "On histology, aligned scores 0.71" in text and "patient-0001" in text


@pytest.mark.proves("A4.2", "A7")
def test_slice_probes_of_the_log_are_training_curves_and_no_scores(make_run: Any) -> None:
    run = make_run(small=True, montage=False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["stage"] == "pretrain":
            line["slice_probe.bleeding"] = 0.5 + line["step"] / 1000
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = " ".join(page(run).get_text().split())
    assert "Slice probe, bleeding" in text and "no score" in text
    drawn = (run / "figures" / "training-pretrain-slice-probe-bleeding.csv").read_text().splitlines()
    assert drawn[0] == "fold,seed,step,slice_probe.bleeding" and drawn[1] == "0,0,1,0.501"
    assert not (run / "figures" / "training-align-slice-probe-bleeding.csv").exists()
