"""The command line in process: frozen options, cheap help, exit codes, golden errors, one JSON object."""

from __future__ import annotations

import errno
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import typer

import medform
from medform.cli import faults
from medform.cli.main import app, invoke
from medform.errors import ExtraMissing, InputError, Problem

VERBS = [
    "doctor",
    "demo",
    "phantom",
    "check",
    "init",
    "ingest",
    "pretrain",
    "align",
    "evaluate",
    "embed",
    "predict",
    "explain",
    "segment",
    "run",
    "report",
    "export",
]
COMMON = {"--json", "--debug"}
TRAIN = {"--out", "--device", "--seed", "--set", "--resume", "--overwrite", "--strict"} | COMMON
OPTIONS = {
    "doctor": COMMON,
    "demo": {"--out"} | COMMON,
    "phantom": {"--patients", "--seed", "--set", "--overwrite"} | COMMON,
    "check": {"--table", "--sheet", "--header-row", "--privacy", "--strict"} | COMMON,
    "init": {"--out", "--table", "--sheet", "--header-row", "--overwrite"} | COMMON,
    "ingest": {"--out", "--root", "--workers", "--resume", "--overwrite", "--strict"} | COMMON,
    "pretrain": {"--recipe", "--root", "--fold", "--workers"} | TRAIN,
    "align": {"--recipe"} | TRAIN,
    "evaluate": {"--out", "--model", "--embeddings", "--cohort", "--root", "--strict"} | COMMON,
    "embed": {"--out", "--model", "--device", "--strict"} | COMMON,
    "predict": {"--model", "--out", "--table", "--row", "--device", "--strict"} | COMMON,
    "explain": {"--patient", "--out"} | COMMON,
    "segment": {"--model", "--out", "--genes", "--format", "--device"} | COMMON,
    "run": {"--cohort", "--root", "--fold", "--store", "--workers"} | TRAIN,
    "report": {"--images"} | COMMON,
    "export": {"--out", "--fold"} | COMMON,
}
CALLS = {
    "doctor": ["store"],
    "demo": ["-o", "d"],
    "phantom": ["d", "--patients", "5", "--set", "signal=off"],
    "check": ["d", "--table", "t.csv", "--sheet", "Labor", "--header-row", "3", "--privacy"],
    "init": ["d", "-o", "c.yaml", "--table", "t.csv", "--sheet", "Labor"],
    "ingest": ["c.yaml", "-o", "s", "--root", "d", "--workers", "2", "--resume"],
    "pretrain": [
        "d",
        "-o",
        "r",
        "--fold",
        "0",
        "--fold",
        "2",
        "--set",
        "a.b=1",
        "--device",
        "cpu",
        "--seed",
        "3",
    ],
    "align": ["r", "-o", "r2", "--overwrite"],
    "evaluate": ["r"],
    "embed": ["scan", "-o", "e.parquet", "--model", "m"],
    "predict": ["scan", "--model", "m", "--table", "t.csv", "-o", "p.csv"],
    "run": ["medform-small", "--cohort", "c.yaml", "-o", "r", "--store", "s"],
    "segment": ["scan", "--model", "m", "-o", "d", "--genes", "row.csv", "--format", "nifti,png"],
    "report": ["r", "--no-images"],
    "export": ["r", "-o", "m", "--fold", "1"],
}


@pytest.mark.proves("A1.4")
def test_verbs_and_their_options_are_frozen() -> None:
    """A new knob belongs into the recipe or the cohort file; change this list only with the design."""
    group = typer.main.get_command(app)
    commands: dict[str, Any] = group.commands  # type: ignore[attr-defined]
    assert list(commands) == VERBS
    for verb, command in commands.items():
        found = {max(option.opts, key=len) for option in command.params if option.param_type_name == "option"}
        assert found == OPTIONS[verb], verb


@pytest.mark.proves("A1.4")
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_also_those_of_a_later_version(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"medform {verb}" in text
    assert ("not in this version yet" in text) == (verb == "explain")


@pytest.mark.proves("A1.4", "U1")
def test_help_imports_neither_torch_nor_numpy() -> None:
    script = (
        "import sys; from medform.cli.main import invoke;"
        f"codes = [invoke([verb, '--help']) for verb in {VERBS!r}];"
        "codes += [invoke(['--help']), invoke(['--version'])];"
        "heavy = {'torch', 'numpy', 'pandas', 'pydicom', 'matplotlib', 'timm'} & set(sys.modules);"
        "sys.exit(repr((codes, heavy)) if heavy or any(codes) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.proves("A1.4")
@pytest.mark.parametrize("verb", sorted(CALLS))
def test_every_verb_calls_the_public_function_of_its_name(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = create_autospec(getattr(medform, verb), return_value=Path("done"))
    monkeypatch.setattr(medform, verb, function, raising=False)
    assert invoke([verb, *CALLS[verb]]) == 0
    function.assert_called_once()


def test_a_verb_of_a_later_version_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["explain", "r", "--patient", "p"]) == 2
    assert "is not in this version yet. Nothing was done." in capsys.readouterr().err


def given(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    """Let `medform check` return or raise ``outcome``."""

    def check(path: Path, **_: Any) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(medform, "check", check, raising=False)


@pytest.mark.proves("A.input")
def test_golden_error_names_every_cell_and_the_next_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = Problem("not a number.", "clinic.xlsx", "Tabelle1", 17, "age", "6o", "Did you mean 60?")
    key = Problem("no such column in the table.", "cohort.yaml:9", column="agee", suggestion="Did you mean 'age'?")
    given(
        monkeypatch,
        InputError("2 problems in the table.", "clinic.xlsx", "Nothing was written.", "mend them.", [cell, key]),
    )
    assert invoke(["check", "d"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "clinic.xlsx: 2 problems in the table. Nothing was written.\n"
        "  clinic.xlsx, sheet 'Tabelle1', row 17, column 'age': '6o': not a number. Did you mean 60?\n"
        "  cohort.yaml:9, column 'agee': no such column in the table. Did you mean 'age'?\n"
        "Fix: mend them.\n"
    )


@pytest.mark.proves("A.input")
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            ExtraMissing("onnx is not installed.", fix="pip install 'medform[onnx]'"),
            4,
            "pip install 'medform[onnx]'",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "RUN/x"),
            2,
            "RUN/x: no space is left on the disk.",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "RUN"),
            2,
            "choose a folder that you may write to",
        ),
        (MemoryError(), 2, "Not enough memory."),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "D"), 2, "D: this is a folder, and a file is needed"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "f/x"), 2, "f/x: a part of this path is a file"),
        (FileExistsError(errno.EEXIST, "File exists", "f"), 2, "f: a file stands where a folder is needed"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_exit_code_and_words_of_what_can_go_wrong(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given(monkeypatch, error)
    assert invoke(["check", "d"]) == code
    assert words in capsys.readouterr().err


@pytest.mark.proves("A.input")
def test_interrupted_run_is_told_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(medform, "run", run, raising=False)
    assert invoke(["run", "medform-small", "--cohort", "my file.yaml", "-o", "R", "--overwrite"]) == 130
    told = capsys.readouterr().err
    assert "Continue with: medform run medform-small --cohort 'my file.yaml' -o R --resume\n" in told


@pytest.mark.proves("A.input")
def test_an_interrupted_verb_without_resume_is_told_to_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(medform, "evaluate", evaluate, raising=False)
    assert invoke(["evaluate", "R"]) == 130
    told = capsys.readouterr().err
    assert "run the same command again" in told and "--resume" not in told


@pytest.mark.proves("A.input")
def test_a_folder_or_another_encoding_in_place_of_a_cohort_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["ingest", str(tmp_path), "-o", str(tmp_path / "s")]) == 2
    assert f"{tmp_path}: this is a folder.\nFix: give the cohort file that `medform init`" in capsys.readouterr().err
    (tmp_path / "c.yaml").write_bytes("name: x\nlicence: für uns\n".encode("cp1252"))
    assert invoke(["ingest", str(tmp_path / "c.yaml"), "-o", str(tmp_path / "s")]) == 2
    assert "c.yaml:2: not UTF-8 text" in capsys.readouterr().err
    assert invoke(["init", str(tmp_path), "-o", str(tmp_path)]) == 2
    assert f"-o names a folder. Nothing was written.\nFix: name a file, e.g. {tmp_path / 'cohort.yaml'}" in (
        capsys.readouterr().err
    )


def test_fault_of_ours_takes_three_lines_and_keeps_its_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    given(monkeypatch, ZeroDivisionError("by zero\nsecond line"))
    assert invoke(["check", "d"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0] == "This is a fault in medform: ZeroDivisionError: by zero"
    (trace,) = (tmp_path / "medform" / "traces").iterdir()
    assert str(trace) in lines[1] and "Traceback" in trace.read_text()
    assert invoke(["check", "d", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_trace_goes_to_the_temporary_folder_where_there_is_no_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "file" / name))
    monkeypatch.setattr(faults.tempfile, "gettempdir", lambda: str(tmp_path))
    given(monkeypatch, ZeroDivisionError())
    assert invoke(["check", "d"]) == 1
    assert len(list(tmp_path.glob("trace-*.txt"))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chek", "d"], "check"),
        (["run", "medform-small"], "--cohort"),
        (["check", "d", "--no-such"], "--no-such"),
        (["phantom", "d", "--patients", "many"], "--patients"),
        (["phantom", "d", "--set", "signal"], "is not KEY=VALUE"),
        (["check", "d", "--header-row", "3"], "give the table with --table"),
        (["init", "d", "-o", "no/c.yaml", "--sheet", "Labor"], "give the table with --table"),
        (["ingest", "c.yaml", "-o", "s", "--resume", "--overwrite"], "exclude each other"),
    ],
)
@pytest.mark.proves("A.input")
def test_wrong_usage_exits_with_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.proves("A1.4")
def test_json_is_one_object_on_stdout_and_messages_go_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    def check(path: Path, **_: Any) -> Any:
        logging.getLogger("medform.ingestion").info("reading %s", path)
        return {"files": {"found": 3}, "half": float("nan"), "path": path}

    monkeypatch.setattr(medform, "check", check, raising=False)
    assert invoke(["check", "d", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"files": {"found": 3}, "half": None, "path": "d"}
    assert shown.err == "reading d\n"


def test_strict_turns_exclusions_into_exit_3(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, SimpleNamespace(exclusions=2, lines=lambda: ["2 series were left out"]))
    assert invoke(["check", "d"]) == 0
    assert invoke(["check", "d", "--strict"]) == 3
    given(monkeypatch, SimpleNamespace(exclusions=(), lines=lambda: []))
    assert invoke(["check", "d", "--strict"]) == 0
    given(monkeypatch, SimpleNamespace(exit_code=2, exclusions=1, lines=lambda: []))
    assert invoke(["check", "d", "--strict"]) == 2


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--version"]) == 0
    assert capsys.readouterr().out == f"medform {medform.__version__}\n"


def test_every_public_verb_is_on_the_command_line() -> None:
    functions = {name for name in medform.__all__ if name.islower() and not name.startswith("_")}
    assert functions <= set(VERBS)
    assert all(inspect.isfunction(getattr(medform, name)) for name in functions)
