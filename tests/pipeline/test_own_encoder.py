"""A user's own encoder by commands alone: trained, exported, taken elsewhere; and what is said where it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from medform.cli.main import invoke
from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.pipeline.embed import embed
from medform.pipeline.phantom import phantom
from medform.pipeline.predict import Model
from medform.pipeline.run import run_stages
from medform.recipes.recipe import read_recipe
from medform.runs.folder import RunFolder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SLICES = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.towers.image={kind: 'own_encoder:Net', width: 16}",
    "stages.pretrain.start.image=random",
    "stages.pretrain.batch=8",
    "stages.pretrain.budget={steps: 2}",
)
ALIGNED = (
    *SLICES,
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [head], pca: 8}",
    "stages.align.budget={steps: 2}",
    "variants={}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)
HOSPITAL = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three new patients: images as a hospital hands them over, and a table."""
    folder = tmp_path_factory.mktemp("new")
    phantom(folder, patients=3, seed=5, options=HOSPITAL, overwrite=True)
    return folder


@pytest.fixture(scope="module")
def model(phantom_store: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model of a run whose folder, store and data are gone."""
    place = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        cohort = Cohort.read(Path(shutil.copytree(phantom_store.root, place / "store")))
        folder = RunFolder(place / "run")
        with folder.lock():
            run_stages(
                folder,
                cohort,
                read_recipe("medform-small", ALIGNED),
                [0],
                "cpu",
                resume=False,
                overwrite=False,
                progress=None,
            )
        assert invoke(["export", str(place / "run"), "-o", str(place / "model"), "--fold", "0"]) == 0
    for gone in ("run", "store"):
        shutil.rmtree(place / gone)
    return place / "model"


@pytest.fixture
def beside_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def without_the_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another machine: the module is neither loaded nor to be found."""
    monkeypatch.delitem(sys.modules, "own_encoder", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry or ".").resolve() != EXAMPLES])


def table(hospital: Path, model: Path, place: Path) -> Path:
    ids = sorted(set(embed(hospital / "images", model=model)["patient_id"]))
    path = place / "table.csv"
    pd.DataFrame({"id": ids, "age": 60, "marker": 3.5, "sex": "F"}).to_csv(path, index=False)
    return path


@pytest.mark.proves("U15", "A8.1", "A8.2", "A4.4")
def test_from_a_bare_folder_to_vectors_by_commands_alone(
    hospital: Path, beside_the_example: None, tmp_path: Path
) -> None:
    images, run, out = str(hospital / "images"), tmp_path / "run", tmp_path / "vectors.parquet"
    sets = [word for pair in SLICES for word in ("--set", pair)]
    assert invoke(["pretrain", images, "-o", str(run), "--device", "cpu", *sets]) == 0
    assert invoke(["export", str(run), "-o", str(tmp_path / "model")]) == 0
    assert "own_encoder:Net" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert invoke(["embed", images, "--model", str(tmp_path / "model"), "-o", str(out)]) == 0
    frame = pd.read_parquet(out)
    assert {len(vector) for vector in frame["vector"]} == {16} and (frame["level"] == "series").sum() == 3


@pytest.mark.proves("A8.2", "U12", "U15")
def test_a_copied_model_predicts_the_same_bytes_in_another_process_and_folder(
    hospital: Path, model: Path, beside_the_example: None, tmp_path: Path
) -> None:
    """Run folder, store and training data are gone (see the fixture); only the model folder travels."""
    given = [str(hospital / "images"), "--table", str(table(hospital, model, tmp_path)), "--device", "cpu"]
    assert invoke(["predict", *given, "--model", str(model), "-o", str(tmp_path / "here.csv")]) == 0
    elsewhere = tmp_path / "another" / "machine"
    shutil.copytree(model, elsewhere / "m")
    shutil.copy(EXAMPLES / "own_encoder.py", elsewhere)
    command = [sys.executable, "-m", "medform", "predict", *given, "--model", "m", "-o", "there.csv"]
    done = subprocess.run(
        command, cwd=elsewhere, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = (tmp_path / "here.csv").read_bytes()
    assert (elsewhere / "there.csv").read_bytes() == expected
    assert set(pd.read_csv(tmp_path / "here.csv")["inputs"]) == {"both"}


@pytest.mark.proves("A8.2", "A.input", "U15")
def test_an_encoder_whose_module_is_not_there_is_named_with_what_to_do(
    hospital: Path, model: Path, without_the_example: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("embed", "predict"):
        assert invoke([verb, str(hospital / "images"), "--model", str(model), "-o", str(tmp_path / "out")]) == 2
        said = " ".join(capsys.readouterr().err.split())
        for words in ("module 'own_encoder' cannot be imported", "python -m medform", str(model)):
            assert words in said
        assert "Traceback" not in said and not (tmp_path / "out").exists()


@pytest.mark.proves("A8.2", "A.input", "U15")
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("class Nett: ...", "has no class 'Net'. Did you mean 'Nett'?"),
        ("class Net:\n    def __init__(self, width): ...", "is no torch.nn.Module"),
        ("import torch\nclass Net(torch.nn.Module): ...", "cannot be made with these arguments"),
        ("raise NameError('unfinished')", r"cannot be imported \(NameError: unfinished\)"),
        (
            "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, width):\n"
            "        super().__init__(nn.Conv2d(1, width, 32), nn.Flatten())\n        self.width = width",
            r"another architecture: \d+ tensors do not fit",
        ),
    ],
)
def test_code_that_is_not_what_was_trained_is_refused(
    model: Path, without_the_example: None, code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_encoder.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(InputError, match=said) as refused:
            Model.load(model)
    finally:
        sys.modules.pop("own_encoder", None)
    assert str(model) in str(refused.value.where) and refused.value.consequence == "The model was not used."
