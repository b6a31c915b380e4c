"""One folder per patient, or one file per patient where there are no folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from medform.ingestion.layouts.place import NotScan, Place, common_folder, stem

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

    ``volumes`` are files that hold a whole scan (NIfTI), ``pictures`` single slices. Without any folder a volume
    is a patient, named like the file, and all pictures are one patient, named like ``root_name``.
    """

    name = "folders"

    def __init__(self, root_name: str, volumes: Sequence[str], pictures: Sequence[str]) -> None:
        self._root_name = root_name
        scans = [file for file in (*volumes, *pictures) if not _among_masks(file)]
        self._shared = len(common_folder(scans))
        self._pictures = frozenset(pictures)

    def place(self, file: str) -> Place:
        """Patient by the first folder that tells files apart, series by the whole folder (pictures) or the file.

        `NotScan` for what lies in a folder of masks.
        """
        parts = PurePosixPath(file).parts
        if _among_masks(file):
            raise NotScan("in a folder of masks")
        below = parts[self._shared :]
        picture = file in self._pictures
        series = "/".join(parts[:-1]) if picture else file
        if len(below) > 1:
            return Place(below[0], series or self._root_name, "/".join(parts[:-1]))
        if picture:
            return Place(parts[-2] if len(parts) > 1 else self._root_name, series or self._root_name)
        return Place(stem(file), series)


def _among_masks(file: str) -> bool:
    return bool(MASK_FOLDERS & {part.lower() for part in PurePosixPath(file).parts[:-1]})
