"""Every regular file is listed once with its kind; nothing else is opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from medform.errors import InputError
from medform.ingestion.discover import discover


@pytest.mark.proves("R18", "A3.1")
def test_pipes_sockets_loops_and_links_are_skipped_and_listed(tmp_path: Path, kit: Any, monkeypatch: Any) -> None:
    root = tmp_path / "root"
    kit.write(root, kit.stack(2))
    (tmp_path / "outside.dcm").write_bytes(b"x")
    os.mkfifo(root / "pipe.dcm")
    (root / "loop").symlink_to(".")
    (root / "dangling.dcm").symlink_to("nowhere")
    (root / "leaving.dcm").symlink_to(tmp_path / "outside.dcm")
    monkeypatch.chdir(root)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("plug")
        listing = discover(root)
    assert [file.path for file in listing.files] == ["a000", "a001"]
    reasons = {file.path: file.reason for file in listing.skipped}
    assert sorted(reasons) == ["dangling.dcm", "leaving.dcm", "loop", "pipe.dcm", "plug"]
    assert reasons["pipe.dcm"] == "a named pipe, not a file" and reasons["dangling.dcm"] == "link to nothing"


@pytest.mark.proves("R19")
def test_the_content_decides_not_the_name(tmp_path: Path, kit: Any) -> None:
    kit.write(tmp_path, kit.stack(1))
    (tmp_path / "zero.dcm").write_bytes(b"")
    (tmp_path / "login.dcm").write_bytes(b"<!DOCTYPE html><html>login required</html>" * 20)
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "a000").read_bytes())
    (tmp_path / "notes.txt").write_bytes(b"hello")
    (tmp_path / "ball.nrrd").write_bytes(b"NRRD0004\n")
    (tmp_path / "picture.dat").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    (tmp_path / "._ct.nii.gz").write_bytes(b"\x00\x05\x16\x07")
    kinds = {file.path: file.kind for file in discover(tmp_path).files}
    assert kinds == {
        "a000": "dicom",
        "zero.dcm": "unreadable",
        "login.dcm": "unreadable",
        "DICOMDIR": "other",
        "notes.txt": "other",
        "ball.nrrd": "unreadable",
        "picture.dat": "picture",
        "._ct.nii.gz": "other",
    }


def test_one_file_may_be_given_and_a_missing_path_is_an_error(tmp_path: Path, kit: Any) -> None:
    kit.write(tmp_path, kit.stack(1))
    assert [file.path for file in discover(tmp_path / "a000").files] == ["a000"]
    with pytest.raises(InputError, match="no such file or folder"):
        discover(tmp_path / "nothing")


def test_a_dataset_without_preamble_is_recognised(tmp_path: Path, kit: Any) -> None:
    kit.write(tmp_path, kit.stack(1))
    raw = (tmp_path / "a000").read_bytes()
    (tmp_path / "bare").write_bytes(raw[raw.index(b"\x08\x00\x08\x00CS") :])
    assert {file.path: file.kind for file in discover(tmp_path).files}["bare"] == "dicom"
    (bare,) = (one for one in kit.series(tmp_path) if "bare" in one.files)
    assert bare.shape == (1, 12, 16)
