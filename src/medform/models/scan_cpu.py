"""Autograd around the CPU kernel of the selective scan: cuts the work into pieces, threads them, adds them up.

A piece is one sequence and `scan_kernel.GROUP` channels. Pieces and the order of every sum are the same whatever
the number of threads, so the bits are too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from medform.models import scan_kernel
from medform.models.scan_kernel import CHUNK, FEW, GROUP, LANES, LOG2_E

__all__ = ["CompiledScan"]

_WORTH_THREADS = 1 << 20  # steps x channels x states below which threads cost more than they save


@dataclass(frozen=True)
class _Rows:
    """A tensor (B, L, K) as the kernel reads it: flat memory in which the K last values are neighbours."""

    flat: np.ndarray
    sequence: int  # distance from one sequence to the next
    step: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Rows:
        if tensor.stride(2) != 1:
            tensor = tensor.contiguous()
        sequence, step, _ = tensor.stride()
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return cls(tensor.as_strided((span,), (1,)).numpy(), sequence, step)


@dataclass(frozen=True)
class _Piece:
    """One sequence of ``steps`` real steps, and the channels of ``tiles`` tiles from ``tile`` on."""

    number: int
    sequence: int
    group: int
    tile: int
    tiles: int
    steps: int

    def places(self, channels: Sequence[_Rows], states: Sequence[_Rows], reverse: bool) -> np.ndarray:
        """(2, arrays): where the first step begins, and how far on the next one is; x, delta, then b, c first."""
        shift = self.tile * LANES
        order = [(row, shift) for row in channels]
        order[2:2] = [(row, 0) for row in states[:2]]
        order += [(row, 0) for row in states[2:]]
        last = max(self.steps - 1, 0) if reverse else 0
        at = [self.sequence * row.sequence + last * row.step + offset for row, offset in order]
        step = [-row.step if reverse else row.step for row, _ in order]
        return np.array([at, step])


def _pieces(shape: torch.Size, lengths: Sequence[int]) -> list[_Piece]:
    """Groups of at most `GROUP` channels, as even as tiles allow, of each sequence."""
    tiles = -(-shape[2] // LANES)
    groups = -(-tiles * LANES // GROUP)
    bounds = [tiles * group // groups for group in range(groups + 1)]
    return [
        _Piece(sequence * groups + group, sequence, group, bounds[group], bounds[group + 1] - bounds[group], steps)
        for sequence, steps in enumerate(lengths)
        for group in range(groups)
    ]


def _each(run: Callable[[_Piece], Any], pieces: Sequence[_Piece], work: int) -> None:
    """``run`` on every piece, in as many threads as torch uses where the ``work`` is worth it.

    The threads end with the call: a forked worker finds none that it believes to be running.
    """
    threads = min(torch.get_num_threads(), len(pieces))
    if threads == 1 or work < _WORTH_THREADS:
        for piece in pieces:
            run(piece)
    else:
        with ThreadPoolExecutor(threads) as workers:
            list(workers.map(run, pieces))


def _tiled(a: Tensor) -> np.ndarray:
    """(E, N) to [tile][state][lane]; E is a multiple of `LANES`."""
    return a.reshape(-1, LANES, a.shape[1]).transpose(1, 2).contiguous().numpy().reshape(-1)


def _untiled(a: np.ndarray, channels: int, states: int) -> Tensor:
    """What `_tiled` does, the other way: (E, N)."""
    return torch.from_numpy(a.reshape(-1, states, LANES)).transpose(1, 2).reshape(-1, states)[:channels]


def _total(parts: Iterable[Tensor]) -> Tensor:
    """The sum, in this order."""
    first, *rest = parts
    for part in rest:
        first += part
    return first


class CompiledScan(torch.autograd.Function):
    """`scan.selective_scan` on float32 CPU tensors: (x, delta, a, b, c, skip, reverse, lengths) -> y.

    Forward saves its inputs and the state at each chunk's start: steps / `CHUNK` x channels x states.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        skip: Tensor,
        reverse: bool,
        lengths: list[int],
    ) -> Tensor:
        """Output y (B, L, E)."""
        channels, states = a.shape
        x_, delta_, a_, skip_ = _whole_tiles(x, delta, a, skip)
        pieces = _pieces(x_.shape, lengths)
        widest = max(piece.tiles for piece in pieces) * LANES * states
        chunks = -(-max(lengths) // CHUNK) if any(ctx.needs_input_grad) else 0
        kept = x.new_empty(len(pieces), chunks * widest)
        y = _output(x_, lengths)
        inputs, maps = [_Rows.of(x_), _Rows.of(delta_)], [_Rows.of(b.detach()), _Rows.of(c.detach())]
        rate, weight = _tiled(a_ * LOG2_E), skip_.contiguous().numpy()
        rows = [*inputs, _Rows.of(y)]

        def run(piece: _Piece) -> None:
            own = slice(piece.tile * LANES * states, (piece.tile + piece.tiles) * LANES * states)
            scan_kernel.scan_forward(
                *(row.flat for row in (*inputs, *maps)),
                rate[own],
                weight[piece.tile * LANES :],
                torch.zeros(own.stop - own.start).numpy(),
                kept[piece.number].numpy(),
                rows[2].flat,
                piece.places(rows, maps, reverse),
                piece.steps,
                piece.tiles,
                states,
            )

        _each(run, pieces, x.numel() * states)
        ctx.save_for_backward(x, delta, a, b, c, skip, kept)
        ctx.reverse, ctx.lengths = reverse, lengths
        return y[..., :channels]

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the six tensors. Raises RuntimeError under ``create_graph``: they have no graph of their own."""
        if torch.is_grad_enabled():
            raise RuntimeError("the numba scan can be differentiated once; use implementation='chunked' for more.")
        x, delta, a, b, c, skip, kept = ctx.saved_tensors
        reverse, lengths = ctx.reverse, ctx.lengths
        channels, states = a.shape
        x_, delta_, a_, skip_, dy_ = _whole_tiles(x, delta, a, skip, dy)
        pieces = _pieces(x_.shape, lengths)
        groups = pieces[-1].group + 1
        dx, ddelta = _output(x_, lengths), _output(x_, lengths)
        db, dc = ([_output(b, lengths) for _ in range(groups)] for _ in range(2))
        inputs, maps = (
            [_Rows.of(t) for t in (x_, delta_, dy_, dx, ddelta)],
            [_Rows.of(b.detach()), _Rows.of(c.detach())],
        )
        d_maps = [(_Rows.of(db[group]), _Rows.of(dc[group])) for group in range(groups)]
        rate, weight = _tiled(a_ * LOG2_E), skip_.contiguous().numpy()
        da, dskip = np.zeros((len(lengths), a_.numel())), np.zeros((len(lengths), len(skip_)))

        def run(piece: _Piece) -> None:
            size = LANES * states
            own = slice(piece.tile * size, (piece.tile + piece.tiles) * size)
            lanes = slice(piece.tile * LANES, (piece.tile + piece.tiles) * LANES)
            scan_kernel.scan_backward(
                *(row.flat for row in (*inputs[:2], *maps)),
                rate[own],
                weight[lanes],
                kept[piece.number].numpy(),
                *(row.flat for row in (*inputs[2:], *d_maps[piece.group])),
                torch.empty(CHUNK * size).numpy(),
                torch.empty((CHUNK + 1) * size).numpy(),
                torch.zeros(piece.tiles * (2 * size + LANES)).numpy(),
                torch.empty(CHUNK * states * 2 * FEW).numpy(),
                da[piece.sequence, own],
                dskip[piece.sequence, lanes],
                piece.places(inputs, [*maps, *d_maps[piece.group]], reverse),
                piece.steps,
                piece.tiles,
                states,
            )

        _each(run, pieces, x.numel() * states)
        return (
            dx[..., :channels],
            ddelta[..., :channels],
            _untiled(da.sum(0), channels, states).float(),
            _total(db),
            _total(dc),
            torch.from_numpy(dskip.sum(0)).float()[:channels],
            None,
            None,
        )


def _whole_tiles(x: Tensor, delta: Tensor, a: Tensor, skip: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
    """The tensors with channels of 0 up to the next multiple of `LANES`, mostly none."""
    missing = -x.shape[2] % LANES
    wider = [pad(tensor.detach(), (0, missing)) if missing else tensor.detach() for tensor in (x, delta, skip, *more)]
    return wider[0], wider[1], pad(a.detach(), (0, 0, 0, missing)), *wider[2:]


def _output(like: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, L, K) to be filled; 0 where padded steps will not be."""
    whole = all(steps == like.shape[1] for steps in lengths)
    return (torch.empty if whole else torch.zeros)(like.shape)
