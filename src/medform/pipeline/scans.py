"""New scans for a trained model: read as the training's files were, and what of them is not as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medform.errors import InputError, Problem

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort

__all__ = [
    "Outcome",
    "ct_problems",
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


@dataclass(frozen=True)
class Outcome:
    """What a verb that makes a table found.

    ``frame``: its rows; ``lines``: what a person is told of them; ``left_out``: a line each thing that was set aside;
    ``exclusions``: how many of these for a fault.
    """

    frame: pd.DataFrame
    lines: Sequence[str]
    left_out: Sequence[str]
    exclusions: int

    def told(self) -> pd.DataFrame:
        """The frame, with which users of the verb compute; the rest in its ``attrs``, as `medform.cli.output` asks."""
        self.frame.attrs |= {
            "lines": list(self.lines),
            "left_out": list(self.left_out),
            "exclusions": self.exclusions,
        }
        return self.frame


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


def modalities(cohort: Cohort) -> list[str]:
    """The modalities of the images of a cohort, in alphabetical order; '' stands for images that state none."""
    return sorted({str(one) for one in cohort.series["modality"]})


def refuse_another_unit(cohort: Cohort, preprocess: Mapping[str, Any]) -> None:
    """Raise `InputError` where the values of a store are not those that a model was trained on.

    ``preprocess`` is the content of the model's ``preprocess.json``. See `ct_problems` for CT among arbitrary numbers.
    """
    unit = preprocess["unit"]
    if cohort.unit != unit:
        raise InputError(
            f"the values of the store are {cohort.unit}, those of the model's training {unit}.",
            where=str(cohort.root),
            consequence="Nothing was embedded.",
            fix=f"ingest the images with images.unit: {unit}, if that is what they are.",
        )
    if problems := ct_problems(cohort, preprocess):
        raise InputError(
            f"the values of {len(problems)} series are HU, those of the model's training {unit}.",
            consequence="Nothing was embedded.",
            fix="leave these series out, or use a model that was trained on CT.",
            problems=problems[:MOST_SHOWN],
        )


def ct_problems(cohort: Cohort, preprocess: Mapping[str, Any]) -> list[Problem]:
    """A problem each CT series, whose values are HU, for a model of arbitrary numbers that was trained without CT.

    None for a model in another unit, since a store of it holds no such series; for one whose training had CT, read
    as arbitrary numbers; and for one of which it is not known: `unsure` speaks of these.
    """
    trained = preprocess.get("modalities") or [""]
    if "" in trained or HOUNSFIELD in trained:
        return []
    text = f"its values are HU (modality {HOUNSFIELD}), and the model was trained on {', '.join(trained)}."
    return [Problem(text, file=series) for _, series in _ct_as_raw(cohort)]


def _ct_as_raw(cohort: Cohort) -> list[tuple[str, str]]:
    """Patient and series id of every CT series of a store whose values count as arbitrary numbers."""
    if cohort.unit != "raw":
        return []
    columns = (cohort.series[key] for key in ("patient_id", "series_id", "modality"))
    return [
        (str(patient), str(series))
        for patient, series, modality in zip(*columns, strict=True)
        if modality == HOUNSFIELD
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
    if preprocess is not None and HOUNSFIELD not in preprocess.get("modalities", []):
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
