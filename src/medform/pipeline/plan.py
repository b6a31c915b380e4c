"""What a run is going to do, before it does it: folds, steps, passes, CPU-minutes, and what the cohort could show."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.metrics.power import detectable_difference
from medform.pipeline.companions import CLINICAL, Companions, wanted
from medform.pipeline.segmentation import segment_stage, segment_task, segments
from medform.pipeline.stages import (
    Bench,
    Group,
    aligns_slices,
    build_encoder,
    feature_input,
    image_stage,
    pair_stage,
    slice_task,
)
from medform.training.stage import seconds_per_step

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


@dataclass
class _Estimate:
    """What is added up on the way: counts by stage, CPU seconds, warnings."""

    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


def make_plan(
    bench: Bench, recipe: Recipe, groups: Sequence[Group], labels: pd.DataFrame, companions: Companions
) -> Plan:
    """Plan of training ``groups`` (those still to be run). Times a few steps, which takes some seconds."""
    variants = {"main": recipe, **{name: recipe.variant(name) for name in recipe.variants}}
    found = _Estimate()
    if groups:
        _plan_slices(bench, recipe, variants, groups, companions, found)
        _plan_pairs(bench, recipe, variants, groups, companions, found)
        _plan_segments(bench, recipe, variants, groups, companions, found)
    found.seconds += 0.25 * len(labels) * max(1, len(labels.columns)) if len(labels.columns) else 0.0
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
    names = tuple(recipe.variants)
    return Plan(folds, final, names, found.stages, found.seconds / 60, disk, detectable, tuple(found.warnings))


def _plan_slices(
    bench: Bench, recipe: Recipe, variants: dict[str, Recipe], groups: Sequence[Group], companions: Companions,
    found: _Estimate,
) -> None:  # fmt: skip
    """The slice stage of every variant that has one of its own, and reading all slices with each encoder."""
    name, stage = image_stage(recipe)
    config: Any = stage.inputs["image"]
    store = bench.slices(config.source)
    slices = [len(store.rows(bench.imaged(group.train))) for group in groups]
    seeds = len(recipe.seeds)
    settings = {variant: image_stage(one)[1] for variant, one in variants.items()}
    trained = {str(one.model_dump(mode="json")) for one in settings.values() if one.budget.steps != 0}
    fixed = {str(one.start) for one in settings.values() if one.budget.steps == 0}
    encoder, sources = build_encoder(recipe, 0, companions)
    models = 0
    if not aligns_slices(recipe) or sources:
        objective, loader = slice_task(bench, groups[0].train, recipe, 0, encoder, sources)
        per_step = seconds_per_step(objective, loader, bench.folder.cache, stage.optimizer, 0, bench.fabric)
        seen = stage.batch * getattr(config, "slices", 1)
        per_epoch = [loader.steps_per_epoch if aligns_slices(recipe) else max(1, -(-n // seen)) for n in slices]
        steps = [stage.budget.count(epoch, per_step) for epoch in per_epoch]
        models = len(trained) * len(groups) * seeds
        found.seconds += per_step * sum(steps) * len(trained) * seeds
        passes = float(np.mean([count * seen / n for count, n in zip(steps, slices, strict=True)]))
        found.stages[name] = {"steps": float(np.mean(steps)), "passes": passes, "models": models}
        if not aligns_slices(recipe) and passes < FEW_PASSES:
            found.warnings.append(f"{passes:.1f} passes over the slices in {name}: {FEW_PASSES} or more are wanted")
    per_slice = _reading_seconds(bench, recipe, encoder.image)
    found.seconds += per_slice * len(bench.cohort.slices) * (models + len(fixed) * seeds)


def _plan_pairs(
    bench: Bench, recipe: Recipe, variants: dict[str, Recipe], groups: Sequence[Group], companions: Companions,
    found: _Estimate,
) -> None:  # fmt: skip
    """The alignment of bags, with its inner ones."""
    second = pair_stage(recipe)
    if second is None or not (beside := wanted(second[1], companions)):
        return
    name, stage = second
    count, per_model = _pair_counts(variants, groups)
    batch = min(stage.batch, max(len(bench.imaged(group.train)) for group in groups))
    steps = stage.budget.count(max(1, len(bench.imaged(groups[0].train)) // batch), 0.05)
    found.stages[name] = {"steps": steps, "models": count * len(recipe.seeds)}
    found.seconds += per_model * count * len(recipe.seeds)
    if stage.start.heads != "cca" and steps < FEW_STEPS:
        found.warnings.append(f"{steps} alignment steps from a random start: {FEW_STEPS} or more are wanted")
    columns = companions.width(CLINICAL) if CLINICAL in beside else FEW_COLUMNS
    if getattr(stage.towers.get(CLINICAL), "kind", "") == "mlp" and columns < FEW_COLUMNS:
        found.warnings.append(
            f"the clinical MLP has {columns} encoded columns; fewer than {FEW_COLUMNS} leave it next to no "
            "different vectors (a layer norm over two columns leaves two)"
        )


def _plan_segments(
    bench: Bench, recipe: Recipe, variants: dict[str, Recipe], groups: Sequence[Group], companions: Companions,
    found: _Estimate,
) -> None:  # fmt: skip
    """The segmentation of every variant, each timed by itself, and drawing the masks."""
    timed: dict[str, tuple[float, float, int]] = {}
    for variant, one in variants.items():
        stage = segment_stage(one)
        if stage is None or not segments(one):
            continue
        kind = str([part.model_dump(mode="json") for part in stage[1].towers.values()])
        if kind not in timed:
            encoder, _ = build_encoder(one, 0, companions)
            objective, loader = segment_task(bench, groups[0].train, one, 0, encoder, companions)
            cache, optimizer = bench.folder.cache, stage[1].optimizer
            per_step = seconds_per_step(objective, loader, cache, optimizer, 0, bench.fabric)
            steps = stage[1].budget.count(loader.steps_per_epoch, per_step)
            # drawing a slice, mirrored too, costs about two forward passes: two thirds of a step's share
            timed[kind] = per_step, 0.7 * per_step / stage[1].batch, steps
        per_step, per_slice, steps = timed[kind]
        models = len(groups) if variant == "main" else sum(group.fold is not None for group in groups)
        drawn = sum(len(bench.imaged((*group.validation, *group.test))) for group in groups)
        share = drawn / max(1, len(bench.cohort.patient_ids))
        found.seconds += len(recipe.seeds) * (per_step * steps * models + per_slice * share * len(bench.cohort.slices))
        counts = found.stages.setdefault(stage[0], {"steps": steps, "models": 0})
        counts["models"] += models * len(recipe.seeds)


def _reading_seconds(bench: Bench, recipe: Recipe, tower: Any) -> float:
    """CPU seconds of reading one slice, from a few of them."""
    from medform.inputs.loader import slice_block
    from medform.training.infer import embeddings

    read = bench.slices(feature_input(recipe).size)
    some = np.arange(min(16, len(read)))
    block = slice_block(read, some, {"image": read.images(some)})
    embeddings(tower, block)
    started = time.process_time()
    embeddings(tower, block)
    return (time.process_time() - started) / len(some)


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
