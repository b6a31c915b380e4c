"""What attention looked at: the slices of highest weight and the weights along the stack (`montage.json`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medform.cohort.files import column
from medform.metrics.attention import entropy_ratio
from medform.reporting.documents import read_document, write_document

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort

__all__ = [
    "FLAT",
    "Montage",
    "MontagePatient",
    "Tile",
    "draw_montage",
    "read_montage",
    "write_montage",
]

FLAT = 0.95  # entropy above this share of its maximum: the weights are those of a mean
TILE_PX = 160


@dataclass(frozen=True)
class Tile:
    """One slice: ``png`` relative to the run folder, ``index`` in the stack, ``z_mm`` (None: unknown), its weight."""

    png: str
    index: int
    weight: float
    z_mm: float | None = None


@dataclass(frozen=True)
class MontagePatient:
    """One test patient of the montage.

    ``tiles``: the slices of highest weight, highest first. ``profile``: the weight of every slice, feet to head; it
    sums to 1. ``entropy_ratio``: entropy of the weights over its maximum ln(n), 1 where n is 1.
    """

    pseudonym: str
    tiles: tuple[Tile, ...]
    profile: tuple[float, ...]
    entropy_ratio: float
    label: str | None = None


@dataclass(frozen=True)
class Montage:
    """``model`` whose attention is shown, and of which ``fold``; the patients were its test patients."""

    model: str
    patients: tuple[MontagePatient, ...]
    fold: int | None = None
    task: str | None = None


def write_montage(run: Path, montage: Montage) -> None:
    """Write ``RUN/montage.json`` (the tiles are PNG files under ``RUN/figures``)."""
    write_document(run / "montage.json", montage)


def read_montage(run: Path) -> Montage | None:
    """Read ``RUN/montage.json``; None where it is not there."""
    return read_document(run / "montage.json", Montage)


def draw_montage(
    run: Path,
    cohort: Cohort,
    attention: pd.DataFrame,
    *,
    model: str = "aligned",
    task: str | None = None,
    patients: int = 6,
    tiles: int = 4,
) -> Montage | None:
    """Choose test patients, write their tiles and ``montage.json``; None where ``model`` has no attention.

    ``attention`` has the columns of ``attention.parquet`` with weights of test patients (patient_id, fold,
    model, seed, slice_id, weight). Patients are taken in the cohort's own order, which is a hash, half of
    each class of ``task``.
    """
    rows = _first_fold(attention, model)
    if not rows:
        return None
    fold = next(iter(rows.values()))[0]
    labels = {str(key): float(value) for key, value in cohort.labels(task).items()} if task else None
    weights: dict[str, dict[str, float]] = {}
    for (patient, slice_id), (_, weight) in rows.items():
        weights.setdefault(patient, {})[slice_id] = weight
    chosen = _both_classes([one for one in cohort.patient_ids if one in weights], labels, patients)
    names = column(cohort.patients.set_index("patient_id"), "pseudonym")
    entries = tuple(_entry(run, cohort, weights[one], str(names[one]), _word(labels, one), tiles) for one in chosen)
    montage = Montage(model, entries, fold, task)
    write_montage(run, montage)
    return montage


def _first_fold(attention: pd.DataFrame, model: str) -> dict[tuple[str, str], tuple[int, float]]:
    """(patient, slice) -> (fold, weight) of one model, of its first fold and first seed."""
    if attention.empty:
        return {}
    keys = ("fold", "seed", "patient_id", "slice_id", "weight", "model")
    rows = [row for row in zip(*(column(attention, key) for key in keys), strict=True) if row[5] == model]
    first = min((row[:2] for row in rows), default=None)
    return {(str(who), str(where)): (int(fold), float(weight)) for fold, seed, who, where, weight, _ in rows
            if (fold, seed) == first}  # fmt: skip


def _both_classes(order: list[str], labels: dict[str, float] | None, count: int) -> list[str]:
    if labels is None:
        return order[:count]
    positive = [patient for patient in order if labels.get(patient) == 1.0]
    negative = [patient for patient in order if labels.get(patient) == 0.0]
    chosen = positive[: max(count // 2, count - len(negative))]
    return chosen + negative[: count - len(chosen)]


def _word(labels: dict[str, float] | None, patient: str) -> str | None:
    return None if labels is None else {1.0: "positive", 0.0: "negative"}.get(labels[patient])


def _entry(
    run: Path, cohort: Cohort, weights: dict[str, float], pseudonym: str, label: str | None, count: int
) -> MontagePatient:
    keys = ("slice_id", "series_id", "index", "position_mm")
    columns = (column(cohort.slices, key) for key in keys)
    slices = [row for row in zip(*columns, strict=True) if row[0] in weights]
    slices.sort(key=lambda row: (row[1], row[2]))
    tiles = []
    for slice_id, series_id, index, z_mm in sorted(slices, key=lambda row: -weights[row[0]])[:count]:
        name = f"figures/montage/{pseudonym}-{len(tiles) + 1}.png"
        _write_tile(run / name, cohort.open(series_id).slice(int(index)), cohort.window)
        position = float(z_mm) if np.isfinite(z_mm) else None
        tiles.append(Tile(name, int(index), weights[slice_id], position))
    profile = tuple(weights[row[0]] for row in slices)
    ratio = entropy_ratio(profile)
    return MontagePatient(pseudonym, tuple(tiles), profile, 1.0 if ratio is None else ratio, label)


def _write_tile(path: Path, image: np.ndarray, window: tuple[float, float]) -> None:
    from PIL import Image

    low, high = window
    grey = np.clip((image - low) / max(high - low, 1e-6), 0.0, 1.0)
    picture = Image.fromarray((grey * 255).round().astype(np.uint8))
    picture.thumbnail((TILE_PX, TILE_PX), Image.Resampling.BOX)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
