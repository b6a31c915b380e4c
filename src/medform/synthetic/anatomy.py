"""An analytic chest in HU (body, lungs, heart, vessels, bones, one lesion) as a function of millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medform.synthetic.planting import PlantedPatient
from medform.synthetic.randomness import generator
from medform.synthetic.scanners import Grid

__all__ = [
    "Anatomy",
    "Ellipsoid",
    "Lesion",
    "draw_anatomy",
    "hounsfield",
    "lesion_mask",
    "place_lesion",
    "place_twins",
]

AIR_HU = -1000.0
FAT_HU = -100.0
MUSCLE_HU = 50.0
ENDLESS_MM = 1e6  # the half-length of a structure that runs through the whole scan


@dataclass(frozen=True)
class Ellipsoid:
    """A structure: ``centre`` (x, y, z) and ``radii`` (x, y, z) in mm of LPS space, filled with ``hu``."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    hu: float

    def depth_mm(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """About how deep inside each point lies (negative outside); exact for circles and spheres."""
        cx, cy, cz = self.centre
        rx, ry, rz = self.radii
        radius = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
        return (1.0 - radius) * min(self.radii)


@dataclass(frozen=True)
class Lesion:
    """The nodule: an ellipsoid of ``radius_mm`` in the slice plane and ``half_height_mm`` along z."""

    centre: tuple[float, float, float]
    radius_mm: float
    half_height_mm: float
    hu: float

    @property
    def mm3(self) -> float:
        """Volume in mm3."""
        return float(4 / 3 * np.pi * self.radius_mm**2 * self.half_height_mm)

    @property
    def ellipsoid(self) -> Ellipsoid:
        """The nodule as a structure to be painted."""
        return Ellipsoid(self.centre, (self.radius_mm, self.radius_mm, self.half_height_mm), self.hu)


@dataclass(frozen=True)
class Anatomy:
    """One body: structures painted in order, each over what lies below."""

    structures: tuple[Ellipsoid, ...]
    scale: float


def draw_anatomy(patient: PlantedPatient, seed: int) -> Anatomy:
    """A patient's body without the lesion: its girth follows the weight, the rest is the patient's own."""
    random = generator(seed, "anatomy", patient.patient_id)

    def vary(value: float, share: float) -> float:
        return float(value * (1 + share * np.clip(random.standard_normal(), -2.5, 2.5)))

    scale = float((patient.weight_kg / 74.0) ** 0.25) * vary(1.0, 0.015)
    width, depth = vary(138, 0.02) * scale, vary(98, 0.02) * scale
    fat = vary(12, 0.15) * scale**3
    contrast = vary(150, 0.08)  # HU of blood in the large vessels: how well the contrast agent was timed

    def column(x: float, y: float, rx: float, ry: float, hu: float) -> Ellipsoid:
        return Ellipsoid((x * scale, y * scale, 0.0), (rx * scale, ry * scale, ENDLESS_MM), hu)

    lungs = [
        Ellipsoid(
            (side * vary(68, 0.04) * scale, vary(-4, 0.5), -30.0),
            (vary(47, 0.03) * scale, vary(66, 0.03) * scale, vary(210, 0.1)),
            vary(-840, 0.02),
        )
        for side in (-1, 1)
    ]
    ribs = [
        Ellipsoid((0.93 * width * np.cos(turn), 0.93 * depth * np.sin(turn), z), (8.0, 5.0, 8.0), vary(420, 0.05))
        for level, z in enumerate(np.arange(-60.0, 61.0, 30.0))
        for turn in np.deg2rad(np.array([-55.0, -25.0, 5.0, 30.0, 150.0, 175.0, 205.0, 235.0]) + 6.0 * level)
    ]
    branches = [
        Ellipsoid(
            (side * random.uniform(40, 95) * scale, random.uniform(-50, 45) * scale, random.uniform(-45, 45)),
            (radius, radius, radius),
            0.6 * contrast,
        )
        for side in (-1, 1)
        for radius in random.uniform(3, 6, 4).tolist()
    ]
    structures = [
        Ellipsoid((0, 0, 0), (width, depth, ENDLESS_MM), FAT_HU),
        Ellipsoid((0, 0, 0), (width - fat, depth - fat, ENDLESS_MM), MUSCLE_HU),
        *ribs,
        *lungs,
        column(0, -5, 26, 50, 40),  # the middle between the lungs
        Ellipsoid((16 * scale, -22 * scale, -28.0), (vary(46, 0.04) * scale, vary(38, 0.04) * scale, 52.0), 80.0),
        column(-14, -18, 9, 9, contrast),
        column(20, 36, vary(11, 0.08), vary(11, 0.08), contrast),
        column(0, 60, vary(19, 0.04), vary(17, 0.04), vary(300, 0.06)),
        column(0, 79, 8, 8, 35),
        *branches,
    ]
    return Anatomy(tuple(structures), scale)


def place_lesion(patient: PlantedPatient, anatomy: Anatomy, grid: Grid, seed: int, slices: int | None) -> Lesion:
    """The nodule in one lung, inside the scanned slab where it fits, with the patient's planted volume.

    With ``slices`` it is stretched or flattened along z until exactly that many slices of ``grid`` cross
    it. Its axis runs through a column of voxel centres, so that every slice it crosses has a voxel
    inside.
    """
    random = generator(seed, "lesion", patient.patient_id)
    side = random.choice([-1.0, 1.0])
    corner, pixel = grid.origin_mm[0], grid.spacing_mm[2]
    x = corner + pixel * round((side * random.uniform(58, 76) * anatomy.scale - corner) / pixel)
    y = corner + pixel * round((random.uniform(-34, 28) * anatomy.scale - corner) / pixel)
    place, hu = random.random(), float(random.normal(140, 8))
    step, first = grid.spacing_mm[0], grid.origin_mm[2]
    radius = half = patient.lesion_diameter_mm / 2
    if slices is None:
        room = (grid.slices - 1) * step - 2 * half
        z = first + half + place * room if room > 0 else first + (grid.slices - 1) * step / 2
    else:
        start = int(place * (grid.slices - slices + 1))
        half = slices * step / 2
        z = first + (start + (slices - 1) / 2) * step
        radius = float(np.sqrt(3 * patient.lesion_mm3 / (4 * np.pi * half)))
    return Lesion((float(x), float(y), float(z)), radius, half, hu)


def place_twins(
    lesion: Lesion, anatomy: Anatomy, grid: Grid, seed: int, patient: PlantedPatient
) -> tuple[Lesion, Lesion]:
    """Two spots that differ from ``lesion`` by their place in the slice only: one in front, one at the back.

    Each has its own side. They never touch, and how they lie says nothing of which of them is the lesion.
    """
    random = generator(seed, "twins", patient.patient_id)
    corner, pixel = grid.origin_mm[0], grid.spacing_mm[2]
    middle = random.uniform(-8, 0) * anatomy.scale
    apart = max(random.uniform(28, 36) * anatomy.scale, lesion.radius_mm + pixel)

    def spot(y: float) -> Lesion:
        x = random.choice([-1.0, 1.0]) * random.uniform(58, 76) * anatomy.scale
        on_grid = [float(corner + pixel * round((one - corner) / pixel)) for one in (x, y)]
        return replace(lesion, centre=(on_grid[0], on_grid[1], lesion.centre[2]))

    return spot(middle - apart), spot(middle + apart)


def hounsfield(anatomy: Anatomy, spots: Sequence[Lesion], grid: Grid) -> np.ndarray:
    """HU (N,H,W) float32 without noise; edges are one pixel wide, as partial volume makes them."""
    z, y, x = grid.axes()
    return paint([*anatomy.structures, *(spot.ellipsoid for spot in spots)], z, y, x, grid.spacing_mm[1])


def paint(structures: list[Ellipsoid], z: np.ndarray, y: np.ndarray, x: np.ndarray, edge_mm: float) -> np.ndarray:
    """HU of ``structures`` painted in order onto air, at the broadcast points."""
    image = np.full(np.broadcast_shapes(z.shape, y.shape, x.shape), AIR_HU, np.float32)
    for structure in structures:
        inside = _window(structure, z, y, x, edge_mm)
        if inside is None:
            continue
        part = image[inside]
        depth = structure.depth_mm(z[inside[0]], y[:, inside[1]], x[:, :, inside[2]])
        share = np.clip(0.5 + depth / edge_mm, 0.0, 1.0).astype(np.float32)
        part += share * (np.float32(structure.hu) - part)
    return image


def _window(
    structure: Ellipsoid, z: np.ndarray, y: np.ndarray, x: np.ndarray, edge_mm: float
) -> tuple[slice, slice, slice] | None:
    """The box of indices that the structure can touch (a small vessel costs little); None where it misses."""
    box = []
    for axis, centre, radius in zip((x, y, z), structure.centre, structure.radii, strict=True):
        reach = radius * (1 + edge_mm / min(structure.radii))
        points = axis.ravel()
        touched = np.flatnonzero(np.abs(points - centre) <= reach)
        if not len(touched):
            return None
        box.append(slice(int(touched[0]), int(touched[-1]) + 1))
    return box[2], box[1], box[0]


def lesion_mask(lesion: Lesion, grid: Grid) -> np.ndarray:
    """uint8 (N,H,W): 1 where the voxel's centre lies inside the lesion."""
    z, y, x = grid.axes()
    return (lesion.ellipsoid.depth_mm(z, y, x) > 0).astype(np.uint8)
