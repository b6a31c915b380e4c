"""The Mamba layer: sizes and start of the reference, equality with mambapy, causality, padding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medform.compute.seed import draws_from, generator
from medform.models.mamba import BidirectionalMamba, CausalConvolution, Mamba, MambaMixer, reversed_steps
from medform.training.optimizer import OptimizerConfig, build_optimizer


def made(width: int, layers: int, seed: int = 0, **options: int) -> Mamba:
    with draws_from(generator(seed)):
        return Mamba(width, layers, **options)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def formula(d: int, n: int = 16, k: int = 4) -> int:
    e, r = 2 * d, math.ceil(d / 16)
    return 2 * d * e + (e * k + e) + e * (r + 2 * n) + (r * e + e) + e * n + e + e * d + d


SIZES = [
    (32, 1, 9_952),
    (64, 4, 130_816),
    (128, 4, 466_432),
    (192, 4, 1_006_848),
    (256, 4, 1_752_064),
    (256, 8, 3_504_128),
    (384, 6, 5_785_344),
    (768, 24, 90_519_552),
]


@pytest.mark.proves("G2.2", "G.tests")
@pytest.mark.parametrize(("width", "layers", "count"), SIZES)
def test_the_layers_have_the_size_of_the_reference(width: int, layers: int, count: int) -> None:
    assert size(Mamba(width, layers)) == count == layers * formula(width)


@pytest.mark.proves("G2.2")
def test_the_two_copies_of_the_gene_encoder_have_the_size_of_the_reference() -> None:
    assert size(BidirectionalMamba(256, 4)) == 3_504_128


@pytest.mark.proves("G2.2", "G.tests")
def test_it_equals_mambapy_with_the_same_weights() -> None:
    peer = pytest.importorskip("mambapy.mamba")
    torch.manual_seed(0)
    theirs = peer.Mamba(peer.MambaConfig(d_model=32, n_layers=2))
    ours = made(32, 2)
    with torch.no_grad():
        for own, other in zip(ours.layers, theirs.layers, strict=True):
            own.norm.weight.copy_(other.norm.weight)
            mixer, given_ = own.mixer, other.mixer
            mixer.in_projection.weight.copy_(given_.in_proj.weight)
            mixer.convolution.weight.copy_(given_.conv1d.weight.squeeze(1))
            mixer.convolution.bias.copy_(given_.conv1d.bias)
            mixer.selection.weight.copy_(given_.x_proj.weight)
            mixer.step_projection.load_state_dict(given_.dt_proj.state_dict())
            mixer.log_rate.copy_(given_.A_log.flatten())
            mixer.skip.copy_(given_.D)
            mixer.out_projection.weight.copy_(given_.out_proj.weight)
    u = torch.randn(2, 37, 32, generator=generator(1), requires_grad=True)
    mirror = u.detach().clone().requires_grad_()
    mine, peers = ours(u), theirs(mirror)
    assert float((mine - peers).abs().max().detach()) <= 1e-5
    mine.square().sum().backward()
    peers.square().sum().backward()
    torch.testing.assert_close(u.grad, mirror.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        ours.layers[0].mixer.log_rate.grad, theirs.layers[0].mixer.A_log.grad.flatten(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.proves("G2.2")
def test_the_start_is_that_of_the_reference() -> None:
    mixer = made(256, 1).layers[0].mixer
    first = F.softplus(mixer.step_projection.bias.detach())
    assert 0.00099 < float(first.min()) < 0.0012 and 0.085 < float(first.max()) < 0.1001
    logs = first.log()
    assert abs(float(logs.mean()) - (math.log(1e-3) + math.log(1e-1)) / 2) < 0.2  # log-uniform
    rate = mixer.log_rate.detach().view(512, 16).exp()
    torch.testing.assert_close(rate, torch.arange(1.0, 17).expand(512, 16))
    assert bool((mixer.skip == 1).all())
    assert float(mixer.step_projection.weight.detach().abs().max()) <= 16**-0.5
    assert mixer.in_projection.bias is mixer.selection.bias is mixer.out_projection.bias is None


@pytest.mark.proves("G2.2")
def test_weight_decay_leaves_rates_skips_step_sizes_and_norms_alone() -> None:
    model = made(32, 2)
    groups = build_optimizer(OptimizerConfig(weight_decay=0.1), model, 1e-3).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    names = {name.split(".", 2)[2] for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert names == {
        "mixer.in_projection.weight",
        "mixer.convolution.weight",
        "mixer.selection.weight",
        "mixer.step_projection.weight",
        "mixer.out_projection.weight",
    }


@pytest.mark.proves("G2.2", "G.tests")
@torch.no_grad()
def test_no_step_sees_a_later_one() -> None:
    model = made(16, 2)
    u = torch.randn(2, 37, 16, generator=generator(1))
    changed = u.clone()
    changed[:, 20:] += 1
    before, after = model(u), model(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])


@pytest.mark.proves("G2.2", "G.tests")
@pytest.mark.parametrize("kind", [Mamba, BidirectionalMamba])
@torch.no_grad()
def test_padding_at_the_end_changes_nothing(kind: type[nn.Module]) -> None:
    with draws_from(generator(0)):
        model = kind(16, 2)
    u = torch.randn(3, 11, 16, generator=generator(1))
    length = torch.tensor([11, 5, 1])
    garbage = torch.where(torch.arange(11)[:, None] < length[:, None, None], u, 1e4)
    together = model(garbage, length)
    for row, steps in enumerate(length.tolist()):
        torch.testing.assert_close(together[row, :steps], model(u[row : row + 1, :steps])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.proves("G2.2", "G.tests")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_sequences_shorter_than_the_convolution(steps: int) -> None:
    model = made(8, 2)
    u = torch.randn(2, 5, 8, generator=generator(1))
    short = u[:, :steps].clone().requires_grad_()
    got = model(short)
    torch.testing.assert_close(got, model(u)[:, :steps], atol=1e-6, rtol=1e-5)
    got.sum().backward()
    assert short.grad is not None and bool(short.grad.isfinite().all())


@pytest.mark.proves("G2.2", "G.tests")
def test_the_gradient_of_a_layer_in_double_precision() -> None:
    model = made(4, 1, state=2).double()
    u = torch.randn(1, 5, 4, generator=generator(1), dtype=torch.float64, requires_grad=True)
    parameters = tuple(model.parameters())

    def layer(u: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        names = [name for name, _ in model.named_parameters()]
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (u,))

    assert torch.autograd.gradcheck(model, (u,))
    assert torch.autograd.gradcheck(layer, (u, *parameters), fast_mode=True)


@pytest.mark.proves("G2.2", "G.tests")
@torch.no_grad()
def test_a_long_sequence_stays_finite() -> None:
    model = made(8, 1)
    assert bool(model(10 * torch.randn(1, 4096, 8, generator=generator(1))).isfinite().all())


@pytest.mark.proves("G2.2", "G.tests")
@torch.no_grad()
def test_the_copy_from_the_end_is_the_same_layer_on_the_reversed_sequence() -> None:
    with draws_from(generator(0)):
        both = BidirectionalMamba(8, 2)
    u = torch.randn(2, 9, 8, generator=generator(1))
    assert torch.equal(both(u), (both.from_start(u) + both.from_end(u.flip(1)).flip(1)) / 2)
    both.from_end.load_state_dict(both.from_start.state_dict())
    torch.testing.assert_close(both(u.flip(1)), both(u).flip(1))


def test_reversing_twice_is_no_change_and_padding_stays_at_the_end() -> None:
    u = torch.arange(10.0).view(2, 5, 1)
    length = torch.tensor([3, 5])
    assert reversed_steps(u, length)[..., 0].tolist() == [[2, 1, 0, 3, 4], [9, 8, 7, 6, 5]]
    assert torch.equal(reversed_steps(reversed_steps(u, length), length), u)


@pytest.mark.proves("G2.2")
@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    steps=st.integers(1, 9),
    channels=st.integers(1, 5),
    taps=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_the_convolution_equals_the_one_of_torch(batch: int, steps: int, channels: int, taps: int, seed: int) -> None:
    random = generator(seed)
    with draws_from(random):
        ours = CausalConvolution(channels, taps).double()
    x = torch.randn(batch, steps, channels, generator=random, dtype=torch.float64, requires_grad=True)
    theirs = F.conv1d(x.transpose(1, 2), ours.weight[:, None], ours.bias, padding=taps - 1, groups=channels)
    theirs = theirs[..., :steps].transpose(1, 2)
    got = ours(x)
    torch.testing.assert_close(got, theirs)
    weight = torch.randn(got.shape, generator=random, dtype=torch.float64)
    inputs = (x, ours.weight, ours.bias)
    mine = torch.autograd.grad((got * weight).sum(), inputs)
    torch.testing.assert_close(mine, torch.autograd.grad((theirs * weight).sum(), inputs))


@pytest.mark.proves("G2.2")
@torch.no_grad()
def test_under_autocast_the_state_stays_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    read = MambaMixer._read

    def watched(self: MambaMixer, x: torch.Tensor, length: torch.Tensor | None) -> torch.Tensor:
        y = read(self, x, length)
        seen.extend([x.dtype, y.dtype])
        return y

    monkeypatch.setattr(MambaMixer, "_read", watched)
    model = made(16, 1)
    u = torch.randn(2, 6, 16, generator=generator(1))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(u)
    assert seen == [torch.float32, torch.float32]
    torch.testing.assert_close(low.float(), model(u), atol=0.05, rtol=0.05)
