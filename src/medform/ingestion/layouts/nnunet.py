"""nnU-Net: ``imagesTr/CASE_0000.nii.gz`` with ``dataset.json`` (channel_names); label maps lie in ``labelsTr``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from medform.ingestion.layouts.place import LabelMap, NotScan, Place, stem

__all__ = ["NnunetLayout", "recognise"]

_CASE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def recognise(_root: Path, files: Iterable[str]) -> bool:
    """Whether the folder holds ``imagesTr`` and files with a channel number."""
    return any(PurePosixPath(file).parts[-2:-1] == ("imagesTr",) and _CASE.fullmatch(stem(file)) for file in files)


class NnunetLayout:
    """Case and channel from the file name; the channel's name, where ``dataset.json`` has one, is the modality."""

    name = "nnunet"

    def __init__(self, root: Path) -> None:
        self._channels: dict[str, str] = {}
        description = root / "dataset.json"
        if description.is_file():
            try:
                tree = json.loads(description.read_text(encoding="utf-8"))
            except ValueError:
                return
            if isinstance(tree, dict) and isinstance(tree.get("channel_names"), dict):
                self._channels = {str(key): str(name) for key, name in tree["channel_names"].items()}

    def place(self, file: str) -> Place:
        """The case; `LabelMap` in the folders of labels, `NotScan` for other files without a channel number."""
        folder = PurePosixPath(file).parts[-2:-1]
        match = _CASE.fullmatch(stem(file))
        if folder in (("labelsTr",), ("labelsTs",)):
            raise LabelMap(stem(file))
        if match is None:
            raise NotScan("no channel number as in CASE_0000")
        channel = str(int(match["channel"]))
        return Place(match["case"], file, modality=self._channels.get(channel, f"channel {channel}"))
