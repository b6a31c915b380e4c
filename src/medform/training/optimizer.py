"""Optimizer and learning rate: AdamW or SGD, warm-up and cosine as a pure function of the step."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from medform.config import Config
from medform.errors import InputError
from medform.interfaces import Objective

__all__ = [
    "OptimizerConfig",
    "RelativeRate",
    "WarmUp",
    "base_rate",
    "build_optimizer",
    "learning_rate",
    "set_rate",
]

Rate = Annotated[float, Field(gt=0)]


class RelativeRate(Config):
    """A rate in units of the weights: ``relative`` times the objective's ``learning_rate_scale()``."""

    relative: Rate


class WarmUp(Config):
    """How long the rate rises linearly: exactly one of ``steps``, ``epochs``, a ``share`` of all steps."""

    steps: int | None = Field(default=None, ge=0)
    epochs: float | None = Field(default=None, ge=0)
    share: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.steps, self.epochs, self.share)) != 1:
            raise ValueError("give exactly one of steps, epochs, share.")
        return self

    def count(self, total: int, steps_per_epoch: int) -> int:
        """Number of warm-up steps, at most ``total``."""
        if self.steps is not None:
            wanted = self.steps
        elif self.epochs is not None:
            wanted = math.ceil(self.epochs * steps_per_epoch)
        else:
            wanted = math.ceil((self.share or 0.0) * total)
        return min(wanted, total)


class OptimizerConfig(Config):
    """``lr``: the highest rate; ``final_lr``: that of the last step; ``clip``: largest gradient norm."""

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: Rate | RelativeRate = 1e-4
    final_lr: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: WarmUp = WarmUp(share=0.05)
    weight_decay: float = Field(default=0.01, ge=0)  # not on biases, norms and temperatures
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    clip: float | None = Field(default=1.0, gt=0)


def base_rate(config: OptimizerConfig, objective: Objective) -> float:
    """The highest rate as a number; a relative one is taken from the weights as they are: at the start."""
    if isinstance(config.lr, RelativeRate):
        scale = getattr(objective, "learning_rate_scale", None)
        if scale is None:
            raise TypeError(f"{type(objective).__name__} has no learning_rate_scale(), which a relative lr needs")
        return config.lr.relative * float(scale())
    return config.lr


def learning_rate(config: OptimizerConfig, base: float, step: int, total: int, warmup: int) -> float:
    """Rate of step ``step`` (from 0) of ``total``: base (step + 1) / warmup up to ``base``, then down to ``final_lr``.

    The rate is ``base`` at step max(warmup - 1, 0) and, with the cosine, exactly ``final_lr`` at the last
    step.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    if config.schedule == "constant":
        return base
    peak = max(warmup - 1, 0)
    progress = (step - peak) / max(total - 1 - peak, 1)
    return config.final_lr + (base - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def build_optimizer(config: OptimizerConfig, objective: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Optimizer over the trainable parameters, in two groups: decayed, and not (biases, norms, single numbers).

    Where the objective's ``rate_of`` gives some parameters a rate of their own, each group is divided by
    it, and the group's ``share`` of the rate is kept in it. Raises `InputError` where nothing is trainable.
    """
    spared: set[int] = set()
    for module in objective.modules():
        if isinstance(module, _NORMS):
            spared |= {id(parameter) for parameter in module.parameters(recurse=False)}
    share_of = getattr(objective, "rate_of", lambda _: 1.0)
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or id(parameter) in spared
            found.setdefault((plain, float(share_of(name))), []).append(parameter)
    if not found:
        raise InputError(
            "no parameter is trainable.",
            where="towers",
            consequence="Nothing was trained.",
            fix="name modules in towers.<modality>.trainable, or set budget: {steps: 0}.",
        )
    groups = []
    for plain, share in sorted(found):
        group = {"params": found[plain, share], "weight_decay": 0.0 if plain else config.weight_decay}
        groups.append(group if share == 1.0 else {**group, "lr": rate * share, "share": share})
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=rate, betas=config.betas)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same learning rate, or its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
