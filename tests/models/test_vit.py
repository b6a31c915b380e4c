"""The ViT tower: numbers of weights of the reference, any size and patch, tokens on the grid of the maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from medform.compute.seed import generator
from medform.errors import InputError
from medform.interfaces import Block
from medform.models.vit import VitConfig, VitTower
from medform.models.weights import load_file

TINY = {"model": "test_vit", "image_size": "64"}


def tower(seed: int = 0, **options: Any) -> VitTower:
    return VitConfig.model_validate({**TINY, **options}).build(generator(seed, "image"))


@pytest.mark.proves("G3.1")
@pytest.mark.parametrize(
    ("model", "channels", "weights"),
    [
        ("vit_small_patch16_224", 1, 21_492_096),
        ("vit_small_patch16_224", 3, 21_688_704),
        ("vit_tiny_patch16_224", 1, 5_437_632),
    ],
)
def test_the_sizes_of_the_reference(model: str, channels: int, weights: int) -> None:
    built = VitConfig(model=model, in_channels=channels).build(generator(0))
    assert sum(parameter.numel() for parameter in built.parameters()) == weights
    assert built.encoder.patch_embed.grid_size == (16, 16)


@pytest.mark.proves("G3.1")
@pytest.mark.parametrize(("patch", "side", "channels"), [(16, 64, 1), (8, 32, 3), (16, 96, 5)])
def test_tokens_lie_on_the_grid_of_the_maps(patch: int, side: int, channels: int) -> None:
    model = tower(patch=str(patch), in_channels=str(channels), depths=[1, 3]).eval()
    image = torch.rand(2, channels, side, side, generator=generator(1))
    with torch.inference_mode():
        found = model(Block({"image": image}, torch.arange(2), torch.arange(2)))
        assert torch.equal(found.pooled, model.encoder(model.normalise(image)))
        torch.testing.assert_close(model.slice_vector(image, ["head"]), found.pooled)
    grid = side // patch
    assert found.maps is not None and found.tokens is not None
    assert [tuple(one.shape[1:]) for one in found.maps] == [(channels, side, side), (2 * model.width, grid, grid)]
    assert found.tokens.shape == (2, grid * grid, model.width)
    assert (model.channels, model.strides) == ((channels, 2 * model.width), (1, patch))
    torch.testing.assert_close(found.pooled, found.tokens.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.proves("G3.1")
def test_local_weights_of_another_size_are_resampled_and_that_is_said(tmp_path: Path) -> None:
    trained, fresh = tower(1, in_channels="3"), tower(2, image_size="96")
    tensors = {name: tensor.contiguous() for name, tensor in trained.encoder.state_dict().items()}
    save_file(tensors, tmp_path / "vit.safetensors")
    report = load_file(fresh, tmp_path / "vit.safetensors")
    assert report.matched == report.total
    assert "summed from 3 channels to 1" in str(report) and "from 4 x 4 to 6 x 6 patches" in str(report)
    assert torch.equal(fresh.encoder.cls_token, trained.encoder.cls_token)
    assert fresh.encoder.pos_embed.shape[1] == 37


def test_the_class_token_can_be_the_vector() -> None:
    model = tower(pool="token").eval()
    image = torch.rand(1, 1, 64, 64, generator=generator(1))
    with torch.inference_mode():
        found = model.encode(image)
        assert torch.equal(found.pooled, model.encoder(model.normalise(image)))
    assert found.tokens is not None and not torch.allclose(found.pooled, found.tokens.mean(1))


def test_what_is_no_vit_or_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="is no ViT"):
        tower(model="resnet10t")
    with pytest.raises(ValidationError, match="do not fill a slice"):
        tower(patch="7")
    with pytest.raises(InputError, match="blocks; maps after 9"):
        tower(depths=[9])
