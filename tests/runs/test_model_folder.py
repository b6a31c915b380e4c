"""The model folder on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medform.errors import InputError
from medform.runs.model_folder import SCHEMA_VERSION, ModelFiles, read_model, write_model


@pytest.fixture
def files() -> ModelFiles:
    return ModelFiles(
        weights={"tower.weight": np.arange(6, dtype=np.float32).reshape(2, 3)},
        config={"recipe": "small"},
        preprocess={"unit": "HU", "window": [-200.0, 300.0], "size": 32},
        columns={"specs": {}},
        probes={"task/image/weight": np.ones(3)},
        readouts={"task": {"image": {"bias": 0.25}}},
        selftest={"images": np.zeros((1, 2, 2), np.float32), "vector": np.ones(3, np.float32)},
        texts={"README.md": "card", "LICENSE": "licence"},
    )


@pytest.mark.proves("A8.2")
def test_a_model_folder_comes_back_as_written(files: ModelFiles, tmp_path: Path) -> None:
    write_model(tmp_path / "model", files)
    found = read_model(tmp_path / "model")
    for name in ("config", "preprocess", "columns", "readouts", "texts"):
        assert getattr(found, name) == getattr(files, name), name
    for name in ("weights", "probes", "selftest"):
        arrays = getattr(files, name)
        assert getattr(found, name).keys() == arrays.keys()
        assert all(np.array_equal(getattr(found, name)[key], arrays[key]) for key in arrays), name
    suffixes = {path.suffix for path in (tmp_path / "model").iterdir()}
    assert suffixes == {".safetensors", ".json", ".md", ""}


@pytest.mark.proves("A8.2", "A.input")
@pytest.mark.parametrize("name", ["config", "preprocess", "columns"])
def test_another_version_is_refused_by_the_file_s_name(files: ModelFiles, tmp_path: Path, name: str) -> None:
    write_model(tmp_path, files)
    tree = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    (tmp_path / f"{name}.json").write_text(json.dumps({**tree, "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(InputError, match=f"{name}.json is of another format"):
        read_model(tmp_path)


@pytest.mark.proves("A.input")
def test_a_folder_without_its_last_file_is_no_model(files: ModelFiles, tmp_path: Path) -> None:
    write_model(tmp_path, files)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="no model folder"):
        read_model(tmp_path)
