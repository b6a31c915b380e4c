"""The stage that learns from single slices, and what its encoder makes of the cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.inputs.bags import BagSource
from medform.inputs.features import FeatureInputConfig, FeatureMap, ImageOnly, mean_bags
from medform.inputs.loader import SliceLoader, SlicePatientLoader
from medform.inputs.masks import MaskInputConfig
from medform.inputs.slices import SliceInputConfig, SliceStore
from medform.inputs.stacks import PatientSlicesConfig
from medform.models.weights import start_from
from medform.objectives.align import AlignConfig
from medform.pipeline.companions import Companions, wanted
from medform.training.infer import RankMonitor, slice_features, weights_digest
from medform.training.slice_probe import SliceProbeMonitor, together
from medform.training.stage import StageResult

if TYPE_CHECKING:
    from medform.cohort.store import Cohort
    from medform.inputs.masks import MaskStore
    from medform.pipeline.bench import Bench, Group
    from medform.recipes.recipe import Recipe, Stage
    from medform.training.fit import Monitor

__all__ = [
    "Encoder",
    "ImageSide",
    "aligns_slices",
    "build_beside",
    "build_encoder",
    "feature_input",
    "image_side",
    "image_stage",
    "pair_stage",
    "slice_means",
    "slice_monitor",
    "slice_task",
    "train_encoder",
]


def image_stage(recipe: Recipe) -> tuple[str, Stage]:
    """Name and settings of the first stage that learns vectors of single slices, alone or beside other modalities."""
    kinds = (SliceInputConfig, PatientSlicesConfig)
    return next((name, s) for name, s in recipe.stages.items() if isinstance(s.inputs.get("image"), kinds))


def pair_stage(recipe: Recipe) -> tuple[str, Stage] | None:
    """Name and settings of the stage that learns from a patient's bag, None where the recipe has none."""
    found = ((name, s) for name, s in recipe.stages.items() if isinstance(s.inputs.get("image"), FeatureInputConfig))
    return next(found, None)


def aligns_slices(recipe: Recipe) -> bool:
    """Whether single slices themselves are aligned with another modality, without a stage of bags."""
    return isinstance(image_stage(recipe)[1].objective, AlignConfig)


def feature_input(recipe: Recipe) -> FeatureInputConfig:
    """How the recipe reads slice features; the head of its last slice stage where no stage says it."""
    found = pair_stage(recipe)
    if found is not None:
        config = found[1].inputs["image"]
        assert isinstance(config, FeatureInputConfig)
        return config
    name, stage = image_stage(recipe)
    config: Any = stage.inputs["image"]
    size = config.source if isinstance(config, SliceInputConfig) else config.size
    return FeatureInputConfig(of=name, size=size, layers=["head"], smooth="none", pca=None)


@dataclass(frozen=True)
class Encoder:
    """What the slice stage leaves: its towers, of which ``image`` encodes slices; no result where it took no step."""

    towers: Mapping[str, Any]
    result: StageResult | None = None

    @property
    def image(self) -> Any:
        """The tower of slices."""
        return self.towers["image"]


def build_beside(
    name: str, stage: Stage, seed: int, companions: Companions, shared: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The towers of ``stage`` beside the image, of the widths at hand, and a source of rows for each."""
    from medform.compute.seed import generator

    towers, sources = {}, {}
    for modality in wanted(stage, companions):
        config: Any = stage.towers[modality]
        random = generator(seed, name, modality)
        towers[modality] = config.build(companions.width(modality), random, shared_width=shared)
        sources[modality] = companions.source(modality)
    return towers, sources


def build_encoder(recipe: Recipe, seed: int, companions: Companions) -> tuple[Encoder, dict[str, Any]]:
    """The towers of the slice stage at their start, and a source of rows for those beside the image."""
    from medform.compute.seed import generator

    name, stage = image_stage(recipe)
    config: Any = stage.towers["image"]
    tower = config.build(generator(seed, name, "tower"))
    start_from(tower, stage.start.image or "random")
    beside, sources = build_beside(name, stage, seed, companions, tower.width)
    return Encoder({"image": tower, **beside}), sources


def slice_task(
    bench: Bench, patients: Sequence[str], recipe: Recipe, seed: int, encoder: Encoder, sources: Mapping[str, Any]
) -> tuple[Any, Any]:
    """The objective of the slice stage over the towers of ``encoder``, and the loader of its batches."""
    from medform.compute.seed import generator

    name, stage = image_stage(recipe)
    config: Any = stage.inputs["image"]
    objective: Any = stage.objective
    store = bench.slices(config.source)
    if not aligns_slices(recipe):
        rows = store.rows(bench.imaged(patients))
        built = objective.build(dict(encoder.towers), generator(seed, name, "objective"))
        return built, SliceLoader(store, rows, config, stage.batch, seed, bench.threads)
    masks = _lesions(bench, recipe) if config.lesion_weight != 1 else None
    loader = SlicePatientLoader(
        store,
        store.codes(patients),
        config,
        stage.batch,
        seed,
        sources,
        threads=bench.threads,
        lesion_pixels=None if masks is None else masks.lesion_pixels,
        pairing=stage.pairing,
    )
    return objective.build(dict(encoder.towers), start=stage.start.heads or "random"), loader


def _lesions(bench: Bench, recipe: Recipe) -> MaskStore:
    """Masks at the size of the slice stage, with the labels that the recipe's mask input calls lesion (None: any)."""
    inputs = (one for stage in recipe.stages.values() for one in stage.inputs.values())
    found = next((one.values for one in inputs if isinstance(one, MaskInputConfig)), None)
    config: Any = image_stage(recipe)[1].inputs["image"]
    return bench.masks(config.source, tuple(found) if found else None)


def train_encoder(
    bench: Bench, group: Group, recipe: Recipe, variant: str, seed: int, companions: Companions
) -> Encoder:
    """The slice encoder of a variant, trained on the group's training patients."""
    name, stage = image_stage(recipe)
    config: Any = stage.inputs["image"]
    encoder, sources = build_encoder(recipe, seed, companions)
    if stage.budget.steps == 0 or (aligns_slices(recipe) and not sources):
        encoder.image.to(bench.fabric.device)
        return encoder
    store = bench.slices(config.source)
    objective, loader = slice_task(bench, group.train, recipe, seed, encoder, sources)
    made_from = [sorted(group.train), store.digest, companions.digest(list(sources))]
    if (stage.start.image or "random") not in ("random", "imagenet"):  # a file may change under its name
        made_from.append(weights_digest(encoder.image))
    if getattr(config, "lesion_weight", 1) != 1:
        made_from.append(_lesions(bench, recipe).digest)
    monitor = slice_monitor(bench.cohort, store, store.rows(bench.imaged(group.train)))
    result = bench.train(group, variant, seed, (name, stage), objective, loader, made_from, monitor)
    return Encoder(encoder.towers, result)


def slice_monitor(cohort: Cohort, store: SliceStore, rows: np.ndarray) -> Monitor:
    """What the log of a slice stage says beside the loss; ``rows`` are the training slices."""
    rank = RankMonitor.over(store, rows)
    labels = {task.name: cohort.slice_labels(task.name).reindex(list(store.slice_ids)) for task in cohort.slice_tasks}
    if not labels:
        return rank
    values = {name: one.to_numpy(np.float64) for name, one in labels.items()}
    return together(rank, SliceProbeMonitor.over(store, rows, values))


@dataclass(frozen=True)
class ImageSide:
    """What an encoder makes of the cohort: slice features (T, k) fitted on training slices, image-only vectors (n, p).

    ``patients`` are the group's patients with images, in the group's order; ``vectors`` belongs to them.
    """

    store: SliceStore
    feature: np.ndarray
    feature_map: FeatureMap
    image_only: ImageOnly
    patients: tuple[str, ...]
    vectors: np.ndarray
    weights: str

    def block(self, patients: Sequence[str]) -> Any:
        """The bags of ``patients`` as a packed block."""
        return BagSource.of(self.feature, self.store).block(self.store.codes(patients))

    def of(self, patients: Sequence[str]) -> np.ndarray:
        """Image-only vectors of some of the group's patients, in the order asked."""
        row = {patient: number for number, patient in enumerate(self.patients)}
        return self.vectors[[row[patient] for patient in patients]]


def image_side(bench: Bench, group: Group, recipe: Recipe, tower: Any) -> ImageSide:
    """Run the frozen encoder over the cohort and fit, on training slices and patients only, what follows it."""
    config = feature_input(recipe)
    store = bench.slices(config.size)
    progress = bench.telling(f"{group.place}: reading slices")
    raw = slice_features(tower, store, config.layers, cache=bench.folder.cache, progress=progress)
    train = bench.imaged(group.train)
    training = np.isin(store.patient, store.codes(train))
    feature_map = FeatureMap.fit(raw, store.series, training, config)
    feature = feature_map.apply(raw, store.series)
    patients = bench.imaged(group.everybody)
    bags = mean_bags(feature, store.patient, store.codes(patients))
    image_only = ImageOnly.fit(bags[: len(train)], recipe.image_only.pca, recipe.image_only.power)
    vectors = image_only.apply(bags)
    return ImageSide(store, feature, feature_map, image_only, tuple(patients), vectors, weights_digest(tower))


def slice_means(bench: Bench, side: ImageSide, encoder: Encoder, patients: Sequence[str]) -> np.ndarray:
    """Mean of the aligned vectors of a patient's slices, each of length 1 (n, d): the image in the shared space."""
    raw = slice_features(encoder.image, side.store, ["head"], cache=bench.folder.cache)
    length = np.linalg.norm(raw, axis=1, keepdims=True)
    return mean_bags(raw / np.maximum(length, 1e-12), side.store.patient, side.store.codes(patients))
