"""MONAI's U-Net as a tower: the pilot's size, and the very network of MONAI."""

from __future__ import annotations

import sys

import pytest
import torch

from medform.compute.seed import generator
from medform.errors import ExtraMissing
from medform.models.fusion_decoder import HeadDecoderConfig
from medform.models.unet import UnetConfig


@pytest.mark.proves("G5")
def test_the_default_has_the_pilots_size_and_a_mask_for_every_slice() -> None:
    model = UnetConfig().build(generator(0))
    decoder = HeadDecoderConfig().build(model, None, generator(1))
    weights = sum(parameter.numel() for part in (model, decoder) for parameter in part.parameters())
    assert weights == 1_631_506
    with torch.inference_mode():
        found = model.encode(torch.rand(2, 1, 64, 64, generator=generator(2)))
        logit = decoder(found, None, torch.full((2,), -1))
    assert found.pooled.shape == (2, 256) == (2, model.width) and logit.shape == (2, 1, 64, 64)


@pytest.mark.proves("G5")
@pytest.mark.parametrize("channels", [(4, 8), (4, 6, 8)])
def test_it_computes_what_monais_network_computes(channels: tuple[int, ...]) -> None:
    model = UnetConfig(in_channels=3, channels=channels).build(generator(0)).eval()
    image = torch.rand(2, 3, 32, 32, generator=generator(1))
    with torch.inference_mode():
        found = model.encode(image)
        assert found.maps is not None
        assert torch.equal(found.maps[0], model.encoder(model.normalise(image)))
    assert found.pooled.shape == (2, channels[-1])


def test_without_monai_the_pip_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets.unet", None)
    with pytest.raises(ExtraMissing, match=r'pip install "medform\[seg\]"'):
        UnetConfig().build(generator(0))
