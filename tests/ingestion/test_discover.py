"""Every regular file is listed once with its kind; nothing else is opened."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from medform.errors import InputError
from medform.ingestion.discover import discover
from medform.ingestion.ingest import ingest_scan


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


@pytest.mark.proves("R19")
def test_a_name_that_is_no_utf8_is_a_file_to_rename_and_stops_nothing(tmp_path: Path, kit: Any) -> None:
    root = tmp_path / "images"
    kit.write(root, kit.stack(8))
    try:
        (root / os.fsdecode(b"\xdcx.dcm")).write_bytes((root / "a000").read_bytes())
    except OSError:
        pytest.skip("this file system takes no such name")
    (root / os.fsdecode(b"Bilder\xfc")).mkdir()
    kit.write(root / os.fsdecode(b"Bilder\xfc"), kit.stack(1))
    listing = discover(root)
    (bad,) = listing.of_kind("unreadable")
    assert (bad.path, bad.reason) == ("\\xdcx.dcm", "its name is not UTF-8; rename it")
    assert [one.path for one in listing.skipped] == ["Bilder\\xfc"]
    rows = {row.file: row.code for row in ingest_scan(root, tmp_path / "store").quarantine()}
    assert rows == {"\\xdcx.dcm": "unreadable", "Bilder\\xfc": "skipped"}
    assert discover(root / os.fsdecode(b"\xdcx.dcm")).files == (bad,)
    with pytest.raises(InputError, match=r"Bilder.xfc: the name of this folder is not UTF-8"):
        discover(root / os.fsdecode(b"Bilder\xfc"))


class Denied(NamedTuple):
    """An entry of a folder that may be listed and not entered."""

    name: str
    path: str

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", self.path)


def test_one_path_without_rights_costs_that_path_alone(
    tmp_path: Path, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.write(tmp_path, kit.stack(2))
    (tmp_path / "link").symlink_to("a000")
    real = Path.exists

    def scan(folder: Path) -> list[Any]:
        return [*os.scandir(folder), Denied("b000", f"{folder}/b000")]

    def exists(path: Path, **more: Any) -> bool:
        if path.name == "link":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **more)

    monkeypatch.setattr(Path, "exists", exists)
    monkeypatch.setattr("medform.ingestion.discover.os", SimpleNamespace(scandir=scan))
    listing = discover(tmp_path)
    assert [(one.path, one.kind) for one in listing.files] == [
        ("a000", "dicom"),
        ("a001", "dicom"),
        ("b000", "unreadable"),
    ]
    assert listing.files[-1].reason == "cannot be opened: Permission denied"
    assert [(one.path, one.reason) for one in listing.skipped] == [("link", "link to nothing")]
