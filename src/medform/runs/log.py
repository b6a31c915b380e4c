"""metrics.jsonl: one JSON object a logged step, appended and flushed, cut back when a stage resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medform.runs.folder import write_atomically

__all__ = ["TIME_FIELDS", "StageLog", "read_log"]

TIME_FIELDS = frozenset({"seconds", "images_per_second"})  # the only fields in which two equal runs differ


def _clean(value: Any) -> Any:
    """JSON has no NaN or infinity: they are written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(path: Path, **where: Any) -> list[dict[str, Any]]:
    """Lines of ``path`` whose fields equal ``where``, in order; without a torn last one (a killed write)."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        row = json.loads(line)
        if all(row.get(key) == value for key, value in where.items()):
            rows.append(row)
    return rows


@dataclass(frozen=True)
class StageLog:
    """The lines of one stage in a log that several stages share.

    ``where`` says which stage (fold, variant, seed, stage) and leads every line.
    """

    path: Path
    where: Mapping[str, Any]

    def append(self, step: int, fields: Mapping[str, Any]) -> None:
        """Write one line and flush it; ``step`` counts the steps that are done."""
        row = {**self.where, "step": step, **{name: _clean(value) for name, value in fields.items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """The stage's own lines."""
        return read_log(self.path, **self.where)

    def cut_after(self, step: int) -> None:
        """Drop the stage's lines after ``step``, and a torn last line: what a resumed stage writes again."""
        if not self.path.is_file():
            return
        whole = self.path.read_bytes().split(b"\n")
        kept = [line for line in whole[:-1] if not self._follows(json.loads(line), step)]
        if len(kept) != len(whole) - 1 or whole[-1]:
            write_atomically(self.path, b"".join(line + b"\n" for line in kept))

    def _follows(self, row: Mapping[str, Any], step: int) -> bool:
        return all(row.get(key) == value for key, value in self.where.items()) and row["step"] > step
