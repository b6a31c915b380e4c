"""One folder per patient, or one file per patient where there are no folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from medform.ingestion.layouts.place import LabelMap, Place, common_folder, stem

__all__ = ["FolderLayout"]

MASK_FOLDERS = {
    "mask",
    "masks",
    "label",
    "labels",
    "labelstr",
    "labelsts",
    "seg",
    "segmentation",
    "segmentations",
}


class FolderLayout:
    """The first folder in which the files differ names the patient.

    ``volumes`` are files that hold a whole scan (NIfTI), ``pictures`` single slices. Without any folder a
    volume is a patient, named like the file, and all pictures are one patient, named like ``root_name``.
    """

    name = "folders"

    def __init__(self, root_name: str, volumes: Sequence[str], pictures: Sequence[str]) -> None:
        self._root_name = root_name
        scans = [file for file in (*volumes, *pictures) if not _among_masks(file)]
        self._shared = len(common_folder(scans))
        self._pictures = frozenset(pictures)

    def folder(self, file: str) -> str | None:
        """The first folder that tells a file apart from others; None where it lies in the folder of all."""
        below = PurePosixPath(file).parts[self._shared :]
        return below[0] if len(below) > 1 else None

    def place(self, file: str) -> Place:
        """Patient by the first folder that tells files apart, series by the whole folder (pictures) or the file.

        `LabelMap` for what lies in a folder of masks.
        """
        parts = PurePosixPath(file).parts
        if _among_masks(file):
            raise LabelMap
        folders = "/".join(parts[:-1])
        picture = file in self._pictures
        series = (folders or self._root_name) if picture else file
        if (patient := self.folder(file)) is not None:
            return Place(patient, series, folders)
        if picture:
            return Place(parts[-2] if folders else self._root_name, series)
        return Place(stem(file), series)


def _among_masks(file: str) -> bool:
    return bool(MASK_FOLDERS & {part.lower() for part in PurePosixPath(file).parts[:-1]})
