"""Which files lie under a folder and what each one is, by its first bytes and never by its name alone.

Only regular files are opened: a FIFO, a socket, a device and every link are listed as skipped, so a walk
can neither hang nor leave the folder it was given.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medform.errors import InputError

__all__ = ["FileKind", "FoundFile", "Listing", "discover"]

HEAD_BYTES = 512
"""Bytes read to tell a file's kind: the DICOM mark ends at 132, the NIfTI one at 348."""

NOT_TEXT = "its name is not UTF-8; rename it"

FileKind = str
"""One of ``dicom``, ``nifti``, ``picture`` (these hold images), ``other`` (no image), ``unreadable``."""

_PICTURE_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"BM", "BMP"),
)
_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
_FOREIGN_SUFFIXES = {
    ".nrrd": "NRRD",
    ".nhdr": "NRRD header",
    ".mha": "MetaImage",
    ".mhd": "MetaImage header",
    ".mgz": "MGH",
    ".mgh": "MGH",
    ".mnc": "MINC",
    ".img": "Analyze or NIfTI pair",
    ".hdr": "Analyze or NIfTI pair",
    ".img.gz": "Analyze or NIfTI pair",
    ".hdr.gz": "Analyze or NIfTI pair",
    ".head": "AFNI",
    ".brik": "AFNI",
    ".npy": "NumPy",
    ".npz": "NumPy",
}
_EXPLICIT_VR = {
    b"UI",
    b"CS",
    b"SH",
    b"LO",
    b"DA",
    b"TM",
    b"UL",
    b"US",
    b"SQ",
    b"UN",
    b"PN",
    b"IS",
    b"DS",
    b"OB",
}


@dataclass(frozen=True)
class FoundFile:
    """A regular file: ``path`` relative to the root with ``/`` between its parts, kind, bytes, why not an image."""

    path: str
    kind: FileKind
    size: int
    reason: str = ""


@dataclass(frozen=True)
class Listing:
    """Every regular file under ``root`` once, ordered by path, and what was skipped because it is not one."""

    root: Path
    files: tuple[FoundFile, ...]
    skipped: tuple[FoundFile, ...]

    def of_kind(self, kind: FileKind) -> list[FoundFile]:
        """The files of one kind, ordered by path."""
        return [file for file in self.files if file.kind == kind]


def discover(root: Path) -> Listing:
    """List a folder (or one file) without following links; raises `InputError` if there is nothing there.

    A link given as ``root`` itself is followed, since the user named it.
    """
    if not _is_there(root):
        raise InputError("no such file or folder.", where=str(root), fix="check the path, and that you may read it.")
    named = _is_text(root.name)
    if not root.is_dir():
        mode = root.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError("this is neither a folder nor a regular file.", where=str(root), fix="give a folder.")
        return Listing(root.parent, (_listed(root, _shown(root.name), mode, named=named)[0],), ())
    if not named:
        raise InputError("the name of this folder is not UTF-8.", where=_shown(str(root)), fix="rename it.")
    files: list[FoundFile] = []
    skipped: list[FoundFile] = []
    for found, is_file in _walk(root):
        (files if is_file else skipped).append(found)
    files.sort(key=lambda file: file.path)
    skipped.sort(key=lambda file: file.path)
    return Listing(root, tuple(files), tuple(skipped))


def _walk(root: Path) -> Iterator[tuple[FoundFile, bool]]:
    """Yield what is no folder, and folders that cannot be entered, each with whether it counts as a file."""
    folders = [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            yield FoundFile(prefix.rstrip("/") or ".", "unreadable", 0, "folder could not be opened"), False
            continue
        for entry in entries:
            relative, named = prefix + _shown(entry.name), _is_text(entry.name)
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except OSError as error:
                yield FoundFile(relative, "unreadable", 0, f"cannot be opened: {error.strerror or error}"), True
                continue
            if named and stat.S_ISDIR(mode):
                folders.append((Path(entry.path), relative + "/"))
            else:
                yield _listed(Path(entry.path), relative, mode, named=named)


def _listed(path: Path, relative: str, mode: int, *, named: bool) -> tuple[FoundFile, bool]:
    """An entry as it is listed, and whether it counts as a file; ``named``: whether its name is text."""
    if stat.S_ISREG(mode):
        return (_look(path, relative) if named else FoundFile(relative, "unreadable", 0, NOT_TEXT)), True
    if stat.S_ISDIR(mode):
        return FoundFile(relative, "unreadable", 0, NOT_TEXT), False
    return FoundFile(relative, "other", 0, _not_regular(path, mode)), False


def _is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: bytes of another encoding come as surrogates, which nothing takes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    """A name with the bytes that are no UTF-8 as backslash escapes."""
    return name if _is_text(name) else os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder on the way may not be entered
        return False


def _not_regular(path: Path, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "link to nothing" if not _is_there(path) else "links are not followed; give the folder it points to"
    if stat.S_ISFIFO(mode):
        return "a named pipe, not a file"
    if stat.S_ISSOCK(mode):
        return "a socket, not a file"
    return "a device, not a file"


def _look(path: Path, relative: str) -> FoundFile:
    """Open a regular file for its first bytes and name its kind."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return FoundFile(relative, "unreadable", 0, f"cannot be opened: {error.strerror}")
    kind, reason = _kind(head, path.name.lower(), size)
    return FoundFile(relative, kind, size, reason)


def _kind(head: bytes, name: str, size: int) -> tuple[FileKind, str]:
    """Kind and reason from the first bytes; the name only decides what an empty or foreign file claims to be."""
    suffixes = "".join(Path(name).suffixes[-2:])
    suffix = Path(name).suffix
    claims_image = suffix in _PICTURE_SUFFIXES | {".dcm", ".nii"} or suffixes == ".nii.gz"
    if size == 0:
        return ("unreadable", "the file is empty") if claims_image else ("other", "the file is empty")
    if name.startswith("._"):
        return "other", "left behind by macOS, no image"
    if name == "dicomdir":
        return "other", "DICOMDIR, an index of a medium"
    if head[128:132] == b"DICM":
        return "dicom", ""
    if _is_nifti(head) or suffixes == ".nii.gz":
        return "nifti", ""
    if any(head.startswith(magic) for magic, _ in _PICTURE_MAGIC):
        return "picture", ""
    if _looks_like_dataset(head):
        return "dicom", ""
    foreign = _FOREIGN_SUFFIXES.get(suffixes) or _FOREIGN_SUFFIXES.get(suffix)
    if foreign:
        return "unreadable", f"{foreign} files are not read; convert it to NIfTI"
    if claims_image:
        shown = "a web page" if head.lstrip()[:1] == b"<" else "something else"
        return "unreadable", f"the name ends in {suffix} but the content is {shown}"
    return "other", "no image"


def _is_nifti(head: bytes) -> bool:
    """NIfTI-1 or NIfTI-2 in one file, of either byte order."""
    return head[344:348] == b"n+1\x00" or head[4:8] == b"n+2\x00"


def _looks_like_dataset(head: bytes) -> bool:
    """A DICOM data set without preamble begins with an element of group 2 or 8 and, if explicit, a known VR."""
    if len(head) < 16 or head[:4] == b"\x00\x00\x00\x00":
        return False
    group = int.from_bytes(head[:2], "little"), int.from_bytes(head[:2], "big")
    if not {2, 8} & set(group):
        return False
    if head[4:6] in _EXPLICIT_VR:
        return True
    return group[0] in (2, 8) and int.from_bytes(head[4:8], "little") <= 64
