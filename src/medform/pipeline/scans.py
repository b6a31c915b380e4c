"""New scans for a trained model: read as the training's files were, and what of them is not as in training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medform.errors import InputError, Problem

if TYPE_CHECKING:
    from medform.cohort.store import Cohort

__all__ = [
    "ct_problem",
    "exclusions",
    "left_out",
    "modalities",
    "reading",
    "refuse_another_unit",
    "remarks_on",
    "unsure",
]

UNSURE = ("unit_assumed", "select_unchecked")
"""Codes of ingestion that say how far a scan may not be what the model was trained on."""
ROUTINE = ("not_selected", "localizer")
"""What was left out of training too: of a patient with another image it is listed, but is no degradation."""
MOST_SHOWN = 12
HOUNSFIELD = "CT"
"""The modality whose values are HU, whatever else is read beside it as arbitrary numbers."""
INSTANCE = re.compile(r"[0-9.]+(/[0-9]+)?")
"""What a slice of DICOM names as its source: its UID, with the number of the frame where there are several."""


def reading(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """How `ingest_scan` reads new files for a model: unit, window, what let files in at its training, what is refused.

    ``preprocess`` is the content of the model's ``preprocess.json``; a folder from before ``images`` has defaults.
    """
    low, high = preprocess["window"]
    images = preprocess.get("images", {})
    kept = {key: images[key] for key in ("accept", "assume_hu", "pictures") if key in images}
    refused = {}
    if preprocess["unit"] == "raw" and _saw_ct(preprocess) is False:
        refused[HOUNSFIELD] = f"its values are {_unlike_training(preprocess)}."
    return {"unit": preprocess["unit"], "window": (float(low), float(high)), "refused": refused, **kept}


def left_out(cohort: Cohort) -> list[str]:
    """A line for everything that was set aside, named by patient and file; skipped files do not count."""
    lines = []
    for one in cohort.quarantine():
        if one.code != "skipped":
            place = ", ".join(part for part in (one.patient_id and f"patient {one.patient_id}", one.file) if part)
            lines.append(f"{place} ({one.code}): {one.reason}")
    return lines


def exclusions(cohort: Cohort) -> int:
    """How many series and files were set aside for a fault: neither skipped nor not asked for."""
    return sum(one.code not in ("skipped", "not_selected") for one in cohort.quarantine())


def modalities(cohort: Cohort) -> list[str]:
    """The modalities that the DICOM series of a cohort state, in alphabetical order; '' where a series states none.

    Other files state none either: what their layout calls them (a suffix of BIDS, a channel of nnU-Net) is a name.
    """
    source = cohort.slices.groupby("series_id")["source"].first()
    stated = zip(cohort.series["series_id"], cohort.series["modality"], strict=True)
    return sorted({str(one) if INSTANCE.fullmatch(str(source[series])) else "" for series, one in stated})


def refuse_another_unit(cohort: Cohort, preprocess: Mapping[str, Any]) -> None:
    """Raise `InputError` where the values of a store are not those that a model was trained on.

    ``preprocess`` is the content of the model's ``preprocess.json``. See `ct_problem` for CT among arbitrary numbers.
    """
    unit = preprocess["unit"]
    if cohort.unit != unit:
        raise InputError(
            f"the values of the store are {cohort.unit}, those of the model's training {unit}.",
            where=str(cohort.root),
            consequence="Nothing was embedded.",
            fix=f"ingest the images with images.unit: {unit}, if that is what they are.",
        )
    if problem := ct_problem(cohort, preprocess):
        raise InputError(
            "CT is among the images, and the model was trained without.",
            where=str(cohort.root),
            consequence="Nothing was embedded.",
            problems=[problem],
        )


def ct_problem(cohort: Cohort, preprocess: Mapping[str, Any]) -> Problem | None:
    """The problem with the CT series of a store, whose values are HU, for a model that was trained without CT.

    None for a model in another unit, since a store of it holds no such series; for one whose training had CT, read
    as arbitrary numbers; and for one of which it is not known: `unsure` speaks of these. Of a bare scan no such series
    enters the store in the first place (`reading`).
    """
    found = [series for _, series in _ct_as_raw(cohort)]
    if not found or _saw_ct(preprocess) is not False:
        return None
    shown = ", ".join(found[:MOST_SHOWN]) + (" ..." if len(found) > MOST_SHOWN else "")
    return Problem(
        f"the values of {len(found)} series are {_unlike_training(preprocess)}: {shown}.",
        suggestion=f"Leave them out with images.select.modality, or use a model that was trained on {HOUNSFIELD}.",
    )


def _saw_ct(preprocess: Mapping[str, Any]) -> bool | None:
    """Whether a model was trained on CT; None where that is not known of every series of its training."""
    trained = {str(one).upper() for one in preprocess.get("modalities") or []}
    if HOUNSFIELD in trained:
        return True
    return False if trained and "" not in trained else None


def _unlike_training(preprocess: Mapping[str, Any]) -> str:
    """What the values of a CT are, beside what a model without CT was trained on."""
    return f"HU (modality {HOUNSFIELD}), and the model was trained on {', '.join(preprocess['modalities'])}"


def _ct_as_raw(cohort: Cohort) -> list[tuple[str, str]]:
    """Patient and series id of every CT series of a store whose values count as arbitrary numbers."""
    if cohort.unit != "raw":
        return []
    columns = (cohort.series[key] for key in ("patient_id", "series_id", "modality"))
    return [
        (str(patient), str(series))
        for patient, series, modality in zip(*columns, strict=True)
        if str(modality).upper() == HOUNSFIELD
    ]


def unsure(cohort: Cohort, preprocess: Mapping[str, Any] | None = None) -> dict[str, list[str]]:
    """Patient -> what is not known of the images that are used: their unit, or whether they are the wanted series.

    ``preprocess`` is the content of the ``preprocess.json`` of the model that takes them, if one does.
    """
    said: dict[str, list[str]] = {}
    columns = (cohort.series[key] for key in ("patient_id", "codes", "details"))
    for patient, codes, details in zip(*columns, strict=True):
        for code, detail in zip(str(codes).split(";"), str(details).split("\n"), strict=False):
            if code in UNSURE:
                said.setdefault(str(patient), []).append(f"{code}: {detail}")
    if preprocess is not None and _saw_ct(preprocess) is None:
        for patient, series in _ct_as_raw(cohort):
            text = f"unit_assumed: {series}: its values are HU (modality {HOUNSFIELD}), and it is not known whether"
            said.setdefault(patient, []).append(f"{text} the model was trained on such; taken as they are.")
    return said


def remarks_on(
    cohort: Cohort, imaged: set[str], preprocess: Mapping[str, Any], *, selected: bool
) -> dict[str, list[str]]:
    """Patient -> what of the images is not as in training.

    Patients whose images were all set aside are there with the reasons: they get a row too, and never vanish. A file
    of which no patient is known belongs to the only patient, if there is just one. ``preprocess`` as for `unsure`;
    ``selected``: whether the series were chosen as in training; a model folder of before does not say how that was.
    """
    said = unsure(cohort, preprocess)
    stored = {str(name) for name in cohort.series["series_id"]}
    for patient, theirs in cohort.series.groupby("patient_id"):
        if len(theirs) > 1 and not selected:
            names = ", ".join(map(str, theirs["series_id"]))
            text = f"{len(theirs)} series pooled: {names}; this model does not say which one is meant"
            said.setdefault(str(patient), []).append(text)
    aside = [one for one in cohort.quarantine() if one.code != "skipped" and one.series_id not in stored]
    patients = {*imaged, *(one.patient_id for one in aside if one.patient_id)}
    for one in aside:
        patient = one.patient_id or (next(iter(patients)) if len(patients) == 1 else "")
        if not patient or (patient in imaged and (one.code in ROUTINE or "mask" in one.code)):
            continue
        said.setdefault(patient, []).append(f"image set aside ({one.code}): {one.file}: {one.reason}")
    return said
