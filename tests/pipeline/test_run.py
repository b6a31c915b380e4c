"""A whole run on a small cohort: what it leaves, what it may not see, what killing and resuming changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.errors import InputError, Interrupted
from medform.pipeline.run import RunResult, run_stages
from medform.recipes.recipe import Recipe, read_recipe
from medform.runs.folder import RunFolder
from medform.runs.log import TIME_FIELDS
from medform.runs.scores import read_scores

TINY = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.batch=24",
    "stages.pretrain.budget={steps: 4}",
    "stages.pretrain.log_every=1",
    "stages.pretrain.checkpoint_every=2",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [2, head], pca: 16}",
    "stages.align.budget={steps: 5}",
    "evaluation={draws: 4, shots: [1, 2], permutations: 5, bootstrap: 100}",
)


def tiny(*overrides: str) -> Recipe:
    return read_recipe("medform-small", (*TINY, *overrides))


def start(cohort: Cohort, out: Path, recipe: Recipe, folds: list[int] | None = None, **options: Any) -> RunResult:
    folder = RunFolder(out)
    with folder.lock():
        given = {"resume": False, "overwrite": False, "progress": None} | options
        return run_stages(folder, cohort, recipe, folds, "cpu", **given)


@pytest.fixture(scope="module")
def whole_run(phantom_store: Cohort, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """One fold with every variant."""
    return start(phantom_store, tmp_path_factory.mktemp("whole") / "run", tiny(), folds=[0])


@pytest.mark.proves("A6.1", "A5.2")
def test_every_row_of_the_table_is_there_with_its_interval_and_n(whole_run: RunResult) -> None:
    rows = [row for row in read_scores(whole_run.run / "scores.json") if row.protocol == "cross_validation"]
    models = {row.model for row in rows if row.metric == "auroc"}
    assert {
        "random_encoder", "imagenet_encoder", "image_only", "intensity_stats", "attention_unaligned", "aligned",
        "random_start", "table_logistic", "fused_unaligned", "fused", "shuffled_pairs", "permuted_labels",
        "supervised_mil", "aligned - image_only", "fused - table_logistic", "chance",
    } <= models  # fmt: skip
    assert all(row.n_patients for row in rows)
    aligned = next(
        row for row in rows if row.model == "aligned" and row.metric == "auroc" and row.readout == "logistic"
    )
    assert aligned.value is not None and aligned.ci_low is not None and aligned.ci_high is not None


@pytest.mark.proves("A6.2")
def test_few_shot_rows_say_what_alignment_knew_of_the_supports(whole_run: RunResult) -> None:
    rows = [row for row in read_scores(whole_run.run / "scores.json") if row.protocol == "few_shot"]
    assert {row.supports for row in rows if row.model == "aligned"} == {"aligned", "out_of_fold", "unseen"}
    assert {row.supports for row in rows if row.model == "shuffled_pairs"} == {
        "aligned",
        "out_of_fold",
        "unseen",
    }
    assert {row.supports for row in rows if row.model == "image_only"} == {"aligned", "unseen"}


@pytest.mark.proves("A7", "A6.3")
def test_the_run_leaves_a_report_and_says_what_was_planned_and_spent(whole_run: RunResult) -> None:
    record = json.loads((whole_run.run / "run.json").read_text())
    assert record["planned"]["pretrain steps"] == 4
    assert record["spent"]["cpu_minutes"] > 0 and record["spent"]["peak_memory_gb"] < 4
    assert record["detectable"]["malignant"] > 0
    page = whole_run.report.read_text(encoding="utf-8")
    assert "would be missed in one of five such cohorts" in page


def test_no_patient_id_stands_in_the_report_or_the_montage(whole_run: RunResult, phantom_store: Cohort) -> None:
    text = whole_run.report.read_text(encoding="utf-8") + (whole_run.run / "montage.json").read_text()
    # ids of five digits could stand in a figure by chance, so the whole word is looked for in quotes and cells
    assert not [one for one in phantom_store.patient_ids if f">{one}<" in text or f'"{one}"' in text]


def test_attention_sums_to_one_over_each_test_patient(whole_run: RunResult, phantom_store: Cohort) -> None:
    attention = pd.read_parquet(whole_run.run / "attention.parquet")
    assert set(attention["patient_id"]) == set(phantom_store.split().folds[0].test)
    assert np.allclose(attention.groupby("patient_id")["weight"].sum(), 1, atol=1e-5)


LEAN = "variants={image_only: {embedding: [image_only]}}"


@pytest.mark.proves("A5.2")
def test_all_folds_give_a_final_model_and_one_fold_can_be_added_later(phantom_store: Cohort, tmp_path: Path) -> None:
    recipe = tiny(LEAN)
    start(phantom_store, tmp_path / "run", recipe, folds=[1])
    assert not (tmp_path / "run" / "final").exists()
    first = pd.read_parquet(tmp_path / "run" / "folds" / "1" / "embeddings.parquet")
    start(phantom_store, tmp_path / "run", recipe, resume=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["folds_run"] == [0, 1] and record["status"] == "complete"
    again = pd.read_parquet(tmp_path / "run" / "folds" / "1" / "embeddings.parquet")
    pd.testing.assert_frame_equal(first, again)
    tested = pd.read_parquet(tmp_path / "run" / "embeddings.parquet").query("part == 'test' and model == 'aligned'")
    assert sorted(tested["patient_id"]) == sorted(phantom_store.split().test_fold().index)


def comparable(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIME_FIELDS} for row in rows]


@pytest.mark.proves("U7", "A4.2", "R43", "A.tests")
def test_a_run_killed_in_mid_epoch_and_resumed_ends_like_an_undisturbed_one(
    phantom_store: Cohort, tmp_path: Path
) -> None:
    recipe = tiny(LEAN)
    start(phantom_store, tmp_path / "calm", recipe, folds=[0])

    def kill_at(step: int) -> Callable[[int, int, str], None]:
        def progress(done: int, total: int, what: str) -> None:
            if "pretrain" in what and done == step:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(Interrupted):
        start(phantom_store, tmp_path / "killed", recipe, folds=[0], progress=kill_at(3))
    start(phantom_store, tmp_path / "killed", recipe, folds=[0], resume=True)
    for name in ("embeddings.parquet", "scores.json", "predictions.parquet", "attention.parquet"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert comparable(tmp_path / "calm" / "metrics.jsonl") == comparable(tmp_path / "killed" / "metrics.jsonl")


@pytest.mark.proves("A.input", "R46")
def test_another_configuration_in_the_same_folder_is_refused_with_the_difference(
    whole_run: RunResult, phantom_store: Cohort
) -> None:
    before = (whole_run.run / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"lr: 0.0002"):
        start(phantom_store, whole_run.run, tiny("stages.pretrain.optimizer.lr=0.0002"), folds=[0], resume=True)
    with pytest.raises(InputError, match="--resume goes on"):
        start(phantom_store, whole_run.run, tiny(), folds=[0])
    assert (whole_run.run / "run.json").read_bytes() == before


@pytest.mark.proves("A.input")
def test_an_unknown_fold_is_refused_before_anything_starts(phantom_store: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no fold 7"):
        start(phantom_store, tmp_path / "run", tiny(), folds=[7])


@pytest.mark.proves("A6.1", "A.tests", "R34", "L1", "L3")
def test_poisoned_test_patients_change_nothing_that_was_fitted_nor_anybody_elses_vector(
    phantom_store: Cohort, spoil: Callable[[frozenset[str]], Cohort], tmp_path: Path
) -> None:
    """Also arrays that were cached: the poisoned run starts from a copy of the clean run's cache."""
    recipe = tiny(LEAN)
    start(phantom_store, tmp_path / "clean", recipe, folds=[0])
    tested = set(phantom_store.split().folds[0].test)
    poisoned = spoil(frozenset(tested))
    assert poisoned.split().folds == phantom_store.split().folds
    (tmp_path / "poisoned").mkdir()
    shutil.copytree(tmp_path / "clean" / "cache", tmp_path / "poisoned" / "cache")
    start(poisoned, tmp_path / "poisoned", recipe, folds=[0])
    for stage in ("pretrain/model", "align/model", "features/inputs", "embedding/inputs"):
        files = [
            tmp_path / run / "folds" / "0" / "main" / "0" / f"{stage}.safetensors" for run in ("clean", "poisoned")
        ]
        assert _tensors(files[0]) == _tensors(files[1]), stage
    clean, dirty = (
        pd.read_parquet(tmp_path / run / "embeddings.parquet").set_index(["patient_id", "model", "supports"])["vector"]
        for run in ("clean", "poisoned")
    )
    for key in clean.index:
        same = np.array_equal(clean[key], dirty[key])
        assert same != (key[0] in tested), key


def _tensors(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: array.tobytes() for name, array in load_file(path).items()}


@pytest.mark.proves("A6.1", "A8.2")
def test_a_finished_run_is_judged_and_exported_again_from_its_folder(whole_run: RunResult, tmp_path: Path) -> None:
    from medform.pipeline.evaluate import evaluate
    from medform.pipeline.export import export

    before = (whole_run.run / "scores.json").read_bytes()
    assert evaluate(whole_run.run).path.read_bytes() == before
    with pytest.raises(InputError, match="--model"):  # never an option that is taken and not heeded
        evaluate(whole_run.run, model=tmp_path)
    made = export(whole_run.run, tmp_path / "model", fold=0)
    assert "training patients of fold 0" in (made / "README.md").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="fold 1 of this run is not finished"):
        export(whole_run.run, tmp_path / "other", fold=1)
