"""`medform init`: drafts a commented cohort file from what lies in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medform.ingestion.workers import Progress

__all__ = ["init"]


def init(
    path: Path | str,
    table: Path | str | None = None,
    out: Path | str = "cohort.yaml",
    *,
    sheet: str | None = None,
    header_row: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a cohort file for the images under ``path`` and the clinical ``table`` to ``out``; returns ``out``.

    Everything that was guessed stands in a comment, with the keys to fill in: the licence, what each
    column is and when it is known, the tasks, and which of several series is meant. The draft runs as it is,
    unless its first lines say what must be decided before. ``sheet`` and ``header_row`` (from 1) say where in its
    file the table is. Raises `InputError` where there is nothing to draft from, where the table's shape is at
    fault, or where ``out`` is a folder, or exists and ``overwrite`` is not set.
    """
    from medform.cohort.cohort_file import parse_cohort_file
    from medform.cohort.files import write_bytes
    from medform.config import read_yaml
    from medform.errors import InputError
    from medform.ingestion.draft import draft_cohort_file

    out = Path(out)
    if out.is_dir():
        raise InputError(
            "-o names a folder.",
            where=str(out),
            consequence="Nothing was written.",
            fix=f"name a file, e.g. {out / 'cohort.yaml'}.",
        )
    if out.exists() and not overwrite:
        raise InputError(
            "this file exists.",
            where=str(out),
            consequence="Nothing was written.",
            fix="choose another name with -o, or pass --overwrite.",
        )
    text = draft_cohort_file(
        Path(path), None if table is None else Path(table), out.resolve().parent, progress,
        sheet=sheet, header_row=header_row,
    )  # fmt: skip
    tree = read_yaml(text, str(out))
    root = (out.resolve().parent / str(tree.get("root") or ".")).resolve()
    parse_cohort_file(tree, str(out), root, text)
    write_bytes(out, text.encode())
    return out
