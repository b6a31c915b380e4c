"""Which layout a folder has. DICOM needs none: its headers say whose it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medform.ingestion.layouts import bids, msd, nnunet
from medform.ingestion.layouts.folders import FolderLayout
from medform.ingestion.layouts.place import Layout

__all__ = ["layout_of"]


def layout_of(wanted: str, root: Path, volumes: Sequence[str], pictures: Sequence[str]) -> Layout:
    """The layout that the cohort file names, or, for ``auto``, the first one that recognises the files."""
    if wanted == "nnunet" or (wanted == "auto" and nnunet.recognise(root, volumes)):
        return nnunet.NnunetLayout(root)
    if wanted == "msd" or (wanted == "auto" and msd.recognise(root, volumes)):
        return msd.MsdLayout()
    if wanted == "bids" or (wanted == "auto" and bids.recognise(root, volumes)):
        return bids.BidsLayout()
    return FolderLayout(root.name, volumes, pictures)
