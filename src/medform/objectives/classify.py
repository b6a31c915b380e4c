"""Supervised learning of a label from the image: the control that says what the label alone would have taught."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medform.compute.ranks import gather
from medform.compute.seed import draws_from
from medform.config import Config
from medform.interfaces import Batch, Block, Objective, Tower
from medform.models.bag import BagTower

__all__ = ["Classify", "ClassifyConfig"]

MODALITY, LABEL = "image", "label"


class ClassifyConfig(Config):
    """Image vector -> linear -> label. Two classes: one logit, binary cross-entropy; more: one logit a class."""

    kind: Literal["classify"] = "classify"
    classes: int = Field(default=2, ge=2)

    def build(self, towers: Mapping[str, Tower], random: torch.Generator) -> Classify:
        """The objective over ``towers["image"]`` alone; the last layer is drawn from ``random``.

        Other towers are left out.
        """
        return Classify(towers[MODALITY], self.classes, random)


class Classify(Objective):
    """A batch holds ``image`` and ``label`` (``value["label"]`` (M',): 0 or 1, or the class), matched by patient.

    A patient without a label has no row in the block ``label`` and is not learnt from.
    """

    def __init__(self, tower: Tower, classes: int, random: torch.Generator) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({MODALITY: tower})
        with draws_from(random):
            self.last = nn.Linear(tower.width, 1 if classes == 2 else classes)

    @torch.no_grad()
    def start(self, batch: Batch) -> None:
        """Centre and scale the bags by all training patients."""
        tower = self.towers[MODALITY]
        if isinstance(tower, BagTower):
            tower.fit_input(batch[MODALITY])

    def forward(self, batch: Batch, step: int, random: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Cross-entropy over patients with a label; logs: loss, chance (that of the batch's class shares), labelled."""
        with draws_from(random):
            logit = self.last(self.towers[MODALITY](batch[MODALITY]).pooled).float()
        owner, value = batch[MODALITY].patient.new_zeros(0), logit.new_zeros(0)
        if LABEL in batch:  # nobody of the batch may have one
            owner, value = batch[LABEL].patient, batch[LABEL].value["label"]
        rows, columns = (batch[MODALITY].patient[:, None] == owner).nonzero(as_tuple=True)
        logit, wanted = gather(logit[rows]), gather(value[columns].float())
        if not len(logit):
            return 0.0 * logit.sum(), {"loss": 0.0, "chance": 0.0, "labelled": 0.0}
        if logit.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(logit[:, 0], wanted)
        else:
            loss = F.cross_entropy(logit, wanted.long())
        counts = torch.bincount(wanted.long()).double()
        shares = counts[counts > 0] / counts.sum()
        chance = float(-(shares * shares.log()).sum())
        logs = {"loss": float(loss.detach()), "chance": chance, "labelled": float(len(logit))}
        return loss, logs

    @torch.no_grad()
    def predict(self, block: Block) -> Float[Tensor, " m"] | Float[Tensor, "m classes"]:
        """Probability of the positive class (M,), or of every class (M, classes), in evaluation mode."""
        training = self.training
        self.eval()
        logit = self.last(self.towers[MODALITY](block).pooled).float()
        self.train(training)
        return logit[:, 0].sigmoid() if logit.shape[1] == 1 else logit.softmax(1)
