"""The selective scan on the CPU, compiled by numba. Its plain twins are in `medform.models.scan`.

Importing this module compiles it, or reads the compiled code from numba's cache; so it is imported where it
is used. The work is cut into pieces of one sequence and `GROUP` channels. One call does one piece, without
the GIL and without a reduction across pieces: threads, and their order, are the caller's.

A piece goes through time in chunks of `CHUNK` steps and through its channels in tiles of `LANES`, the width of
the vector type that is defined first: left to itself, the compiler vectorises such short loops badly. LLVM
lowers it to the registers that the CPU has. Nothing of size steps x channels x states exists: forward keeps the
state before each chunk, backward computes a chunk's states again from there.

A state is not multiplied by its decay but changed by its fade, decay - 1, times itself: a decay of 0.9999 would lose
its last digits to the 1 in float32, and with them the gradients of slow channels.

The kernels take flat arrays and plain numbers only, and their scratch from the caller: numba takes ten times as
long to compile slices and allocations. Fast mathematics stays off: it would let NaN pass unseen, and undo
the rounding in `_exp2_less_1`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

from medform.kernel import compiled

__all__ = ["CHUNK", "FEW", "GROUP", "LANES", "LOG2_E", "scan_backward", "scan_forward"]

LANES = 32  # channels of one vector: two registers of AVX-512, four of AVX2; several, to hide their latency
GROUP = 4 * LANES  # channels of one piece
CHUNK = 64  # steps between two kept states
FEW = 8  # partial sums that a vector is folded to

LOG2_E = 1.4426950408889634
_LN_2 = np.float32(0.6931471805599453)
# q of 2^f = 1 + f q(f) on [-1/2, 1/2]: minimax of the relative error, 2e-9
_EXP2 = (
    0.6931472028552511,
    0.24022647913611125,
    0.055503324707020796,
    0.009618437358490975,
    0.0013398874588532424,
    0.00015353362063224305,
)
_LEAST = -80.0  # 2^-80 is 0 beside any state, and spares products that denormal numbers would slow down
_TO_INTEGER = 1.5 * 2**23  # added to a small float32, leaves its nearest integer in the lowest bits

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)


class Lanes(types.Type):
    """`LANES` float32 in vector registers; exists only inside the kernels."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    """How numba represents `Lanes`: as LLVM's vector type."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(a.type, [a.type] * 3)
    function = builder.module.declare_intrinsic(f"llvm.fmuladd.v{a.type.count}f32", fnty=kind)
    return builder.call(function, (a, b, c))


def _part(builder: Any, value: Any, start: int, width: int) -> Any:
    chosen = ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(start, start + width)))
    return builder.shuffle_vector(value, value, chosen)


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any, width: int) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(ir.FloatType(), width).as_pointer())


@no_type_check
@intrinsic
def _load(typing_context, array, index):
    """`LANES` neighbours of a flat float32 array, from ``index`` on."""

    def code(context, builder, signature, arguments):
        return builder.load(_place(context, builder, signature.args[0], arguments[0], arguments[1], LANES), align=4)

    return lanes(array, types.intp), code


@no_type_check
@intrinsic
def _store(typing_context, array, index, value):
    """``value`` to ``array[index : index + LANES]``."""

    def code(context, builder, signature, arguments):
        place = _place(context, builder, signature.args[0], arguments[0], arguments[1], LANES)
        builder.store(arguments[2], place, align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), code


@no_type_check
@intrinsic
def _spread(typing_context, number):
    """The same number in every lane."""

    def code(context, builder, signature, arguments):
        empty, first = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        one = builder.insert_element(empty, arguments[0], first)
        return builder.shuffle_vector(one, empty, ir.Constant(_INTEGERS, [0] * LANES))

    return lanes(types.float32), code


@no_type_check
@intrinsic
def _times(typing_context, a, b):
    """Lane by lane a b."""

    def code(context, builder, signature, arguments):
        return builder.fmul(*arguments)

    return lanes(lanes, lanes), code


@no_type_check
@intrinsic
def _fused(typing_context, a, b, c):
    """Lane by lane a b + c."""

    def code(context, builder, signature, arguments):
        return _multiply_add(builder, *arguments)

    return lanes(lanes, lanes, lanes), code


@no_type_check
@intrinsic
def _add_product(typing_context, array, index, a, b):
    """Add a b, folded to `FEW` partial sums, to ``array[index : index + FEW]``."""

    def code(context, builder, signature, arguments):
        place = _place(context, builder, signature.args[0], arguments[0], arguments[1], FEW)
        total = builder.load(place, align=4)
        for start in range(0, LANES, FEW):
            a, b = (_part(builder, value, start, FEW) for value in arguments[2:])
            total = _multiply_add(builder, a, b, total)
        builder.store(total, place, align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes, lanes), code


@no_type_check
@intrinsic
def _total(typing_context, array, index):
    """The sum of ``array[index : index + FEW]``, pairwise."""

    def code(context, builder, signature, arguments):
        width = FEW
        value = builder.load(_place(context, builder, signature.args[0], arguments[0], arguments[1], width), align=4)
        while width > 1:
            width //= 2
            value = builder.fadd(_part(builder, value, 0, width), _part(builder, value, width, width))
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float32(array, types.intp), code


@no_type_check
@intrinsic
def _exp2_less_1(typing_context, value):
    """2^value - 1 for values <= 0, with 2^value never below 2^-80; NaN stays NaN."""

    def code(context, builder, signature, arguments):
        least, to_integer = _constant(_LEAST), _constant(_TO_INTEGER)
        value = arguments[0]
        value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
        shifted = builder.fadd(value, to_integer)
        share = builder.fsub(value, builder.fsub(shifted, to_integer))
        power = _constant(_EXP2[-1])
        for coefficient in reversed(_EXP2[:-1]):
            power = _multiply_add(builder, power, share, _constant(coefficient))
        one = _constant(1.0)
        exponent = builder.shl(builder.bitcast(shifted, _INTEGERS), ir.Constant(_INTEGERS, [23] * LANES))
        scale = builder.bitcast(builder.add(builder.bitcast(one, _INTEGERS), exponent), _VECTOR)
        return _multiply_add(builder, builder.fmul(scale, share), power, builder.fsub(scale, one))

    return lanes(lanes), code


_compiled = partial(compiled, error_model="numpy")


@_compiled("void(" + "float32[::1], " * 9 + "int64[:, ::1], int64, int64, int64)")
@no_type_check
def scan_forward(x, delta, b, c, rate, weight, state, kept, y, places, length, tiles, states):
    """One piece forward: fills ``y``, and ``kept`` with the state before each chunk where it has room.

    ``x``, ``delta``, ``b``, ``c``, ``y`` are flat: step t of the i-th of them begins at ``places[0, i]`` + t
    ``places[1, i]``, and its channels or states are neighbours. ``rate`` holds a log2(e), [tile][state][lane];
    ``weight`` the skip, [tile][lane]; ``state`` begins as 0 and ends as the last state, laid out like ``rate``;
    so are the states in ``kept``, chunk after chunk.
    """
    x_at, x_step = places[0, 0], places[1, 0]
    delta_at, delta_step = places[0, 1], places[1, 1]
    b_at, b_step = places[0, 2], places[1, 2]
    c_at, c_step = places[0, 3], places[1, 3]
    y_at, y_step = places[0, 4], places[1, 4]
    size = states * LANES
    chunk = 0
    for first in range(0, length, CHUNK):
        end = min(first + CHUNK, length)
        if kept.size > 0:
            for place in range(tiles * size):
                kept[chunk * tiles * size + place] = state[place]
        chunk += 1
        for tile in range(tiles):
            for t in range(first, end):
                now = _load(delta, delta_at + t * delta_step + tile * LANES)
                value = _load(x, x_at + t * x_step + tile * LANES)
                drive = _times(now, value)
                out = _times(value, _load(weight, tile * LANES))
                for n in range(states):
                    place = tile * size + n * LANES
                    fade = _exp2_less_1(_times(now, _load(rate, place)))
                    h = _load(state, place)
                    h = _fused(fade, h, _fused(drive, _spread(b[b_at + t * b_step + n]), h))
                    _store(state, place, h)
                    out = _fused(h, _spread(c[c_at + t * c_step + n]), out)
                _store(y, y_at + t * y_step + tile * LANES, out)


_part_of_kernel = numba.njit(nogil=True, boundscheck=False, error_model="numpy")


@_part_of_kernel
@no_type_check
def _recompute(x, delta, b, rate, fades, history, places, first, steps, tile, states):
    """Fades and states of a tile and chunk; ``history`` begins with the state before it."""
    x_at, x_step = places[0, 0] + first * places[1, 0] + tile * LANES, places[1, 0]
    delta_at, delta_step = places[0, 1] + first * places[1, 1] + tile * LANES, places[1, 1]
    b_at, b_step = places[0, 2] + first * places[1, 2], places[1, 2]
    size = states * LANES
    for t in range(steps):
        now = _load(delta, delta_at + t * delta_step)
        drive = _times(now, _load(x, x_at + t * x_step))
        for n in range(states):
            place = t * size + n * LANES
            fade = _exp2_less_1(_times(now, _load(rate, tile * size + n * LANES)))
            _store(fades, place, fade)
            h = _load(history, place)
            h = _fused(fade, h, _fused(drive, _spread(b[b_at + t * b_step + n]), h))
            _store(history, place + size, h)


@_part_of_kernel
@no_type_check
def _finish_chunk(sums, carry, db, dc, da, dskip, places, first, steps, tiles, states):
    """Sums over channels to ``db`` and ``dc``; this chunk's sums over steps, in float64, to ``da`` and ``dskip``."""
    db_at, db_step = places[0, 7], places[1, 7]
    dc_at, dc_step = places[0, 8], places[1, 8]
    for t in range(steps):
        for n in range(states):
            db[db_at + (first + t) * db_step + n] = _total(sums, (2 * t * states + n) * FEW)
            dc[dc_at + (first + t) * dc_step + n] = _total(sums, ((2 * t + 1) * states + n) * FEW)
    d_rate, d_weight = tiles * states * LANES, 2 * tiles * states * LANES
    for place in range(tiles * states * LANES):
        da[place] += carry[d_rate + place]
        carry[d_rate + place] = 0
    for place in range(tiles * LANES):
        dskip[place] += carry[d_weight + place]
        carry[d_weight + place] = 0


@_compiled("void(" + "float32[::1], " * 16 + "float64[::1], float64[::1], int64[:, ::1], int64, int64, int64)")
@no_type_check
def scan_backward(
    x, delta, b, c, rate, weight, kept, dy, dx, ddelta, db, dc, fades, history, carry, sums, da, dskip,
    places, length, tiles, states,
):  # fmt: skip
    """One piece backward: fills ``dx``, ``ddelta``, ``db``, ``dc`` (flat) and adds to ``da`` and ``dskip`` in float64.

    Like `scan_forward`, with ``kept`` as it was filled there. Scratch: ``fades`` [step][state][lane] of one tile and
    chunk, ``history`` the same with one step more, ``sums`` 2 x [step][state][FEW], and ``carry``, which
    begins as 0: [tile][state][lane] of dL/dh on its way to the step before, of ``da`` in this chunk, and
    [tile][lane] of ``dskip``. Sums over steps are in float32 within a chunk only.
    """
    x_at, x_step = places[0, 0], places[1, 0]
    delta_at, delta_step = places[0, 1], places[1, 1]
    b_at, b_step = places[0, 2], places[1, 2]
    c_at, c_step = places[0, 3], places[1, 3]
    dy_at, dy_step = places[0, 4], places[1, 4]
    dx_at, dx_step = places[0, 5], places[1, 5]
    ddelta_at, ddelta_step = places[0, 6], places[1, 6]
    size = states * LANES
    d_rate, d_weight = tiles * size, 2 * tiles * size
    for chunk in range((length - 1) // CHUNK, -1, -1):
        first = chunk * CHUNK
        steps = length - first
        steps = min(steps, CHUNK)
        for place in range(2 * steps * states * FEW):
            sums[place] = 0
        for tile in range(tiles):
            for place in range(size):
                history[place] = kept[(chunk * tiles + tile) * size + place]
            _recompute(x, delta, b, rate, fades, history, places, first, steps, tile, states)
            for t in range(steps - 1, -1, -1):
                now = _load(delta, delta_at + (first + t) * delta_step + tile * LANES)
                value = _load(x, x_at + (first + t) * x_step + tile * LANES)
                seen = _load(dy, dy_at + (first + t) * dy_step + tile * LANES)
                drive = _times(now, value)
                d_drive = _spread(np.float32(0))
                d_now = _spread(np.float32(0))
                for n in range(states):
                    place = t * size + n * LANES
                    own = tile * size + n * LANES
                    g = _fused(_spread(c[c_at + (first + t) * c_step + n]), seen, _load(carry, own))
                    d_drive = _fused(g, _spread(b[b_at + (first + t) * b_step + n]), d_drive)
                    _add_product(sums, (2 * t * states + n) * FEW, g, drive)
                    _add_product(sums, ((2 * t + 1) * states + n) * FEW, seen, _load(history, place + size))
                    passed = _fused(g, _load(fades, place), g)
                    _store(carry, own, passed)
                    change = _times(passed, _load(history, place))
                    d_now = _fused(change, _load(rate, own), d_now)
                    _store(carry, d_rate + own, _fused(change, now, _load(carry, d_rate + own)))
                d_value = _fused(d_drive, now, _times(seen, _load(weight, tile * LANES)))
                _store(dx, dx_at + (first + t) * dx_step + tile * LANES, d_value)
                d_now = _fused(d_drive, value, _times(d_now, _spread(_LN_2)))
                _store(ddelta, ddelta_at + (first + t) * ddelta_step + tile * LANES, d_now)
                own = d_weight + tile * LANES
                _store(carry, own, _fused(seen, value, _load(carry, own)))
        _finish_chunk(sums, carry, db, dc, da, dskip, places, first, steps, tiles, states)
