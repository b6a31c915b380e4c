"""Decoders: the pilot's size, one path with and without genes, skips of any tower, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medform.compute.seed import generator
from medform.errors import InputError
from medform.interfaces import Block, Encoded, Tower
from medform.models.fusion_decoder import (
    FusionDecoder,
    FusionDecoderConfig,
    HeadDecoderConfig,
)
from medform.models.hybrid import HybridConfig
from medform.models.image import MapTower, TimmConfig
from medform.models.vit import VitConfig

GENES = 10


class GeneTower(Tower):
    """Ten genes to a vector of 6 and three tokens of 5."""

    width, token_width = 6, 5

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.token = nn.Linear(GENES, 6), nn.Linear(GENES, 15)

    def forward(self, block: Block) -> Encoded:
        expression = block.value["expression"]
        return Encoded(self.vector(expression), tokens=self.token(expression).reshape(-1, 3, 5))


def image_tower(seed: int = 0) -> MapTower:
    return HybridConfig(model="resnet10t", width=12, blocks=1, heads=2).build(generator(seed))


def encoded(tower: MapTower, count: int = 4, side: int = 64) -> Encoded:
    channels = tower.channels[0]
    return tower.eval().encode(torch.rand(count, channels, side, side, generator=generator(3)))


def gene_vectors(patients: int = 2) -> Encoded:
    expression = torch.randn(patients, GENES, generator=generator(4))
    ids = torch.arange(patients)
    torch.manual_seed(0)
    return GeneTower()(Block({"expression": expression}, ids, ids))


def decoder(genes: str = "film", tower: MapTower | None = None, **options: Any) -> FusionDecoder:
    config = FusionDecoderConfig.model_validate({"genes": genes, "heads": "3", **options})
    model = config.build(tower or image_tower(), GeneTower(), generator(1))
    with torch.no_grad():  # the gene path begins at zero; here it is to matter
        if genes == "film":
            model.fusion.mlp[-1].weight.normal_(std=100, generator=generator(2))  # pyright: ignore[reportAttributeAccessIssue]
        elif genes == "cross_attention":
            model.fusion.attention.out_proj.weight.normal_(generator=generator(2))  # pyright: ignore[reportAttributeAccessIssue]
    return model.eval()


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.proves("G4.1")
def test_the_pilots_network_has_2_63_million_weights_and_2_68_with_film() -> None:
    tower = HybridConfig().build(generator(0))
    plain = FusionDecoderConfig(genes="none").build(tower, None, generator(1))
    film = FusionDecoderConfig().build(tower, None, generator(1))
    assert count(tower, plain) == 2_634_985
    # null token of 16; 16-64-64 and twice the 304 channels
    assert count(tower, film) - count(tower, plain) == 16 + 17 * 64 + 65 * 64 + 65 * 608
    assert film.head.state_dict()["bias"].tolist() == [-2.0]


@pytest.mark.proves("G4.1", "G.tests")
@pytest.mark.parametrize("genes", ["film", "cross_attention"])
def test_a_decoder_without_genes_is_the_no_genes_path(genes: str) -> None:
    model, image, vectors = decoder(genes), encoded(image_tower()), gene_vectors()
    nobody = torch.full((4,), -1)
    with torch.inference_mode():
        without = model(image, None, nobody)
        torch.testing.assert_close(model(image, vectors, nobody), without)
        mixed = model(image, vectors, torch.tensor([-1, 0, 1, -1]))
        own = model(image, vectors, torch.tensor([1, 0, 1, 0]))
    torch.testing.assert_close(mixed[[0, 3]], without[[0, 3]])
    torch.testing.assert_close(mixed[[1, 2]], own[[1, 2]])
    assert not torch.allclose(mixed[1], without[1]) and not torch.allclose(own[0], without[0])


@pytest.mark.proves("G5")
@pytest.mark.parametrize("genes", ["film", "cross_attention"])
def test_the_null_only_control_has_the_same_path_and_the_same_start(genes: str) -> None:
    tower = image_tower()
    config = FusionDecoderConfig.model_validate({"genes": genes})
    with_genes = config.build(tower, GeneTower(), generator(1))
    again = config.build(tower, GeneTower(), generator(1))
    for name, tensor in with_genes.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    image, vectors = encoded(tower), gene_vectors()
    nobody, rows = torch.full((4,), -1), torch.tensor([0, 1, 0, 1])
    # at the start genes change nothing, so both begin at one loss
    torch.testing.assert_close(with_genes.eval()(image, vectors, rows), again.eval()(image, None, nobody))


@pytest.mark.proves("G4.1")
@pytest.mark.parametrize("genes", ["film", "cross_attention", "none"])
def test_every_weight_of_the_path_in_use_learns(genes: str) -> None:
    tower = image_tower()
    model = decoder(genes, tower).train()
    image, vectors = encoded(tower), gene_vectors()
    model(image, vectors, torch.tensor([0, 1, -1, -1])).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    if genes != "none":
        assert float(model.fusion.null.grad.abs().sum()) > 0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.proves("G4.1")
def test_a_gene_tower_without_tokens_gives_its_vector_as_one() -> None:
    class Pooled(Tower):
        width = 6

    tower = image_tower()
    model = FusionDecoderConfig(genes="cross_attention").build(tower, Pooled(), generator(1)).eval()
    vectors = Encoded(torch.randn(2, 6, generator=generator(0)))
    with torch.inference_mode():
        assert model(encoded(tower), vectors, torch.tensor([0, 1, -1, 0])).shape == (4, 1, 64, 64)


@pytest.mark.proves("G4.1")
@pytest.mark.parametrize(("patch", "side", "channels"), [(16, 64, 1), (8, 64, 3), (4, 32, 5), (2, 16, 7)])
def test_a_vit_gets_its_fine_skips_from_the_stem(patch: int, side: int, channels: int) -> None:
    tower = VitConfig(model="test_vit", image_size=side, patch=patch, in_channels=channels).build(generator(0))
    model = FusionDecoderConfig(genes="none").build(tower, None, generator(1))
    image = encoded(tower, side=side)
    assert model(image, None, torch.full((4,), -1)).shape == (4, 1, side, side)
    assert len(model.doublings) == {16: 4, 8: 3, 4: 2, 2: 1}[patch]


@pytest.mark.proves("G4.1")
def test_slices_that_16_does_not_divide_get_masks_of_their_own_size() -> None:
    tower = HybridConfig(blocks=1).build(generator(0))
    model = FusionDecoderConfig(genes="none").build(tower, None, generator(1)).eval()
    with torch.inference_mode():
        image = tower.eval().encode(torch.rand(1, 1, 52, 76, generator=generator(2)))
        assert model(image, None, torch.tensor([-1])).shape == (1, 1, 52, 76)


@pytest.mark.proves("G.input")
def test_towers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="tokens and maps"):
        FusionDecoderConfig().build(TimmConfig(model="resnet10t").build(generator(0)), None, generator(1))
    with pytest.raises(InputError, match="decodes itself"):
        HeadDecoderConfig().build(image_tower(), None, generator(1))
    with pytest.raises(InputError, match="as many widths, not 2"):
        FusionDecoderConfig(widths=(8, 8)).build(image_tower(), None, generator(1))
    odd = VitConfig(model="test_vit", image_size=56, patch=14).build(generator(0))
    with pytest.raises(InputError, match="places of 14 pixels"):
        FusionDecoderConfig().build(odd, None, generator(1))
    with pytest.raises(InputError, match="5 heads cannot share 12 channels"):
        FusionDecoderConfig(genes="cross_attention", heads=5).build(image_tower(), None, generator(1))
