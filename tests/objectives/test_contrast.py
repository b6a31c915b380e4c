"""The one contrastive loss against closed forms, a slow loop in float64, a peer's NT-Xent, the InfoNCE
formula.
"""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from medform.compute.seed import generator
from medform.objectives.contrast import (
    RelativeTemperature,
    Similarity,
    Temperature,
    alignment,
    chance,
    contrast,
    logits,
    retrieval,
    uniformity,
)


def slow(
    a: torch.Tensor,
    b: torch.Tensor,
    target: torch.Tensor,
    tau: float,
    candidate: torch.Tensor,
    similarity: str,
) -> float:
    """The definition, one pair at a time in Python floats."""
    losses = []
    for i in range(len(a)):
        weights = [float(target[i, j]) * float(candidate[i, j]) for j in range(len(b))]
        if sum(weights) == 0:
            continue
        scores = []
        for j in range(len(b)):
            if similarity == "cosine":
                scores.append(float(a[i] @ b[j] / (a[i].norm() * b[j].norm())) / tau)
            else:
                scores.append(-float(((a[i] - b[j]) ** 2).sum()) / (2 * tau))
        total = sum(math.exp(s) for s, allowed in zip(scores, candidate[i], strict=True) if allowed)
        losses.append(-sum(w / sum(weights) * (s - math.log(total)) for w, s in zip(weights, scores, strict=True) if w))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.proves("A.tests", "A5.3")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(0, 10_000),
    st.sampled_from(["cosine", "distance"]),
    st.booleans(),
)
def test_it_equals_the_definition_computed_pair_by_pair(
    m: int, n: int, seed: int, similarity: Similarity, soft: bool
) -> None:
    random = generator(seed)
    a, b = (torch.randn(rows, 3, generator=random, dtype=torch.float64) for rows in (m, n))
    target = torch.rand(m, n, generator=random, dtype=torch.float64)
    target = target * (target > 0.5) if soft else target > 0.6
    candidate = torch.rand(m, n, generator=random) > 0.2
    found = contrast(a, b, target, 0.5, candidate, similarity)
    assert float(found) == pytest.approx(slow(a, b, target, 0.5, candidate, similarity), rel=1e-9, abs=1e-12)


@pytest.mark.proves("A.tests", "A4.1")
def test_by_item_without_self_it_is_the_peers_nt_xent() -> None:
    from lightly.loss import NTXentLoss

    first, second = (torch.randn(7, 16, generator=generator(seed)) for seed in (0, 1))
    item = torch.arange(7).repeat(2)
    target = (item[:, None] == item) & ~torch.eye(14, dtype=torch.bool)
    both = torch.cat([first, second])
    for temperature in (0.1, 0.5):
        mine = contrast(both, both, target, temperature, ~torch.eye(14, dtype=torch.bool))
        torch.testing.assert_close(mine, NTXentLoss(temperature)(first, second), rtol=1e-5, atol=1e-6)


@pytest.mark.proves("A.tests", "A5.1", "D16")
def test_by_patient_it_is_symmetric_infonce() -> None:
    image, table = (torch.randn(9, 2048, generator=generator(seed)) for seed in (0, 1))
    similarity = F.normalize(image, dim=1) @ F.normalize(table, dim=1).T / 0.01
    wanted = (F.cross_entropy(similarity, torch.arange(9)) + F.cross_entropy(similarity.T, torch.arange(9))) / 2
    target = torch.eye(9, dtype=torch.bool)
    mine = (contrast(image, table, target, 0.01) + contrast(table, image, target, 0.01)) / 2
    torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.proves("A.tests")
@pytest.mark.parametrize("similarity", ["cosine", "distance"])
def test_closed_forms(similarity: Similarity) -> None:
    n, eye = 6, torch.eye(6, dtype=torch.bool)
    same = torch.ones(2 * n, 4)
    item = torch.arange(n).repeat(2)
    others = ~torch.eye(2 * n, dtype=torch.bool)
    target = (item[:, None] == item) & others
    collapsed = contrast(same, same, target, 0.1, others, similarity)
    assert float(collapsed) == pytest.approx(math.log(2 * n - 1), abs=1e-5)
    assert chance(target, others) == pytest.approx(math.log(2 * n - 1))
    # orthogonal unit vectors: cosine 1 and 0, squared distance 0 and 2; both give 1/tau between them
    basis = torch.eye(n)
    wanted = math.log(math.exp(1 / 0.5) + n - 1) - 1 / 0.5
    assert float(contrast(basis, basis, eye, 0.5, similarity=similarity)) == pytest.approx(wanted, abs=1e-6)
    # m identical rows of the other side cannot be told apart: ln m is the floor
    twins = torch.cat([basis, basis])
    floor = contrast(basis, twins, torch.cat([eye, torch.zeros_like(eye)], 1), 0.01, similarity=similarity)
    assert float(floor) == pytest.approx(math.log(2), abs=1e-5)
    assert float(contrast(basis, twins, torch.cat([eye, eye], 1), 0.01, similarity=similarity)) == pytest.approx(
        math.log(2), abs=1e-5
    )


@pytest.mark.proves("A5.3")
def test_a_row_without_partner_has_no_term_and_one_pair_alone_has_nothing_to_tell() -> None:
    image, table = (torch.randn(4, 5, generator=generator(seed), requires_grad=True) for seed in (0, 1))
    target = torch.eye(4, dtype=torch.bool)
    target[3, 3] = False
    torch.testing.assert_close(contrast(image, table, target, 0.1), contrast(image[:3], table, target[:3], 0.1))
    single = contrast(image[:1], table[:1], torch.ones(1, 1, dtype=torch.bool), 0.1)
    assert float(single.detach()) == 0.0
    nothing = contrast(image, table, torch.zeros(4, 4, dtype=torch.bool), 0.1)
    nothing.backward()
    assert float(nothing.detach()) == 0.0
    assert image.grad is not None
    assert not image.grad.any()


@pytest.mark.proves("A.tests")
def test_gradients_are_those_of_finite_differences() -> None:
    random = generator(3)
    a, b = (torch.randn(rows, 3, dtype=torch.float64, generator=random, requires_grad=True) for rows in (4, 5))
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    target = torch.rand(4, 5, generator=random, dtype=torch.float64)
    target[1] = 0.0
    candidate = torch.rand(4, 5, generator=random) > 0.3
    for similarity in get_args(Similarity):
        assert torch.autograd.gradcheck(
            lambda a, b, tau, kind=similarity: contrast(a, b, target, tau, candidate, kind), (a, b, tau)
        )


@pytest.mark.proves("A4.2")
def test_extreme_logits_and_half_precision_stay_finite() -> None:
    a = 1e3 * torch.randn(6, 4, generator=generator(0))
    target = torch.eye(6, dtype=torch.bool)
    for similarity in get_args(Similarity):
        leaf = a.clone().requires_grad_()
        loss = contrast(leaf, a.flip(0), target, 1e-3, similarity=similarity)
        loss.backward()
        assert torch.isfinite(loss)
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(a.bfloat16(), a.bfloat16(), 0.01).dtype == torch.float32


def test_logged_measures_have_their_closed_forms() -> None:
    eye = torch.eye(4, dtype=torch.bool)
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert retrieval(corners, corners, eye) == 1.0
    assert retrieval(corners, corners, eye, ~eye) != retrieval(corners, corners, eye)  # its target is no candidate
    assert retrieval(torch.ones(4, 2), torch.ones(4, 2), eye) == pytest.approx(0.25)  # collapsed: chance
    assert math.isnan(retrieval(corners, corners, torch.zeros_like(eye)))
    assert alignment(corners, eye.roll(1, 1)) == pytest.approx((4 + 2 + 4 + 2) / 4)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-6)
    expected = math.log((2 * math.exp(-8) + 4 * math.exp(-4)) / 6)  # two antipodes, four right angles
    assert uniformity(corners) == pytest.approx(expected, rel=1e-5)
    assert math.isnan(uniformity(corners[:1]))


@pytest.mark.proves("A5.1", "A5.2")
def test_a_temperature_is_fixed_learnt_in_its_range_or_relative_and_stored() -> None:
    assert Temperature(0.01).value() == pytest.approx(0.01, rel=1e-12)
    assert list(Temperature(0.01).parameters()) == []
    learnt = Temperature("learnt")
    with torch.no_grad():
        learnt.logarithm.fill_(9.0)
    learnt.clamp()
    assert learnt.number() == pytest.approx(1.0)
    relative = Temperature(RelativeTemperature(relative=0.1))
    assert not relative.known
    with pytest.raises(RuntimeError, match="start"):
        relative.value()
    relative.fit(torch.full((5, 2), 3.0))
    assert relative.value() == pytest.approx(1.8)
    again = Temperature(RelativeTemperature(relative=0.1))
    again.load_state_dict(relative.state_dict())
    assert again.value() == relative.value()
