"""Row numbers, as pandas and R write them in a first column without a name, are no patients' ids: which column is?"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from medform.cohort.genes_spec import GenesSpec
from medform.ingestion.expression_text import (
    IGNORED,
    TEXT,
    Faults,
    Head,
    TextMatrix,
    cell_value,
    first_lines,
    split_line,
)
from medform.ingestion.gene_ids import KINDS

__all__ = ["are_row_numbers", "listed", "other_id_columns"]

NUMBERED = re.compile(r"Unnamed: 0(\.\d+)*")
"""What pandas calls a column of row numbers that it reads again."""
BY_SOFTWARE = re.compile(rf"|{NUMBERED.pattern}|index|X|\.\.\.1")
"""Heads of a first column that nobody named: none, or what pandas, R and readr put there."""
SYMBOL = re.compile(r"[A-Z0-9]+([-._@][A-Z0-9]+)*|C\d+orf\d+|[a-z]{3}-(mir|let)-.+")
ID_WORDS = re.compile(r"(case|patient|person|subject|sample|donor)?[ ._-]?(id|nr|no)?|mrn|pid", re.IGNORECASE)
PEEKED_ROWS = 50
FEW = 5
"""Columns that are not named like genes, up to which the name tells something."""
FEWEST, FEWEST_COUNTS = 3, 20
"""Rows from which on a column of distinct whole numbers under the name of a gene is odd, and so among counts."""
DISTINCT = 0.9
"""Share of distinct numbers from which on they may be ids; a patient may have two samples."""
SHOWN = 3


def are_row_numbers(place: int, name: str) -> bool:
    """Whether a column that is not the patients' ids holds the numbers of the rows: by its place and name."""
    return (place == 0 and not name) or NUMBERED.fullmatch(name) is not None


def listed(names: Sequence[str]) -> str:
    """The columns for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{one}'" for one in names[:SHOWN]) + more


def other_id_columns(
    path: Path, head: Head, spec: GenesSpec, wanted: Callable[[str], bool], genes: Collection[str] = ()
) -> tuple[int, ...]:
    """Places of later columns that may hold the patients' ids where the first only numbers the rows; mostly none.

    The first column is in doubt where nobody named it and it holds whole numbers. Another one may be the ids where it
    holds text or distinct whole numbers that are the ids of patients (``wanted``) about as often; where it is named
    like a gene, or ignored, at least as often; among counts, which are whole, only next to the first or under a name
    that no gene has. A table without such a column passes, so that patients may well be numbered. ``genes`` are
    certainly genes. Raises `InputError` where the file cannot be read.
    """
    first = head.ids
    if not BY_SOFTWARE.fullmatch(head.names[0]) or not all(map(str.isdecimal, first)) or len(set(first)) < len(first):
        return ()
    candidates = _candidates(path, head, spec, genes)
    if not candidates:
        return ()
    like_genes = _like_genes(head.names, spec)
    ids, *columns = _texts(path, head, spec, [0, *candidates])
    by_first = len({one for one in ids if wanted(one)})
    found = []
    for place, cells in zip(candidates, columns, strict=True):
        filled = [one for one in cells if one not in spec.missing]
        theirs = len({one for one in filled if wanted(one)})
        if not theirs or cells == ids or not all(_may_be_id(one, spec) for one in filled):
            continue
        enough = 2 * theirs >= by_first
        if all(map(str.isdecimal, filled)):
            if head.names[place] in spec.ignore or place in like_genes:
                enough = theirs >= by_first
            if place in like_genes:
                enough = enough and len(filled) >= (FEWEST_COUNTS if spec.scale == "counts" else FEWEST)
            enough = enough and len(set(filled)) >= DISTINCT * len(filled)
        if enough:
            found.append(place)
    return tuple(found)


def _candidates(path: Path, head: Head, spec: GenesSpec, genes: Collection[str]) -> list[int]:
    """Later columns whose first cells may all be ids, and that may be something else than a gene."""
    known, like_genes = set(genes), _like_genes(head.names, spec)
    left = [
        place
        for place, name in enumerate(head.names)
        if place
        and name not in known
        and not are_row_numbers(place, name)
        # every gene holds whole numbers then, and some happen to be patients' ids
        and (spec.scale != "counts" or place == 1 or place not in like_genes)
    ]
    filled: set[int] = set()
    for line in first_lines(path, head.skip + PEEKED_ROWS)[head.skip :]:
        fields = split_line(line, head.separator)[0]
        if len(fields) == len(head.names):
            left = [place for place in left if fields[place] in spec.missing or _may_be_id(fields[place], spec)]
            filled |= {place for place in left if fields[place] not in spec.missing}
    return [place for place in left if place in filled]


def _like_genes(names: Sequence[str], spec: GenesSpec) -> set[int]:
    """Places of columns named like genes, or of all that nobody ignores where names tell nothing."""
    pattern = KINDS.get(spec.id_kind, SYMBOL)
    later = {place for place, name in enumerate(names) if place and name not in spec.ignore}
    alike = {place for place in later if pattern.fullmatch(names[place]) and not ID_WORDS.fullmatch(names[place])}
    return alike if len(later - alike) <= FEW else later


def _may_be_id(cell: str, spec: GenesSpec) -> bool:
    return cell.isdecimal() or cell_value(cell, spec.missing, spec.decimal) is None


def _texts(path: Path, head: Head, spec: GenesSpec, places: Sequence[int]) -> list[list[str]]:
    """The cells of some columns over the whole table."""
    roles = np.full(len(head.names), IGNORED, np.int64)
    for number, place in enumerate(places):
        roles[place] = TEXT - number
    source = TextMatrix(path, head.separator, head.names, roles, head.skip, tuple(spec.missing), spec.decimal)
    cells: list[list[str]] = [[] for _ in places]
    for block in source.blocks(Faults(path.name, head.names)):
        for column, texts in zip(cells, block.texts, strict=True):
            column.extend(texts)
    return cells
