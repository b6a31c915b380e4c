"""Survival: a linear log hazard on a tower's vectors, by Cox's partial likelihood (Cox 1972; torchsurv's).

A risk set is everybody who was still followed at the time of an event, so the whole fold belongs into one
batch. `fit_cox` does the same for vectors that are there already (a table, frozen embeddings).

Shapes: M patients with a vector, n of them with a follow-up, d features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from medform.compute.ranks import gather
from medform.compute.seed import draws_from
from medform.config import Config
from medform.errors import ExtraMissing, InputError
from medform.interfaces import Batch, Block, Objective, Tower
from medform.models.bag import BagTower
from medform.models.tabular import LinearTower
from medform.objectives.targets import partner_rows

__all__ = ["Cox", "CoxConfig", "CoxModel", "Ties", "cox_loss", "fit_cox"]

SURVIVAL, TIME, EVENT = "survival", "time", "event"
MOST_STEPS = 500  # of L-BFGS; tens are enough, the problem is convex

Ties = Literal["efron", "breslow"]


def cox_loss(
    log_hazard: Float[Tensor, " n"], time: Float[Tensor, " n"], event: Bool[Tensor, " n"], ties: Ties = "efron"
) -> Float[Tensor, ""]:
    """Negative log partial likelihood divided by the number of events, in float32; 0 without an event.

    ``time``: to the event or to the last visit, in any unit; ``event``: whether it was seen. A patient whose
    follow-up ends at the very time of another's event was at risk then. Raises `ExtraMissing` without
    torchsurv.
    """
    events = int(event.sum())
    if events == 0 or len(time) < 2:
        return 0.0 * log_hazard.sum()
    likelihood = _torchsurv()
    # torchsurv takes sorted neighbours for the risk set: here equal times of events and of others come apart, in
    # the right order, and only ties between events are left
    moment = torch.unique(time, return_inverse=True)[1]
    place = (2 * moment + (~event).long() + 1).float()
    relative = log_hazard.float() - log_hazard.detach().float().max()  # only differences count; exp stays finite
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Ties in `time` detected", UserWarning)
        return likelihood(relative, event, place, ties_method=ties, reduction="sum") / events


def _torchsurv() -> Callable[..., Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            from torchsurv.loss.cox import neg_partial_log_likelihood
    except ImportError as error:
        raise ExtraMissing(
            f"survival needs torchsurv, which is not installed ({error}).",
            consequence="Nothing was fitted.",
            fix='pip install "medform[survival]"',
        ) from None
    return neg_partial_log_likelihood


class CoxModel(nn.Module):
    """Log hazard of vectors: (vector - ``centre``) / ``scale`` times ``weight`` (d,). Nothing of it learns further."""

    centre: Tensor
    scale: Tensor
    weight: Tensor

    def __init__(self, centre: Float[Tensor, " d"], scale: Float[Tensor, ""], weight: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)
        self.register_buffer("weight", weight)

    def risk(self, vectors: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
        """Log hazard relative to the mean training patient; higher means an earlier event."""
        return (vectors.float() - self.centre) / self.scale @ self.weight


def fit_cox(
    vectors: Float[Tensor, "n d"],
    time: Float[Tensor, " n"],
    event: Bool[Tensor, " n"],
    *,
    penalty: float = 0.1,
    ties: Ties = "efron",
) -> CoxModel:
    """The Cox model of training patients with the smallest loss plus ``penalty`` / 2 times its squared weights.

    Vectors are centred and divided by one number, the root mean square of their entries, so that components
    keep their proportions. The problem is convex: the answer does not depend on chance. Raises `InputError`
    without an event.
    """
    if not bool(event.any()):
        raise InputError(
            "no event among the training patients.",
            where="survival",
            consequence="No survival model was fitted.",
            fix="check the column of events, or the value that means one.",
        )
    centre = vectors.float().mean(0)
    size = (vectors.float() - centre).square().mean().sqrt()
    scale = size if float(size) > 0 else torch.ones_like(size)
    x = (vectors.float() - centre) / scale
    weight = torch.zeros(x.shape[1], device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=MOST_STEPS, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = cox_loss(x @ weight, time, event, ties) + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return CoxModel(centre, scale, weight.detach())


class CoxConfig(Config):
    """Vectors of one tower -> linear -> log hazard. Needs the extra ``survival``.

    ``modality``: which tower, where there are several. ``ties``: how events at one time share their risk set.
    """

    kind: Literal["cox"] = "cox"
    modality: str | None = None
    ties: Ties = "efron"
    penalty: float = Field(default=0.0, ge=0)

    def build(self, towers: Mapping[str, Tower], random: torch.Generator) -> Cox:
        """The objective over one of ``towers``; the last layer is drawn from ``random``.

        Raises `InputError` where it is not clear which.
        """
        modality = self.modality or (next(iter(towers)) if len(towers) == 1 else "")
        if modality not in towers:
            raise InputError(
                f"survival is learnt on one tower; there are {', '.join(sorted(towers)) or 'none'}.",
                where="objective.modality",
                consequence="Nothing was started.",
                fix="name one of them.",
            )
        return Cox(modality, towers[modality], self, random)


class Cox(Objective):
    """A batch holds a modality and ``survival`` (values ``time`` (n,) and ``event`` (n,)), matched by patient.

    A patient without follow-up has no row in the block ``survival`` and is not learnt from. ``followed`` is
    the number of training patients with a follow-up, set by `start`: every batch has to hold them all.
    """

    followed: Tensor

    def __init__(self, modality: str, tower: Tower, config: CoxConfig, random: torch.Generator) -> None:
        super().__init__()
        self.modality = modality
        self.config = config
        self.towers = nn.ModuleDict({modality: tower})
        with draws_from(random):
            self.last = nn.Linear(tower.width, 1, bias=False)  # a constant changes no partial likelihood
        self.register_buffer("followed", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def start(self, batch: Batch) -> None:
        """Centre and scale the inputs by all training patients, and count those with a follow-up."""
        tower = self.towers[self.modality]
        if isinstance(tower, BagTower | LinearTower):
            tower.fit_input(batch[self.modality])
        rows = partner_rows(batch[self.modality].patient, batch[SURVIVAL].patient)
        self.followed.fill_(int((rows >= 0).sum()))

    def forward(self, batch: Batch, step: int, random: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Loss and logs: loss, chance (that of equal hazards), events, patients.

        Raises `InputError` where the batch lacks patients that `start` has seen: their risk sets would be too
        small.
        """
        block, survival = batch[self.modality], batch[SURVIVAL]
        with draws_from(random):
            hazard = self.last(self.towers[self.modality](block).pooled).float()[:, 0]
        rows = partner_rows(block.patient, survival.patient)
        there = rows >= 0
        hazard = gather(hazard[there])
        time = gather(survival.value[TIME].float()[rows[there]])
        event = gather(survival.value[EVENT].long()[rows[there]]).bool()
        if len(hazard) < int(self.followed):
            raise InputError(
                f"a batch holds {len(hazard)} of the {int(self.followed)} training patients with a follow-up.",
                where="batch",
                consequence="Nothing was trained: risk sets span the whole fold.",
                fix="raise the stage's batch to the number of training patients.",
            )
        loss = cox_loss(hazard, time, event, self.config.ties)
        logs = {
            "loss": float(loss.detach()),
            "chance": float(cox_loss(torch.zeros_like(hazard), time, event, self.config.ties)),
            "events": float(event.sum()),
            "patients": float(len(hazard)),
        }
        return loss + 0.5 * self.config.penalty * self.last.weight.square().sum(), logs

    @torch.no_grad()
    def risk(self, block: Block) -> Float[Tensor, " m"]:
        """Log hazard of a block's patients, in evaluation mode; higher means an earlier event."""
        training = self.training
        self.eval()
        hazard = self.last(self.towers[self.modality](block).pooled).float()[:, 0]
        self.train(training)
        return hazard
