"""A small cohort store for the inputs: real files, written by the store's own writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medform.cohort.cohort_file import parse_cohort_file
from medform.cohort.quarantine import Verdict
from medform.cohort.store import Cohort
from medform.cohort.writer import CohortWriter, SeriesRecord, SliceRecord

Slices = dict[str, list[np.ndarray]]


@pytest.fixture
def make_cohort(tmp_path: Path) -> Callable[..., Cohort]:
    """``make(slices, unit, ...)``: a store with one series a patient, its slices 2.5 mm apart."""

    def make(
        slices: Slices,
        unit: str = "HU",
        intercept: float = 0.0,
        window: tuple[float, float] | None = None,
        clinical: pd.DataFrame | None = None,
        columns: dict[str, object] | None = None,
        masks: Slices | None = None,
    ) -> Cohort:
        images: dict[str, object] = {"unit": unit} | ({"window_hu": window} if window else {})
        tree = {"name": "tiny", "licence": "CC0", "images": images, "columns": columns or {}}
        if clinical is not None:
            tree["tables"] = {"clinical": {"path": "clinical.csv", "patient_id": "patient_id"}}
        writer = CohortWriter(tmp_path / "store", parse_cohort_file(tree, "tiny.yaml"), overwrite=True)
        for patient, images_of in slices.items():
            record = SeriesRecord(
                series_id=f"series-{patient}",
                patient_id=patient,
                modality="CT",
                unit=unit,  # pyright: ignore[reportArgumentType]
                verdict=Verdict("accepted"),
                slices=tuple(
                    SliceRecord(position_mm=2.5 * place, intercept=intercept) for place in range(len(images_of))
                ),
            )
            writer.write_series(record, images_of, masks=(masks or {}).get(patient))
        writer.finish([f"series-{patient}" for patient in slices], clinical=clinical)
        return Cohort.read(tmp_path / "store")

    return make


@pytest.fixture
def chests(random: np.random.Generator) -> Slices:
    """Five patients with 1 to 5 slices of 40 x 40 stored integers."""
    return {
        f"P{number}": [random.integers(0, 2000, (40, 40)).astype(np.int16) for _ in range(number)]
        for number in range(1, 6)
    }
