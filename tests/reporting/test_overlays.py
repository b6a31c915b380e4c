"""Predicted beside true masks: outlines where the masks end, pseudonyms only, left out when pictures are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from medform.evaluation.predictions import case_frame
from medform.evaluation.segmentation import segmentation_rows
from medform.evaluation.settings import EvaluationSettings
from medform.reporting.overlays import (
    PREDICTED,
    TRUE,
    OverlayPatient,
    Overlays,
    draw_overlay,
    read_overlays,
    write_overlays,
)
from medform.reporting.report import make_report
from medform.runs.scores import read_scores, write_scores


def drawn(run: Path, size: tuple[int, int] = (40, 20)) -> tuple[str, str]:
    image = np.linspace(0, 100, size[0] * size[1], dtype=np.float32).reshape(size)
    true, predicted = np.zeros(size, bool), np.zeros(size, bool)
    true[10:20, 5:15] = True
    return draw_overlay(run, "patient-0003", image, (0.0, 100.0), true, predicted)


@pytest.mark.proves("G4.2")
@pytest.mark.parametrize("size", [(40, 20), (640, 320)])
def test_the_outline_is_where_the_mask_ends_and_the_slice_is_seen_inside(size: tuple[int, int], tmp_path: Path) -> None:
    names = drawn(tmp_path, size)
    assert names == ("figures/overlays/patient-0003-true.png", "figures/overlays/patient-0003-predicted.png")
    true, predicted = (np.asarray(Image.open(tmp_path / name)) for name in names)
    assert true.shape == (160, 80, 3)
    outline = (true == TRUE).all(axis=2)
    rows, columns = np.flatnonzero(outline.any(axis=1)), np.flatnonzero(outline.any(axis=0))
    scale = 160 / size[0]
    assert (rows[0], rows[-1]) == (round(10 * scale), round(20 * scale) - 1)
    assert (columns[0], columns[-1]) == (round(5 * scale), round(15 * scale) - 1)
    assert not outline[rows[0] + 1 : rows[-1], columns[0] + 1 : columns[-1]].any()
    assert not (predicted == PREDICTED).all(axis=2).any(), "an empty mask has no outline"
    assert (predicted[..., 0] == predicted[..., 1]).all() and predicted[0, 0, 0] < 5 and predicted[-1, -1, 0] > 250


@pytest.mark.proves("G4.2", "A7")
def test_the_section_shows_them_unless_pictures_are_left_out(make_run: Any) -> None:
    run = make_run(small=True, montage=False, selected={"tumour": "mgi"})
    shared = {"cohort": "c", "task": "tumour", "protocol": "segmentation", "fold": 0, "seed": 0, "model": "mgi"}
    cases = [
        {**shared, "patient_id": f"secret-{number}", "metric": "dice_patient", "value": number / 10}
        for number in range(9)
    ]
    rows = segmentation_rows(case_frame(cases), EvaluationSettings(bootstrap=100))
    write_scores(run / "scores.json", [*read_scores(run / "scores.json"), *rows])
    pictures = drawn(run)
    overlays = Overlays("tumour", "mgi", (OverlayPatient("patient-0003", "worst", 0.25, 7, *pictures),))
    write_overlays(run, overlays)
    assert read_overlays(run) == overlays
    page = make_report(run).read_text(encoding="utf-8")
    section = BeautifulSoup(page, "html.parser").select_one("#segmentation")
    assert section is not None and "secret" not in page
    assert [image["alt"] for image in section.select("img")] == [
        "patient-0003, slice 7, true mask",
        "patient-0003, slice 7, predicted mask",
    ]
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in section.select("img"))
    assert "worst, Dice 0.25" in section.get_text()
    plain = BeautifulSoup(make_report(run, images=False).read_text(encoding="utf-8"), "html.parser")
    assert plain.select_one("#segmentation img") is None
    assert "Pictures left out (--no-images)" in plain.select_one("#segmentation").get_text()  # type: ignore[union-attr]
