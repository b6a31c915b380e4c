"""Joining images and table by patient id: equal ids, ids equal by a declared rule, suggestions for the rest."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medform.cohort.field_types import IdRule
from medform.cohort.table_text import read_columns
from medform.errors import InputError, Problem
from medform.ingestion.cells import BLANKS

__all__ = ["IdMatch", "IdSuggestion", "match_ids", "normalised", "read_id_map", "refuse_strangers"]

logger = logging.getLogger(__name__)

ALL_RULES: tuple[IdRule, ...] = ("blanks", "case", "separators", "zeros")
SHOWN = 5
SEPARATORS = re.compile(r"[\s\u00a0_./-]+")
WHOLE_DECIMAL = re.compile(r"(\d+)\.0+")
"""A whole number as a program writes it that took ids for numbers: 12.0."""


@dataclass(frozen=True)
class IdSuggestion:
    """Two ids that may be one patient, and the rules under which they would be equal. Offered, never applied."""

    image_id: str
    table_id: str
    rules: tuple[str, ...]


@dataclass(frozen=True)
class IdMatch:
    """How the ids of images and table fit. ``matched``: table id -> image id; ``by_rule``: those not equal as written.

    ``problems`` are ids that a rule or map would join to more than one partner.
    """

    matched: dict[str, str]
    by_rule: dict[str, str]
    only_images: tuple[str, ...]
    only_table: tuple[str, ...]
    suggestions: tuple[IdSuggestion, ...]
    problems: tuple[Problem, ...]


def normalised(one: str, rules: Iterable[IdRule]) -> str:
    """An id under rules: ``blanks`` around it, letter ``case``, ``separators`` (blank - _ . /), leading ``zeros``.

    Separators between two digits become one sign, all others go: '1-05' and '1_05' are one, '1-05', '10-5' and '105'
    are three. A number such as '12.0' keeps its point: it is no '120'.
    """
    chosen = set(rules)
    if "blanks" in chosen:
        one = one.strip(BLANKS)
    if "case" in chosen:
        one = one.casefold()
    if "separators" in chosen:
        whole = WHOLE_DECIMAL.fullmatch(one.strip(BLANKS))
        one = whole[0] if whole else SEPARATORS.sub(_between_digits, one)
    if "zeros" in chosen:
        one = re.sub(r"(?<!\d)0+(?=\d)", "", one)
    return one


def _between_digits(run: re.Match[str]) -> str:
    """What a run of separators becomes."""
    around = run.string[run.start() - 1 : run.start()], run.string[run.end() : run.end() + 1]
    return "-" if all(one.isdecimal() for one in around) else ""


def read_id_map(path: Path) -> dict[str, str]:
    """Read a CSV with the columns table_id and image_id, of any common encoding and separator: table id -> image id.

    Ids are taken as they are written. Raises `InputError` where a column is missing or an id stands twice.
    """
    rows = [(table_id, image_id) for _, (table_id, image_id) in read_columns(path, ("table_id", "image_id"))]
    for place in (0, 1):
        seen = [row[place] for row in rows]
        if twice := sorted({one for one in seen if seen.count(one) > 1}):
            raise InputError(f"'{twice[0]}' stands twice.", where=str(path), fix="map each id to one other id.")
    return dict(rows)


def match_ids(
    image_ids: Iterable[str],
    table_ids: Iterable[str],
    rules: Sequence[IdRule] = (),
    id_map: dict[str, str] | None = None,
) -> IdMatch:
    """Match ids by ``id_map`` (table id -> image id), then as written, then by the declared ``rules``.

    What the map names is joined by the map or not at all: an id that happens to be equal is no reason against a
    declared partner. A row that claims an image id of the map's is a problem; lines of the map that join nothing
    are logged. Without a rule nothing but equality joins: '00123' and '123' are two patients. What is left over on
    both sides gets suggestions. Results are sorted and do not depend on the order of the ids.
    """
    images, table = sorted(set(image_ids)), sorted(set(table_ids))
    declared = id_map or {}
    owner = {image: one for one, image in declared.items()}
    there = set(images)
    matched = {one: declared[one] for one in table if declared.get(one) in there}
    _say_unused(declared, set(matched))
    by_rule = {one: image for one, image in matched.items() if one != image}
    problems: list[Problem] = []
    for one in table:
        if one not in there or one in declared:
            continue
        if one in owner:
            text = f"the id map joins '{owner[one]}' to image id '{one}', which stands in the table itself."
            hint = "Take one of the two out, or give this row its own line in the map."
            problems.append(Problem(text, column="patient_id", value=one, suggestion=hint))
        else:
            matched[one] = one
    if rules:
        refused = {problem.value for problem in problems}
        free_table = [one for one in table if one not in matched and one not in declared and one not in refused]
        taken = {*matched.values(), *owner}
        for key, mine in _keyed(free_table, rules).items():
            theirs = _keyed(images, rules).get(key, [])
            if len(theirs) == 1 and len(mine) == 1 and theirs[0] not in taken:
                matched[mine[0]] = by_rule[mine[0]] = theirs[0]
            elif theirs:
                names = ", ".join(repr(one) for one in theirs)
                text = f"under the rules {', '.join(rules)} they become one with image ids {names}."
                hint = "Join them by hand with tables.clinical.id_map."
                problems.append(Problem(text, column="patient_id", value=", ".join(mine), suggestion=hint))
    only_images = tuple(one for one in images if one not in set(matched.values()))
    only_table = tuple(one for one in table if one not in matched)
    suggestions = _suggest(
        [one for one in only_images if one not in owner], [one for one in only_table if one not in declared]
    )
    return IdMatch(matched, by_rule, only_images, only_table, suggestions, tuple(problems))


def _say_unused(declared: dict[str, str], used: set[str]) -> None:
    """Log how many lines of an id map join nothing because one of their ids, or both, is nowhere to be found."""
    unused = sorted(one for one in declared if one not in used)
    if unused:
        shown = ", ".join(f"'{one}' to '{declared[one]}'" for one in unused[:SHOWN])
        more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        logger.warning(
            "%d of %d lines of the id map join nothing: an id of theirs is not there (%s%s).",
            len(unused), len(declared), shown, more,
        )  # fmt: skip


def _keyed(ids: Sequence[str], rules: Sequence[IdRule]) -> dict[str, list[str]]:
    keyed: dict[str, list[str]] = {}
    for one in ids:
        keyed.setdefault(normalised(one, rules), []).append(one)
    return keyed


def _suggest(images: Sequence[str], table: Sequence[str]) -> tuple[IdSuggestion, ...]:
    """Pairs that one rule, then all rules, then the same number in it would make equal; only unambiguous ones.

    The number of '12.0' is 12, never 120: no rule joins such an id, only a map, or the id as it should be.
    """
    found: dict[str, IdSuggestion] = {}
    taken: set[str] = set()
    attempts: list[tuple[IdRule, ...]] = [*((rule,) for rule in ALL_RULES), ALL_RULES]
    for rules in attempts:
        keyed = _keyed([one for one in images if one not in taken], rules)
        for key, mine in _keyed([one for one in table if one not in found], rules).items():
            theirs = keyed.get(key, [])
            if len(mine) == len(theirs) == 1:
                found[mine[0]] = IdSuggestion(theirs[0], mine[0], rules)
                taken.add(theirs[0])
    numbers = _numbered([one for one in images if one not in taken])
    for number, mine in _numbered([one for one in table if one not in found]).items():
        theirs = numbers.get(number, [])
        if number and len(mine) == len(theirs) == 1:
            found[mine[0]] = IdSuggestion(theirs[0], mine[0], ("id_map",))
    return tuple(found[one] for one in sorted(found))


def _numbered(ids: Sequence[str]) -> dict[str, list[str]]:
    numbered: dict[str, list[str]] = {}
    for one in ids:
        whole = WHOLE_DECIMAL.fullmatch(one.strip(BLANKS))
        digits = whole[1] if whole else "".join(re.findall(r"\d+", one))
        numbered.setdefault(digits.lstrip("0"), []).append(one)
    return numbered


def refuse_strangers(match: IdMatch, where: str) -> None:
    """Raise `InputError` where no id of the table is an image's, with examples of both sides and suggestions."""
    if match.matched or not (match.only_images and match.only_table):
        return
    rules = sorted({rule for one in match.suggestions for rule in one.rules})
    fix = "make the ids equal"
    if match.suggestions and "id_map" not in rules:
        fix += f", or accept these with tables.clinical.id_rules: [{', '.join(rules)}]"
    elif match.suggestions:
        if any(WHOLE_DECIMAL.fullmatch(one.strip(BLANKS)) for one in match.only_table):
            fix += " (write whole numbers without '.0')"
        fix += ", or list the pairs in a CSV (table_id, image_id) and set tables.clinical.id_map"
    raise InputError(
        f"no patient id of the table is one of the images (images: {_examples(match.only_images)}; "
        f"table: {_examples(match.only_table)}).",
        where=where,
        consequence="Nothing was written.",
        fix=f"{fix}.",
        problems=[
            Problem(
                f"looks like image id '{one.image_id}' (not applied).",
                column="patient_id",
                value=one.table_id,
            )
            for one in match.suggestions[:SHOWN]
        ],
    )


def _examples(ids: Sequence[str]) -> str:
    return ", ".join(repr(one) for one in ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
