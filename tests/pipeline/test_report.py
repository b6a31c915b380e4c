"""`medform report`, as a function and as a verb."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import medform
from medform.cli.main import invoke


@pytest.mark.proves("A7", "U18")
def test_report_of_a_run_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(Path(__file__).parents[1] / "fixtures" / "run_v1", tmp_path / "run"))
    assert medform.report(run) == run / "report.html"
    whole = (run / "report.html").read_bytes()
    assert invoke(["report", str(run), "--no-images"]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    bare = (run / "report.html").read_bytes()
    assert b"data:image" in whole and b"data:image" not in bare


@pytest.mark.proves("A.input")
def test_report_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["report", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
