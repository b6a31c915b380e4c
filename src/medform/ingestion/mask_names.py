"""Whose mask a file is, by its name alone: a declared pattern, or a name that is the patient's.

An id begins and ends where its letters and digits do, and a number behind a separator may still belong to it: ``P1`` is
named neither by ``P10_seg`` nor by ``P1-2``, and ``7`` not by ``seg17``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import PurePosixPath

from medform.cohort.masks_spec import PATIENT
from medform.ingestion.layouts.place import stem

__all__ = ["matches", "owner_by_name", "owner_by_pattern", "study_by_name"]

_TOKEN = re.compile(r"\{patient\}|\*\*/|\*|\?")
_WILD = {"**/": r"(?:.*/)?", "*": r"[^/]*", "?": r"[^/]"}
_ID_BEGINS, _ID_ENDS = r"(?<![^\W_])", r"(?![^\W_])(?![\s._-]+\d)"
_MASK_WORDS = re.compile(r"[\s._-]+(masks?|seg|segmentations?|labels?|lesions?|tumou?rs?|roi|gt)$", re.IGNORECASE)


def matches(name: str, pattern: str) -> bool:
    """Whether a path below ``masks.path`` is a mask of anybody."""
    return _expression(pattern, None).fullmatch(name) is not None


def owner_by_pattern(name: str, pattern: str, patients: Collection[str]) -> str | None:
    """The patient whose mask ``name`` is under the declared pattern; the longest id where several fit."""
    fitting = [one for one in patients if one in name and _expression(pattern, one).fullmatch(name)]
    return max(sorted(fitting), key=len, default=None)


def owner_by_name(name: str, patients: Collection[str]) -> str | None:
    """The patient whose id is a folder of the path or the file's name, words such as ``_mask`` left off.

    None where nobody is named so, or two are.
    """
    path = PurePosixPath(name)
    bare = stem(name)
    words = {*path.parts[:-1], bare}
    while (shorter := _MASK_WORDS.sub("", bare)) != bare:
        words.add(bare := shorter)
    named = words & set(patients)
    return named.pop() if len(named) == 1 else None


def study_by_name(name: str, studies: Collection[str]) -> str | None:
    """The visit that ``name`` (a path) names; None where it names none, or more than one.

    A study is named by the parts of its name, split at ``_`` and ``/``, that are not in the names of all ``studies``.
    """
    parts = {study: set(re.split("[_/]", study)) - {""} for study in studies}
    common = set.intersection(*parts.values()) if parts else set()
    named = [
        study
        for study, own in parts.items()
        if own - common and all(re.search(_ID_BEGINS + re.escape(one) + _ID_ENDS, name) for one in own - common)
    ]
    return named[0] if len(named) == 1 else None


@lru_cache(maxsize=4096)
def _expression(pattern: str, patient: str | None) -> re.Pattern[str]:
    """The pattern as a regular expression, for one patient or (None) for any."""
    text = ""
    at = 0
    for token in _TOKEN.finditer(pattern):
        text += re.escape(pattern[at : token.start()])
        at = token.end()
        if token[0] != PATIENT:
            text += _WILD[token[0]]
        elif patient is None:
            text += r"[^/]+"
        else:
            open_ahead = pattern[: token.start()].endswith(("*", "?"))
            open_ended = pattern[at : at + 1] in ("*", "?")
            text += (_ID_BEGINS if open_ahead else "") + re.escape(patient) + (_ID_ENDS if open_ended else "")
    return re.compile(text + re.escape(pattern[at:]))
