"""The plan: what will be trained how often, measured on this machine, and what it warns of."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from medform.cohort.store import Cohort
from medform.pipeline import plan as module
from medform.pipeline.companions import encode_companions
from medform.pipeline.plan import Plan, make_plan
from medform.pipeline.run import fold_groups, make_bench, task_labels
from medform.recipes.recipe import read_recipe
from medform.runs.folder import RunFolder, write_json

TINY = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.towers.image={kind: timm, model: test_efficientnet}",
    "stages.pretrain.start.image=random",
    "stages.pretrain.batch=4",
    "stages.pretrain.budget={steps: 40}",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [2, head], pca: 16}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)


def plan_of(cohort: Cohort, place: Path, *more: str, folds: list[int] | None = None) -> Plan:
    recipe = read_recipe("medform-small", (*TINY, *more))
    bench = make_bench(cohort, RunFolder(place), "cpu", None)
    groups = fold_groups(cohort, folds)
    return make_plan(
        bench, recipe, groups, task_labels(cohort), encode_companions(cohort, groups[0].train, recipe), groups
    )


@pytest.mark.proves("A7")
def test_the_plan_counts_every_model_and_leaves_nothing_behind(phantom_store: Cohort, tmp_path: Path) -> None:
    plan = plan_of(phantom_store, tmp_path / "run")
    # a fold: main, random_start and shuffled_pairs with 5 inner and 1 unseen, attention_unaligned, supervised_mil
    assert plan.stages["align"] == {"steps": 50, "models": 2 * (3 * 7 + 2) + 6}
    # the two reference encoders take no step; all others share the recipe's own
    assert plan.stages["pretrain"]["steps"] == 40 and plan.stages["pretrain"]["models"] == 3
    assert plan.folds == (0, 1) and plan.final and plan.cpu_minutes > 0
    said = "\n".join(plan.lines())
    for words in ("folds 0, 1 and the final model", "40 steps a model", "CPU-minutes"):
        assert words in said
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"cache"}
    assert all(path.suffix == ".npy" for path in (tmp_path / "run" / "cache").iterdir())


@pytest.mark.proves("A7")
def test_the_estimate_is_cpu_time_and_grows_with_the_work(
    small_store: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine on which every piece takes a hundred times as long, the plan says so."""
    monkeypatch.setattr(module, "REST", 0.0)
    lean = "variants={image_only: {embedding: [image_only]}}"
    fast = plan_of(small_store, tmp_path / "run", lean, folds=[0])
    longer = plan_of(small_store, tmp_path / "run", lean, "stages.pretrain.budget={steps: 4000}", folds=[0])
    assert longer.cpu_minutes > fast.cpu_minutes
    real = time.process_time
    monkeypatch.setattr(time, "process_time", lambda: 100 * real())
    slow = plan_of(small_store, tmp_path / "run", lean, folds=[0])
    assert 10 * fast.cpu_minutes < slow.cpu_minutes < 1000 * fast.cpu_minutes


@pytest.mark.proves("A7")
def test_judging_grows_with_the_seeds_and_is_planned_where_no_fold_is_left_to_train(
    small_store: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "process_time", lambda: float(next(clock)))  # whatever is timed takes a second
    monkeypatch.setattr(module, "REST", 0.0)
    recipe, labels = read_recipe("medform-small", TINY), task_labels(small_store)
    more = read_recipe("medform-small", (*TINY, "seeds=[0, 1, 2]"))
    groups = fold_groups(small_store, None)
    one = module._judging_seconds(recipe, {"main": recipe}, groups, labels)
    assert one > 0 and module._judging_seconds(more, {"main": more}, groups, labels) == 3 * one
    bench = make_bench(small_store, RunFolder(tmp_path / "run"), "cpu", None)
    companions = encode_companions(small_store, groups[0].train, recipe)
    nothing = make_plan(bench, recipe, [], labels, companions, ())
    judged = make_plan(bench, recipe, [], labels, companions, groups)
    assert judged.cpu_minutes > nothing.cpu_minutes and (judged.folds, judged.final) == ((), False)


@pytest.mark.proves("A7", "A4.4")
def test_encoders_that_are_there_already_are_not_planned_again_and_every_model_needs_disk(
    small_store: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "seconds_per_step", lambda *_: 1.0)
    lean = ("variants={random_start: {stages.pretrain.batch: 3, stages.align.start.heads: random}}", "seeds=[0, 1]")
    folder = RunFolder(tmp_path / "run")
    fresh = plan_of(small_store, folder.path, *lean)
    assert fresh.stages["pretrain"]["models"] == 2 * (3 + 2)  # the variant has no final model
    for seed in (0, 1):
        for fold in (0, 1, None):
            write_json(folder.stage("pretrain", "main", seed, fold) / "stage.json", {})
    write_json(folder.stage("pretrain", "random_start", 1, 0) / "stage.json", {})
    taken = plan_of(small_store, folder.path, *lean)
    assert taken.stages["pretrain"] == fresh.stages["pretrain"] | {"models": 3}
    assert taken.cpu_minutes < fresh.cpu_minutes and taken.disk_gb == fresh.disk_gb
    assert taken.disk_gb - plan_of(small_store, folder.path, lean[0], folds=[0]).disk_gb > 0.02 * 7


@pytest.mark.proves("A5.1")
def test_the_plan_warns_of_few_passes_few_steps_and_few_columns(small_store: Cohort, tmp_path: Path) -> None:
    plan = plan_of(
        small_store,
        tmp_path / "run",
        "stages.pretrain.budget={steps: 2}",
        "stages.align.towers.clinical={kind: mlp}",
        "stages.align.start.heads=random",
        "variants={}",
        folds=[0],
    )
    said = " ".join(plan.warnings)
    for words in ("passes over the slices in pretrain", "alignment steps from a random start", "encoded columns"):
        assert words in said
