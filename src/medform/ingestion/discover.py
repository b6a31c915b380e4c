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
    if not root.exists():
        raise InputError("no such file or folder.", where=str(root), fix="check the path.")
    if not root.is_dir():
        mode = root.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError("this is neither a folder nor a regular file.", where=str(root), fix="give a folder.")
        return Listing(root.parent, (_look(root, root.name),), ())
    files: list[FoundFile] = []
    skipped: list[FoundFile] = []
    for path, relative, entry_mode in _walk(root):
        if entry_mode is None:
            skipped.append(FoundFile(relative, "unreadable", 0, "folder could not be opened"))
        elif stat.S_ISREG(entry_mode):
            files.append(_look(path, relative))
        else:
            skipped.append(FoundFile(relative, "other", 0, _not_regular(path, entry_mode)))
    files.sort(key=lambda file: file.path)
    skipped.sort(key=lambda file: file.path)
    return Listing(root, tuple(files), tuple(skipped))


def _walk(root: Path) -> Iterator[tuple[Path, str, int | None]]:
    """Yield (path, relative path, mode without following links); mode None for a folder that cannot be opened."""
    folders = [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            yield folder, prefix.rstrip("/") or ".", None
            continue
        for entry in entries:
            relative = prefix + entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                folders.append((Path(entry.path), relative + "/"))
            else:
                yield Path(entry.path), relative, mode


def _not_regular(path: Path, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "link to nothing" if not path.exists() else "links are not followed; give the folder it points to"
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
