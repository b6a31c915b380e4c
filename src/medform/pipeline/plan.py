"""What a run is going to do, before it does it: folds, steps, passes, CPU-minutes, and what the cohort could show."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.config import digest
from medform.evaluation.shortcuts import slice_statistics
from medform.metrics.linear_probe import logistic_scores
from medform.metrics.power import detectable_difference
from medform.pipeline.bench import enough_memory
from medform.pipeline.companions import CLINICAL, Companions, wanted
from medform.pipeline.pairing import pair_task
from medform.pipeline.segmentation import segment_stage, segment_task, segments
from medform.pipeline.stages import (
    ImageSide,
    aligns_slices,
    build_encoder,
    feature_input,
    image_stage,
    pair_stage,
    slice_monitor,
    slice_task,
)
from medform.runs.scores import missed_in_words
from medform.training.stage import seconds_per_step, stage_is_complete

if TYPE_CHECKING:
    import pandas as pd

    from medform.inputs.slices import SliceStore
    from medform.pipeline.bench import Bench, Group
    from medform.recipes.recipe import Recipe

__all__ = ["Plan", "make_plan"]

FEW_STEPS = 200  # alignment steps from a random start below which heads hardly leave it
FEW_PASSES = 5  # passes over the slices below which pre-training hardly leaves its start
FEW_COLUMNS = 8  # encoded columns below which a paper-like clinical MLP has next to no vectors
SUPPORTS = ("out_of_fold", "unseen")  # variants that are no models of their own
JUDGED = 3.0  # CPU time of judging, in units of its few-shot fits: their predictions are gathered and written, too
REST = 3.0  # CPU seconds of report, pages and export


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

    @property
    def places(self) -> list[str]:
        """Folders of the folds that it is of, and `final`."""
        return [*map(str, self.folds), *(["final"] if self.final else [])]

    def lines(self) -> list[str]:
        """The plan in words, a line each."""
        final = " and the final model" if self.final else ""
        text = [f"plan: folds {', '.join(map(str, self.folds))}{final}; {len(self.variants)} variants as controls"]
        for name, counts in self.stages.items():
            passes = f", {counts['passes']:.1f} passes over the slices" if "passes" in counts else ""
            text.append(f"  {name}: {counts['steps']:.0f} steps a model{passes}; {counts['models']:.0f} models in all")
        text.append(f"  about {self.cpu_minutes:.0f} CPU-minutes, {self.disk_gb:.1f} GB of disk")
        for task, value in self.detectable.items():
            text.append(f"  AUROC of {task}: {missed_in_words(value)}")
        return [*text, *(f"  warning: {warning}" for warning in self.warnings)]


@dataclass
class _Estimate:
    """What is added up on the way: counts by stage, CPU seconds, warnings, and what will lie on the disk.

    That is one set of features of all slices for each of ``encoders``, and the weights of ``models``.
    """

    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    encoders: int = 0
    models: int = 0


def make_plan(
    bench: Bench,
    recipe: Recipe,
    groups: Sequence[Group],
    labels: pd.DataFrame,
    companions: Companions,
    judged: Sequence[Group] = (),
) -> Plan:
    """Plan of training ``groups`` (those still to be run), and of judging the folds ``judged``, trained before or now.

    Times a few pieces of the work on this machine, by CPU time, so that the estimate is as right on a slow machine as
    on a fast one. This takes some seconds, which are in the estimate, too.
    """
    started = time.process_time()
    variants = {"main": recipe, **{name: recipe.variant(name) for name in recipe.variants}}
    found = _Estimate()
    if groups:
        _plan_slices(bench, recipe, variants, groups, companions, found)
        _plan_pairs(bench, recipe, variants, groups, companions, labels, found)
        _plan_segments(bench, recipe, variants, groups, companions, found)
        found.seconds += _shortcut_seconds(bench, recipe)
    if labels.columns.size:
        found.seconds += _judging_seconds(recipe, variants, judged, labels)
    found.seconds += REST + time.process_time() - started
    detectable = {}
    for task in labels.columns:
        known: Any = labels[task].dropna()
        if known.nunique() == 2:
            smallest = detectable_difference(int(known.sum()), int((1 - known).sum()))
            if smallest is not None:
                detectable[str(task)] = smallest
    size = feature_input(recipe).size
    disk = len(bench.cohort.slices) * (size * size * 2 + 8000 * found.encoders) / 1e9 + 0.02 * found.models
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
    encoder, sources = build_encoder(recipe, 0, companions)
    trained, fixed = _encoders(bench, variants, groups)
    if aligns_slices(recipe) and not sources:
        trained = []
    if trained:
        left = [group.fold for group, complete in trained if not complete]
        objective, loader = slice_task(bench, groups[0].train, recipe, 0, encoder, sources)
        with enough_memory(name, stage.batch):
            per_step = seconds_per_step(objective, loader, bench.folder.cache, stage.optimizer, 0, bench.fabric)
        slices = [len(store.rows(bench.imaged(group.train))) for group in groups]
        seen = stage.batch * getattr(config, "slices", 1)
        per_epoch = [loader.steps_per_epoch if aligns_slices(recipe) else max(1, -(-n // seen)) for n in slices]
        steps = [stage.budget.count(epoch, per_step) for epoch in per_epoch]
        taken = dict(zip((group.fold for group in groups), steps, strict=True))
        found.seconds += per_step * sum(taken[fold] for fold in left)
        logs = sum(taken[fold] // stage.log_every + 2 for fold in left)
        found.seconds += _looking_seconds(bench, groups[0], store, objective) * logs
        # batches are even: of 65 slices in batches of 64 there are two an epoch, and each slice is seen once
        whole = [n / seen for n in slices] if aligns_slices(recipe) else per_epoch
        passes = float(np.mean([count / epoch for count, epoch in zip(steps, whole, strict=True)]))
        found.stages[name] = {"steps": float(np.mean(steps)), "passes": passes, "models": len(left)}
        if not aligns_slices(recipe) and passes < FEW_PASSES:
            found.warnings.append(f"{passes:.1f} passes over the slices in {name}: {FEW_PASSES} or more are wanted")
    found.models += len(trained)
    found.encoders += len(trained) + fixed * len(recipe.seeds)
    found.seconds += _reading_seconds(bench, recipe, encoder.image) * len(bench.cohort.slices) * found.encoders


def _encoders(
    bench: Bench, variants: dict[str, Recipe], groups: Sequence[Group]
) -> tuple[list[tuple[Group, bool]], int]:
    """(group, whether it is complete) of every slice encoder that takes a step, and the number of those that take none.

    Variants with equal settings share the encoder of the first; of variants there is none on everybody.
    """
    name, _ = image_stage(variants["main"])
    seeds = variants["main"].seeds
    stages = {variant: image_stage(one)[1] for variant, one in variants.items()}
    fixed = {str(stage.start) for stage in stages.values() if stage.budget.steps == 0}
    first = {str(stage.model_dump(mode="json")): variant for variant, stage in reversed(stages.items())}
    trained = [variant for variant in first.values() if stages[variant].budget.steps != 0]
    every = [
        (group, stage_is_complete(bench.folder.stage(name, variant, seed, group.fold)))
        for variant in trained
        for group in groups
        if variant == "main" or group.fold is not None
        for seed in seeds
    ]
    return every, len(fixed)


def _plan_pairs(
    bench: Bench, recipe: Recipe, variants: dict[str, Recipe], groups: Sequence[Group], companions: Companions,
    labels: pd.DataFrame, found: _Estimate,
) -> None:  # fmt: skip
    """The second stage of every variant, each kind timed by itself, with the inner ones of its few-shot supports."""
    second = pair_stage(recipe)
    if second is None or not (beside := wanted(second[1], companions)):
        return
    name, stage = second
    side = _made_up_side(bench, recipe, groups[0], companions)
    timed: dict[str, tuple[float, int]] = {}
    steps, count = 0, 0
    for variant, one in variants.items():
        settings = pair_stage(one)
        learns_labels = settings is not None and getattr(settings[1].objective, "kind", "") == "classify"
        if settings is None or variant in SUPPORTS or one.embedding == ["image_only"]:
            continue
        if learns_labels and not labels.columns.size:
            continue
        kind = digest(settings[1].model_dump(mode="json"))
        if kind not in timed:
            timed[kind] = _pair_seconds(bench, one, groups[0], side, companions, labels)
        models = _pair_models(variants, variant, groups, supported="aligned" in one.embedding and not learns_labels)
        found.seconds += timed[kind][0] * models * len(recipe.seeds)
        count += models
        steps = timed[kind][1] if variant == "main" else steps
    found.stages[name] = {"steps": steps, "models": count * len(recipe.seeds)}
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
            with enough_memory(stage[0], stage[1].batch):
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
        found.models += models * len(recipe.seeds)


def _reading_seconds(bench: Bench, recipe: Recipe, tower: Any) -> float:
    """CPU seconds of reading one slice, from a few of them."""
    from medform.inputs.loader import slice_block
    from medform.training.infer import embeddings

    read = bench.slices(feature_input(recipe).size)
    some = np.arange(min(16, len(read)))
    embeddings(tower, slice_block(read, some, {"image": read.images(some)}))
    started = time.process_time()
    embeddings(tower, slice_block(read, some, {"image": read.images(some)}))
    return (time.process_time() - started) / len(some)


def _made_up_side(bench: Bench, recipe: Recipe, group: Group, companions: Companions) -> ImageSide:
    """Slice features of the right shape and no meaning, on which a second stage takes as long as on real ones."""
    config = feature_input(recipe)
    store = bench.slices(config.size)
    encoder, _ = build_encoder(recipe, 0, companions)
    tower: Any = encoder.image
    raw = _vectors(tower, store.images(np.arange(1)), config.layers).shape[1]
    training = len(store.rows(bench.imaged(group.train)))
    width = raw if config.pca is None else max(1, min(config.pca, raw, training - 1))
    feature = np.random.default_rng(0).normal(size=(len(store), width)).astype(np.float32)
    nothing: Any = None
    return ImageSide(store, feature, nothing, nothing, (), np.zeros((0, 1)), "made up")


def _vectors(tower: Any, images: np.ndarray, layers: Sequence[Any]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        weight = next(tower.parameters())
        return tower.eval().slice_vector(torch.from_numpy(images).to(weight.device), layers).cpu().numpy()


def _pair_seconds(
    bench: Bench, recipe: Recipe, group: Group, side: ImageSide, companions: Companions, labels: pd.DataFrame
) -> tuple[float, int]:
    """CPU seconds of one second stage, from its start and a few steps on made-up features; and how many it takes."""
    second = pair_stage(recipe)
    assert second is not None
    stage = second[1]
    primary = bench.cohort.file.primary_name
    known = None if primary is None else labels[primary]
    started = time.process_time()
    objective, loader, _ = pair_task(bench, group.train, recipe, 0, side, companions, known)
    objective.start(loader.whole())
    start = time.process_time() - started
    if stage.budget.steps == 0:
        return start, 0
    with enough_memory(second[0], stage.batch):
        per_step = seconds_per_step(objective, loader, bench.folder.cache, stage.optimizer, 0, bench.fabric)
    steps = stage.budget.count(loader.steps_per_epoch, per_step)
    return start + per_step * steps, steps


def _pair_models(variants: dict[str, Recipe], variant: str, groups: Sequence[Group], *, supported: bool) -> int:
    """How often the second stage of a variant is trained; ``supported``: also for the few-shot supports."""
    inner = pair_stage(variants["out_of_fold"]) if "out_of_fold" in variants else None
    out_of_fold = (inner[1].patients.inner_folds or 5) if inner and supported else 0
    folds = sum(group.fold is not None for group in groups)
    made = folds * (1 + out_of_fold + int("unseen" in variants and supported))
    return made + (1 + out_of_fold) * (len(groups) - folds) if variant == "main" else made


def _looking_seconds(bench: Bench, group: Group, store: SliceStore, objective: Any) -> float:
    """CPU seconds of what each log of the slice stage looks at."""
    monitor = slice_monitor(bench.cohort, store, store.rows(bench.imaged(group.train)))
    started = time.process_time()
    monitor(objective)
    return time.process_time() - started


def _shortcut_seconds(bench: Bench, recipe: Recipe) -> float:
    """CPU seconds of the statistics of all slices; where slices have labels, those of the whole slices, too."""
    store = bench.slices(feature_input(recipe).size)
    some = np.linspace(0, len(store) - 1, min(8, len(store))).astype(int)
    started = time.process_time()
    for image in store.images(some):
        slice_statistics(image[0])
    if bench.cohort.slice_tasks:
        slices = bench.cohort.slices.iloc[some]
        for series_id, index in zip(slices["series_id"], slices["index"], strict=True):
            slice_statistics(bench.cohort.open(str(series_id)).slice(int(index)))
    return (time.process_time() - started) / len(some) * len(store)


def _judging_seconds(
    recipe: Recipe, variants: dict[str, Recipe], groups: Sequence[Group], labels: pd.DataFrame
) -> float:
    """CPU seconds of the evaluation of the folds with every seed, from a few-shot batch of the usual size."""
    folds = [group for group in groups if group.fold is not None]
    if not folds:
        return 0.0
    settings = recipe.evaluation
    random = np.random.default_rng(0)
    few, columns = 5, 64
    pool = random.normal(size=(max(4 * few, len(folds[0].train)), columns)) / np.sqrt(columns)
    queries = random.normal(size=(max(1, len(folds[0].test)), columns)) / np.sqrt(columns)
    supports = np.stack([random.permutation(len(pool))[: 2 * few] for _ in range(settings.draws)])
    y = np.tile(np.repeat([0.0, 1.0], few), (settings.draws, 1))
    started = time.process_time()
    logistic_scores(pool, queries, supports, y, settings.image_c)
    per_batch = time.process_time() - started
    models = {name: one for name, one in variants.items() if name not in SUPPORTS}
    supported = sum(len(SUPPORTS) + 1 if "aligned" in one.embedding else 2 for one in models.values())
    batches = (supported + 4) * len(settings.shots) * len(labels.columns)  # 4: table and intensity statistics
    return JUDGED * per_batch * batches * len(folds) * len(recipe.seeds)
