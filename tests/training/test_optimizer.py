"""The optimizer does what its configuration says: groups, decay, and the rate of every step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medform.config import parse
from medform.errors import InputError
from medform.training.optimizer import (
    OptimizerConfig,
    RelativeRate,
    WarmUp,
    base_rate,
    build_optimizer,
    learning_rate,
)


class Scaled(nn.Module):
    def learning_rate_scale(self) -> float:
        return 0.2


def model() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.LayerNorm((2, 2)))
    network.register_parameter("temperature", nn.Parameter(torch.tensor(0.1)))
    network[2].bias.requires_grad_(False)
    return network


@pytest.mark.proves("D19")
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_declared_decay_is_in_effect_and_spares_norms_biases_and_temperature(kind: str) -> None:
    network = model()
    config = parse(OptimizerConfig, {"kind": kind, "weight_decay": "0.03", "lr": "0.2"})
    optimizer = build_optimizer(config, network, 0.2)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = {
        group["weight_decay"]: sorted(names[id(parameter)] for parameter in group["params"])
        for group in optimizer.param_groups
    }
    assert groups == {
        0.03: ["0.weight", "2.weight"],
        0.0: ["0.bias", "1.bias", "1.weight", "3.bias", "3.weight", "temperature"],
    }
    assert {group["lr"] for group in optimizer.param_groups} == {0.2}
    assert isinstance(optimizer, torch.optim.AdamW if kind == "adamw" else torch.optim.SGD)


@pytest.mark.proves("D22", "A4.2")
@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from([0.0, 1e-8]))
def test_the_rate_rises_to_its_peak_and_ends_at_its_declared_end(total: int, share: float, final: float) -> None:
    config = OptimizerConfig(lr=1e-4, final_lr=final, warmup=WarmUp(share=share))
    warmup = config.warmup.count(total, 1)
    rates = [learning_rate(config, 1e-4, step, total, warmup) for step in range(total)]
    peak = max(warmup - 1, 0)
    assert rates[0] == (1e-4 / warmup if warmup else 1e-4) and rates[0] > 0
    assert rates[peak] == max(rates) and math.isclose(rates[peak], 1e-4)
    assert all(a <= b for a, b in zip(rates[:peak], rates[1 : peak + 1], strict=True))
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    if total > peak + 1:
        assert math.isclose(rates[-1], final, abs_tol=1e-20)


@pytest.mark.proves("D22")
def test_the_papers_schedule_has_five_warm_up_epochs_and_ends_at_1e_8() -> None:
    config = OptimizerConfig(lr=1e-4, final_lr=1e-8, warmup=WarmUp(epochs=5))
    warmup = config.warmup.count(400, 4)
    assert warmup == 20
    assert learning_rate(config, 1e-4, 0, 400, warmup) == 5e-6
    assert learning_rate(config, 1e-4, 19, 400, warmup) == 1e-4
    assert learning_rate(config, 1e-4, 399, 400, warmup) == 1e-8


@pytest.mark.proves("D21")
def test_settings_given_as_text_mean_what_they_say() -> None:
    tree = {
        "lr": "3e-4",
        "clip": None,
        "warmup": {"steps": "0"},
        "weight_decay": "0",
        "betas": ["0.9", "0.95"],
    }
    config = parse(OptimizerConfig, tree)
    assert (config.lr, config.clip, config.weight_decay, config.betas) == (3e-4, None, 0.0, (0.9, 0.95))
    warmup = config.warmup.count(10, 1)
    assert warmup == 0 and learning_rate(config, 3e-4, 0, 10, warmup) == 3e-4


def test_a_constant_schedule_stays() -> None:
    config = OptimizerConfig(schedule="constant", warmup=WarmUp(steps=2))
    assert [learning_rate(config, 1.0, step, 5, 2) for step in range(5)] == [0.5, 1, 1, 1, 1]


def test_a_relative_rate_is_in_units_of_the_weights() -> None:
    relative = OptimizerConfig(lr=RelativeRate(relative=0.03))
    assert base_rate(relative, Scaled()) == pytest.approx(0.006)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="Linear has no learning_rate_scale"):
        base_rate(relative, nn.Linear(1, 1))  # pyright: ignore[reportArgumentType]


@pytest.mark.proves("A.input")
@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"lr": "0"}, "greater than 0"),
        ({"warmup": {"steps": 1, "share": 0.1}}, "exactly one of steps, epochs, share"),
        ({"weight_decy": 1}, "Did you mean 'weight_decay'?"),
        ({"kind": "adam"}, "'adamw' or 'sgd'"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tree: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(OptimizerConfig, tree)


def test_nothing_trainable_is_said() -> None:
    with pytest.raises(InputError, match="no parameter is trainable"):
        build_optimizer(OptimizerConfig(), nn.BatchNorm1d(3, affine=False), 0.1)
