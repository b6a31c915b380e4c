"""The image tower: normalisation, slice vectors, what is frozen, names that are not there."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from medform.compute.seed import generator
from medform.errors import InputError
from medform.interfaces import Block
from medform.models.image import ImageTower, ModuleConfig, TimmConfig


def tower(model: str = "resnet10t", **options: object) -> ImageTower:
    return TimmConfig.model_validate({"model": model, **options}).build(generator(0, "image"))


def block(image: torch.Tensor) -> Block:
    ids = torch.arange(len(image))
    return Block({"image": image}, patient=ids, item=ids)


@pytest.mark.proves("A4.1")
@pytest.mark.parametrize("model", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "test_efficientnet"])
def test_any_family_takes_one_channel_and_learns(model: str) -> None:
    built = tower(model).train()
    vector = built(block(torch.rand(2, 1, 64, 64))).pooled
    assert vector.shape == (2, built.width)
    vector.square().sum().backward()
    assert all(parameter.grad is not None for parameter in built.parameters())


class OwnEncoder(nn.Module):
    """A user's own: nothing of medform in it."""

    def __init__(self, channels: int, name: str = "plain") -> None:
        super().__init__()
        self.layer1 = nn.Conv2d(1, channels, 3)
        self.name = name

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer1(image).mean((2, 3))


@pytest.mark.proves("A4.1")
def test_a_users_own_module_is_a_tower_with_arguments_written_as_yaml() -> None:
    config = ModuleConfig.model_validate({"module": f"{__name__}:OwnEncoder", "channels": "5", "std": "0.25"})
    model = config.build(generator(0)).eval()
    assert model.width == 5
    image = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(model(block(image)).pooled, model.encoder((image - 0.5) / 0.25))
    assert model.slice_vector(image, [1, "head"]).shape == (3, 10)
    assert ModuleConfig.model_validate(config.model_dump()).model_extra == {"channels": "5"}


@pytest.mark.proves("A4.1", "D12")
def test_initial_weights_are_a_function_of_the_seed() -> None:
    one, same, other = tower(), tower(), TimmConfig(model="resnet10t").build(generator(1, "image"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert not torch.equal(one.encoder.conv1[0].weight, other.encoder.conv1[0].weight)


@pytest.mark.proves("A4.1", "D14")
def test_a_batch_gives_the_vectors_of_its_slices_one_by_one() -> None:
    model = tower().eval()
    image = torch.rand(5, 1, 48, 40, generator=generator(0))
    with torch.inference_mode():
        together = model(block(image)).pooled
        apart = torch.cat([model(block(one[None])).pooled for one in image])
        layers = model.slice_vector(image, [1, 3, "head"])
    assert together.shape == (5, model.width)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert layers.shape == (5, 64 + 256 + model.width)
    torch.testing.assert_close(layers[:, -model.width :], together)


@pytest.mark.proves("A5.2")
def test_the_slice_vector_is_the_pooled_output_of_the_named_blocks() -> None:
    model = tower("tf_efficientnet_lite0").eval()
    image = torch.rand(2, 1, 64, 64, generator=generator(1))
    with torch.inference_mode():
        vector = model.slice_vector(image, [2, 4, 6, "head"])
        maps = [model.encoder.bn1(model.encoder.conv_stem((image - 0.5) / 0.5))]
        for stage in model.encoder.blocks:
            maps.append(stage(maps[-1]))
        expected = [maps[number + 1].mean((2, 3)) for number in (2, 4, 6)]
        expected.append(model(block(image)).pooled)
    assert vector.shape == (2, 1752)
    torch.testing.assert_close(vector, torch.cat(expected, 1), rtol=1e-5, atol=1e-5)


def test_a_vision_transformer_takes_any_size_and_pools_its_tokens_without_the_class_token() -> None:
    model = tower("test_vit", pool="token").eval()
    with torch.inference_mode():
        vector = model.slice_vector(torch.rand(2, 1, 64, 96), [0, "head"])
    assert vector.shape == (2, 2 * model.width)


@pytest.mark.proves("A4.1", "A5.2")
def test_only_named_modules_learn_and_the_frozen_front_keeps_its_statistics() -> None:
    model = tower(trainable=["layer4"], batch_norm="train").train()
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    seen: list[torch.Tensor] = []
    model.encoder.layer3.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(block(torch.rand(4, 1, 32, 32))).pooled.square().sum().backward()
    assert not seen[0].requires_grad  # nothing is kept for a backward pass through the frozen front
    learning = {name for name, parameter in model.encoder.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in model.encoder.named_parameters() if name.startswith("layer4.")}
    moved = {name for name, tensor in model.encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("layer4.") for name in moved)


@pytest.mark.proves("A5.2")
def test_frozen_batch_norm_keeps_its_statistics_while_its_weights_learn() -> None:
    model = tower(batch_norm="frozen").train()
    before = {name: tensor.clone() for name, tensor in model.encoder.named_buffers()}
    model(block(torch.rand(4, 1, 32, 32))).pooled.square().sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.named_buffers())
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.proves("A.input")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "resnet5O"}, "resnet50"),
        ({"model": "hf-hub:timm/resnet50"}, "no model"),
        ({"trainable": ["layer9"]}, "layer4"),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_the_nearest(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tower(**options)  # type: ignore[arg-type]


def test_a_stage_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match="1, 2, 3, 4, head"):
        tower().slice_vector(torch.rand(1, 1, 32, 32), [7])


@pytest.mark.proves("A5.1")
def test_the_papers_backbone_has_its_published_size() -> None:
    model = tower("resnet50")
    assert sum(parameter.numel() for parameter in model.parameters()) == 23_501_760
    assert model.width == 2048
    assert "resnet50" in timm.list_models()
