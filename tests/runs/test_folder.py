"""Run folders: whole files only, one writer at a time, never another configuration's results."""

from __future__ import annotations

import errno
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from medform.errors import InputError, MedformError
from medform.runs import folder as folder_module
from medform.runs.folder import RunFolder, RunIdentity, copy_whole, read_json, write_atomically, write_json

IDENTITY = RunIdentity("name: small\nseeds: [0]\n", {"phantom": "aaaa"}, "0.1.0", {"encoder.safetensors": "eeee"})


def everything(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_refusal_before_anything_was_written_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError), RunFolder(tmp_path / "deep" / "run").lock():
        raise InputError("wrong column.")
    assert not (tmp_path / "deep" / "run").exists()


def test_a_file_is_written_whole_from_bytes_text_or_a_function(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "a", b"\x00\x01")
    write_atomically(tmp_path / "new" / "b", "größer")
    write_atomically(tmp_path / "new" / "c", lambda path: path.write_bytes(b"by hand"))
    assert everything(tmp_path) == {"new/a": b"\x00\x01", "new/b": "größer".encode(), "new/c": b"by hand"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failing_write_keeps_the_earlier_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, code: int
) -> None:
    write_atomically(tmp_path / "scores.json", "old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_module.os, moment, fail)
    with pytest.raises(MedformError, match=r"(?s)scores.json.*--resume") as caught:
        write_atomically(tmp_path / "scores.json", "new")
    assert ("the disk is full" in str(caught.value)) == (code == errno.ENOSPC)
    assert caught.value.exit_code == 2
    assert everything(tmp_path) == {"scores.json": b"old"}


def test_an_error_of_the_writing_function_is_passed_on_and_leaves_nothing(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", half)
    assert everything(tmp_path) == {}


def test_json_is_read_back_and_damage_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ä": [1, None]}
    (tmp_path / "a.json").write_text('{"ä": [1')
    with pytest.raises(InputError, match=r"a.json: damaged JSON"):
        read_json(tmp_path / "a.json")


def test_a_run_begins_goes_on_and_starts_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.lock():
        assert run.begin(IDENTITY, status="running", argv=["run"]) is False
        run.update(status="done")
        record = run.record()
        assert (record["schema_version"], record["status"], record["argv"]) == (1, "done", ["run"])
        assert run.identity() == IDENTITY
        write_atomically(run.stage("pretrain", fold=0) / "model.safetensors", b"weights")
        write_atomically(run.path / "notes of the user.txt", "mine")
        write_atomically(run.path / "store" / "cohort.json", "{}")
        write_atomically(run.path / "scores.json", "[]")
        assert run.begin(IDENTITY, resume=True) is True
        assert run.stage("pretrain", fold=0).is_dir()
        assert run.begin(IDENTITY, overwrite=True) is False
    left = everything(run.path)
    assert not any(name.startswith(("folds", "scores")) for name in left)
    assert left["notes of the user.txt"] == b"mine" and "store/cohort.json" in left


def test_a_run_is_not_written_over_unless_asked(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.begin(IDENTITY)
    before = everything(tmp_path)
    with pytest.raises(InputError, match=r"(?s)already holds this run.*--resume.*--overwrite"):
        run.begin(IDENTITY)
    assert everything(tmp_path) == before


@pytest.mark.proves("R46", "U7", "A.input")
@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            RunIdentity("name: small\nseeds: [1]\n", {"phantom": "aaaa"}, "0.1.0"),
            r"-seeds: \[0\]\n +\+seeds: \[1\]",
        ),
        (RunIdentity(IDENTITY.recipe, {"phantom": "bbbb"}, "0.1.0"), "cohort phantom: aaaa -> bbbb"),
        (RunIdentity(IDENTITY.recipe, {"phantom": "aaaa"}, "0.2.0"), "medform: 0.1.0 -> 0.2.0"),
        (replace(IDENTITY, weights={"encoder.safetensors": "cccc"}), "weights encoder.safetensors: eeee -> cccc"),
    ],
)
def test_another_configuration_cohort_or_version_is_refused_with_the_difference(
    tmp_path: Path, other: RunIdentity, said: str
) -> None:
    run = RunFolder(tmp_path)
    run.begin(IDENTITY)
    before = everything(tmp_path)
    for resume in (False, True):
        with pytest.raises(InputError, match=said):
            run.begin(other, resume=resume)
    assert everything(tmp_path) == before
    assert run.begin(other, overwrite=True) is False
    assert run.identity() == other


def test_a_run_that_grows_is_running_and_knows_the_weights_of_the_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.begin(IDENTITY, status="complete")
    more = IDENTITY.recipe + "variants: {own: {}}\n"
    run.extend(more, {"own.safetensors": "oooo"})
    assert run.record()["status"] == "running"
    whole = replace(IDENTITY, recipe=more, weights={**IDENTITY.weights, "own.safetensors": "oooo"})
    assert run.identity() == whole and run.begin(whole, resume=True) is True
    with pytest.raises(InputError, match=r"weights own.safetensors: oooo -> pppp"):
        run.begin(replace(whole, weights={"own.safetensors": "pppp"}), resume=True)


def test_a_folder_is_copied_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "source" / "stage.json", "{}")
    write_atomically(tmp_path / "source" / "model.safetensors", b"weights")
    run = RunFolder(tmp_path / "run")
    run.begin(IDENTITY)
    target = run.stage("pretrain", fold=0)

    def stop(source: Path, place: Path) -> None:
        write_atomically(place / "stage.json", (source / "stage.json").read_bytes())
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(folder_module.shutil, "copytree", stop)
        with pytest.raises(MedformError, match="the disk is full"):
            copy_whole(tmp_path / "source", target)
        assert not list(target.parent.iterdir())
        patched.setattr(folder_module.shutil, "rmtree", lambda *_, **__: None)  # killed: nobody cleans up
        with pytest.raises(MedformError):
            copy_whole(tmp_path / "source", target)
    assert not target.exists() and list(target.parent.iterdir())
    run.begin(IDENTITY, resume=True)
    assert not list(target.parent.iterdir())
    copy_whole(tmp_path / "source", target)
    assert everything(target) == everything(tmp_path / "source")


def test_killed_while_overwriting_a_run_can_only_be_overwritten_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    run.begin(IDENTITY)
    write_atomically(run.stage("pretrain", fold=0) / "stage.json", "{}")

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder_module.shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            run.begin(IDENTITY, overwrite=True)
    with pytest.raises(InputError, match=r"half overwritten -> 0.1.0"):
        run.begin(IDENTITY, resume=True)
    assert run.begin(IDENTITY, overwrite=True) is False
    assert set(everything(tmp_path)) == {"run.json", "recipe.yaml"}


def test_a_folder_of_somebody_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_bytes(b"years")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"not empty and holds no run \(thesis.doc\)"):
            RunFolder(tmp_path).begin(IDENTITY, overwrite=overwrite)
    assert everything(tmp_path) == {"thesis.doc": b"years"}


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.begin(IDENTITY)
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds" / ".model.safetensors.4711.writing").write_bytes(b"half")
    run.begin(IDENTITY, resume=True)
    assert not list(tmp_path.rglob("*.writing"))


def test_a_run_of_a_later_format_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"schema_version": 2})
    with pytest.raises(InputError, match="schema_version 2; this medform reads 1"):
        RunFolder(tmp_path).record()
    with pytest.raises(InputError, match=r"no run.json here"):
        RunFolder(tmp_path / "elsewhere").record()


def _hold(path: Path, ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with RunFolder(path).lock():
        ready.set()
        done.wait(20)


@pytest.mark.proves("R45")
def test_a_second_process_on_the_same_folder_stops_and_names_the_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(tmp_path, ready, done))
    first.start()
    try:
        assert ready.wait(20)
        said = f"another process is writing here: process {first.pid} on "
        with pytest.raises(InputError, match=said), RunFolder(tmp_path).lock():
            pytest.fail("two processes hold one folder")
    finally:
        first.kill()  # a killed holder must not block the next run
        first.join()
    with RunFolder(tmp_path).lock():
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
