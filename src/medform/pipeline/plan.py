"""What a run is going to do, before it does it: folds, steps, passes, CPU-minutes, and what the cohort could show."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.metrics.power import detectable_difference
from medform.pipeline.stages import Bench, Group, feature_input, image_stage, pair_stage

if TYPE_CHECKING:
    import pandas as pd

    from medform.recipes.recipe import Recipe

__all__ = ["Plan", "make_plan"]

FEW_STEPS = 200  # alignment steps from a random start below which heads hardly leave it
FEW_PASSES = 5  # passes over the slices below which pre-training hardly leaves its start
FEW_COLUMNS = 8  # encoded columns below which a paper-like clinical MLP has next to no vectors


@dataclass(frozen=True)
class Plan:
    """Counts and estimates of a run; ``stages`` maps a stage to its steps and passes in one fold."""

    folds: tuple[int, ...]
    final: bool
    variants: tuple[str, ...]
    stages: dict[str, dict[str, float]]
    cpu_minutes: float
    disk_gb: float
    detectable: dict[str, float]
    warnings: tuple[str, ...] = field(default=())

    def lines(self) -> list[str]:
        """The plan in words, a line each."""
        final = " and the final model" if self.final else ""
        text = [f"plan: folds {', '.join(map(str, self.folds))}{final}; {len(self.variants)} variants as controls"]
        for name, counts in self.stages.items():
            passes = f", {counts['passes']:.1f} passes over the slices" if "passes" in counts else ""
            text.append(f"  {name}: {counts['steps']:.0f} steps a model{passes}; {counts['models']:.0f} models in all")
        text.append(f"  about {self.cpu_minutes:.0f} CPU-minutes, {self.disk_gb:.1f} GB of disk")
        for task, value in self.detectable.items():
            text.append(f"  {task}: a difference in AUROC below {value:.2f} could not be seen with these patients")
        return [*text, *(f"  warning: {warning}" for warning in self.warnings)]


def make_plan(
    bench: Bench, recipe: Recipe, groups: Sequence[Group], labels: pd.DataFrame, encoded_columns: int
) -> Plan:
    """Plan of training ``groups`` (those still to be run). Times a few steps, which takes some seconds."""
    variants = {"main": recipe, **{name: recipe.variant(name) for name in recipe.variants}}
    stages: dict[str, dict[str, float]] = {}
    seconds = 0.0
    warnings: list[str] = []
    name, stage = image_stage(recipe)
    config: Any = stage.inputs["image"]
    slices = [len(bench.slices(config.source).rows(bench.imaged(group.train))) for group in groups]
    seeds = len(recipe.seeds)
    trained = {
        str(image_stage(variant)[1].model_dump(mode="json"))
        for variant in variants.values()
        if image_stage(variant)[1].budget.steps != 0
    }
    if groups:
        per_step, per_slice = _image_seconds(bench, recipe, groups[0])
        per_epoch = [max(1, -(-count // stage.batch)) for count in slices]
        steps = [stage.budget.count(epoch, per_step) for epoch in per_epoch]
        seconds += per_step * sum(steps) * len(trained) * seeds
        passes = float(np.mean([count / epoch for count, epoch in zip(steps, per_epoch, strict=True)]))
        models = len(trained) * len(groups) * seeds
        stages[name] = {"steps": float(np.mean(steps)), "passes": passes, "models": models}
        if passes < FEW_PASSES:
            warnings.append(f"{passes:.1f} passes over the slices in {name}: {FEW_PASSES} or more are wanted")
        fixed = len({str(image_stage(v)[1].start) for v in variants.values() if image_stage(v)[1].budget.steps == 0})
        seconds += per_slice * len(bench.cohort.slices) * (models + fixed * seeds)
    second = pair_stage(recipe)
    if second is not None and encoded_columns and groups:
        count, per_model = _pair_counts(variants, groups)
        batch = min(second[1].batch, max(len(bench.imaged(group.train)) for group in groups))
        steps = second[1].budget.count(max(1, len(bench.imaged(groups[0].train)) // batch), 0.05)
        stages[second[0]] = {"steps": steps, "models": count * seeds}
        seconds += per_model * count * seeds
        if second[1].start.heads != "cca" and steps < FEW_STEPS:
            warnings.append(f"{steps} alignment steps from a random start: {FEW_STEPS} or more are wanted")
        if getattr(second[1].towers.get("clinical"), "kind", "") == "mlp" and encoded_columns < FEW_COLUMNS:
            warnings.append(
                f"the clinical MLP has {encoded_columns} encoded columns; fewer than {FEW_COLUMNS} leave it next to no "
                "different vectors (a layer norm over two columns leaves two)"
            )
    seconds += 0.25 * len(labels) * max(1, len(labels.columns)) if len(labels.columns) else 0.0
    detectable = {}
    for task in labels.columns:
        known: Any = labels[task].dropna()
        if known.nunique() == 2:
            smallest = detectable_difference(int(known.sum()), int((1 - known).sum()))
            if smallest is not None:
                detectable[str(task)] = smallest
    size = feature_input(recipe).size
    disk = len(bench.cohort.slices) * (size * size * 2 + 8000 * (len(groups) + 2)) / 1e9 + 0.02 * len(groups)
    folds = tuple(group.fold for group in groups if group.fold is not None)
    final = any(group.fold is None for group in groups)
    return Plan(folds, final, tuple(recipe.variants), stages, seconds / 60, disk, detectable, tuple(warnings))


def _image_seconds(bench: Bench, recipe: Recipe, group: Group) -> tuple[float, float]:
    """CPU seconds of one training step and of reading one slice, from a few of each."""
    from medform.compute.seed import generator
    from medform.inputs.loader import SliceLoader
    from medform.training.infer import embeddings
    from medform.training.stage import seconds_per_step

    name, stage = image_stage(recipe)
    config: Any = stage.inputs["image"]
    tower_config: Any = stage.towers["image"]
    objective_config: Any = stage.objective
    tower = tower_config.build(generator(0, "plan"))
    objective = objective_config.build({"image": tower}, generator(0, "plan"))
    store = bench.slices(config.source)
    rows = store.rows(bench.imaged(group.train))
    loader = SliceLoader(store, rows, config, stage.batch, 0, bench.threads)
    per_step = seconds_per_step(objective, loader, bench.folder.cache, stage.optimizer, 0, bench.fabric)
    size = feature_input(recipe).size
    read = bench.slices(size)
    some = np.arange(min(16, len(read)))
    block = SliceLoader(read, some, config, len(some), 0).whole()["image"]
    embeddings(tower, block)
    started = time.process_time()
    embeddings(tower, block)
    return per_step, (time.process_time() - started) / len(some)


def _pair_counts(variants: dict[str, Recipe], groups: Sequence[Group]) -> tuple[int, float]:
    """How many second stages are trained, and about how many CPU seconds one takes."""
    alone = with_supports = 0
    for name, variant in variants.items():
        found = pair_stage(variant)
        if found is None or name in ("out_of_fold", "unseen") or variant.embedding == ["image_only"]:
            continue
        alone += 1
        with_supports += "aligned" in variant.embedding and getattr(found[1].objective, "kind", "") != "classify"
    inner = pair_stage(variants["out_of_fold"]) if "out_of_fold" in variants else None
    out_of_fold = (inner[1].patients.inner_folds or 5) if inner else 0
    unseen = int("unseen" in variants)
    folds = sum(group.fold is not None for group in groups)
    final = len(groups) - folds
    return folds * (alone + with_supports * (out_of_fold + unseen)) + final * (1 + out_of_fold), 1.0
