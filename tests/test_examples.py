"""The files in examples/ do what they say."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from medform.compute.seed import generator
from medform.pipeline.phantom import phantom
from medform.recipes.recipe import read_recipe

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
OPTIONS = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}


@pytest.fixture(autouse=True)
def beside_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.proves("A.tests", "U5")
def test_embed_folder_names_another_scan_for_every_scan(tmp_path: Path) -> None:
    phantom(tmp_path / "hospital", patients=3, seed=1, options=OPTIONS)
    found = importlib.import_module("embed_folder").nearest_scans(tmp_path / "hospital" / "images")
    assert len(found) == 3
    assert (found["nearest"] != found["series_id"]).all() and found["nearest"].isin(found["series_id"]).all()
    assert found["cosine"].between(-1.001, 1.001).all()


@pytest.mark.proves("U15")
def test_own_encoder_is_a_tower_in_less_than_thirty_lines() -> None:
    assert len((EXAMPLES / "own_encoder.py").read_text(encoding="utf-8").splitlines()) < 30
    recipe = read_recipe("medform-small", ["stages.pretrain.towers.image={kind: 'own_encoder:Net', width: 32}"])
    config = recipe.stages["pretrain"].towers["image"]
    tower = config.build(generator(0, "example"))  # pyright: ignore[reportAttributeAccessIssue]
    assert tower.width == 32
    assert tower.slice_vector(torch.zeros(2, 1, 48, 48), ["head"]).shape == (2, 32)
