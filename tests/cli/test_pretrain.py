"""`medform pretrain` from the command line: a collapse is stopped and named, one patient trains all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medform.cli.main import invoke
from medform.pipeline.phantom import phantom
from medform.runs.log import read_log

NET = '''
import torch


class Net(torch.nn.Module):
    """The mean of a slice, and eight means of what is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 8, 5, stride=4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        learnt = self.convolution(image - 0.5).relu()
        return torch.cat([image.mean((2, 3)), learnt.mean((2, 3))], 1)
'''
RECIPE = """\
name: tiny
citation: "none, a test"
stages:
  pretrain:
    objective: {kind: simclr, projection: {kind: projection, hidden: 8, width: 4}, negatives: {same_patient: keep}}
    towers:
      image: {kind: "own_small_net:Net"}
    inputs: {image: {kind: slices, size: 32, source: 32}}
    optimizer: {kind: adamw, lr: 1.0e-3}
    batch: 8
    budget: {steps: 12}
    log_every: 1
embedding: [image_only]
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image folder of a hospital of two patients."""
    plain = {"size": 48, "defects": False, "localizers": 0, "follow_ups": 0, "second_kernels": 0}
    phantom(root := tmp_path_factory.mktemp("pretrain") / "hospital", patients=2, seed=2, options=plain)
    return root / "images"


@pytest.fixture(autouse=True)
def own_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of the recipe, in a file of its own."""
    (tmp_path / "own_small_net.py").write_text(NET, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def pretrain(source: Path, out: Path, recipe: str, *options: str) -> int:
    """Run the verb with a recipe file of this text."""
    path = out.with_suffix(".yaml")
    path.write_text(recipe, encoding="utf-8")
    return invoke(["pretrain", str(source), "-o", str(out), "--recipe", str(path), *options])


@pytest.mark.proves("U6", "A4.2")
@pytest.mark.parametrize(("options", "code"), [((), 0), (("--strict",), 3)])
def test_a_planted_collapse_stops_the_stage_and_is_named_in_log_and_report(
    options: tuple[str, ...], code: int, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weight decay that leaves nothing of any weight: all vectors lie on the line of the slices' means."""
    planted = RECIPE.replace("lr: 1.0e-3", "lr: 1.0e-5, weight_decay: 1.0e+5")
    assert pretrain(images, tmp_path / "run", planted, *options) == code
    told = capsys.readouterr()
    assert "training of main collapsed and was stopped" in told.err
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "complete"
    assert [(one["stage"], one["variant"]) for one in record["collapsed"]] == [("pretrain", "main")]
    log = read_log(tmp_path / "run" / "metrics.jsonl", stage="pretrain")
    assert log[-1]["step"] < 12 and log[-1]["effective_rank"] < 2
    assert "Collapsed and stopped: stage pretrain" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.proves("U6")
def test_the_same_recipe_without_the_planted_fault_does_not_collapse(images: Path, tmp_path: Path) -> None:
    assert pretrain(images, tmp_path / "run", RECIPE, "--strict") == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["collapsed"] == []
    assert read_log(tmp_path / "run" / "metrics.jsonl", stage="pretrain")[-1]["step"] == 12


@pytest.mark.proves("A4.4", "U6")
def test_one_patient_trains_though_the_recipe_masks_same_patient_negatives_and_the_log_says_so(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = RECIPE.replace("same_patient: keep", "same_patient: none")
    alone = next(path for path in sorted(images.iterdir()) if path.is_dir())
    assert pretrain(alone, tmp_path / "run", masked) == 0
    assert "one patient in the batch: its slices stay negatives of each other" in capsys.readouterr().err
    log = read_log(tmp_path / "run" / "metrics.jsonl", stage="pretrain")
    assert log[-1]["step"] == 12
    assert all(row["same_patient_kept"] == 1.0 and row["chance"] > 0 for row in log)
    assert pretrain(images, tmp_path / "two", masked) == 0
    kept = [row["same_patient_kept"] for row in read_log(tmp_path / "two" / "metrics.jsonl", stage="pretrain")]
    assert kept == [0.0] * len(kept)
