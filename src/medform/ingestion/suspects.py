"""What in a table looks wrong without being a fault: codes for 'unknown', spellings, ids that lost a zero."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from medform.cohort.cohort_file import ColumnSpec, TableSpec
from medform.cohort.table_text import looks_like_date
from medform.errors import Problem
from medform.ingestion.cells import COMMA, LOOKALIKE, SUFFIXED, decimal_of, read_boolean, trimmed
from medform.ingestion.raw_table import EXACT_DIGITS, RawTable

__all__ = ["suspected_sentinels", "table_notes", "unit_in"]

REPEATED = (77.0, 88.0, 99.0, 777.0, 888.0, 999.0, 7777.0, 8888.0, 9999.0, 99999.0)
NEGATIVE = (-1.0, -9.0, -99.0, -999.0, -9999.0)
NINE_BELOW = -9.0
"""Several negative codes are suspected where one is this or below: -1 and -2 may be values."""
NINE, CODES = 9.0, (0.0, 1.0, 2.0, 3.0, 4.0)
UNKNOWN_WORDS = (
    *(
        "?",
        "-",
        "--",
        ".",
        "n/a",
        "#n/a",
        "na",
        "nan",
        "none",
        "null",
        "nil",
        "unk",
        "unknown",
        "missing",
        "tbd",
    ),
    *("not available", "not collected", "not recorded", "not stated", "no data"),
)
SIGNED = re.compile(r"[<>=≤≥]+\s*")
BARE = re.compile(r"[+-]?\d[\d.,' ]*\+?")
FAR = 2.0
"""A code stands apart: at least this many times the largest other value."""


def suspected_sentinels(values: NDArray[np.float64]) -> list[float]:
    """Numbers that look like codes for "unknown" in a column (N,) with NaN for missing.

    A value of repeated sevens, eights or nines at least twice the largest other value; -1, -9, -99 ... where it is
    the only negative value, or where all negative values are such codes and one is -9 or below; 9 where all other
    values are whole numbers from 0 to 4, as in a column of codes.
    """
    present = values[~np.isnan(values)]
    suspects = []
    for code in REPEATED:
        others = present[~np.isin(present, REPEATED)]
        if (present == code).any() and others.size and code >= FAR * max(others.max(), 0.0) and others.max() >= 0:
            suspects.append(code)
    negative = [float(one) for one in np.unique(present[present < 0])]
    coded = bool(negative) and set(negative) <= set(NEGATIVE) and (len(negative) == 1 or negative[0] <= NINE_BELOW)
    if coded and (present > 0).any():
        suspects += negative
    others = present[~np.isin(present, [NINE, *suspects])]
    if (present == NINE).any() and others.size and np.isin(others, CODES).all():
        suspects.append(NINE)
    return suspects


def unit_in(text: str) -> str | None:
    """The unit in a trimmed cell such as '85 umol/l' or '<0.3 g/dL'; None without one, as in '6o', a typing slip."""
    match = SUFFIXED.fullmatch(SIGNED.sub("", text, count=1))
    return None if match is None or match[2].translate(LOOKALIKE).isdigit() else match[2]


def table_notes(raw: RawTable, table: TableSpec, columns: Mapping[str, ColumnSpec]) -> list[Problem]:
    """What a person should look at, and by which rules cells were read; nothing here stops anything."""
    notes = []
    if raw.encoding not in (None, "utf-8", "utf-8-sig", "ascii") and table.encoding is None:
        hint = "Set tables.clinical.encoding if letters look wrong."
        notes.append(raw.problem(f"read as {raw.encoding}.", suggestion=hint))
    if table.patient_id in raw.frame.columns:
        notes += _id_notes(raw, table.patient_id)
    for name, spec in columns.items():
        if name not in raw.frame.columns:
            continue
        missing = {*table.missing, *spec.missing, ""}
        cells = [(row, text, trimmed(text)) for row, text in raw.cells(name)]
        notes += _blank_notes(raw, name, cells)
        present = [text for _, _, text in cells if text not in missing]
        if spec.type == "boolean":
            notes += _boolean_notes(raw, name, spec, present)
        elif spec.type == "number":
            notes += _unit_notes(raw, name, spec, present)
            written = [text for row, _, text in cells if text not in missing and (row, name) not in raw.numbers]
            if not (spec.decimal or table.decimal) and decimal_of(written) == ",":
                count = sum(bool(COMMA.fullmatch(text)) for text in written)
                hint = f"Set columns.{name}.decimal: ',' to say so."
                notes.append(raw.problem(f"{count} cells read with a decimal comma.", column=name, suggestion=hint))
        elif spec.role != "ignore":
            notes += _word_notes(raw, name, present)
    return notes


def _id_notes(raw: RawTable, name: str) -> list[Problem]:
    notes = _blank_notes(raw, name, [(row, text, trimmed(text)) for row, text in raw.cells(name)])
    stored = [(row, text) for row, text in raw.cells(name) if (row, name) in raw.numbers]
    if stored:
        row, text = stored[0]
        hint = "A number has no leading zero: compare with the image ids, and format the column as text."
        note = f"{len(stored)} ids are stored as numbers in the sheet."
        notes.append(raw.problem(note, row, name, value=text, suggestion=hint))
    for row, text in stored:
        if not text.isdecimal() or len(text) > EXACT_DIGITS:
            hint = f"A number keeps {EXACT_DIGITS} digits: enter the id again, as text."
            notes.append(raw.problem("this id has lost its last digits.", row, name, value=text, suggestion=hint))
    for row, text in raw.cells(name):
        if looks_like_date(trimmed(text)):
            hint = "MARCHF, SEPTIN and DEC genes suffer this: enter the name again, as text."
            note = "may be a gene name that a spreadsheet turned into a date."
            notes.append(raw.problem(note, row, name, value=text, suggestion=hint))
    return notes


def _blank_notes(raw: RawTable, name: str, cells: list[tuple[int, str, str]]) -> list[Problem]:
    padded = [(row, text) for row, text, bare in cells if bare and text != bare]
    if not padded:
        return []
    row, text = padded[0]
    kind = "no-break blanks" if any("\u00a0" in one for _, one in padded) else "blanks"
    note = f"{len(padded)} cells begin or end with {kind}."
    return [raw.problem(note, row, name, value=text, suggestion="Remove them in the table.")]


def _boolean_notes(raw: RawTable, name: str, spec: ColumnSpec, present: list[str]) -> list[Problem]:
    words = Counter(present)
    read = {word: read_boolean(word, spec, name) for word in words}
    notes = []
    for truth in (True, False):
        mine = [word for word in sorted(words) if read[word] is truth]
        if mine:
            count = sum(words[word] for word in mine)
            notes.append(raw.problem(f"{', '.join(mine)} read as {str(truth).lower()} ({count} cells).", column=name))
    return notes


def _unit_notes(raw: RawTable, name: str, spec: ColumnSpec, present: list[str]) -> list[Problem]:
    """Numbers without the declared unit of the cells, beside numbers with it."""
    coded = {f"{code:g}" for code in spec.sentinels or []}
    numbers = [text for text in present if BARE.fullmatch(SIGNED.sub("", text, count=1)) and text not in coded]
    suffixed = sum(unit_in(text) is not None for text in present)
    if not (spec.cell_unit and suffixed and numbers):
        return []
    hint = "Make sure that the bare numbers are in this unit too; convert them if not."
    text = f"{len(numbers)} numbers without a unit are read as {spec.cell_unit}, like the {suffixed} that have it."
    return [raw.problem(text, column=name, value=numbers[0], suggestion=hint)]


def _word_notes(raw: RawTable, name: str, present: list[str]) -> list[Problem]:
    words = Counter(present)
    notes = []
    for word, count in sorted(words.items()):
        if word.casefold() in UNKNOWN_WORDS:
            note = f"looks like a word for 'unknown' ({count} cells); it is kept as a value."
            hint = f"Add it to columns.{name}.missing if it means that."
            notes.append(raw.problem(note, column=name, value=word, suggestion=hint))
    alike: dict[str, list[str]] = {}
    for word in sorted(words):
        alike.setdefault("".join(word.casefold().split()), []).append(word)
    for spelt in alike.values():
        if len(spelt) > 1:
            hint = "They count as different values: spell them alike if they are one."
            notes.append(raw.problem(f"spelt in {len(spelt)} ways: {', '.join(spelt)}.", column=name, suggestion=hint))
    return notes
