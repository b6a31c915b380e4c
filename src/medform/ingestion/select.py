"""Which series is the patient's image, by `images.select`; never by chance."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from medform.cohort.cohort_file import Select
from medform.cohort.quarantine import Quarantined
from medform.errors import InputError, Problem
from medform.ingestion.found_series import FoundSeries

__all__ = ["Selection", "select_series"]

MOST_SHOWN = 10


@dataclass(frozen=True)
class Selection:
    """The series that enter the store, and every usable one that does not, with the reason."""

    chosen: tuple[FoundSeries, ...]
    left: tuple[Quarantined, ...]


def select_series(series: Sequence[FoundSeries], select: Select) -> Selection:
    """Choose among usable series. Raises `InputError` with the table of candidates where several are left."""
    by_patient: dict[str, list[FoundSeries]] = defaultdict(list)
    left: list[Quarantined] = []
    for one in series:
        if not one.usable:
            continue
        if reason := _mismatch(one, select):
            left.append(_left(one, reason))
        else:
            by_patient[one.patient_id].append(one)
    chosen: list[FoundSeries] = []
    open_cases: dict[str, list[FoundSeries]] = {}
    for patient, candidates in sorted(by_patient.items()):
        best = _by_rule(candidates, select.rule)
        if len(best) > 1 and select.rule != "all":
            open_cases[patient] = best
            continue
        chosen += best
        kept = {one.series_id for one in best}
        left += [_left(one, f"not the {select.rule}") for one in candidates if one.series_id not in kept]
    if open_cases:
        raise _several(open_cases, select)
    return Selection(tuple(chosen), tuple(left))


def _left(series: FoundSeries, reason: str) -> Quarantined:
    return Quarantined(
        series.patient_id,
        series.series_id,
        series.files[0],
        "not_selected",
        "",
        f"{reason}.",
        "images.select",
    )


def _mismatch(series: FoundSeries, select: Select) -> str:
    """Why a series is not what is asked for, '' if it is."""
    if select.modality and series.modality.upper() != select.modality.upper():
        return f"modality {series.modality or 'unknown'}, not {select.modality}"
    if select.description and not re.search(select.description, series.description, re.IGNORECASE):
        return f"description '{series.description}' does not match '{select.description}'"
    if select.kernel and not re.search(select.kernel, series.kernel, re.IGNORECASE):
        return f"kernel '{series.kernel}' does not match '{select.kernel}'"
    return ""


def _by_rule(candidates: list[FoundSeries], rule: str | None) -> list[FoundSeries]:
    """The series that the rule leaves; more than one where it does not decide."""
    if rule is None or rule == "all" or len(candidates) == 1:
        return candidates
    if rule == "first_visit" and not all(one.date for one in candidates):
        return candidates
    best = min(_rank(one, rule) for one in candidates)
    return [one for one in candidates if _rank(one, rule) == best]


def _rank(series: FoundSeries, rule: str) -> tuple[float, str]:
    """The smallest is what the rule asks for."""
    if rule == "first_visit":
        return 0.0, series.date
    if rule == "most_slices":
        return -float(series.shape[0]), ""
    return (series.spacing_mm[0] if series.spacing_mm else None) or math.inf, ""


def _several(open_cases: dict[str, list[FoundSeries]], select: Select) -> InputError:
    """The error that shows the candidates of the first patients, a line each."""
    shown = [
        Problem(_described(one), value=patient)
        for patient, candidates in list(open_cases.items())[:MOST_SHOWN]
        for one in candidates
    ]
    if len(open_cases) > MOST_SHOWN:
        shown.append(Problem(f"and {len(open_cases) - MOST_SHOWN} more patients."))
    who = "1 patient has" if len(open_cases) == 1 else f"{len(open_cases)} patients have"
    undecided = f" that images.select.rule: {select.rule} does not tell apart" if select.rule else ""
    return InputError(
        f"{who} several candidate series{undecided}.",
        consequence="Nothing was written.",
        fix="set images.select in the cohort file: modality, description or kernel (patterns), and rule:"
        " thinnest, most_slices, first_visit or all.",
        problems=shown,
    )


def _described(series: FoundSeries) -> str:
    """What tells a series from others, in one line."""
    thickness = series.spacing_mm[0] if series.spacing_mm else None
    spacing = f"{thickness:.2f} mm" if thickness else "spacing unknown"
    return (
        f"{series.shape[0]} slices, {spacing}, {series.modality or '-'}, '{series.description}',"
        f" kernel '{series.kernel}', date {series.date or 'unknown'}, series {series.series_id}"
    )
