"""Mamba (Gu and Dao 2023, arXiv 2312.00752): layers that read a sequence step by step with a state they choose to keep.

Shapes: B sequences, L steps, D model width, E = expand x D channels, N numbers of state a channel, K taps of the
convolution, R = ceil(D / 16) numbers that a step's size is made from. Memory and time are linear in L.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from medform.models.scan import selective_scan

__all__ = ["BidirectionalMamba", "CausalConvolution", "Mamba", "MambaLayer", "MambaMixer", "reversed_steps"]

NORM_EPSILON = 1e-5
FIRST_STEP = (1e-3, 1e-1)  # range of the step sizes before training
SMALLEST_STEP = 1e-4


def _depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Valid depthwise correlation over time of (B, L + K - 1, E) with (E, K): (B, L, E).

    As a 2-D convolution of one row whose channels come last, which is how ``x`` lies in memory: 5 times faster on a
    CPU than the 1-D one over transposed copies.
    """
    row = x.transpose(1, 2).unsqueeze(2)
    return F.conv2d(row, weight[:, None, None], groups=weight.shape[0]).squeeze(2).transpose(1, 2)


class _CausalDepthwise(torch.autograd.Function):
    """The convolution with a backward pass that keeps channels last; torch's own takes twice as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _depthwise(F.pad(x, (0, 0, weight.shape[1] - 1, 0)), weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        length, taps = x.shape[1], weight.shape[1]
        of_x = _depthwise(F.pad(gradient, (0, 0, 0, taps - 1)), weight.flip(1))
        late = [min(taps - 1 - tap, length) for tap in range(taps)]
        of_weight = [(x[:, : length - steps] * gradient[:, steps:]).sum((0, 1)) for steps in late]
        return of_x, torch.stack(of_weight, 1)


class CausalConvolution(nn.Module):
    """Depthwise over time: y_t = bias + sum over k of weight[:, k] x_{t - K + 1 + k}, with zeros before the start."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        bound = taps**-0.5
        self.weight = nn.Parameter(torch.empty(channels, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "b l e"]) -> Float[Tensor, "b l e"]:
        """As long as it came: a step sees itself and the K - 1 before it."""
        y: Tensor = _CausalDepthwise.apply(x, self.weight)  # pyright: ignore[reportAssignmentType]
        return y + self.bias


class MambaMixer(nn.Module):
    """One selective state space with its gate: (B, L, D) -> (B, L, D).

    Of D, a projection makes x and a gate of E channels each. x is convolved and passed through SiLU; from it come, for
    every step t, its size delta_t > 0 and the vectors b_t, c_t. The state of a channel, N numbers, is
    h_t = exp(delta_t a) h_{t-1} + delta_t b_t x_t, what is read from it c_t . h_t + skip x_t; that times SiLU(gate) is
    projected back. ``delta`` is the softplus of R numbers projected to E, so that it is learnt when to forget.
    """

    def __init__(self, width: int, state: int = 16, expand: int = 2, taps: int = 4) -> None:
        super().__init__()
        channels, rank = expand * width, math.ceil(width / 16)
        self.state, self.rank = state, rank
        self.in_projection = nn.Linear(width, 2 * channels, bias=False)
        self.convolution = CausalConvolution(channels, taps)
        self.selection = nn.Linear(channels, rank + 2 * state, bias=False)
        self.step_projection = nn.Linear(rank, channels)
        # a = -exp(log_rate), row after row of (E, N). Kept as one vector because weight decay is for the matrices of
        # linear maps, which are told by their two dimensions; it would pull every rate towards 1
        self.log_rate = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(channels))
        self.skip = nn.Parameter(torch.ones(channels))
        self.out_projection = nn.Linear(channels, width, bias=False)
        self._start_steps()

    @torch.no_grad()
    def _start_steps(self) -> None:
        """Step sizes log-uniform in `FIRST_STEP`: the bias is the inverse of the softplus."""
        nn.init.uniform_(self.step_projection.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(bound) for bound in FIRST_STEP)
        first = torch.empty_like(self.step_projection.bias).uniform_(low, high).exp().clamp(min=SMALLEST_STEP)
        self.step_projection.bias.copy_(first + torch.log(-torch.expm1(-first)))

    def forward(self, u: Float[Tensor, "b l d"], length: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b l d"]:
        """Steps at ``length`` and later are padding: they change no earlier step, and what they give is undefined.

        Between the projections everything is in float32 at least, also under autocast: a state that decays by
        exp(-0.001) a step is lost in bfloat16.
        """
        x, gate = self.in_projection(u).chunk(2, dim=-1)
        with torch.autocast(u.device.type, enabled=False):
            y = self._read(x.to(torch.promote_types(x.dtype, torch.float32)), length)
        return self.out_projection((y * F.silu(gate)).to(gate.dtype))

    def _read(self, x: Float[Tensor, "b l e"], length: Int[Tensor, " b"] | None) -> Float[Tensor, "b l e"]:
        """Convolution, selection and scan."""
        if length is not None:
            padding = torch.arange(x.shape[1], device=x.device) >= length[:, None]
            x = x.masked_fill(padding[..., None], 0.0)
        x = F.silu(self.convolution(x))
        of_step, b, c = self.selection(x).split([self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(self.step_projection(of_step))
        a = -self.log_rate.view(x.shape[-1], self.state).exp()
        return selective_scan(x, delta, a, b, c, self.skip, length=length)


class MambaLayer(nn.Module):
    """u + dropout(mixer(RMSNorm(u)))."""

    def __init__(self, width: int, state: int = 16, expand: int = 2, taps: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=NORM_EPSILON)
        self.mixer = MambaMixer(width, state, expand, taps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, u: Float[Tensor, "b l d"], length: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b l d"]:
        """The same shape; see `MambaMixer.forward` for ``length``."""
        return u + self.dropout(self.mixer(self.norm(u), length))


class Mamba(nn.Module):
    """Layers one after another. A step sees itself and what came before it; there is no norm after the last layer."""

    def __init__(
        self, width: int, layers: int, state: int = 16, expand: int = 2, taps: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MambaLayer(width, state, expand, taps, dropout) for _ in range(layers))

    def forward(self, u: Float[Tensor, "b l d"], length: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b l d"]:
        """The same shape; see `MambaMixer.forward` for ``length``."""
        for layer in self.layers:
            u = layer(u, length)
        return u


def reversed_steps(u: Float[Tensor, "b l d"], length: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b l d"]:
    """Each sequence read from its end; the padding of a shorter one stays where it is."""
    if length is None:
        return u.flip(1)
    step = torch.arange(u.shape[1], device=u.device)
    mirrored = torch.where(step < length[:, None], length[:, None] - 1 - step, step)
    return u.gather(1, mirrored[..., None].expand_as(u))


class BidirectionalMamba(nn.Module):
    """Two copies with weights of their own, one for either direction: the mean of what they say of a step."""

    def __init__(
        self, width: int, layers: int, state: int = 16, expand: int = 2, taps: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.from_start = Mamba(width, layers, state, expand, taps, dropout)
        self.from_end = Mamba(width, layers, state, expand, taps, dropout)

    def forward(self, u: Float[Tensor, "b l d"], length: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b l d"]:
        """The same shape; see `MambaMixer.forward` for ``length``."""
        behind = reversed_steps(self.from_end(reversed_steps(u, length), length), length)
        return (self.from_start(u, length) + behind) / 2
