"""What a folder layout says about a file: whose image it is. Layouts never decide what is in a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

__all__ = ["A_MASK", "LabelMap", "Layout", "NotScan", "Place", "common_folder", "stem"]

A_MASK = "a mask"
"""Why a label map is counted as ``other``."""


@dataclass(frozen=True)
class Place:
    """Whose image a file is. ``series`` groups the pictures of one stack; ``study`` one visit; '' where unknown."""

    patient_id: str
    series: str
    study: str = ""
    modality: str = ""


class NotScan(Exception):
    """A file that holds an image but no scan in this layout (a label map, a derived image); the text says which."""


class LabelMap(NotScan):
    """A label map of a scan: whose (``patient_id`` None where only its name can tell) and of which visit."""

    def __init__(self, patient_id: str | None = None, study: str = "") -> None:
        super().__init__(A_MASK)
        self.patient_id = patient_id
        self.study = study


class Layout(Protocol):
    """A recognised way of naming files and folders."""

    name: str

    def place(self, file: str) -> Place:
        """Whose scan a file is; raises `NotScan` where it is none."""
        ...


def common_folder(files: Iterable[str]) -> tuple[str, ...]:
    """The folders that all files share, from the root down."""
    shared: tuple[str, ...] | None = None
    for file in files:
        parts = PurePosixPath(file).parts[:-1]
        if shared is None:
            shared = parts
            continue
        length = 0
        while length < min(len(shared), len(parts)) and shared[length] == parts[length]:
            length += 1
        shared = shared[:length]
    return shared or ()


def stem(file: str) -> str:
    """File name without ``.nii.gz`` or its last suffix."""
    name = PurePosixPath(file).name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else PurePosixPath(name).stem
