"""Segmentation: a decoder learns to draw the lesion from an image tower's maps, and from genes where there are any.

Loss and recipe: binary cross-entropy, soft Dice of the whole batch and soft Dice of every slice with lesion
(MONAI's), an exponential moving average of weights and statistics for prediction.

Shapes: M slices of H x W pixels, P patients with genes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from medform.compute.seed import draws_from
from medform.config import Config
from medform.errors import InputError
from medform.interfaces import Batch, Block, Encoded, Objective, Tower
from medform.models.fusion_decoder import DecoderConfig, FusionDecoderConfig
from medform.models.monai_parts import dice_loss
from medform.objectives.targets import partner_rows

__all__ = ["Segment", "SegmentConfig"]

IMAGE, GENES, MASK = "image", "genes", "mask"


class SegmentConfig(Config):
    """What is learnt and how. Needs the extra ``seg``.

    ``gene_dropout``: share of patients whose genes are withheld in a step; 1: the gene path is there and
    never sees genes, in training or later (the matched control of a model with genes). ``ema``: decay of the
    moving average that predicts; None: the last weights do. ``batch_dice``, ``slice_dice``, ``bce``: weights
    of the losses. ``encoder_rate``, ``genes_rate``: learning rate of the image backbone and of the gene tower
    in units of the stage's. ``threshold``: probability above which a pixel is lesion; ``smallest``: what hangs
    together in fewer voxels is not.
    """

    kind: Literal["segment"] = "segment"
    decoder: DecoderConfig = FusionDecoderConfig()
    gene_dropout: float = Field(default=0.3, ge=0, le=1)
    ema: float | None = Field(default=0.99, gt=0, lt=1)
    bce: float = Field(default=1.0, ge=0)
    batch_dice: float = Field(default=0.5, ge=0)
    slice_dice: float = Field(default=0.5, ge=0)
    smooth: float = Field(default=1.0, gt=0)
    encoder_rate: float = Field(default=0.5, gt=0)
    genes_rate: float = Field(default=1.0, gt=0)
    threshold: float = Field(default=0.5, gt=0, lt=1)
    smallest: int = Field(default=100, ge=0)

    def build(self, towers: Mapping[str, Tower], random: torch.Generator) -> Segment:
        """The objective over ``towers["image"]`` and, where it is there, ``towers["genes"]``.

        The decoder's weights are drawn from ``random``. Raises `InputError` where they do not fit each other.
        """
        if IMAGE not in towers or not set(towers) <= {IMAGE, GENES}:
            raise InputError(
                f"segmentation takes a tower `image` and may take `genes`, not {', '.join(sorted(towers)) or 'none'}.",
                where="towers",
                consequence="Nothing was started.",
                fix="name them so, and leave others out of this stage.",
            )
        return Segment(towers, self, random)


class Segment(Objective):
    """Segments the lesion of slices, with their patients' genes where there are any.

    A batch holds ``image`` (value ``image`` (M, C, H, W) in [0, 1]), ``mask`` (value ``mask`` (M, 1, H, W) in [0, 1],
    the same items in the same order) and, where there are any, ``genes``: one row a patient. Each patient's genes go
    through their tower once a batch, however many slices the patient has in it.
    """

    def __init__(self, towers: Mapping[str, Tower], config: SegmentConfig, random: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.towers = nn.ModuleDict(towers)
        self.decoder = config.decoder.build(towers[IMAGE], towers.get(GENES), random)
        self.reads_genes = GENES in towers and config.gene_dropout < 1
        if GENES in towers and not self.reads_genes:
            self.towers[GENES].requires_grad_(requires_grad=False)
        self._batch_dice = dice_loss(config.smooth, batch=True)
        self._slice_dice = dice_loss(config.smooth, batch=False)
        self.average: AveragedModel | None = None
        if config.ema is not None:
            self.average = AveragedModel(self._network(), multi_avg_fn=_warmed(config.ema), use_buffers=True)
            self.average.requires_grad_(requires_grad=False)

    def _network(self) -> nn.ModuleDict:
        """All that predicts."""
        return nn.ModuleDict({"towers": self.towers, "decoder": self.decoder})

    def rate_of(self, name: str) -> float:
        """The backbone learns slower than what begins at random; a gene path that begins at zero faster."""
        if name.startswith("towers.image.encoder."):
            return self.config.encoder_rate
        if name.startswith("towers.genes."):
            return self.config.genes_rate
        return self.decoder.gene_rate if name.startswith("decoder.fusion.") else 1.0

    def forward(self, batch: Batch, step: int, random: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Loss and logs of one step.

        The logs: loss, its parts bce, dice_batch and dice_slice, chance (the loss of one number for all pixels, the
        batch's share of lesion), lesion_slices and slices_with_genes.
        """
        image, target = batch[IMAGE], self._target(batch)
        genes, nothing = None, 0.0
        with draws_from(random):
            if self.reads_genes and GENES in batch and len(batch[GENES]):
                owners, kept = self._kept(batch[GENES], image, random)
                genes = self.towers[GENES](owners)
                # with zero gradients for what this step made no use of, so that every parameter has one
                nothing = 0.0 * (genes.pooled.sum() + (0.0 if genes.tokens is None else genes.tokens.sum()))
                rows = partner_rows(image.patient, torch.where(kept, owners.patient, -1))
            else:
                rows = torch.full_like(image.patient, -1)
            logit = self.decoder(self.towers[IMAGE](image), genes, rows).float()
        loss, parts = self._loss(logit, target)
        with torch.no_grad():
            share = target.mean().clamp(1e-6, 1 - 1e-6)
            chance, _ = self._loss(share.logit().expand_as(target), target)
        logs = {
            "loss": float(loss.detach()),
            **parts,
            "chance": float(chance),
            "lesion_slices": float((target > 0).flatten(1).any(1).sum()),
            "slices_with_genes": float((rows >= 0).sum()),
        }
        return loss + nothing, logs

    def _target(self, batch: Batch) -> Float[Tensor, "m 1 h w"]:
        image, mask = batch[IMAGE], batch[MASK]
        if not torch.equal(image.item, mask.item):
            raise ValueError("image and mask hold other slices, or the same in another order")
        return mask.value[MASK].float()

    def _kept(self, genes: Block, image: Block, random: torch.Generator) -> tuple[Block, Bool[Tensor, " p"]]:
        """The patients of this batch whose genes are not withheld. Where none is left, one that is not to be used."""
        draw = torch.rand(len(genes), generator=random).to(genes.patient.device)
        wanted = (draw >= self.config.gene_dropout) & torch.isin(genes.patient, image.patient)
        rows = wanted.nonzero()[:, 0]
        used = bool(len(rows))
        taken = genes.take(rows if used else torch.zeros_like(genes.patient[:1]))
        return taken, torch.full_like(taken.patient, used, dtype=torch.bool)

    def _loss(
        self, logit: Float[Tensor, "m 1 h w"], target: Float[Tensor, "m 1 h w"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The weighted sum, and its parts as numbers. Dice by slice counts slices with lesion only."""
        lesion = (target > 0).flatten(1).any(1)
        parts = {
            "bce": F.binary_cross_entropy_with_logits(logit, target),
            "dice_batch": self._batch_dice(logit, target),
            "dice_slice": self._slice_dice(logit[lesion], target[lesion]) if bool(lesion.any()) else 0.0 * logit.sum(),
        }
        weights = {"bce": self.config.bce, "dice_batch": self.config.batch_dice, "dice_slice": self.config.slice_dice}
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return loss, {name: float(part.detach()) for name, part in parts.items()}

    def after_step(self) -> None:
        """Move the average towards the weights and statistics after the step."""
        if self.average is not None:
            self.average.update_parameters(self._network())

    @torch.no_grad()
    def logits(
        self, image: Block, genes: Block | None = None, *, use_ema: bool = True, flip: bool = True
    ) -> Float[Tensor, "m 1 h w"]:
        """Logits of slices in evaluation mode, their patients' genes found by patient.

        Without genes for some or all, with their learned stand-in. ``use_ema``: by the moving average of the weights;
        ``flip``: the mean with the logits of the mirrored slices.
        """
        network: Any = self._network() if self.average is None or not use_ema else self.average.module
        training = self.training
        self.eval()
        try:
            encoded: Encoded | None = None
            rows = torch.full_like(image.patient, -1)
            if genes is not None and self.reads_genes and len(genes):
                encoded = cast(Encoded, network["towers"][GENES](genes))
                rows = partner_rows(image.patient, genes.patient)
            logit = network["decoder"](network["towers"][IMAGE](image), encoded, rows).float()
            if flip:
                other = Block({IMAGE: image.value[IMAGE].flip(-1)}, image.patient, image.item)
                mirrored = network["decoder"](network["towers"][IMAGE](other), encoded, rows).float()
                logit = (logit + mirrored.flip(-1)) / 2
        finally:
            self.train(training)
        return logit

    def predict(
        self, image: Block, genes: Block | None = None, *, use_ema: bool = True, flip: bool = True
    ) -> Float[Tensor, "m 1 h w"]:
        """Probability of lesion at every pixel; arguments as in `logits`."""
        return self.logits(image, genes, use_ema=use_ema, flip=flip).sigmoid()


def _warmed(decay: float) -> Any:
    """The moving average min(decay, (1 + k) / (10 + k)) after k steps: it forgets its beginning quickly."""

    @torch.no_grad()
    def move(averages: list[Tensor], values: list[Tensor], seen: Tensor | int) -> None:
        k = int(seen)
        kept = min(decay, (1 + k) / (10 + k))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - kept)
            else:
                average.copy_(value)

    return move
