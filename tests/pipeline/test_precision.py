"""bf16 as an option of a recipe: taken, refused or noted by the machine, in the digests and nowhere in an fp32 run."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from medform.cohort.store import Cohort
from medform.config import digest, dump, load
from medform.errors import InputError
from medform.pipeline.align import align
from medform.pipeline.pretrain import pretrain
from medform.pipeline.run import make_bench, run_stages
from medform.recipes.recipe import Recipe, read_recipe
from medform.runs.folder import RunFolder, read_json

BF16 = "precision=bf16"
STAGE = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.towers.image={kind: timm, model: test_efficientnet}",
    "stages.pretrain.start.image=random",
    "stages.pretrain.batch=4",
    "stages.pretrain.budget={steps: 2}",
    "variants={}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)
TINY = (
    *STAGE,
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [2, head], pca: 16}",
    "stages.align.budget={steps: 2}",
)


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medform.compute.precision.cpu_flags", lambda: frozenset({"avx512_bf16"}))


@pytest.mark.proves("A4.2")
def test_a_tiny_run_in_bf16_goes_from_encoders_to_vectors_in_fp32(
    small_store: Cohort, with_bf16: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also aligned from pre-trained encoders, which is refused in another precision."""
    seen: set[torch.dtype] = set()
    linear = torch.nn.functional.linear

    def watched(*given: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        made = linear(*given, **named)
        seen.add(made.dtype)
        return made

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    pretrain(small_store.root, tmp_path / "encoders", folds=[0], device="cpu", overrides=(*STAGE, BF16))
    assert torch.bfloat16 in seen
    with pytest.raises(InputError, match=r"precision \(fp32\).*is not the one"):
        align(tmp_path / "encoders", tmp_path / "fp32", device="cpu", overrides=(*TINY, "precision=fp32"))
    seen.clear()
    made = align(tmp_path / "encoders", tmp_path / "run", device="cpu", overrides=TINY)
    assert torch.bfloat16 in seen
    record = read_json(made.run / "run.json")
    assert record["precision"] == record["device"]["precision"] == "bf16"
    assert "precision bf16" in made.report.read_text(encoding="utf-8")
    vectors = pd.read_parquet(made.run / "embeddings.parquet")["vector"]
    assert all(one.dtype == "float32" and abs(one).max() < 1e6 for one in vectors)


@pytest.mark.proves("A4.2", "U7")
def test_only_bf16_enters_the_digest_of_a_stage(small_store: Cohort, with_bf16: None, tmp_path: Path) -> None:
    made_from = ["stage", ["patient"], 0]
    plain, half = (make_bench(small_store, RunFolder(tmp_path), "cpu", None, name) for name in ("fp32", "bf16"))
    assert plain.digest(made_from) == digest(made_from) != half.digest(made_from)
    assert (plain.precision, half.precision) == ("fp32", "bf16")


@pytest.mark.proves("A4.2", "A.input")
def test_where_the_cpu_lacks_it_nothing_is_started(
    small_store: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medform.compute.precision.cpu_flags", lambda: frozenset({"avx2"}))
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match="no bf16 arithmetic") as refused, folder.lock():
        run_stages(
            folder,
            small_store,
            read_recipe("medform-small", (*TINY, BF16)),
            [0],
            "cpu",
            resume=False,
            overwrite=False,
            progress=None,
        )
    assert "fp32" in str(refused.value.fix) and not folder.path.exists()


@pytest.mark.proves("A4.2")
def test_where_the_cpu_does_not_say_it_is_taken_with_a_warning(
    small_store: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("medform.compute.precision.cpu_flags", lambda: None)
    with caplog.at_level(logging.WARNING):
        bench = make_bench(small_store, RunFolder(tmp_path / "run"), "cpu", None, "bf16")
    assert bench.precision == "bf16" and "unknown" in caplog.text


@pytest.mark.proves("A4.2", "U7")
def test_fp32_is_not_written_so_that_runs_of_before_go_on(tmp_path: Path) -> None:
    plain, half = read_recipe("medform-small"), read_recipe("medform-small", (BF16,))
    assert "precision" not in yaml.safe_load(dump(plain)) and read_recipe("medform-small", ("precision=fp32",)) == plain
    assert yaml.safe_load(dump(half))["precision"] == "bf16" and half.variant("unseen").precision == "bf16"
    for recipe in (plain, half):
        (tmp_path / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
        assert load(Recipe, tmp_path / "recipe.yaml") == recipe
    with pytest.raises(InputError, match=r"precision"):
        read_recipe("medform-small", ("precision=fp16",))
    with pytest.raises(InputError, match="may not change `precision`"):
        read_recipe("medform-small", ("variants={half: {precision: bf16}}",))
