"""`align` starts from another run's encoders: it takes them over byte for byte, or says why it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.pipeline.align import align
from medform.pipeline.phantom import phantom
from medform.pipeline.pretrain import pretrain
from medform.runs.log import read_log

TINY = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.batch=8",
    "stages.pretrain.budget={steps: 2}",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [head], pca: 16}",
    "stages.align.budget={steps: 2}",
    "variants={}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)


@pytest.fixture(scope="module")
def pretrained(phantom_store: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fold of the phantom, pre-trained with seed 7."""
    return pretrain(phantom_store.root, tmp_path_factory.mktemp("first") / "run", folds=[0], seed=7, overrides=TINY).run


@pytest.mark.proves("A4.4", "A5.2")
def test_only_the_folds_and_seeds_of_the_run_are_aligned_and_its_stage_stays_as_it_was(
    pretrained: Path, tmp_path: Path
) -> None:
    stage = Path("folds/0/main/7/pretrain")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (pretrained / stage).iterdir()}
    out = align(pretrained, tmp_path / "aligned", overrides=TINY).run
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out / stage).iterdir()} == before
    assert read_log(out / "metrics.jsonl", stage="pretrain") == []
    assert read_log(out / "metrics.jsonl", stage="align", seed=7)
    record = json.loads((out / "run.json").read_text())
    assert record["folds_run"] == [0] and record["seed"] == 7 and not record["transductive"]
    assert not (out / "final").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": (*TINY, "stages.pretrain.batch=9")}, "not the one that this run was pre-trained with"),
        ({"overrides": TINY, "seed": 8}, "no encoder of seed 8"),
        ({"overrides": (*TINY, "seeds=[7, 9]")}, "no encoder of seed 9"),
    ],
)
def test_what_would_need_another_encoder_is_refused_before_anything_is_written(
    pretrained: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        align(pretrained, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_killed_is_finished_first(pretrained: Path, tmp_path: Path) -> None:
    record = json.loads((pretrained / "run.json").read_text())
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "run.json").write_text(json.dumps(record | {"status": "running"}))
    (tmp_path / "killed" / "recipe.yaml").write_bytes((pretrained / "recipe.yaml").read_bytes())
    with pytest.raises(InputError, match="has not finished"):
        align(tmp_path / "killed", tmp_path / "out", overrides=TINY)
    assert not (tmp_path / "out").exists()


@pytest.mark.proves("A4.4")
def test_a_bare_folder_has_nothing_to_align_with(tmp_path: Path) -> None:
    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
    phantom(tmp_path / "hospital", patients=2, seed=2, options=options)
    first = pretrain(tmp_path / "hospital" / "images", tmp_path / "run", overrides=TINY)
    with pytest.raises(InputError, match="no feature column to align with"):
        align(first.run, tmp_path / "out", overrides=TINY)
    assert not (tmp_path / "out").exists()
