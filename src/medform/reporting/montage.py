"""What attention looked at: the slices of highest weight and the weights along the stack (`montage.json`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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
    "entropy_ratio",
    "read_montage",
    "write_montage",
]

FLAT = 0.95  # entropy above this share of its maximum: the weights are those of a mean
TILE_PX = 160


@dataclass(frozen=True)
class Tile:
    """One slice: ``png`` relative to the run folder, ``index`` in the stack, ``z_mm`` (None: unknown), its
    weight.
    """

    png: str
    index: int
    weight: float
    z_mm: float | None = None


@dataclass(frozen=True)
class MontagePatient:
    """``tiles``: the slices of highest weight, highest first. ``profile``: the weight of every slice, feet to
    head; it sums to 1. ``entropy_ratio``: entropy of the weights over its maximum ln(n), 1 where n is 1.
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


def entropy_ratio(weights: np.ndarray) -> float:
    """Entropy of weights (n,) that sum to 1, over ln(n); 1 for a single slice, 0 where one slice has all."""
    if len(weights) < 2:
        return 1.0
    positive = weights[weights > 0]
    return float(-(positive * np.log(positive)).sum() / np.log(len(weights)))


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
    rows = attention[attention["model"] == model]
    if rows.empty:
        return None
    rows = rows[(rows["fold"] == rows["fold"].min()) & (rows["seed"] == rows["seed"].min())]
    labels = cohort.labels(task) if task else None
    known = set(rows["patient_id"])
    order = [patient for patient in cohort.patient_ids if patient in known]
    chosen = _both_classes(order, labels, patients)
    pseudonyms = cohort.patients.set_index("patient_id")["pseudonym"]
    entries = tuple(
        _entry(
            run,
            cohort,
            rows[rows["patient_id"] == patient],
            str(pseudonyms[patient]),
            _word(labels, patient),
            tiles,
        )
        for patient in chosen
    )
    montage = Montage(model, entries, int(rows["fold"].min()), task)
    write_montage(run, montage)
    return montage


def _both_classes(order: list[str], labels: pd.Series | None, count: int) -> list[str]:
    if labels is None:
        return order[:count]
    positive = [patient for patient in order if labels.get(patient) == 1.0]
    negative = [patient for patient in order if labels.get(patient) == 0.0]
    half = max(count // 2, count - len(negative))
    chosen = positive[:half]
    return chosen + negative[: count - len(chosen)]


def _word(labels: pd.Series | None, patient: str) -> str | None:
    value = None if labels is None else labels.get(patient)
    return {1.0: "positive", 0.0: "negative"}.get(value) if value is not None else None


def _entry(
    run: Path, cohort: Cohort, rows: pd.DataFrame, pseudonym: str, label: str | None, count: int
) -> MontagePatient:
    slices = cohort.slices.merge(rows[["slice_id", "weight"]], on="slice_id").sort_values(
        ["series_id", "index"]
    )
    weights = slices["weight"].to_numpy(float)
    top = slices.sort_values(["weight", "index"], ascending=[False, True]).head(count)
    tiles = []
    for rank, row in enumerate(top.itertuples(index=False)):
        name = f"figures/montage/{pseudonym}-{rank + 1}.png"
        _write_tile(run / name, cohort.open(str(row.series_id)).slice(int(row.index)), cohort.window)
        z_mm = float(row.position_mm)
        tiles.append(Tile(name, int(row.index), float(row.weight), z_mm if np.isfinite(z_mm) else None))
    return MontagePatient(
        pseudonym, tuple(tiles), tuple(float(w) for w in weights), entropy_ratio(weights), label
    )


def _write_tile(path: Path, image: np.ndarray, window: tuple[float, float]) -> None:
    from PIL import Image

    low, high = window
    grey = np.clip((image - low) / max(high - low, 1e-6), 0.0, 1.0)
    picture = Image.fromarray((grey * 255).round().astype(np.uint8))
    picture.thumbnail((TILE_PX, TILE_PX), Image.Resampling.BOX)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
