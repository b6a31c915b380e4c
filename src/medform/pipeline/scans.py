"""New scans for a trained model: read as the training's files were, and what of them is not as in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medform.cohort.store import Cohort

__all__ = ["exclusions", "left_out", "reading", "remarks_on", "unsure"]

UNSURE = ("unit_assumed", "select_unchecked")
"""Codes of ingestion that say how far a scan may not be what the model was trained on."""
ROUTINE = ("not_selected", "localizer")
"""What was left out of training too: of a patient with another image it is listed, but is no degradation."""


def reading(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """How `ingest_scan` reads new files for a model: unit and window, and what let files in at its training.

    ``preprocess`` is the content of the model's ``preprocess.json``; a folder from before ``images`` has defaults.
    """
    low, high = preprocess["window"]
    images = preprocess.get("images", {})
    kept = {key: images[key] for key in ("accept", "assume_hu", "pictures") if key in images}
    return {"unit": preprocess["unit"], "window": (float(low), float(high)), **kept}


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


def unsure(cohort: Cohort) -> dict[str, list[str]]:
    """Patient -> what is not known of the images that are used: their unit, or whether they are the wanted series."""
    said: dict[str, list[str]] = {}
    columns = (cohort.series[key] for key in ("patient_id", "codes", "details"))
    for patient, codes, details in zip(*columns, strict=True):
        for code, detail in zip(str(codes).split(";"), str(details).split("\n"), strict=False):
            if code in UNSURE:
                said.setdefault(str(patient), []).append(f"{code}: {detail}")
    return said


def remarks_on(cohort: Cohort, imaged: set[str], *, selected: bool) -> dict[str, list[str]]:
    """Patient -> what of the images is not as in training.

    Patients whose images were all set aside are there with the reasons: they get a row too, and never vanish. A file
    of which no patient is known belongs to the only patient, if there is just one. ``selected``: whether the series
    were chosen as in training; a model folder of before does not say how that was.
    """
    said = unsure(cohort)
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
