"""The hybrid tower: the pilot's numbers of weights, its vectors, tokens and maps, and where it may start."""

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
from medform.models.hybrid import HybridConfig, HybridTower
from medform.models.image import ImageTower, TimmConfig
from medform.models.weights import load_file, start_from

SMALL = {"model": "resnet10t", "width": "12", "blocks": "1", "heads": "2"}


def tower(seed: int = 0, **options: Any) -> HybridTower:
    return HybridConfig.model_validate({**SMALL, **options}).build(generator(seed, "image"))


def slices(count: int = 2, side: int = 64, channels: int = 1) -> Block:
    image = torch.rand(count, channels, side, side, generator=generator(9))
    return Block({"image": image}, torch.arange(count), torch.arange(count))


@pytest.fixture(scope="module")
def pilot() -> HybridTower:
    model = HybridConfig().build(generator(0))
    start_from(model, "imagenet")
    return model.eval()


@pytest.mark.proves("G3.1")
def test_the_default_is_the_pilots_network(pilot: HybridTower) -> None:
    with torch.inference_mode():
        found = pilot(slices())
    assert sum(parameter.numel() for parameter in pilot.parameters()) == 2_550_880
    assert sum(parameter.numel() for parameter in pilot.encoder.parameters()) == 700_192
    assert found.pooled.shape == (2, 192) and found.tokens is not None and found.tokens.shape == (2, 16, 192)
    torch.testing.assert_close(found.pooled, found.tokens.mean(1))
    assert [tuple(one.shape[1:]) for one in found.maps or []] == [
        (1, 64, 64), (16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)
    ]  # fmt: skip
    assert pilot.channels == (1, 16, 24, 40, 112) and pilot.strides == (1, 2, 4, 8, 16)


@pytest.mark.proves("G3.1")
def test_from_imagenet_its_maps_are_those_of_the_whole_network(pilot: HybridTower) -> None:
    whole = TimmConfig(model="tf_efficientnet_lite0").build(generator(1))
    start_from(whole, "imagenet")
    image = slices().value["image"]
    with torch.inference_mode():
        torch.testing.assert_close(pilot.slice_vector(image, [2, 4]), whole.eval().slice_vector(image, [2, 4]))
        torch.testing.assert_close(pilot.slice_vector(image, ["head"]), pilot(slices()).pooled)
    with pytest.raises(InputError, match="no stage 6"):
        pilot.slice_vector(image, [6])


@pytest.mark.proves("G3.1")
def test_the_report_says_what_an_imagenet_start_fills(caplog: pytest.LogCaptureFixture) -> None:
    model = HybridConfig().build(generator(0))
    before = model.position.detach().clone()
    report = start_from(model, "imagenet")
    assert report is not None and (report.matched, report.total) == (165, 165)
    assert "summed from 3 channels to 1" in str(report)
    assert "the 53 tensors beside the backbone keep their random weights" in str(report)
    assert torch.equal(model.position, before)
    assert start_from(model, "random") is None


@pytest.mark.proves("G3.1")
@pytest.mark.parametrize("start", ["", "towers.image.", "module.towers.image."])
def test_an_earlier_stages_tower_is_taken_over_whole(start: str, tmp_path: Path) -> None:
    trained, fresh = tower(1), tower(2)
    save_file(
        {start + name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, tmp_path / "m.safetensors"
    )
    report = load_file(fresh, tmp_path / "m.safetensors")
    assert "beside the backbone matched" in str(report)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


@pytest.mark.proves("G3.1")
def test_a_whole_backbone_fills_the_encoder_and_leaves_what_was_cut_off(tmp_path: Path) -> None:
    whole: ImageTower = TimmConfig(model="resnet10t").build(generator(3))
    torch.save(whole.encoder.state_dict(), tmp_path / "backbone.pth")
    model = tower(4)
    report = load_file(model, tmp_path / "backbone.pth")
    assert report.matched == report.total and report.unused == ()  # what was cut off is no news
    assert torch.equal(model.encoder.layer3[0].conv1.weight, whole.encoder.layer3[0].conv1.weight)


@pytest.mark.proves("G3.1")
def test_half_a_tower_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    trained, fresh = tower(1), tower(2)
    tensors = {name: tensor.contiguous() for name, tensor in trained.state_dict().items() if name != "position"}
    save_file(tensors, tmp_path / "half.safetensors")
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(InputError, match="Missing: position"):
        load_file(fresh, tmp_path / "half.safetensors")
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.proves("G3.1")
def test_other_sizes_are_taken_and_every_weight_learns() -> None:
    model = tower(in_channels="3").train()
    found = model(slices(side=80, channels=3))
    assert found.tokens is not None and found.tokens.shape == (2, 25, 12)
    found.tokens.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_frozen_stages_stay_and_the_transformer_learns() -> None:
    model = tower(trainable=["layer3"])
    moving = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moving == {"encoder", "projection", "position", "blocks", "norm"}
    assert not model.encoder.layer1[0].conv1.weight.requires_grad


def test_a_backbone_without_such_maps_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="no maps at strides 2, 4, 8 and 16"):
        tower(model="vit_tiny_patch16_224")
    with pytest.raises(InputError, match="tf_efficientnet_lite0"):
        tower(model="tf_efficientnet_lite00")
    with pytest.raises(ValidationError, match="cannot be shared by 5 heads"):
        tower(heads="5")
