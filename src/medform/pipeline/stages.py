"""Trains the stages of one variant of a recipe on one group of patients; every stage once, whatever shares it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.config import digest
from medform.evaluation.shortcuts import intensity_statistics
from medform.inputs.bags import BagSource
from medform.inputs.features import FeatureInputConfig, FeatureMap, ImageOnly, mean_bags
from medform.inputs.loader import PatientLoader, RowSource, SliceLoader
from medform.inputs.slices import SliceInputConfig, SliceStore, working_slices
from medform.models.weights import start_from
from medform.objectives.align import Align, AlignConfig
from medform.objectives.classify import ClassifyConfig
from medform.training.infer import RankMonitor, bag_embeddings, slice_features, weights_digest
from medform.training.stage import StageResult, run_stage

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.inputs.clinical import EncodedTable
    from medform.interfaces import Tower
    from medform.recipes.recipe import Recipe, Stage
    from medform.runs.folder import RunFolder

__all__ = [
    "Bench",
    "Group",
    "ImageSide",
    "Pairing",
    "image_side",
    "image_stage",
    "pair",
    "pair_stage",
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
    _slices: dict[int, SliceStore] = field(default_factory=dict, repr=False)
    _intensity: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def slices(self, size: int) -> SliceStore:
        """The cohort's slices at a working size, made once."""
        if size not in self._slices:
            self._slices[size] = working_slices(self.cohort, size, self.folder.cache, self.telling("preparing slices"))
        return self._slices[size]

    def imaged(self, patients: Sequence[str]) -> list[str]:
        """Those of ``patients`` that have slices."""
        return [patient for patient in patients if patient in self._with_images]

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
    """Name and settings of the stage that learns from single slices."""
    return next((name, s) for name, s in recipe.stages.items() if isinstance(s.inputs.get("image"), SliceInputConfig))


def pair_stage(recipe: Recipe) -> tuple[str, Stage] | None:
    """Name and settings of the stage that learns from a patient's bag, None where the recipe has none."""
    found = ((name, s) for name, s in recipe.stages.items() if isinstance(s.inputs.get("image"), FeatureInputConfig))
    return next(found, None)


def feature_input(recipe: Recipe) -> FeatureInputConfig:
    """How the recipe reads slice features; the head of its last slice stage where no stage says it."""
    found = pair_stage(recipe)
    if found is not None:
        config = found[1].inputs["image"]
        assert isinstance(config, FeatureInputConfig)
        return config
    name, stage = image_stage(recipe)
    config = stage.inputs["image"]
    assert isinstance(config, SliceInputConfig)
    return FeatureInputConfig(of=name, size=config.source, layers=["head"], smooth="none", pca=None)


def train_encoder(
    bench: Bench, group: Group, recipe: Recipe, variant: str, seed: int
) -> tuple[Any, StageResult | None]:
    """The slice encoder of a variant, trained on the group's training patients (None: it takes no step)."""
    from medform.compute.seed import generator

    name, stage = image_stage(recipe)
    config: Any = stage.inputs["image"]
    tower_config: Any = stage.towers["image"]
    objective_config: Any = stage.objective
    tower = tower_config.build(generator(seed, name, "tower"))
    start_from(tower, stage.start.image or "random")
    if stage.budget.steps == 0:
        return tower.to(bench.fabric.device), None
    objective = objective_config.build({"image": tower}, generator(seed, name, "objective"))
    store = bench.slices(config.source)
    rows = store.rows(bench.imaged(group.train))
    result = run_stage(
        objective,
        SliceLoader(store, rows, config, stage.batch, seed, bench.threads),
        folder=bench.folder.stage(name, variant, seed, group.fold),
        digest=digest([stage.model_dump(mode="json"), sorted(group.train), seed, store.digest]),
        optimizer=stage.optimizer,
        budget=stage.budget,
        seed=seed,
        fabric=bench.fabric,
        log=stage_log(bench, group, variant, seed, name),
        log_every=stage.log_every,
        checkpoint_every=stage.checkpoint_every,
        monitor=RankMonitor.over(store, rows),
        names=bench.names,
        progress=bench.telling(f"{place(group)} {variant}: {name}"),
    )
    return tower, result


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
    table: EncodedTable | None,
    patients: Sequence[str],
    labels: Any = None,
    frozen: Pairing | None = None,
) -> Pairing:
    """Train the second stage of ``recipe`` on ``patients``.

    ``table`` are encoded rows; ``labels`` (a float Series by patient, for a supervised objective). With ``frozen`` the
    table tower of another pairing is taken over unchanged, so that both end in one space.
    """
    found = pair_stage(recipe)
    assert found is not None
    name, stage = found
    objective, sources = _paired_objective(name, stage, seed, side, table, labels)
    if frozen is not None:
        objective.towers["clinical"].load_state_dict(frozen.objective.towers["clinical"].state_dict())
        objective.temperature.load_state_dict(frozen.objective.temperature.state_dict())
        objective.freeze("clinical")
    train = bench.imaged(patients)
    loader = PatientLoader(sources, side.store.codes(train), stage.batch, seed, stage.pairing)
    made_from = [stage.model_dump(mode="json"), sorted(train), seed, side.weights, side.store.digest]
    if table is not None:
        made_from.append(digest([table.names, table.patient_ids, table.values.tobytes().hex()]))
    if frozen is not None:
        made_from.append(weights_digest(frozen.objective))
    result = run_stage(
        objective,
        loader,
        folder=bench.folder.stage(name, variant, seed, group.fold),
        digest=digest(made_from),
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


def _paired_objective(
    name: str, stage: Stage, seed: int, side: ImageSide, table: EncodedTable | None, labels: Any
) -> tuple[Any, dict[str, Any]]:
    """The objective over towers of the widths at hand, and a source of rows for each modality it takes."""
    from medform.compute.seed import generator

    objective_config: Any = stage.objective
    sources: dict[str, Any] = {"image": BagSource.of(side.feature, side.store)}
    towers: dict[str, Any] = {}
    width = side.feature.shape[1]
    shared = None
    if isinstance(objective_config, AlignConfig):
        assert table is not None
        columns = table.values.shape[1]
        shared = objective_config.shared_width(width, columns)
        sources["clinical"] = RowSource(table.values, side.store.codes(table.patient_ids), "table")
        clinical_config: Any = stage.towers["clinical"]
        towers["clinical"] = clinical_config.build(columns, generator(seed, name, "clinical"), shared_width=shared)
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
