"""Blocks: rows are taken with everything that belongs to them."""

from __future__ import annotations

import pytest
import torch

from medform.interfaces import Block, Objective


def test_rows_are_taken_with_their_ids_and_positions() -> None:
    ids = torch.arange(4)
    block = Block({"image": torch.rand(4, 1, 2, 2), "height": ids / 4}, ids + 10, ids, z=ids, z_mm=ids * 2.5)
    part = block.take(torch.tensor([3, 1]))
    assert part.patient.tolist() == [13, 11] and part.item.tolist() == [3, 1] and len(part) == 2
    assert part.z is not None and part.z.tolist() == [3, 1]
    assert part.z_mm is not None and part.z_mm.tolist() == [7.5, 2.5]
    assert torch.equal(part.value["image"], block.value["image"][[3, 1]])
    assert part.cohort is None


def test_bags_are_not_taken_apart() -> None:
    ids = torch.arange(2)
    bags = Block({"feature": torch.rand(3, 2)}, ids, ids, offset=torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="packed bags"):
        bags.take(torch.tensor([0]))


def test_every_parameter_learns_at_the_stages_rate_unless_said_otherwise() -> None:
    assert Objective().rate_of("towers.image.encoder.weight") == 1.0
