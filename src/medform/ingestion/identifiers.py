"""Joining images and table by patient id: equal ids, ids equal by a declared rule, suggestions for the rest."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medform.cohort.field_types import IdRule
from medform.errors import InputError, Problem
from medform.ingestion.cells import BLANKS

__all__ = ["IdMatch", "IdSuggestion", "match_ids", "normalised", "read_id_map", "refuse_strangers"]

ALL_RULES: tuple[IdRule, ...] = ("blanks", "case", "separators", "zeros")
SHOWN = 5


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
    """An id under rules: ``blanks`` around it, letter ``case``, ``separators`` (blank - _ . /), leading ``zeros``."""
    chosen = set(rules)
    if "blanks" in chosen:
        one = one.strip(BLANKS)
    if "case" in chosen:
        one = one.casefold()
    if "separators" in chosen:
        one = re.sub(r"[\s\u00a0_./-]+", "", one)
    if "zeros" in chosen:
        one = re.sub(r"(?<!\d)0+(?=\d)", "", one)
    return one


def read_id_map(path: Path) -> dict[str, str]:
    """Read a CSV with the columns table_id and image_id; `InputError` where an id stands twice."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        if not {"table_id", "image_id"} <= set(reader.fieldnames or []):
            raise InputError("needs the columns table_id and image_id.", where=str(path), fix="name them in line 1.")
        rows = [(row["table_id"], row["image_id"]) for row in reader]
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
    """Match ids as written, then by ``id_map`` (table id -> image id), then by the declared ``rules``.

    Without a rule nothing but equality joins: '00123' and '123' are two patients. What is left over on both
    sides gets suggestions. Results are sorted and do not depend on the order of the ids.
    """
    images, table = sorted(set(image_ids)), sorted(set(table_ids))
    matched = {one: one for one in table if one in set(images)}
    by_rule: dict[str, str] = {}
    problems: list[Problem] = []
    for one, image in sorted((id_map or {}).items()):
        if one not in set(table) or image not in set(images) or one in matched:
            continue
        if image in matched:
            text = f"the id map joins it to image id '{image}', which stands in the table itself."
            problems.append(Problem(text, column="patient_id", value=one, suggestion="Take one of the two out."))
            continue
        by_rule[one] = image
    if rules:
        free_table = [one for one in table if one not in matched and one not in by_rule]
        taken = {*matched.values(), *by_rule.values()}
        for key, mine in _keyed(free_table, rules).items():
            theirs = _keyed(images, rules).get(key, [])
            if len(theirs) == 1 and len(mine) == 1 and theirs[0] not in taken:
                by_rule[mine[0]] = theirs[0]
            elif theirs:
                names = ", ".join(repr(one) for one in theirs)
                text = f"under the rules {', '.join(rules)} they become one with image ids {names}."
                hint = "Join them by hand with tables.clinical.id_map."
                problems.append(Problem(text, column="patient_id", value=", ".join(mine), suggestion=hint))
    matched |= by_rule
    only_images = tuple(one for one in images if one not in set(matched.values()))
    only_table = tuple(one for one in table if one not in matched)
    suggestions = _suggest(only_images, only_table)
    return IdMatch(matched, by_rule, only_images, only_table, suggestions, tuple(problems))


def _keyed(ids: Sequence[str], rules: Sequence[IdRule]) -> dict[str, list[str]]:
    keyed: dict[str, list[str]] = {}
    for one in ids:
        keyed.setdefault(normalised(one, rules), []).append(one)
    return keyed


def _suggest(images: Sequence[str], table: Sequence[str]) -> tuple[IdSuggestion, ...]:
    """Pairs that one rule, then all rules, then the same number in it would make equal; only unambiguous ones."""
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
        numbered.setdefault("".join(re.findall(r"\d+", one)).lstrip("0"), []).append(one)
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
