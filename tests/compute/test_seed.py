"""Named generators, and modules that draw from a generator that is handed to them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medform.compute.seed import derive, draws_from, generator, numpy_generator


@pytest.mark.proves("A4.2", "D33")
def test_generators_depend_on_seed_and_names_only() -> None:
    first = torch.rand(3, generator=generator(7, "pretrain", 0))
    torch.rand(10)
    assert torch.equal(first, torch.rand(3, generator=generator(7, "pretrain", 0)))
    assert not torch.equal(first, torch.rand(3, generator=generator(7, "pretrain", 1)))
    assert derive(1, "ab", "c") != derive(1, "a", "bc")
    assert numpy_generator(7, "x").random() == numpy_generator(7, "x").random()


@pytest.mark.proves("A4.2", "D12")
def test_weights_and_dropout_draw_from_the_given_generator_and_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    random = generator(3)
    with draws_from(random):
        one = nn.Linear(4, 4).weight
    with draws_from(random):
        other = nn.Linear(4, 4).weight
    with draws_from(generator(3)):
        again = nn.Linear(4, 4).weight
    assert torch.equal(one, again)
    assert not torch.equal(one, other)  # the generator moves on
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="inside"), draws_from(generator(3)):
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)
