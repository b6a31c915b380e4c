"""The committed model folder of version 1: later code reads it and predicts the same, or refuses a version by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from medform.errors import InputError
from medform.pipeline.frozen_encoder import selftest_values
from medform.pipeline.predict import Model

MODEL = Path(__file__).parents[1] / "fixtures" / "model_v1"
ROW = {
    "age (years)": 61, "sex": "F", "weight (kg)": 70, "smoking": "never", "marker": 30.5, "ldh (U/L)": 250, "room": 120,
}  # fmt: skip


@pytest.mark.proves("A1.5", "A8.2")
def test_a_model_of_version_1_is_read_passes_its_self_test_and_predicts_as_it_did() -> None:
    model = Model.load(MODEL)  # runs the self-test
    by_row = {one.task: one.probability for one in model.predict(None, ROW)}
    assert by_row == pytest.approx({"malignant": 0.4261, "late_stage": 0.2927}, abs=1e-3)
    vector = model.embed_values(selftest_values((-200.0, 300.0)))
    by_image = {one.task: one.probability for one in model.decide("new", vector, None)}
    assert by_image == pytest.approx({"malignant": 0.4778, "late_stage": 0.4450}, abs=1e-3)


@pytest.mark.proves("A1.5")
def test_the_fixture_is_small_and_holds_the_files_of_its_version() -> None:
    names = {path.name for path in MODEL.iterdir()}
    assert names == {
        "model.safetensors", "config.json", "preprocess.json", "columns.json", "probes.safetensors", "README.md",
        "LICENSE", "CITATION.cff", "selftest.safetensors",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 200_000


@pytest.mark.proves("A1.5", "A.input")
@pytest.mark.parametrize("name", ["config.json", "preprocess.json", "columns.json"])
def test_a_model_of_another_version_is_refused_by_the_file_that_says_so(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODEL, tmp_path / "model"))
    tree = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps({**tree, "schema_version": 99}), encoding="utf-8")
    with pytest.raises(InputError, match=f"{name} is of another format than version 1"):
        Model.load(folder)
