"""SimCLR (Chen 2020): two views of one slice are nearer to each other than to other views of the batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import field_validator
from torch import Tensor, nn

from medform.compute.ranks import gather
from medform.compute.seed import draws_from
from medform.config import Config
from medform.interfaces import Batch, Objective, Tower
from medform.models.projection import ProjectionConfig
from medform.objectives.contrast import (
    RelativeTemperature,
    Temperature,
    TemperatureSetting,
    alignment,
    chance,
    contrast,
    retrieval,
    uniformity,
)
from medform.objectives.targets import Ids, Negatives, Positives, between_views

__all__ = ["Simclr", "SimclrConfig"]

logger = logging.getLogger(__name__)

MODALITY = "image"


class SimclrConfig(Config):
    """``temperature``: a number, or ``learnt`` within [0.01, 1]. ``projection`` is left behind after the stage."""

    kind: Literal["simclr"] = "simclr"
    temperature: TemperatureSetting = 0.1
    projection: ProjectionConfig = ProjectionConfig()
    positives: Positives = Positives()
    negatives: Negatives = Negatives()

    @field_validator("temperature")
    @classmethod
    def _cosine_needs_no_unit(cls, temperature: TemperatureSetting) -> TemperatureSetting:
        if isinstance(temperature, RelativeTemperature):
            raise ValueError("cosines have no unit to be relative to: give a number or `learnt`.")
        return temperature

    def build(self, towers: Mapping[str, Tower], random: torch.Generator) -> Simclr:
        """The objective over ``towers["image"]``; the projection's initial weights are drawn from ``random``."""
        return Simclr(towers[MODALITY], self, random)


class Simclr(Objective):
    """A batch holds the views of n slices in one block ``image`` of 2n rows; views of one slice share its ``item``."""

    def __init__(self, tower: Tower, config: SimclrConfig, random: torch.Generator) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({MODALITY: tower})
        self.projection = config.projection.build(tower.width, random)
        self.temperature = Temperature(config.temperature)
        self.positives = config.positives
        self.negatives = config.negatives
        self._said = False

    def forward(self, batch: Batch, step: int, random: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Loss and logs: loss, chance (ln of the candidates), retrieval_at_1, alignment, uniformity, temperature.

        ``same_patient_kept`` is 1 where the batch holds one patient only and the rule would have left no
        negative.
        """
        block = batch[MODALITY]
        with draws_from(random):
            vector = self.projection(self.towers[MODALITY](block).pooled)
        vector = gather(vector)
        ids = Ids.of(block)
        pairs = between_views(ids, self.positives, self.negatives)
        if pairs.kept and not self._said:
            self._said = True
            logger.warning(
                "one patient in the batch: its slices stay negatives of each other, though the recipe takes "
                "same-patient negatives out (negatives.same_patient: %s)",
                self.negatives.same_patient,
            )
        temperature = self.temperature.value()
        loss = contrast(vector, vector, pairs.target, temperature, pairs.candidate)
        known = vector.detach().float()
        logs = {
            "loss": float(loss.detach()),
            "chance": chance(pairs.target, pairs.candidate),
            "retrieval_at_1": retrieval(known, known, pairs.target, pairs.candidate),
            "alignment": alignment(known, pairs.target),
            "uniformity": uniformity(known),
            "temperature": self.temperature.number(),
            "same_patient_kept": float(pairs.kept),
        }
        return loss, {name: value for name, value in logs.items() if not math.isnan(value)}

    def after_step(self) -> None:
        """Keep a learnt temperature within its range."""
        self.temperature.clamp()
