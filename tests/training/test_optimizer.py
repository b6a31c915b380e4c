"""The optimizer does what its configuration says: groups, decay, and the rate of every step."""

from __future__ import annotations

import math
from itertools import pairwise

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
    set_rate,
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
    assert all(a <= b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))
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


class Uneven(nn.Sequential):
    """A matrix that learns at a tenth of the rate, the rest at the whole one."""

    def rate_of(self, name: str) -> float:
        return 0.1 if name == "0.weight" else 1.0


def layers(kind: type[nn.Sequential]) -> nn.Sequential:
    torch.manual_seed(0)
    return kind(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1))


@pytest.mark.proves("G4.1")
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_part_with_a_share_of_the_rate_moves_by_that_share(kind: str) -> None:
    config = parse(OptimizerConfig, {"kind": kind, "weight_decay": "0", "momentum": "0"})
    moved = []
    for family in (nn.Sequential, Uneven):
        network = layers(family)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        optimizer = build_optimizer(config, network, 0.5)
        set_rate(optimizer, 0.02)
        network(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        moved.append([p.detach() - b for p, b in zip(network.parameters(), before, strict=True)])
    names = [name for name, _ in layers(nn.Sequential).named_parameters()]
    for name, even, uneven in zip(names, *moved, strict=True):
        torch.testing.assert_close(uneven, even * (0.1 if name == "0.weight" else 1.0))
    assert float(moved[0][0].abs().sum()) > 0


@pytest.mark.proves("G4.1")
def test_shares_follow_the_schedule_and_come_back_from_a_checkpoint() -> None:
    optimizer = build_optimizer(OptimizerConfig(), layers(Uneven), 0.5)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.05, 0.5, 0.5]
    other = build_optimizer(OptimizerConfig(), layers(Uneven), 0.5)
    other.load_state_dict(optimizer.state_dict())
    set_rate(other, 0.3)
    assert [group["lr"] for group in other.param_groups] == [0.03, 0.3, 0.3]


def test_without_an_opinion_groups_and_their_keys_are_what_they_were() -> None:
    """Checkpoints of stages that know no shares stay readable, and their steps the same to the last bit."""
    network = layers(nn.Sequential)
    groups = build_optimizer(OptimizerConfig(weight_decay=0.3), network, 0.5).param_groups
    plain = torch.optim.AdamW(network.parameters(), lr=0.5).param_groups[0]
    assert [set(group) for group in groups] == [set(plain), set(plain)]
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(network[0].weight), id(network[2].weight)],
        [id(p) for p in (network[0].bias, network[1].weight, network[1].bias, network[2].bias)],
    ]
