"""The one contrastive loss: rows of ``a`` against rows of ``b``, with weighted targets and a mask of candidates.

W by item without self is NT-Xent (Chen 2020), W by patient across modalities is InfoNCE (van den Oord 2018)
and its multi-positive form (Khosla 2020), a kernel of table rows gives soft targets.
`medform.objectives.targets` makes W.

Shapes: m rows of ``a``, n rows of ``b``, d features.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medform.config import Config

__all__ = [
    "RelativeTemperature",
    "Similarity",
    "Temperature",
    "TemperatureSetting",
    "alignment",
    "chance",
    "contrast",
    "logits",
    "retrieval",
    "uniformity",
]

Similarity = Literal["cosine", "distance"]

LEARNT_START = 0.07
"""Where a learnt temperature begins (CLIP, Radford 2021)."""
LEARNT_RANGE = (0.01, 1.0)
"""A learnt temperature is clamped to this range: below it gradients of a few pairs drown all others."""


def logits(
    a: Float[Tensor, "m d"],
    b: Float[Tensor, "n d"],
    temperature: float | Tensor,
    similarity: Similarity = "cosine",
) -> Float[Tensor, "m n"]:
    """cos(a, b) / temperature, or -|a - b|^2 / (2 temperature). At least float32, also under autocast."""
    precision = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):  # bf16 has 8 bits: a similarity over 0.01 needs more
        a, b = a.to(precision), b.to(precision)
        if similarity == "cosine":
            return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
        # a shared shift changes no distance, and small numbers lose fewer digits in |a|^2 + |b|^2 - 2ab
        centre = b.detach().mean(0)
        a, b = a - centre, b - centre
        squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
        return -squared / (2 * temperature)


def contrast(
    a: Float[Tensor, "m d"],
    b: Float[Tensor, "n d"],
    target: Bool[Tensor, "m n"] | Float[Tensor, "m n"],
    temperature: float | Tensor,
    candidate: Bool[Tensor, "m n"] | None = None,
    similarity: Similarity = "cosine",
) -> Float[Tensor, ""]:
    """Mean over the rows of ``a`` that have any target of ``-sum_j w_ij log softmax_j(logits_i)``.

    ``target`` >= 0 is scaled to sum to 1 in each row: several True are equal positives, numbers are soft
    targets. ``candidate`` False takes a pair out altogether: it is neither positive nor in the denominator.
    A row without a target (a patient without the other modality) has no term, but as a column it still is a
    negative of others. Where no row has a target the loss is 0, with zero gradients.

    ``temperature`` > 0; for ``similarity="distance"`` in units of squared distance.
    """
    weight = target.to(a.dtype if a.dtype == torch.float64 else torch.float32)
    if candidate is not None:
        weight = weight.masked_fill(~candidate, 0.0)
    total = weight.sum(1)
    rows = total > 0
    if not bool(rows.any()):
        return 0.0 * (a.sum() + b.sum()) + 0.0 * temperature
    score = logits(a[rows], b, temperature, similarity)
    if candidate is not None:
        score = score.masked_fill(~candidate[rows], -math.inf)
    log_share = F.log_softmax(score, dim=1)
    weight = weight[rows] / total[rows, None]
    # a pair that is no candidate has log 0 = -inf, and 0 x -inf is not a number
    return -(weight * log_share.masked_fill(weight == 0, 0.0)).sum(1).mean()


def chance(target: Bool[Tensor, "m n"] | Float[Tensor, "m n"], candidate: Bool[Tensor, "m n"] | None = None) -> float:
    """Loss of a network that tells nothing apart: mean of ln(candidates of the row) over rows with a target."""
    allowed = torch.ones_like(target, dtype=torch.bool) if candidate is None else candidate
    rows = ((target > 0) & allowed).any(1)
    if not bool(rows.any()):
        return 0.0
    return float(allowed[rows].sum(1).double().log().mean())


@torch.no_grad()
def retrieval(
    a: Float[Tensor, "m d"],
    b: Float[Tensor, "n d"],
    target: Bool[Tensor, "m n"] | Float[Tensor, "m n"],
    candidate: Bool[Tensor, "m n"] | None = None,
    similarity: Similarity = "cosine",
) -> float:
    """Share of the rows with a target whose nearest candidate is a target (retrieval at 1); NaN without such rows.

    Equal logits count as the share of targets among the nearest, so collapsed vectors score chance, not 1.
    """
    score = logits(a, b, 1.0, similarity)
    positive = target > 0
    if candidate is not None:
        positive = positive & candidate
        score = score.masked_fill(~candidate, -math.inf)
    rows = positive.any(1)
    if not bool(rows.any()):
        return math.nan
    score, positive = score[rows], positive[rows]
    nearest = score == score.max(1, keepdim=True).values
    return float(((nearest & positive).sum(1) / nearest.sum(1)).mean())


@torch.no_grad()
def alignment(z: Float[Tensor, "m d"], positive: Bool[Tensor, "m m"]) -> float:
    """Mean squared distance of positive pairs on the unit sphere (Wang and Isola 2020); 0 best, 2 unrelated."""
    cosine = logits(z, z, 1.0)
    return float((2 - 2 * cosine)[positive].mean()) if bool(positive.any()) else math.nan


@torch.no_grad()
def uniformity(z: Float[Tensor, "m d"]) -> float:
    """The ln of the mean of exp(-2 |zi - zj|^2) over pairs on the unit sphere (Wang and Isola 2020).

    0 where all vectors are one point, about -4 where they are spread evenly; NaN for fewer than two rows.
    """
    if len(z) < 2:
        return math.nan
    first, second = torch.triu_indices(len(z), len(z), offset=1, device=z.device)
    exponent = -4 + 4 * logits(z, z, 1.0)[first, second]
    return float(torch.logsumexp(exponent, 0)) - math.log(len(exponent))


class RelativeTemperature(Config):
    """A temperature in units of the vectors: ``relative`` times the image side's mean squared norm at the start."""

    relative: float = Field(gt=0)


TemperatureSetting = Annotated[float, Field(gt=0)] | RelativeTemperature | Literal["learnt"]


class Temperature(nn.Module):
    """The temperature of an objective: a fixed number, learnt and clamped, or relative to the vectors at the start.

    ``value()`` is what `contrast` takes. ``clamp()`` belongs behind each optimizer step. A relative
    temperature is NaN until ``fit`` has seen the training patients' vectors; it is a buffer and so is
    stored with the weights.
    """

    def __init__(self, setting: TemperatureSetting) -> None:
        super().__init__()
        self.share = setting.relative if isinstance(setting, RelativeTemperature) else None
        self.learnt = setting == "learnt"
        if self.learnt:
            self.logarithm = nn.Parameter(torch.tensor(math.log(LEARNT_START)))
        else:
            fixed = float(setting) if isinstance(setting, int | float) else math.nan
            self.register_buffer("fixed", torch.tensor(fixed, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, z: Float[Tensor, "m d"]) -> None:
        """Set a relative temperature from the image side's vectors of all training patients; else do nothing."""
        if self.share is not None:
            size = float(z.double().square().sum(1).mean())
            # a single patient, centred on itself, is all 0: any unit will do, but not 0
            self.get_buffer("fixed").fill_(self.share * (size if size > 0 else 1.0))

    @property
    def known(self) -> bool:
        """False for a relative temperature that no vectors were seen for."""
        return self.learnt or not math.isnan(float(self.get_buffer("fixed")))

    def value(self) -> float | Tensor:
        """The temperature now: a number, or for a learnt one a tensor with gradient."""
        if self.learnt:
            return self.logarithm.exp()
        if not self.known:
            raise RuntimeError("a relative temperature is known only after start(batch) has seen the training patients")
        return float(self.get_buffer("fixed"))

    @torch.no_grad()
    def number(self) -> float:
        """The temperature now, without gradient, for the log."""
        return float(self.value())

    @torch.no_grad()
    def clamp(self) -> None:
        """Put a learnt temperature back into [0.01, 1]."""
        if self.learnt:
            self.logarithm.clamp_(math.log(LEARNT_RANGE[0]), math.log(LEARNT_RANGE[1]))
