"""The second stage: a patient's bag of slices beside what goes with it, or beside a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.inputs.bags import BagSource
from medform.inputs.loader import PatientLoader, RowSource
from medform.objectives.align import Align, AlignConfig
from medform.objectives.classify import ClassifyConfig
from medform.pipeline.companions import Companions, wanted
from medform.pipeline.stages import ImageSide, build_beside, pair_stage
from medform.training.infer import bag_embeddings, weights_digest

if TYPE_CHECKING:
    from medform.interfaces import Tower
    from medform.pipeline.bench import Bench, Group
    from medform.recipes.recipe import Recipe, Stage
    from medform.training.stage import StageResult

__all__ = ["Pairing", "is_alignment", "pair", "pair_task"]


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
    *,
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
    made_from = [sorted(train), side.weights, side.store.digest, companions.digest(beside)]
    if frozen is not None:
        made_from.append(weights_digest(frozen.objective))
    result = bench.train(group, variant, seed, (name, stage), objective, loader, made_from, told=False)
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
