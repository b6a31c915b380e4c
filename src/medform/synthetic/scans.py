"""Which series a patient has, on which grid and in which encoding, and what each of them shows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import numpy as np

from medform.synthetic.anatomy import (
    Anatomy,
    Lesion,
    draw_anatomy,
    hounsfield,
    lesion_mask,
    paint,
    place_lesion,
    place_twins,
)
from medform.synthetic.options import HospitalOptions
from medform.synthetic.planting import PlantedPatient
from medform.synthetic.randomness import generator
from medform.synthetic.scanners import SCANNERS, Grid, Scanner

__all__ = ["DESCRIPTIONS", "Scan", "ScanKind", "plan_scans", "render"]

ScanKind = Literal["main", "second_kernel", "follow_up", "localizer"]

DESCRIPTIONS: dict[ScanKind, str] = {
    "main": "CHEST SOFT TISSUE",
    "second_kernel": "CHEST LUNG EDGE",
    "follow_up": "CHEST SOFT TISSUE",
    "localizer": "LOCALIZER",
}
FIRST_DAY = date(2001, 1, 1)


@dataclass(frozen=True)
class Scan:
    """One series of one patient, before it is rendered.

    ``lesion`` is None where the scan shows none; ``twin`` is a spot that looks like it and is no lesion.
    ``slopes`` and ``intercepts`` have one entry a slice. ``turned``: the patient lay on the belly, so the
    stored rows run to the front and the columns to the right. ``left_out`` is the index of the slice that
    was lost, feet to head.
    """

    patient: PlantedPatient
    kind: ScanKind
    day: date
    scanner: Scanner
    grid: Grid
    anatomy: Anatomy
    lesion: Lesion | None
    twin: Lesion | None
    kernel: str
    noise_hu: float
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    turned: bool
    left_out: int | None

    @property
    def study(self) -> str:
        """Which visit the scan belongs to: ``first`` or ``follow_up``."""
        return "follow_up" if self.kind == "follow_up" else "first"

    @property
    def spots(self) -> tuple[Lesion, ...]:
        """What the scan shows in the lungs: the lesion, and what looks like it."""
        return tuple(spot for spot in (self.lesion, self.twin) if spot is not None)

    @property
    def stored_slices(self) -> tuple[int, ...]:
        """Indices (feet to head) of the slices that were handed over."""
        return tuple(index for index in range(self.grid.slices) if index != self.left_out)


def plan_scans(patient: PlantedPatient, seed: int, options: HospitalOptions) -> list[Scan]:
    """The series of one patient; the first is the scan to use. Empty for a patient without images."""
    if patient.flaw == "no_images":
        return []
    random = generator(seed, "scan", patient.patient_id)
    scanner = SCANNERS[patient.scanner]
    slices = int(random.integers(scanner.slice_range[0], scanner.slice_range[1] + 1))
    first_mm = -scanner.slice_mm * (slices - 1) / 2 + float(np.round(random.uniform(-8, 8), 1))
    grid = scanner.grid(slices, options.size, first_mm)
    anatomy = draw_anatomy(patient, seed)
    lesion = place_lesion(patient, anatomy, grid, seed, options.lesion_slices)
    twin = None
    if patient.lesion_in_front is not None:
        front, back = place_twins(lesion, anatomy, grid, seed, patient)
        lesion, twin = (front, back) if patient.lesion_in_front else (back, front)
    day = FIRST_DAY + timedelta(days=int(random.integers(0, 700)))
    later = day + timedelta(days=int(random.integers(60, 240)))
    turned = bool(random.random() < 0.3) and not scanner.shared_folder
    lost = int(random.integers(2, slices - 2)) if patient.flaw == "gap" else None
    rescale = _rescale(scanner, slices, random)

    def scan(kind: ScanKind, on: Grid, shown: Lesion | None, left_out: int | None = None) -> Scan:
        sharp = kind == "second_kernel"
        return Scan(
            patient=patient,
            kind=kind,
            day=later if kind == "follow_up" else day,
            scanner=scanner,
            grid=on,
            anatomy=anatomy,
            lesion=shown,
            twin=twin,
            kernel=scanner.sharp_kernel if sharp else scanner.soft_kernel,
            noise_hu=scanner.noise_hu * (2.5 if sharp else 1.0),
            slopes=rescale[0][: on.slices],
            intercepts=rescale[1][: on.slices],
            turned=turned and kind != "localizer",
            left_out=left_out,
        )

    scans = [scan("main", grid, lesion, lost)]
    if patient.has_second_kernel:
        scans.append(scan("second_kernel", scanner.grid((slices + 1) // 2, options.size, first_mm, step=2), lesion))
    if patient.has_follow_up:
        scans.append(scan("follow_up", scanner.grid(slices, options.size, first_mm + 1.5), None))
    if patient.has_localizer:
        scans.append(scan("localizer", scanner.grid(1, options.size, 0.0), lesion))
    return scans


def _rescale(scanner: Scanner, slices: int, random: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    slope = float(random.choice(scanner.slopes))
    intercept = float(random.choice(scanner.intercepts))
    varies = scanner.rescale_varies and random.random() < 1 / 3
    other = scanner.slopes[0]
    slopes = tuple(other if varies and index % 2 else slope for index in range(slices))
    return slopes, (intercept,) * slices


def render(scan: Scan, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """HU (N,H,W) float32, slices feet to head, rows to the back, columns to the left; and the uint8 mask.

    A localizer is one coronal picture (1,H,W): rows run from the head to the feet, the mask is empty.
    """
    if scan.kind == "localizer":
        return _coronal(scan), np.zeros((1, scan.grid.size, scan.grid.size), np.uint8)
    clean = hounsfield(scan.anatomy, scan.spots, scan.grid)
    random = generator(seed, "noise", scan.patient.patient_id, scan.kind)
    noise = random.standard_normal(clean.shape, dtype=np.float32)
    if scan.kernel == scan.scanner.soft_kernel:  # a soft kernel correlates neighbours; the spread is kept
        noise = (noise + np.roll(noise, 1, axis=1) + np.roll(noise, 1, axis=2)) / np.float32(np.sqrt(3))
    stack = np.clip(clean + np.float32(scan.noise_hu) * noise, -1024.0, 3071.0)
    mask = lesion_mask(scan.lesion, scan.grid) if scan.lesion else np.zeros(clean.shape, np.uint8)
    return stack, mask


def _coronal(scan: Scan) -> np.ndarray:
    """The mean HU along the line from front to back, the way a scout sees the body."""
    _, _, x = scan.grid.axes()
    pixel = scan.grid.spacing_mm[1]
    z = (pixel * (scan.grid.size - 1) / 2 - pixel * np.arange(scan.grid.size))[:, None, None]
    y = np.linspace(-120.0, 120.0, 25)[None, :, None]
    structures = [*scan.anatomy.structures, *(spot.ellipsoid for spot in scan.spots)]
    return np.asarray(paint(structures, z, y, x, pixel).mean(axis=1)[None], np.float32)
