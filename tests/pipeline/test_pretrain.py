"""Pre-training alone: on a bare folder, on a cohort, and what `align` takes over of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.pipeline.align import align
from medform.pipeline.embed import embed
from medform.pipeline.phantom import phantom
from medform.pipeline.predict import predict
from medform.pipeline.pretrain import pretrain
from medform.runs.log import read_log

TINY = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.batch=12",
    "stages.pretrain.budget={steps: 2}",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [2, head], pca: 16}",
    "stages.align.budget={steps: 2}",
    "variants={}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)


@pytest.mark.proves("A4.4", "U6")
@pytest.mark.parametrize("patients", [2, 1])
def test_a_bare_folder_without_a_table_trains_even_with_one_patient(patients: int, tmp_path: Path) -> None:
    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0}
    phantom(tmp_path / "hospital", patients=2, seed=2, options=options)
    folders = sorted(path for path in (tmp_path / "hospital" / "images").iterdir() if path.is_dir())
    source = tmp_path / "hospital" / "images" if patients == 2 else folders[0]
    result = pretrain(source, tmp_path / "run", overrides=TINY)
    record = json.loads((result.run / "run.json").read_text())
    assert record["transductive"] and record["status"] == "complete"
    log = read_log(result.run / "metrics.jsonl", stage="pretrain")
    assert log[-1]["chance"] > 0 and "retrieval_at_1" in log[-1] and "effective_rank" in log[-1]
    assert result.report.is_file() and (result.run / "model" / "config.json").is_file()
    assert "answers no task" in (result.run / "model" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"answers no task(.|\n)*medform embed gives its vectors"):
        predict(source, result.run)


@pytest.mark.parametrize("bare", [True, False])
def test_a_run_among_the_images_is_refused_before_anything_is_written(bare: bool, tmp_path: Path) -> None:
    """Of a bare folder as of a cohort file; its store and previews would be read as a patient the next time."""
    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0}
    phantom(tmp_path / "hospital", patients=2, seed=2, options=options)
    images = tmp_path / "hospital" / "images"
    source = images if bare else tmp_path / "hospital" / "cohort.yaml"
    for out in (images / "run", images):
        before = sorted(images.rglob("*"))
        with pytest.raises(InputError, match="inside the folder of the images"):
            pretrain(source, out, overrides=TINY)
        assert sorted(images.rglob("*")) == before


def test_overwriting_reads_a_bare_folder_anew_that_holds_other_scans(tmp_path: Path) -> None:
    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
    phantom(tmp_path / "hospital", patients=2, seed=2, options=options)
    images = tmp_path / "hospital" / "images"
    one, other = sorted(path for path in images.iterdir() if path.is_dir())
    (tmp_path / "scan").mkdir()
    one.rename(tmp_path / "scan" / one.name)
    run = pretrain(tmp_path / "scan", tmp_path / "run", overrides=TINY).run
    other.rename(tmp_path / "scan" / other.name)
    with pytest.raises(InputError, match="other files") as raised:
        pretrain(tmp_path / "scan", run, overrides=TINY, resume=True)
    assert "start anew with --overwrite" in str(raised.value) and "COHORT" not in str(raised.value)
    with pytest.raises(InputError, match="no device"):
        pretrain(tmp_path / "scan", run, overrides=TINY, overwrite=True, device="abacus")
    assert len(Cohort.read(run / "store").patient_ids) == 1, "what is refused leaves the store to the run"
    pretrain(tmp_path / "scan", run, overrides=TINY, overwrite=True)
    assert len(Cohort.read(run / "store").patient_ids) == 2


@pytest.mark.proves("A4.4", "A5.2")
def test_align_takes_the_encoder_over_and_never_trains_it_again(phantom_store: Cohort, tmp_path: Path) -> None:
    first = pretrain(phantom_store.root, tmp_path / "run", folds=[0], overrides=TINY)
    second = align(first.run, tmp_path / "aligned", overrides=TINY)
    weights = "folds/0/main/0/pretrain/model.safetensors"
    assert (first.run / weights).read_bytes() == (second.run / weights).read_bytes()
    assert read_log(second.run / "metrics.jsonl", stage="pretrain") == []
    assert (second.run / "scores.json").is_file()
    with pytest.raises(InputError, match="not the one that this run was pre-trained with"):
        align(first.run, tmp_path / "other", overrides=(*TINY, "stages.pretrain.batch=9"))


OWN = '''
import torch


class Net(torch.nn.Module):
    """Any module that maps (M, 1, H, W) to (M, d)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, width, 3, stride=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.convolution(image).relu().mean((2, 3))
'''


@pytest.mark.proves("U15", "A4.1")
def test_an_own_encoder_in_one_file_outside_the_package_trains_exports_and_embeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
    phantom(tmp_path / "hospital", patients=2, seed=2, options=options)
    own = ("stages.pretrain.towers.image={kind: 'own_net:Net', width: 12}", "stages.pretrain.start={image: random}")
    result = pretrain(tmp_path / "hospital" / "images", tmp_path / "run", overrides=(*TINY, *own))
    vectors = embed(tmp_path / "hospital" / "images", model=result.run)
    assert len(vectors.query("level == 'series'")) == 2 and len(vectors["vector"].iloc[0]) <= 12
