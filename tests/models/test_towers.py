"""Bag, table and projection towers: the paper's sizes, stored centring, widths."""

from __future__ import annotations

import pytest
import torch

from medform.compute.seed import generator
from medform.interfaces import Block
from medform.models.bag import BagConfig
from medform.models.pooling import AbmilConfig, MeanPoolConfig
from medform.models.projection import LinearHeadConfig, ProjectionConfig
from medform.models.tabular import LinearConfig, MlpConfig


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def bags(sizes: list[int], width: int, seed: int = 0) -> Block:
    feature = torch.randn(sum(sizes), width, generator=generator(seed))
    offset = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    ids = torch.arange(len(sizes))
    return Block({"feature": feature}, patient=ids, item=ids, offset=offset)


def table(rows: torch.Tensor) -> Block:
    ids = torch.arange(len(rows))
    return Block({"table": rows}, patient=ids, item=ids)


@pytest.mark.proves("A5.1", "A.tests")
def test_the_papers_image_side_has_its_published_size() -> None:
    paper = AbmilConfig(hidden=768, dropout=0.25, pre_attention=[2048, 2048], pre_dropout=0.1)
    tower = BagConfig(pool=paper).build(2048, generator(0), pool_start="random")
    assert size(tower) == 11_548_929
    assert tower.width == 2048
    assert tower.head is None


@pytest.mark.proves("A5.1", "A.tests", "D27")
@pytest.mark.parametrize(("p", "count"), [(18, 39_668), (25, 54_648), (49, 107_496), (64, 141_696), (151, 357_804)])
def test_the_papers_clinical_side_has_its_published_size(p: int, count: int) -> None:
    tower = MlpConfig.model_validate({"hidden": ["columns", "columns"], "width": "2048"}).build(p, generator(0))
    assert size(tower) == count == 2 * p * p + 2054 * p + 2048
    ours = MlpConfig(hidden=[128, 128]).build(p, generator(0), shared_width=128)
    assert ours.layers[-1].in_features == 128  # not p


def test_projection_heads_have_their_stated_size() -> None:
    assert size(ProjectionConfig().build(2048, generator(0))) == 4_458_624
    with_norm = ProjectionConfig(batch_norm=True).build(2048, generator(0))
    assert size(with_norm) == 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128
    assert with_norm(torch.randn(3, 2048)).shape == (3, 128)


@pytest.mark.proves("A5.2")
def test_bags_are_centred_and_scaled_by_training_patients_and_that_is_stored() -> None:
    config = BagConfig(pool=MeanPoolConfig(), head=LinearHeadConfig())
    tower = config.build(6, generator(0), shared_width=2)
    train, test = bags([3, 1, 4, 2], 6), bags([2, 2], 6, seed=1)
    seen = tower.fit_input(train)
    torch.testing.assert_close(seen.mean(0), torch.zeros(6), atol=1e-6, rtol=0)
    assert float(seen.square().mean()) == pytest.approx(1.0, abs=1e-5)
    again = config.build(6, generator(1), shared_width=2)
    again.load_state_dict(tower.state_dict())
    torch.testing.assert_close(again(test).pooled, tower(test).pooled)
    alone = config.build(6, generator(0), shared_width=2)
    alone.fit_input(bags([3], 6))  # one patient has no spread
    assert torch.isfinite(alone(test).pooled).all()


def test_a_linear_table_tower_centres_its_rows_and_keeps_its_directions() -> None:
    tower = LinearConfig().build(3, generator(0), shared_width=2)
    rows = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    tower.fit_input(table(rows))
    torch.testing.assert_close(tower(table(rows)).pooled.sum(0), torch.zeros(2), atol=1e-6, rtol=0)
    assert tower.directions.isnan().all()
    assert "directions" in tower.state_dict()
    with pytest.raises(ValueError, match="shared space"):
        LinearConfig().build(3, generator(0))


@pytest.mark.proves("A5.3")
def test_a_block_that_is_not_packed_is_an_error() -> None:
    tower = BagConfig(pool=MeanPoolConfig()).build(6, generator(0))
    with pytest.raises(ValueError, match="packed"):
        tower(Block({"feature": torch.zeros(2, 6)}, patient=torch.arange(2), item=torch.arange(2)))
