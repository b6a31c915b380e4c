"""Alignment across modalities: a patient's image is nearest to the patient's own table row, and the other way round.

With cosine logits, a fixed temperature and no closed-form start this is MEDFORM's second stage (symmetric
InfoNCE). The closed-form start and distance logits are what lets it work on 50 to 80 patients: heads begin
at the regularised canonical directions of bags and table.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from enum import IntEnum
from itertools import combinations
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from medform.compute.ranks import gather, world_size
from medform.compute.seed import draws_from
from medform.config import Config
from medform.errors import InputError
from medform.interfaces import Batch, Block, Objective, Tower
from medform.metrics.linear_maps import cca, refit_image_head
from medform.models.bag import BagTower
from medform.models.tabular import LinearTower
from medform.objectives.contrast import (
    RelativeTemperature,
    Similarity,
    Temperature,
    TemperatureSetting,
    chance,
    contrast,
    retrieval,
)
from medform.objectives.targets import Ids, across, identical_rows, kernel

__all__ = ["Align", "AlignConfig", "HeadStart"]

logger = logging.getLogger(__name__)

IMAGE = "image"
FEWEST_PAIRS = 8
"""Below this many patients with both modalities canonical directions are noise, and heads start at random."""

HeadStart = Literal["cca", "random"]


class StartProblem(IntEnum):
    """Why a closed-form start was asked for and not made; the number is stored with the weights."""

    NONE = 0
    FEW_PAIRS = 1
    NO_DIRECTIONS = 2
    NO_SPREAD = 3


PROBLEM_WORDS = {
    StartProblem.FEW_PAIRS: f"fewer than {FEWEST_PAIRS} patients have both modalities",
    StartProblem.NO_DIRECTIONS: "the frozen tower had no closed-form start itself",
    StartProblem.NO_SPREAD: "all patients are equal on one side",
}


class AlignConfig(Config):
    """Symmetric contrast between every two modalities.

    ``similarity`` distance: logits -|a - b|^2 / (2 temperature), better than cosine for a table of few
    columns. ``temperature``: a number, ``{relative: r}`` (r times the image side's mean squared norm at the
    start), or, for cosine, ``learnt``. ``components``: at most this many shared dimensions where heads have
    no width of their own. ``ridge_image``, ``ridge_table``: regularisation of the closed-form start.
    ``kernel_bandwidth``: rows of other patients count as targets by a Gaussian kernel of encoded table rows
    (None: only the patient's own row, and rows identical to it). ``drop``: modality beside the image -> share
    of patients whose row of it is withheld in a step, as if they had none.
    """

    kind: Literal["align"] = "align"
    similarity: Similarity = "cosine"
    temperature: TemperatureSetting = "learnt"
    components: int = Field(default=8, ge=1)
    ridge_image: float = Field(default=0.3, gt=0)
    ridge_table: float = Field(default=1.0, gt=0)
    kernel_bandwidth: float | None = Field(default=None, gt=0)
    drop: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {}

    @field_validator("drop")
    @classmethod
    def _images_stay(cls, drop: dict[str, float]) -> dict[str, float]:
        if IMAGE in drop:
            raise ValueError("the image is what the others are aligned with: name modalities beside it.")
        return drop

    @model_validator(mode="after")
    def _temperature_has_a_unit(self) -> AlignConfig:
        if self.similarity == "distance" and self.temperature == "learnt":
            raise ValueError("distances have a unit: give temperature as {relative: 0.1}, or as a number.")
        if self.similarity == "cosine" and isinstance(self.temperature, RelativeTemperature):
            raise ValueError("cosines have no unit to be relative to: give temperature as a number or `learnt`.")
        return self

    def shared_width(self, *widths: int) -> int:
        """Dimensions of the shared space for inputs of these widths (bag, encoded columns): min(components, widths)."""
        return min(self.components, *widths)

    def build(self, towers: Mapping[str, Tower], start: HeadStart = "random") -> Align:
        """The objective over ``towers``: modality -> tower, all of one width.

        Raises `InputError` where they are not, or where ``start`` is ``cca`` and they are not a bag tower and a
        linear tower with linear heads.
        """
        return Align(towers, self, start)


class Align(Objective):
    """A batch holds a block a modality; a patient without a modality has no row in its block.

    ``start_used`` is ``cca`` or ``random`` after `start`, ``start_note`` says why it is not what was asked
    for. Both are stored with the weights, so that a resumed run says the same.
    """

    start_state: Tensor

    def __init__(self, towers: Mapping[str, Tower], config: AlignConfig, start: HeadStart) -> None:
        super().__init__()
        widths = {modality: tower.width for modality, tower in towers.items()}
        if len(widths) < 2 or len(set(widths.values())) > 1:
            listed = ", ".join(f"{modality} {width}" for modality, width in widths.items())
            raise InputError(
                f"modalities to be aligned need vectors of one width; these have: {listed}.",
                where="towers",
                consequence="Nothing was started.",
                fix="give two towers or more the same width, or leave the width of their heads out.",
            )
        if unknown := sorted(set(config.drop) - set(towers)):
            raise InputError(
                f"`drop` names {', '.join(unknown)}, of which there is no tower.",
                where="objective.drop",
                consequence="Nothing was started.",
                fix=f"use of {', '.join(sorted(set(towers) - {IMAGE}))}.",
            )
        self.towers = nn.ModuleDict(towers)
        self.image = IMAGE if IMAGE in towers else next(iter(towers))
        self.config = config
        self.temperature = Temperature(config.temperature)
        self.register_buffer("start_state", torch.zeros(2, dtype=torch.long))  # heads are from cca; problem
        self._wanted_start: HeadStart = start
        self._frozen: set[str] = set()
        if start == "cca":
            self._linear_heads()  # refused now, not after the slices were encoded

    @property
    def start_used(self) -> HeadStart:
        """What the heads began at."""
        return "cca" if int(self.start_state[0]) else "random"

    @property
    def start_note(self) -> str | None:
        """One sentence where a closed-form start was asked for and not made, else None."""
        problem = StartProblem(int(self.start_state[1]))
        if problem is StartProblem.NONE:
            return None
        return f"heads start at random, not at the canonical directions: {PROBLEM_WORDS[problem]}."

    def freeze(self, modality: str) -> None:
        """Let a modality's tower stay as it is: no gradient, no dropout, and the others are fitted to it.

        With a frozen table tower that once had a closed-form start, `start` fits the image head to the
        table's stored directions, so that alignments of other patients end in one space.
        """
        self._frozen.add(modality)
        self.towers[modality].requires_grad_(requires_grad=False)
        self.towers[modality].eval()

    def train(self, mode: bool = True) -> Align:  # noqa: FBT001, FBT002 - as nn.Module
        """As `nn.Module.train`, but frozen towers stay in evaluation mode."""
        super().train(mode)
        for modality in self._frozen:
            self.towers[modality].eval()
        return self

    @property
    def fits_start(self) -> bool:
        """Whether anything is closed-form: not where slices are aligned from random heads at a fixed or learnt unit."""
        closed = any(isinstance(tower, BagTower | LinearTower) for tower in self.towers.values())
        return closed or self._wanted_start == "cca" or isinstance(self.config.temperature, RelativeTemperature)

    @torch.no_grad()
    def start(self, batch: Batch) -> None:
        """Fit what is closed-form from all training patients: input centring, heads, a relative temperature."""
        fitted = {
            modality: tower.fit_input(batch[modality])
            for modality, tower in self.towers.items()
            if isinstance(tower, BagTower | LinearTower) and modality in batch and modality not in self._frozen
        }
        if self._wanted_start == "cca":
            self._start_heads(batch, fitted)
        kept = self._frozen and self.temperature.known  # a frozen space keeps its unit
        if isinstance(self.config.temperature, RelativeTemperature) and self.image in batch and not kept:
            self.temperature.fit(self._encoded(self.image, batch[self.image]))

    def _encoded(self, modality: str, block: Block) -> Float[Tensor, "m d"]:
        """A block's vectors in evaluation mode."""
        tower = self.towers[modality]
        training = tower.training
        vectors = tower.eval()(block).pooled
        tower.train(training)
        return vectors

    def _linear_heads(self) -> tuple[BagTower, nn.Linear, str, LinearTower]:
        """The image tower and its head, the other modality's name and tower.

        Raises `InputError` where they are not linear, or wider than there are directions.
        """
        others = [modality for modality in self.towers if modality != self.image]
        image, table = self.towers[self.image], self.towers[others[0]]
        head = image.head if isinstance(image, BagTower) else None
        if len(others) > 1 or not isinstance(image, BagTower) or not isinstance(table, LinearTower):
            raise _no_closed_form("it needs an image bag and one linear tower beside it")
        if not isinstance(head, nn.Linear):
            raise _no_closed_form("the image bag needs a linear head")
        if table.width > (most := min(head.in_features, table.head.in_features)):
            raise _no_closed_form(f"these inputs have {most} directions, and the heads a width of {table.width}")
        return image, head, others[0], table

    def _start_heads(self, batch: Batch, fitted: Mapping[str, Tensor]) -> None:
        _, head, other, table = self._linear_heads()
        x, t = self._paired(batch, other, fitted)
        frozen = other in self._frozen
        problem = StartProblem.NONE
        if frozen and bool(table.directions.isnan().any()):
            problem = StartProblem.NO_DIRECTIONS
        elif len(x) < (2 if frozen else FEWEST_PAIRS):
            problem = StartProblem.FEW_PAIRS
        elif torch.equal(x, x[:1].expand_as(x)) or torch.equal(t, t[:1].expand_as(t)):
            problem = StartProblem.NO_SPREAD
        else:
            self._fit_heads(x, t, head, table, frozen=frozen)
        made = problem is StartProblem.NONE
        self.start_state.copy_(torch.tensor([made, problem]))
        if not made:
            logger.warning("%s (%d pairs)", self.start_note, len(x))

    def _fit_heads(self, x: Tensor, t: Tensor, head: nn.Linear, table: LinearTower, *, frozen: bool) -> None:
        """Copy the closed form from pairs ``x`` (n, e) and ``t`` (n, q) into the image head, and the table's too."""
        if frozen:
            directions = table.directions.double().cpu().numpy()
            # on the pairs of the full alignment this ridge regression is that alignment's own image head
            unscaled = np.ones(directions.shape[1])
            weight = refit_image_head(x.numpy(), t.numpy(), directions, unscaled, self.config.ridge_image)
            _set_linear(head, weight)
            return
        found = cca(x.numpy(), t.numpy(), self.config.ridge_image, self.config.ridge_table, table.width)
        _set_linear(head, found.wx)
        _set_linear(table.head, found.wt)
        directions = np.divide(found.wt, found.singular, out=np.zeros_like(found.wt), where=found.singular > 0)
        table.directions.copy_(torch.from_numpy(directions))

    def _paired(self, batch: Batch, other: str, fitted: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Bags and table rows of the patients who have both, row by row: (n, e) and (n, q) in float64 on the CPU."""
        table = fitted[other] if other in fitted else batch[other].value["table"]
        rows = {int(patient): row for row, patient in enumerate(batch[other].patient)}
        both = [(i, rows[int(p)]) for i, p in enumerate(batch[self.image].patient) if int(p) in rows]
        bag_rows, table_rows = [i for i, _ in both], [j for _, j in both]
        return fitted[self.image][bag_rows].double().cpu(), table[table_rows].double().cpu()

    def learning_rate_scale(self) -> float:
        """Root mean square of the image head's weights (without a linear head: of the image tower's matrices)."""
        image = self.towers[self.image]
        head = getattr(image, "head", None)
        matrices = [parameter for parameter in (head or image).parameters() if parameter.ndim >= 2]
        squares = sum(float(matrix.detach().double().square().sum()) for matrix in matrices)
        if not matrices:
            raise InputError(
                "the image tower has no weights that a relative learning rate could be a share of.",
                where="optimizer.lr",
                consequence="Nothing was started.",
                fix="give the rate as a number.",
            )
        return math.sqrt(squares / sum(matrix.numel() for matrix in matrices))

    def forward(self, batch: Batch, step: int, random: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Mean over pairs of modalities of the two directions' mean loss.

        Logs: loss, chance (ln of the candidates), retrieval_at_1 (both directions), patients with a partner
        (``pairs``), patients whose table row another patient has too (``identical_rows``), temperature.
        """
        batch = {name: self._partly_withheld(name, block, random) for name, block in batch.items()}
        present = [name for name in self.towers if name in batch and (len(batch[name]) or world_size() > 1)]
        with draws_from(random):
            vectors = {name: gather(self.towers[name](batch[name]).pooled) for name in present}
        ids = {name: Ids.of(batch[name]) for name in present}
        alike = {name: self._alike(batch[name]) for name in present}
        temperature, similarity = self.temperature.value(), self.config.similarity
        losses, chances, found, partners = [], [], [], 0
        for one, two in combinations(present, 2):
            target = across(ids[one], ids[two], alike[one], alike[two]).target
            if not bool((target > 0).any()):
                continue
            partners += int((target > 0).any(1).sum())
            for a, b, way in ((vectors[one], vectors[two], target), (vectors[two], vectors[one], target.T)):
                losses.append(contrast(a, b, way, temperature, similarity=similarity))
                chances.append(chance(way))
                soft = way.float()  # of soft targets the nearest counts
                best = soft >= soft.amax(1, keepdim=True).clamp(min=1e-12)
                found.append(retrieval(a.detach(), b.detach(), best, similarity=similarity))
        # with zero gradients for a tower that met no partner, so that every parameter has one
        nothing = 0.0 * torch.stack([vector.sum() for vector in vectors.values()]).sum()
        loss = torch.stack(losses).mean() + nothing if losses else nothing
        repeated = [int((rows > 1 - 1e-6).sum(1).gt(1).sum()) for rows in alike.values() if rows is not None]
        logs = {
            "loss": float(loss.detach()),
            "chance": sum(chances) / max(len(chances), 1),
            "pairs": float(partners),
            "identical_rows": float(max(repeated, default=0)),
            "temperature": self.temperature.number(),
        }
        if found:
            logs["retrieval_at_1"] = sum(found) / len(found)
        return loss, logs

    def _partly_withheld(self, modality: str, block: Block, random: torch.Generator) -> Block:
        """The block without the rows of patients whom this step is to see without the modality."""
        share = self.config.drop.get(modality, 0.0)
        if not share or not self.training:
            return block
        kept = torch.rand(len(block), generator=random) >= share
        return block.take(kept.nonzero()[:, 0].to(block.patient.device))

    def _alike(self, block: Block) -> Tensor | None:
        """Which table rows count as each other's; None for a modality that is no table."""
        if "table" not in block.value:
            return None
        table = gather(block.value["table"])
        bandwidth = self.config.kernel_bandwidth
        return identical_rows(table) if bandwidth is None else kernel(table, bandwidth)

    def after_step(self) -> None:
        """Keep a learnt temperature within its range."""
        self.temperature.clamp()


def _set_linear(layer: nn.Linear, weight: NDArray[np.float64]) -> None:
    """Make ``layer`` multiply by ``weight`` (in, out) and add nothing."""
    layer.weight.copy_(torch.from_numpy(weight.T))
    if layer.bias is not None:
        layer.bias.zero_()


def _no_closed_form(why: str) -> InputError:
    return InputError(
        f"no closed-form start is possible: {why}.",
        where="start.heads",
        consequence="Nothing was started.",
        fix="set start.heads to random, or change the towers.",
    )
