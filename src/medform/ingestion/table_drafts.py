"""A first draft of the columns of a cohort file from a raw table: every guess is written down, to be confirmed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medform.cohort.cohort_file import ColumnSpec, ColumnType, Moment, Role
from medform.ingestion.cells import (
    POINTED,
    Fault,
    Number,
    decimal_of,
    proves_point,
    read_boolean,
    read_date,
    read_number,
    trimmed,
)
from medform.ingestion.raw_table import RawTable
from medform.ingestion.suspects import UNKNOWN_WORDS, suspected_sentinels, unit_in

__all__ = ["DraftColumn", "draft_columns", "guess_patient_column"]

PERSONAL = re.compile(r"(?i)(^|_| )(age|sex|gender|ethnicity|race|weight|height|bmi|smok\w*|pack_?years)($|_| )")
OUTCOME = re.compile(
    r"(?i)(death|died|dead|surviv|recur|relapse|progress|follow|outcome|event|(^|_)(os|pfs|dfs)(_|$)|days_to|treat"
    r"|chemo|radiation|surgery|stage|grade|histolog|diagnos|patholog|mutat|response)"
)
LATER = re.compile(
    r"(?i)(?<!\d)[1-9]\d*[ _]?(d|days?|w|wks?|weeks?|m|mo|mos|mths?|months?|y|yrs?|years?)(?![a-z])"
    r"|(^|[^a-z])(last|final|end|exit|discharge|contact|later|post\w*|after|nadir|delta|change|fu\d*|t[1-9]\d*"
    r"|visit[ _]?[2-9])(?![a-z])"
)
"""Names of what is measured some time after the start: `weight_12m`, `age_last_contact`."""
PATIENT = re.compile(r"(?i)(patient|subject|case|participant|pat)[ _.-]*(id|no|nr|number|code|name)?|id|mrn|pid")
FORMATS = ("DD.MM.YYYY", "DD/MM/YYYY", "MM/DD/YYYY", "DD-MM-YYYY", "YYYY/MM/DD", "YYYYMMDD")
MOST_CATEGORIES = 12
SHARE = 0.8
"""A column is a number where at least this share of its cells reads as one; the others are shown as
problems."""


@dataclass(frozen=True)
class DraftColumn:
    """A drafted column: its spec, how many cells are missing, and what a person should confirm ('' for nothing).

    ``stops``: whether it has cells that ingest will refuse, since only a person can say what they mean.
    """

    name: str
    spec: ColumnSpec
    missing: int
    comment: str
    stops: bool = False


def guess_patient_column(raw: RawTable) -> str | None:
    """The column that looks like the patient id: by its name, all cells filled; else the first with distinct cells."""
    filled = [name for name in raw.frame.columns if all(trimmed(text) for _, text in raw.cells(name))]
    named = [name for name in filled if PATIENT.fullmatch(name)]
    distinct = [name for name in filled if len(set(raw.frame[name])) == len(raw.frame)]
    return (named or distinct or [None])[0]


def draft_columns(raw: RawTable, patient_id: str, missing: Sequence[str] = ("",)) -> list[DraftColumn]:
    """A draft for every column but the patient id.

    Roles: what is known of a person before a scan (age, sex, smoking ...) is a feature, what sounds like a
    result or a treatment an outcome, all else, and what sounds like a later measurement, is ignored until
    somebody says what it is. The draft types without a problem, so that it runs as it is: doubtful cells become
    ``missing`` or ``sentinels`` of their column, and the comment names them. Only numbers with a unit beside
    numbers without one stay problems (``stops``), as no key can say what the bare ones are.
    """
    names = [name for name in raw.frame.columns if name != patient_id]
    drafts = [_draft(raw, name, set(missing), commas=False) for name in names]
    if any(draft.spec.decimal == "," for draft in drafts):
        drafts = [_draft(raw, name, set(missing), commas=True) for name in names]
    return drafts


def _draft(raw: RawTable, name: str, missing: set[str], *, commas: bool) -> DraftColumn:
    """``commas``: whether any column of the table has decimal commas."""
    cells = [(row, trimmed(text)) for row, text in raw.cells(name)]
    present = [(row, text) for row, text in cells if text and text not in missing]
    role, known_at, why = _role(name)
    kind, options, doubts, stops = _kind(raw, name, present, commas=commas)
    if role == "feature" and kind in ("text", "date"):
        role, known_at, why = "ignore", None, f"a {kind} cannot be a feature"
    spec = ColumnSpec(role=role, type=kind, known_at=known_at, **options)
    comment = "; ".join([*doubts, why] if why else doubts)
    return DraftColumn(name, spec, len(cells) - len(present), comment, stops)


def _role(name: str) -> tuple[Role, Moment | None, str]:
    if OUTCOME.search(name):
        return "outcome", None, "sounds like a result or treatment: role feature only if it is known by then"
    if LATER.search(name):
        return "ignore", None, "sounds like a later measurement: role feature only with the known_at when it is taken"
    if PERSONAL.search(name):
        return "feature", "before_scan", "confirm that it is known before the scan"
    return "ignore", None, "to use it: role feature (with known_at), label or outcome"


def _kind(
    raw: RawTable, name: str, present: list[tuple[int, str]], *, commas: bool
) -> tuple[ColumnType, dict[str, Any], list[str], bool]:
    """Type of a column, the further keys it needs, what is doubtful about them, and whether ingest will stop at it."""
    texts = [text for _, text in present]
    words = sorted(set(texts))
    if not words:
        return "text", {}, ["every cell is empty"], False
    plain = ColumnSpec(role="ignore", type="number")
    if len(words) <= 2 and all(isinstance(read_boolean(word, plain, name), bool) for word in words):
        return "boolean", {}, [], False
    if (number := _number(raw, name, present, commas=commas)) is not None:
        return "number", *number
    for pattern in (None, *FORMATS):
        dated = ColumnSpec(role="ignore", type="date", format=pattern)
        if all(isinstance(read_date(text, dated, name), str) for text in texts):
            both = pattern in ("DD/MM/YYYY", "MM/DD/YYYY")
            doubts = ["day and month may be the other way round"] if both else []
            return "date", {"format": pattern} if pattern else {}, doubts, False
    if len(words) <= MOST_CATEGORIES or len(words) <= len(texts) // 4:
        unknown = [word for word in words if word.casefold() in UNKNOWN_WORDS]
        doubts = [f"missing? {', '.join(map(repr, unknown))}"] if unknown else []
        return "category", {"missing": unknown} if unknown else {}, doubts, False
    return "text", {}, [], False


def _number(
    raw: RawTable, name: str, present: list[tuple[int, str]], *, commas: bool
) -> tuple[dict[str, Any], list[str], bool] | None:
    """Keys and doubts of a number column, and whether units in a few cells stop it; None where it is no number."""
    written = [text for row, text in present if (row, name) not in raw.numbers]
    options: dict[str, Any] = {}
    doubts: list[str] = []
    if decimal_of([text for text in written if re.fullmatch(r"[+-]?[\d.,]+", text)]) == ",":
        options["decimal"] = ","
        doubts.append("decimal commas")
    elif commas and not proves_point(written) and any(POINTED.search(text) for text in written):
        options["thousands"] = "."
        doubts.append("points read as thousands, since other columns have decimal commas")
    suffixed = {text: unit for text in written if (unit := unit_in(text))}
    units = sorted(set(suffixed.values()))
    if any(re.match(r"[<>≤≥]", text) or text.endswith("+") for text in written):
        options["censored"] = "limit"
        doubts.append("limits such as '<0.3' read as the limit")
    spec = ColumnSpec(role="ignore", type="number", **options, cell_unit=units[0] if len(units) == 1 else None)
    plain = ColumnSpec(role="ignore", type="number")
    read = [read_number(text, plain if (row, name) in raw.numbers else spec, name) for row, text in present]
    values = np.array([one.value for one in read if isinstance(one, Number)])
    if len(values) < SHARE * len(read):
        return None
    suspects = suspected_sentinels(values)
    bare = sum(
        isinstance(one, Number) and text not in suffixed and one.value not in suspects
        for (_, text), one in zip(present, read, strict=True)
    )
    stops = bool(suffixed) and (bare > 0 or len(units) > 1)
    if suffixed and not stops:
        options["cell_unit"] = units[0]
        doubts.append(f"every number has the unit '{units[0]}'")
    elif stops:
        # a unit in some cells says nothing of the others: they may be in the usual one, or in this one
        count = sum(text in suffixed for _, text in present)
        named = ", ".join(map(repr, units[:5]))
        doubts.append(
            f"{count} number{'s have' if count > 1 else ' has'} a unit ({named}) and {bare} "
            f"{'have' if bare != 1 else 'has'} none: convert them to one unit, without it in the cell; "
            "until then ingest stops"
        )
    faulty = sorted(
        {text for (_, text), one in zip(present, read, strict=True) if isinstance(one, Fault) and text not in suffixed}
    )
    if faulty:
        options["missing"] = faulty
        doubts.append(f"not numbers, read as missing: {', '.join(map(repr, faulty[:5]))}")
    if suspects:
        options["sentinels"] = suspects
        doubts.append(f"codes for 'unknown'? {', '.join(f'{code:g}' for code in suspects)}")
    return options, doubts, stops
