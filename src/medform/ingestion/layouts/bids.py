"""BIDS: ``sub-XX/ses-YY/anat/sub-XX_ses-YY_T1w.nii.gz``; the last word of the name is the contrast."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from medform.ingestion.layouts.place import LabelMap, NotScan, Place, stem

__all__ = ["BidsLayout", "recognise"]

LABEL_MAPS = ("mask", "dseg")
"""Suffixes of label maps among derivatives: one region, and several numbered ones."""


def recognise(_root: Path, files: Iterable[str]) -> bool:
    """Whether a file lies below a ``sub-`` folder and is named after it."""
    return any(_subject(file) is not None for file in files)


def _subject(file: str) -> str | None:
    parts = PurePosixPath(file).parts
    subject = next((part for part in parts[:-1] if part.startswith("sub-")), None)
    return subject if subject and parts[-1].startswith(f"{subject}_") else None


class BidsLayout:
    """Subject and session from the folders; of derivatives only label maps are taken."""

    name = "bids"

    def place(self, file: str) -> Place:
        """The subject of a file.

        Raises `LabelMap` for masks and segmentations, `NotScan` for other derivatives and files outside a subject's
        folder.
        """
        parts = PurePosixPath(file).parts
        subject = _subject(file)
        session = next((part for part in parts if part.startswith("ses-")), "")
        study = f"{subject}_{session}" if session else ""  # ses-01 alone is a visit of everybody
        suffix = stem(file).rsplit("_", 1)[-1]
        if "derivatives" in parts:
            raise LabelMap(subject, study) if subject and suffix in LABEL_MAPS else NotScan("a derivative of BIDS")
        if subject is None:
            raise NotScan("not below the folder of a BIDS subject")
        return Place(subject, file, study=study, modality=suffix)
