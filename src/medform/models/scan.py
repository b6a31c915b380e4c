"""The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752), one function with several implementations.

    h_t = exp(delta_t a) h_{t-1} + delta_t b_t x_t,    y_t = h_t . c_t + skip x_t,    h_{-1} = 0

Shapes: B sequences, L steps, E channels, N states of a channel. Every implementation gives the same values and
gradients: ``reference`` is the loop above; ``chunked`` runs on any device in any precision and can be
differentiated twice; ``numba`` is the CPU's kernel; ``mamba_ssm`` calls the package of that name on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medform.errors import ExtraMissing

__all__ = ["Implementation", "selective_scan"]

Implementation = Literal["auto", "reference", "chunked", "numba", "mamba_ssm"]

_CHUNK = 64  # steps that ``chunked`` holds in memory, for all channels and states, at a time


def selective_scan(
    x: Float[Tensor, "b l e"],
    delta: Float[Tensor, "b l e"],
    a: Float[Tensor, "e n"],
    b: Float[Tensor, "b l n"],
    c: Float[Tensor, "b l n"],
    skip: Float[Tensor, " e"] | None = None,
    *,
    reverse: bool = False,
    length: Int[Tensor, " b"] | None = None,
    implementation: Implementation = "auto",
) -> Float[Tensor, "b l e"]:
    """Scan ``x`` with step sizes ``delta`` > 0, rates ``a`` < 0, input and output maps ``b`` and ``c``.

    ``skip`` adds itself times x. ``reverse`` runs from the last step to the first. ``length`` (0 to L) says how
    many steps of each sequence are real; the others change no state, get y = 0 and no gradient, and may hold
    anything. 16-bit inputs are scanned in float32; y has the type of ``x``.

    ``auto``: ``mamba_ssm`` on CUDA where it is installed, ``numba`` on the CPU, ``chunked`` elsewhere and in
    float64. Only ``reference`` and ``chunked`` can be differentiated twice. Memory beyond inputs, outputs and
    their gradients is small in all but ``reference``. Equal bits come out whatever the number of threads.

    Raises ValueError for shapes that do not fit, rates above 0, and an implementation that cannot take these
    tensors; `ExtraMissing` where ``mamba_ssm`` is asked for and cannot be imported.
    """
    _check(x, delta, a, b, c, skip, length)
    given = [x, delta, a, b, c, *([] if skip is None else [skip])]
    kind = torch.float32
    for tensor in given:
        kind = torch.promote_types(kind, tensor.dtype)
    x_, delta, a, b, c, *rest = (tensor.to(kind) for tensor in given)
    skip = rest[0] if rest else x_.new_zeros(x.shape[2])
    with torch.autocast(x.device.type, enabled=False):
        if x.numel() == 0:
            return x.clone()
        run = _chosen(implementation, x_)
        return run(x_, delta, a, b, c, skip, reverse, length).to(x.dtype)


def _check(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor | None, length: Tensor | None
) -> None:
    batch, steps, channels = x.shape
    states = a.shape[1]
    wanted = {
        "delta": (delta, (batch, steps, channels)),
        "a": (a, (channels, states)),
        "b": (b, (batch, steps, states)),
        "c": (c, (batch, steps, states)),
        "skip": (skip, (channels,)),
        "length": (length, (batch,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with x {tuple(x.shape)} it must be {shape}.")
    if a.device.type == "cpu" and bool((a > 0).any()):
        raise ValueError("a holds rates above 0: the state would grow without bound.")
    if length is not None and not bool(((length >= 0) & (length <= steps)).all()):
        raise ValueError(f"length must lie in 0 to {steps}; got {length.tolist()}.")


def _chosen(implementation: Implementation, x: Tensor) -> Callable[..., Tensor]:
    if implementation == "auto":
        if x.is_cuda and x.dtype == torch.float32 and _mamba_ssm() is not None:
            implementation = "mamba_ssm"
        else:
            implementation = "numba" if x.device.type == "cpu" and x.dtype == torch.float32 else "chunked"
    if implementation == "numba" and (x.device.type != "cpu" or x.dtype != torch.float32):
        raise ValueError(f"the numba kernel scans float32 on the CPU; these tensors are {x.dtype} on {x.device}.")
    return {
        "reference": _reference,
        "chunked": _chunked,
        "numba": _compiled,
        "mamba_ssm": _by_mamba_ssm,
    }[implementation]


def _ordered(
    tensors: Sequence[Tensor], reverse: bool, length: Tensor | None
) -> tuple[list[Tensor], Bool[Tensor, "b l 1"] | None]:
    """The tensors (B, L, ...) with 0 where a step is padding, in the order of the scan; and where it is not.

    With x, delta, b and c all 0 a step changes no state, and nothing it holds (NaN included) gets on.
    """
    real = None
    if length is not None:
        real = (torch.arange(tensors[0].shape[1], device=length.device) < length[:, None])[..., None]
        real = real.to(tensors[0].device)
        tensors = [torch.where(real, tensor, 0.0) for tensor in tensors]
    return [tensor.flip(1) if reverse else tensor for tensor in tensors], real


def _finished(y: Tensor, reverse: bool, real: Tensor | None) -> Tensor:
    y = y.flip(1) if reverse else y
    return y if real is None else torch.where(real, y, 0.0)


def _reference(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, reverse: bool, length: Tensor | None
) -> Tensor:
    """The definition, step by step."""
    (x, delta, b, c), real = _ordered([x, delta, b, c], reverse, length)
    h = x.new_zeros(x.shape[0], *a.shape)
    out = []
    # unbind: an index x[:, t] would fill a whole (B, L, E) of gradient for each step, quadratic in L
    for x_t, delta_t, b_t, c_t in zip(x.unbind(1), delta.unbind(1), b.unbind(1), c.unbind(1), strict=True):
        h = torch.exp(delta_t[..., None] * a) * h + (delta_t * x_t)[..., None] * b_t[:, None]
        out.append((h * c_t[:, None]).sum(-1) + skip * x_t)
    return _finished(torch.stack(out, 1), reverse, real)


def _chunked(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, reverse: bool, length: Tensor | None
) -> Tensor:
    """Chunk after chunk; backward computes each again from the state before it."""
    (x, delta, b, c), real = _ordered([x, delta, b, c], reverse, length)
    h = x.new_zeros(x.shape[0], *a.shape)
    out = []
    for x_k, delta_k, b_k, c_k in zip(*(tensor.split(_CHUNK, 1) for tensor in (x, delta, b, c)), strict=True):
        y, h = checkpoint(_one_chunk, x_k, delta_k, a, b_k, c_k, h, use_reentrant=False, preserve_rng_state=False)
        out.append(y)
    return _finished(torch.cat(out, 1) + skip * x, reverse, real)


def _one_chunk(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Output y (B, T, E) without the skip, and the last state (B, E, N).

    (decay, state) pairs are joined over spans of 1, 2, 4, ... steps, each with the span that ends before it:
    products of decays only, since dividing cumulative ones would be 0 / 0 after some hundred steps.
    """
    decay = torch.exp(delta[..., None] * a)
    state = (delta * x)[..., None] * b[:, :, None]
    span = 1
    while span < x.shape[1]:
        state = torch.cat([state[:, :span], torch.addcmul(state[:, span:], decay[:, span:], state[:, :-span])], 1)
        decay = torch.cat([decay[:, :span], decay[:, span:] * decay[:, :-span]], 1)
        span *= 2
    state = torch.addcmul(state, decay, h[:, None])
    return (state * c[:, :, None]).sum(-1), state[:, -1]


def _mamba_ssm() -> Callable[..., Tensor] | None:
    """The CUDA kernel of the package mamba_ssm, or None where it cannot be imported."""
    try:
        from mamba_ssm.ops.selective_scan_interface import (  # pyright: ignore[reportMissingImports]
            selective_scan_fn,
        )
    except ImportError:
        return None
    return selective_scan_fn


def _by_mamba_ssm(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, reverse: bool, length: Tensor | None
) -> Tensor:
    """The package's kernel, whose layout is (B, E, L)."""
    kernel = _mamba_ssm()
    if kernel is None:
        raise ExtraMissing(
            "the package mamba_ssm cannot be imported.",
            where="implementation 'mamba_ssm'",
            consequence="Nothing was computed.",
            fix="pip install mamba-ssm (needs an NVIDIA GPU and its compiler), or use implementation 'auto'.",
        )
    ordered, real = _ordered([x, delta, b, c], reverse, length)
    x, delta, b, c = (tensor.transpose(1, 2).contiguous() for tensor in ordered)
    return _finished(kernel(x, delta, a, b, c, D=skip).transpose(1, 2), reverse, real)


def _compiled(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, reverse: bool, length: Tensor | None
) -> Tensor:
    """The CPU's kernel."""
    from medform.models.scan_cpu import CompiledScan

    lengths = [x.shape[1]] * len(x) if length is None else length.tolist()
    y: Any = CompiledScan.apply(x, delta, a, b, c, skip, reverse, lengths)
    return y
