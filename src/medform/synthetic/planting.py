"""The facts of every synthetic patient: a hidden severity and what it shows itself in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medform.errors import InputError
from medform.synthetic.options import HospitalOptions, Link
from medform.synthetic.randomness import chosen_share, generator, hash_order

__all__ = ["Flaw", "PlantedPatient", "plant"]

Flaw = Literal["none", "gap", "no_table", "no_images"]

MEDIAN_DIAMETER_MM = 30.0
DIAMETER_RANGE_MM = (10.0, 60.0)
MEDIAN_MARKER = 12.0  # U/mL
LARGEST_COHORT = 9000  # ids have five digits with a leading zero


@dataclass(frozen=True)
class PlantedPatient:
    """What is true of one patient, before anything is written.

    ``severity`` is hidden (standard normal); ``lesion_diameter_mm`` is that of the sphere with the
    lesion's volume; ``lesion_in_front`` says which of two spots is the lesion (None where there is one);
    ``marker`` is in U/mL; ``survival_months`` ends with death where ``died``, with the
    end of observation otherwise.
    """

    patient_id: str
    severity: float
    lesion_diameter_mm: float
    lesion_in_front: bool | None
    marker: float
    malignant: bool
    stage: str
    survival_months: float
    died: bool
    scanner: str
    age_years: int
    sex: str
    weight_kg: float
    has_genes: bool
    has_localizer: bool
    has_second_kernel: bool
    has_follow_up: bool
    flaw: Flaw

    @property
    def lesion_mm3(self) -> float:
        """Volume of a ball of the lesion's diameter, in mm3."""
        return float(np.pi / 6 * self.lesion_diameter_mm**3)


def plant(patients: int, seed: int, options: HospitalOptions) -> list[PlantedPatient]:
    """``patients`` usable patients (at least 2) and the flawed ones, in an order that says nothing.

    Labels are balanced exactly: the ``prevalence`` share with the highest liability is malignant, so that
    even a tiny hospital holds both classes.
    """
    if not 2 <= patients <= LARGEST_COHORT:
        raise InputError(
            f"{patients} patients: a synthetic hospital has 2 to {LARGEST_COHORT}.",
            where="--patients",
            fix="choose another number.",
        )
    flaws: list[Flaw] = ["gap", "no_table", "no_images"] if options.defects else []
    total = patients + len(flaws)
    numbers = generator(seed, "ids").permutation(np.arange(1, 10_000))[:total]
    ids = [f"{number:05d}" for number in numbers]
    flaw: dict[str, Flaw] = dict.fromkeys(ids[:patients], "none")
    flaw.update(zip(ids[patients:], flaws, strict=True))
    usable = [one for one in ids if flaw[one] == "none"]

    severity = generator(seed, "severity").standard_normal(total)
    lesion = _linked(severity, "image", seed, options)
    marker = _linked(severity, "table", seed, options)
    malignant = _label(_linked(severity, "label", seed, options), flaw, ids, options.prevalence)
    stage = _linked(severity, "label", seed, options, purpose="stage")
    months, died = _survival(_linked(severity, "survival", seed, options), seed)
    scanner = _scanner(malignant, seed, options.shortcut)
    diameter = np.clip(MEDIAN_DIAMETER_MM * np.exp(0.5 * lesion), *DIAMETER_RANGE_MM)
    person = generator(seed, "person")
    age = np.clip(np.round(person.normal(63, 9, total)), 35, 90).astype(int)
    sex = person.choice(["F", "M"], total)
    weight = np.round(np.clip(person.normal(74, 13, total), 45, 130), 1)

    genes = set(usable) - (chosen_share(seed, "genes", usable, options.genes_missing))
    localizer = chosen_share(seed, "localizer", usable, options.localizers)
    kernel = chosen_share(seed, "kernel", usable, options.second_kernels)
    follow_up = chosen_share(seed, "follow_up", usable, options.follow_ups)
    flawed = [one for one in ids if flaw[one] != "none"]
    front = chosen_share(seed, "twin", usable, 0.5) | chosen_share(seed, "twin", flawed, 0.5)
    planted = {
        one: PlantedPatient(
            patient_id=one,
            severity=float(severity[i]),
            lesion_diameter_mm=float(diameter[i]),
            lesion_in_front=one in front if options.twin else None,
            marker=float(MEDIAN_MARKER * np.exp(0.9 * marker[i])),
            malignant=bool(malignant[i]),
            stage=("I", "II", "III", "IV")[int(np.searchsorted([-0.67, 0.0, 0.67], stage[i]))],
            survival_months=float(months[i]),
            died=bool(died[i]),
            scanner=scanner[i],
            age_years=int(age[i]),
            sex=str(sex[i]),
            weight_kg=float(weight[i]),
            has_genes=one in genes,
            has_localizer=one in localizer,
            has_second_kernel=one in kernel,
            has_follow_up=one in follow_up,
            flaw=flaw[one],
        )
        for i, one in enumerate(ids)
    }
    return [planted[one] for one in hash_order(seed, "listing", ids)]


def _linked(
    severity: np.ndarray, link: Link, seed: int, options: HospitalOptions, purpose: str | None = None
) -> np.ndarray:
    """Standard normal values whose correlation with ``severity`` is the strength of ``link``; shape (n,)."""
    strength = options.strength(link)
    noise = generator(seed, "link", purpose or link).standard_normal(len(severity))
    return strength * severity + np.sqrt(1 - strength**2) * noise


def _label(liability: np.ndarray, flaw: dict[str, Flaw], ids: list[str], prevalence: float) -> np.ndarray:
    usable = np.array([flaw[one] == "none" for one in ids])
    positives = int(np.clip(round(prevalence * usable.sum()), 1, usable.sum() - 1))
    threshold = np.sort(liability[usable])[-positives]
    return liability >= threshold


def _survival(log_hazard: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Exponential times (median near 25 months) under uniform censoring between 6 and 72 months."""
    random = generator(seed, "survival")
    death = random.exponential(36.0, len(log_hazard)) * np.exp(-1.2 * log_hazard)
    end = random.uniform(6.0, 72.0, len(log_hazard))
    return np.maximum(np.minimum(death, end), 0.1), death <= end


def _scanner(malignant: np.ndarray, seed: int, shortcut: float) -> list[str]:
    second = generator(seed, "scanner").random(len(malignant)) < np.where(
        malignant, 0.5 + 0.5 * shortcut, 0.5 - 0.5 * shortcut
    )
    return ["beta" if one else "alpha" for one in second]
