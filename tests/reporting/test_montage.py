"""The attention montage: the right slices, pseudonyms only, flat attention measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medform.reporting.montage import draw_montage, read_montage

PEOPLE = ["secret-b", "secret-a", "secret-c", "secret-d"]  # in the store's order, a hash


class Stack:
    def __init__(self, level: float) -> None:
        self.level = level

    def slice(self, index: int) -> np.ndarray:
        return np.full((200, 320), self.level + index, dtype=np.float32)


@pytest.fixture
def cohort() -> Any:
    slices = pd.DataFrame(
        [
            (f"{who}-{i}", f"s-{who}", who, i, 5.0 * i if who != "secret-c" else np.nan)
            for who in PEOPLE
            for i in range(4)
        ],
        columns=["slice_id", "series_id", "patient_id", "index", "position_mm"],
    )
    pseudonyms = pd.DataFrame({"patient_id": PEOPLE, "pseudonym": [f"patient-{n:04d}" for n in range(4)]})
    return SimpleNamespace(
        patient_ids=tuple(PEOPLE),
        slices=slices,
        patients=pseudonyms,
        window=(0.0, 4.0),
        open=lambda series_id: Stack(0.0),
        labels=lambda task: pd.Series({"secret-a": 1.0, "secret-b": 0.0, "secret-c": 1.0, "secret-d": np.nan}),
    )


def attention(cohort: Any) -> pd.DataFrame:
    weights = np.tile([0.1, 0.2, 0.6, 0.1], 4)
    return pd.DataFrame(
        {"patient_id": cohort.slices["patient_id"], "fold": 1, "model": "aligned", "seed": 0,
         "slice_id": cohort.slices["slice_id"], "weight": weights}
    )  # fmt: skip


@pytest.mark.proves("A7")
def test_montage_takes_both_classes_and_the_heaviest_slices(tmp_path: Path, cohort: Any) -> None:
    shuffled = attention(cohort).sample(frac=1, random_state=0)
    montage = draw_montage(tmp_path, cohort, shuffled, task="ill", patients=3, tiles=2)
    assert montage is not None and montage == read_montage(tmp_path)
    assert [(p.pseudonym, p.label) for p in montage.patients] == [
        ("patient-0001", "positive"), ("patient-0002", "positive"), ("patient-0000", "negative"),
    ]  # fmt: skip
    first, second = montage.patients[0].tiles
    assert (first.index, first.weight, first.z_mm, second.index) == (2, 0.6, 10.0, 1)
    assert montage.patients[1].tiles[0].z_mm is None
    assert montage.patients[0].profile == (0.1, 0.2, 0.6, 0.1)
    picture = Image.open(tmp_path / first.png)
    assert picture.mode == "L" and picture.size == (160, 100) and picture.getpixel((3, 3)) == 128


@pytest.mark.proves("A7")
def test_no_patient_id_reaches_the_files(tmp_path: Path, cohort: Any) -> None:
    draw_montage(tmp_path, cohort, attention(cohort))
    for path in tmp_path.rglob("*"):
        assert "secret" not in path.name and (path.is_dir() or b"secret" not in path.read_bytes())


def test_model_without_attention_has_no_montage(tmp_path: Path, cohort: Any) -> None:
    assert draw_montage(tmp_path, cohort, attention(cohort), model="image_only") is None
    assert not (tmp_path / "montage.json").exists()
