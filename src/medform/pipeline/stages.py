"""Trains the stages of one variant of a recipe on one group of patients; every stage once, whatever shares it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.compute.precision import PrecisionName
from medform.config import digest
from medform.evaluation.shortcuts import intensity_statistics
from medform.inputs.bags import BagSource
from medform.inputs.features import FeatureInputConfig, FeatureMap, ImageOnly, mean_bags
from medform.inputs.loader import PatientLoader, RowSource, SliceLoader, SlicePatientLoader
from medform.inputs.masks import MaskStore, working_masks
from medform.inputs.slices import SliceInputConfig, SliceStore, working_slices
from medform.inputs.stacks import PatientSlicesConfig
from medform.models.weights import start_from
from medform.objectives.align import Align, AlignConfig
from medform.objectives.classify import ClassifyConfig
from medform.pipeline.companions import CLINICAL, Companions, wanted
from medform.training.infer import RankMonitor, bag_embeddings, slice_features, weights_digest
from medform.training.slice_probe import SliceProbeMonitor, together
from medform.training.stage import StageResult, run_stage

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.interfaces import Tower
    from medform.recipes.recipe import Recipe, Stage
    from medform.runs.folder import RunFolder
    from medform.training.fit import Monitor

__all__ = [
    "Bench",
    "Encoder",
    "Group",
    "ImageSide",
    "Pairing",
    "aligns_slices",
    "build_beside",
    "build_encoder",
    "image_side",
    "image_stage",
    "pair",
    "pair_stage",
    "pair_task",
    "slice_means",
    "slice_monitor",
    "slice_task",
    "train_encoder",
]


@dataclass(frozen=True)
class Group:
    """The patients of one fold, or, with ``fold`` None, all of them for the final model."""

    fold: int | None
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    @property
    def everybody(self) -> tuple[str, ...]:
        """Training, validation and test patients, in that order."""
        return (*self.train, *self.validation, *self.test)


@dataclass(frozen=True)
class Bench:
    """What all stages of a run share. ``progress(done, total, what)`` is told how far the longer ones are."""

    cohort: Cohort
    folder: RunFolder
    fabric: Fabric
    threads: int = 1
    progress: Progress | None = None
    precision: PrecisionName = "fp32"
    _slices: dict[int, SliceStore] = field(default_factory=dict, repr=False)
    _masks: dict[tuple[int, tuple[int, ...] | None], MaskStore] = field(default_factory=dict, repr=False)
    _intensity: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def slices(self, size: int) -> SliceStore:
        """The cohort's slices at a working size, made once."""
        if size not in self._slices:
            self._slices[size] = working_slices(self.cohort, size, self.folder.cache, self.telling("preparing slices"))
        return self._slices[size]

    def digest(self, made_from: list[Any]) -> str:
        """Of what a stage is made from, the precision included where it is not plain fp32."""
        return digest(made_from if self.precision == "fp32" else [*made_from, self.precision])

    def masks(self, size: int, values: tuple[int, ...] | None) -> MaskStore:
        """The masks of `slices`, made once."""
        if (size, values) not in self._masks:
            told = self.telling("preparing masks")
            self._masks[size, values] = working_masks(self.cohort, size, values, self.folder.cache, told)
        return self._masks[size, values]

    def imaged(self, patients: Sequence[str]) -> list[str]:
        """Those of ``patients`` that have slices."""
        return [patient for patient in patients if self.has_image(patient)]

    def has_image(self, patient: str) -> bool:
        """Whether the patient has slices."""
        return patient in self._with_images

    @cached_property
    def _with_images(self) -> frozenset[str]:
        return frozenset(self.cohort.slices["patient_id"])

    def intensity(self, size: int) -> dict[str, np.ndarray]:
        """Intensity statistics and bag size (11,) of every patient with images, made once."""
        if not self._intensity:
            store = self.slices(size)
            for patient in self.imaged(store.patient_ids):
                rows = store.rows([patient])
                self._intensity[patient] = intensity_statistics(image[0] for image in store.images(rows))
        return self._intensity

    @cached_property
    def _pseudonyms(self) -> list[str]:
        return list(self.cohort.patients["pseudonym"])

    def names(self, codes: Sequence[int]) -> list[str]:
        """Pseudonyms of patient numbers, for messages."""
        return [self._pseudonyms[code] for code in codes]

    def telling(self, what: str) -> Callable[[int, int], None] | None:
        """``progress`` for one piece of work."""
        if self.progress is None:
            return None
        progress = self.progress
        return lambda done, total: progress(done, total, what)


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
    lesions = bench.masks(config.source, None).lesion_pixels if config.lesion_weight != 1 else None
    loader = SlicePatientLoader(
        store, store.codes(patients), config, stage.batch, seed, sources, bench.threads, lesions, stage.pairing
    )
    return objective.build(dict(encoder.towers), start=stage.start.heads or "random"), loader


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
    made_from = [stage.model_dump(mode="json"), sorted(group.train), seed, store.digest]
    if sources:
        made_from.append(companions.digest(list(sources)))
    result = run_stage(
        objective,
        loader,
        folder=bench.folder.stage(name, variant, seed, group.fold),
        digest=bench.digest(made_from),
        optimizer=stage.optimizer,
        budget=stage.budget,
        seed=seed,
        fabric=bench.fabric,
        log=stage_log(bench, group, variant, seed, name),
        log_every=stage.log_every,
        checkpoint_every=stage.checkpoint_every,
        monitor=slice_monitor(bench.cohort, store, store.rows(bench.imaged(group.train))),
        names=bench.names,
        progress=bench.telling(f"{place(group)} {variant}: {name}"),
    )
    return Encoder(encoder.towers, result)


def slice_monitor(cohort: Cohort, store: SliceStore, rows: np.ndarray) -> Monitor:
    """What the log of a slice stage says beside the loss; ``rows`` are the training slices."""
    rank = RankMonitor.over(store, rows)
    labels = {task.name: cohort.slice_labels(task.name).reindex(list(store.slice_ids)) for task in cohort.slice_tasks}
    if not labels:
        return rank
    values = {name: one.to_numpy(np.float64) for name, one in labels.items()}
    return together(rank, SliceProbeMonitor.over(store, rows, values))


def place(group: Group) -> str:
    """A group in words."""
    return "final model" if group.fold is None else f"fold {group.fold}"


def stage_log(bench: Bench, group: Group, variant: str, seed: int, stage: str) -> Any:
    """Where the lines of one stage go in metrics.jsonl."""
    from medform.runs.log import StageLog

    where = {"stage": stage, "fold": group.fold, "variant": variant, "seed": seed}
    return StageLog(bench.folder.metrics, where)


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
    progress = bench.telling(f"{place(group)}: reading slices")
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


@dataclass(frozen=True)
class Pairing:
    """A trained second stage: the objective and the training patients it saw."""

    objective: Any
    patients: tuple[str, ...]
    result: StageResult | None

    @property
    def tower(self) -> Tower:
        """The image tower."""
        return self.objective.towers["image"]

    def aligned(self, side: ImageSide, patients: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """Vectors in the shared space (n, c) and the attention of every slice (T',)."""
        return bag_embeddings(self.tower, side.block(patients))

    def bags(self, side: ImageSide, patients: Sequence[str]) -> np.ndarray:
        """The pooled bags themselves (n, e)."""
        import torch

        with torch.inference_mode():
            tower: Any = self.tower.eval()
            device = next(tower.parameters()).device
            return tower.bags(side.block(patients).to(device))[0].float().cpu().numpy()


def pair(
    bench: Bench,
    group: Group,
    recipe: Recipe,
    variant: str,
    seed: int,
    side: ImageSide,
    companions: Companions,
    patients: Sequence[str],
    labels: Any = None,
    frozen: Pairing | None = None,
) -> Pairing:
    """Train the second stage of ``recipe`` on ``patients``.

    ``labels`` (a float Series by patient) are for a supervised objective. With ``frozen`` the towers beside the image
    of another pairing are taken over unchanged, so that both end in one space.
    """
    name, stage = _paired(recipe)
    objective, loader, train = pair_task(bench, patients, recipe, seed, side, companions, labels)
    beside = [modality for modality in objective.towers if modality != "image"]
    if frozen is not None:
        for modality in beside:
            objective.towers[modality].load_state_dict(frozen.objective.towers[modality].state_dict())
            objective.freeze(modality)
        objective.temperature.load_state_dict(frozen.objective.temperature.state_dict())
    made_from = [stage.model_dump(mode="json"), sorted(train), seed, side.weights, side.store.digest]
    if companions.modalities:
        made_from.append(companions.digest(beside or [CLINICAL]))
    if frozen is not None:
        made_from.append(weights_digest(frozen.objective))
    result = run_stage(
        objective,
        loader,
        folder=bench.folder.stage(name, variant, seed, group.fold),
        digest=bench.digest(made_from),
        optimizer=stage.optimizer,
        budget=stage.budget,
        seed=seed,
        fabric=bench.fabric,
        log=stage_log(bench, group, variant, seed, name),
        log_every=stage.log_every,
        checkpoint_every=stage.checkpoint_every,
        names=bench.names,
    )
    return Pairing(objective, tuple(train), result)


def _paired(recipe: Recipe) -> tuple[str, Stage]:
    found = pair_stage(recipe)
    assert found is not None
    return found


def pair_task(
    bench: Bench, patients: Sequence[str], recipe: Recipe, seed: int, side: ImageSide, companions: Companions,
    labels: Any = None,
) -> tuple[Any, PatientLoader, list[str]]:  # fmt: skip
    """The second stage before its first step: objective, loader, and those of ``patients`` that it trains on."""
    name, stage = _paired(recipe)
    objective, sources = _paired_objective(name, stage, seed, side, companions, labels)
    beside = [modality for modality in objective.towers if modality != "image"]
    there = {patient for modality in beside for patient in companions.patients(modality)} & set(patients)
    train = [patient for patient in patients if patient in there or bench.has_image(patient)]
    return objective, PatientLoader(sources, side.store.codes(train), stage.batch, seed, stage.pairing), train


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


def _paired_objective(
    name: str, stage: Stage, seed: int, side: ImageSide, companions: Companions, labels: Any
) -> tuple[Any, dict[str, Any]]:
    """The objective over towers of the widths at hand, and a source of rows for each modality it takes."""
    from medform.compute.seed import generator

    objective_config: Any = stage.objective
    sources: dict[str, Any] = {"image": BagSource.of(side.feature, side.store)}
    towers: dict[str, Any] = {}
    width = side.feature.shape[1]
    shared = None
    if isinstance(objective_config, AlignConfig):
        columns = [companions.width(modality) for modality in wanted(stage, companions)]
        shared = objective_config.shared_width(width, *columns)
        towers, beside = build_beside(name, stage, seed, companions, shared)
        sources |= beside
    tower_config: Any = stage.towers["image"]
    pool_start = stage.start.pool or "uniform"
    towers["image"] = tower_config.build(
        width, generator(seed, name, "image"), shared_width=shared, pool_start=pool_start
    )
    if isinstance(objective_config, ClassifyConfig):
        known = labels.dropna()
        codes = side.store.codes([patient for patient in known.index if patient in set(side.store.patient_ids)])
        values = known.reindex([side.store.patient_ids[code] for code in codes]).to_numpy(np.float32)
        sources["label"] = RowSource(values, codes, "label")
        return objective_config.build(towers, generator(seed, name, "objective")), sources
    return objective_config.build(towers, start=stage.start.heads or "random"), sources


def is_alignment(pairing: Pairing) -> bool:
    """Whether the second stage brought two modalities together (and did not learn a label)."""
    return isinstance(pairing.objective, Align)
