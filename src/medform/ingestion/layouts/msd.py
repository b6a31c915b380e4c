"""Medical Segmentation Decathlon: ``imagesTr/NAME.nii.gz``, label maps of the same name in ``labelsTr``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from medform.ingestion.layouts.place import LabelMap, Place, stem

__all__ = ["MsdLayout", "recognise"]


def recognise(root: Path, files: Iterable[str]) -> bool:
    """Whether there are ``imagesTr`` and ``dataset.json``."""
    return (root / "dataset.json").is_file() and any("imagesTr" in PurePosixPath(file).parts for file in files)


class MsdLayout:
    """The file name is the patient."""

    name = "msd"

    def place(self, file: str) -> Place:
        """The patient; `LabelMap` in the folders of labels."""
        parts = PurePosixPath(file).parts
        if {"labelsTr", "labelsTs"} & set(parts):
            raise LabelMap(stem(file))
        return Place(stem(file), file)
