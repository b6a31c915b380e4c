"""Pools over packed bags: equal to a loop over bags and to a peer, and right at the edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medform.compute.seed import generator
from medform.models.pooling import (
    AbmilConfig,
    GatedAttentionPool,
    MeanPool,
    MeanPoolConfig,
    segment_softmax,
    segments,
)

SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def packed(sizes: list[int], width: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    feature = torch.randn(sum(sizes), width, generator=generator(seed))
    return feature, torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])


def abmil(start: str = "random", width: int = 5, pre: tuple[int, ...] = (), **options: float) -> GatedAttentionPool:
    config = AbmilConfig(hidden=4, pre_attention=list(pre), **options)  # type: ignore[arg-type]
    return config.build(width, generator(1), start).eval()  # type: ignore[arg-type]


@pytest.mark.proves("A.tests", "A5.3", "D28", "D29")
@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 1000), st.booleans())
def test_packed_bags_equal_a_loop_over_bags_and_the_formula(sizes: list[int], seed: int, deep: bool) -> None:
    pool = abmil(pre=(6, 3) if deep else ())
    feature, offset = packed(sizes, seed=seed)
    with torch.no_grad():
        bag, weight = pool(feature, offset)
        for row, one in enumerate(feature.split(sizes)):
            alone, alone_weight = pool(one, torch.tensor([0, len(one)]))
            torch.testing.assert_close(bag[row], alone[0], rtol=1e-5, atol=1e-6)
            h = pool.pre_attention(one)
            score = pool.score(pool.tanh_gate(h).tanh() * pool.sigmoid_gate(h).sigmoid())[:, 0]
            torch.testing.assert_close(alone_weight, score.softmax(0))
            torch.testing.assert_close(alone[0], score.softmax(0) @ h)
        total = torch.stack([part.sum() for part in weight.split(sizes)])
    torch.testing.assert_close(total, torch.ones(len(sizes)))


@pytest.mark.proves("A.tests", "D30")
@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 1000), st.booleans())
def test_the_order_of_slices_in_a_bag_changes_nothing(sizes: list[int], seed: int, mean: bool) -> None:
    pool = MeanPool(5) if mean else abmil()
    feature, offset = packed(sizes, seed=seed)
    order = torch.cat(
        [
            begin + torch.randperm(size, generator=generator(seed))
            for begin, size in zip(offset[:-1].tolist(), sizes, strict=True)
        ]
    )
    with torch.no_grad():
        bag, weight = pool(feature, offset)
        shuffled, shuffled_weight = pool(feature[order], offset)
    torch.testing.assert_close(shuffled, bag, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shuffled_weight, weight[order])


@pytest.mark.proves("A.tests")
def test_gated_attention_equals_torchmil() -> None:
    from torchmil.models import ABMIL

    mine = abmil(dropout=0.0)
    peer = ABMIL(in_shape=(5,), att_dim=4, att_act="tanh", gated=True).eval()
    copies = {
        "pool.fc1.module": mine.tanh_gate,
        "pool.fc_gated.module": mine.sigmoid_gate,
        "pool.fc2": mine.score,
    }
    with torch.no_grad():
        for name, layer in copies.items():
            own = peer.get_submodule(name)
            assert isinstance(own, torch.nn.Linear)
            own.weight.copy_(layer.weight)
            if own.bias is not None:
                own.bias.copy_(layer.bias)
            else:
                layer.bias.zero_()
        sizes = [3, 1, 6]
        feature, offset = packed(sizes)
        bag, weight = mine(feature, offset)
        for row, one in enumerate(feature.split(sizes)):
            logit, score = peer(one[None], return_att=True)
            torch.testing.assert_close(score[0].softmax(0), weight[offset[row] : offset[row + 1]])
            torch.testing.assert_close(logit, peer.classifier(bag[row][None]).squeeze(-1))


@pytest.mark.proves("A5.2")
def test_a_uniform_start_is_the_mean_and_still_learns() -> None:
    pool = abmil("uniform")
    feature, offset = packed([4, 2, 1])
    bag, weight = pool(feature, offset)
    mean, mean_weight = MeanPoolConfig().build(5, generator(0))(feature, offset)
    torch.testing.assert_close(bag, mean)
    torch.testing.assert_close(weight, mean_weight)
    bag.square().sum().backward()
    assert pool.score.weight.grad is not None
    assert pool.score.weight.grad.any()
    assert abmil("random").score.weight.any()


@pytest.mark.proves("A5.3", "D28")
def test_empty_bags_and_wrong_offsets_are_errors() -> None:
    feature, _ = packed([3, 2])
    for offset, said in (
        ([0, 3, 3, 5], r"bags \[1\] hold no slice"),
        ([0, 3], "0 to"),
        ([1, 5], "0 to"),
        ([0, 4, 3, 5], "rise"),
    ):
        with pytest.raises(ValueError, match=said):
            MeanPool(5)(feature, torch.tensor(offset))
    assert segments(torch.tensor([0, 3, 5]), 5).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.proves("A.tests")
def test_the_segment_softmax_is_stable_and_has_the_right_gradient() -> None:
    segment = torch.tensor([0, 0, 1, 1, 1])
    extreme = segment_softmax(torch.tensor([1e4, 1e4, -1e4, -1e4, -1e4]), segment, 2)
    torch.testing.assert_close(extreme, torch.tensor([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3]))
    score = torch.randn(5, dtype=torch.float64, generator=generator(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: segment_softmax(s, segment, 2), (score,))


@pytest.mark.proves("D31")
def test_building_twice_from_one_configuration_gives_the_same_pool_and_changes_nothing() -> None:
    config = AbmilConfig(hidden=4, pre_attention=[6])
    before = config.model_dump()
    one, two = config.build(5, generator(2), "random"), config.build(5, generator(2), "random")
    assert config.model_dump() == before
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
