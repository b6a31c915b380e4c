"""Medical Segmentation Decathlon: ``imagesTr/NAME.nii.gz``, label maps of the same name in ``labelsTr``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from medform.ingestion.layouts.place import NotScan, Place, stem

__all__ = ["MsdLayout", "recognise"]


def recognise(root: Path, files: Iterable[str]) -> bool:
    """Whether there are ``imagesTr`` and ``dataset.json``."""
    return (root / "dataset.json").is_file() and any("imagesTr" in PurePosixPath(file).parts for file in files)


class MsdLayout:
    """The file name is the patient."""

    name = "msd"

    def place(self, file: str) -> Place:
        """The patient; `NotScan` for label maps."""
        parts = PurePosixPath(file).parts
        if {"labelsTr", "labelsTs"} & set(parts):
            raise NotScan("a label map of the decathlon")
        return Place(stem(file), file)
