"""Views of CT slices for contrastive learning: one table of parameters, then one pass over the batch.

Only what could be another scan of the same patient is allowed: crop, left-right flip, small rotation, window
and contrast jitter, noise, blur, cut-out. Never a vertical flip, never colour. The table (M, P) is drawn
first, each row by a counter keyed by (seed, epoch, sample, view): the same view comes out whatever the batch,
the thread, the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from typing import Annotated, Self

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Shaped
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from medform.config import Config

__all__ = [
    "COLUMNS",
    "AugmentConfig",
    "Bounds",
    "Share",
    "augment",
    "augment_tensor",
    "geometry_only",
    "parameter_table",
    "still_table",
    "uniforms",
]

UInt64Array = NDArray[np.uint64]

COLUMNS = (
    *(
        "centre_x",
        "centre_y",
        "extent_x",
        "extent_y",
        "cosine",
        "sine",
    ),  # crop, flip, rotation; shares of the side
    *("gain", "bias", "bend"),  # window and contrast, on the unit scale
    *("blur", "noise", "noise_seed"),  # standard deviations (pixels, unit scale) and where to read the noise
    *("cut_x0", "cut_y0", "cut_x1", "cut_y1"),  # cut-out, shares of the side
)
_GEOMETRY = COLUMNS.index("gain")  # so many columns move pixels, the others change their values
_RADIUS = 6  # of the widest blur
_WIDEST_SD = 2.0  # 3 of them are the radius
_POOL = 1 << 20  # standard normals that noise is read from
_LARGEST = 1024  # largest side of a view
_MASK = 0xFFFF_FFFF_FFFF_FFFF


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the first bound is larger than the second.")
    return bounds


Share = Annotated[float, Field(ge=0, le=1)]
Bounds = Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(_ordered)]


class AugmentConfig(Config):
    """How far two views of a slice may differ. The paper publishes nothing here; the defaults are ours."""

    crop: Bounds = (0.5, 1.0)  # share of the area that is kept
    aspect: Bounds = (0.9, 1.1)  # width / height of the crop
    flip: Share = 0.5  # chance of a left-right flip; 0 where the side matters
    rotate_deg: Annotated[float, Field(ge=0, le=45)] = 15.0
    window_jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # of the width, for centre and width each
    gamma: Bounds = (0.8, 1.25)
    blur: Share = 0.5  # chance of a blur
    blur_sd_px: Bounds = (0.1, 1.5)
    noise_sd: Annotated[float, Field(ge=0, le=0.5)] = 0.02  # largest, on the unit scale
    cutout: Share = 0.5  # chance of one cut-out square
    cutout_area: Bounds = (0.02, 0.1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError("crop must lie in (0, 1].")
        if self.aspect[0] <= 0 or self.gamma[0] <= 0:
            raise ValueError("aspect and gamma must be above 0.")
        if self.blur_sd_px[1] > _WIDEST_SD:
            raise ValueError(f"blur_sd_px must not exceed {_WIDEST_SD:g}.")
        if self.cutout_area[1] > 1:
            raise ValueError("cutout_area must not exceed 1.")
        return self


def _mix(value: UInt64Array) -> UInt64Array:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): uint64 to well-mixed uint64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment


def uniforms(
    seed: int,
    epoch: Int[np.ndarray, " m"] | int,
    sample: Int[np.ndarray, " m"],
    view: Int[np.ndarray, " m"],
    count: int,
) -> Float[np.ndarray, "m count"]:
    """``count`` numbers in [0, 1) a row: SplitMix64 from a hash of (seed, epoch, sample, view)."""
    state = np.full(len(sample), seed & _MASK, np.uint64)
    for key in (epoch, sample, view):
        state = _mix(state + _GAMMA) ^ np.asarray(key, np.int64).astype(np.uint64)
    state = _mix(state + _GAMMA)
    counter = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
    return (_mix(state[:, None] + counter) >> np.uint64(11)) * 2.0**-53


def parameter_table(
    config: AugmentConfig,
    samples: Int[np.ndarray, " m"],
    views: Int[np.ndarray, " m"],
    epoch: Int[np.ndarray, " m"] | int,
    seed: int,
) -> Float32[np.ndarray, "m p"]:
    """One row of parameters a view, in the order of `COLUMNS`.

    ``samples`` are numbers that belong to the slices for good (not positions in the batch). A row depends on
    its own (seed, epoch, sample, view) and the configuration, on nothing else.
    """
    # every parameter has its own number of the stream, used or not: switching one off leaves the others
    u = iter(uniforms(seed, epoch, samples, views, 17).T)

    def between(bounds: tuple[float, float]) -> Float[np.ndarray, " m"]:
        return bounds[0] + (bounds[1] - bounds[0]) * next(u)

    def between_ratios(bounds: tuple[float, float]) -> Float[np.ndarray, " m"]:
        return bounds[0] * (bounds[1] / bounds[0]) ** next(u)

    area, aspect = between(config.crop), between_ratios(config.aspect)
    extent_x, extent_y = np.minimum(np.sqrt(area * aspect), 1), np.minimum(np.sqrt(area / aspect), 1)
    centre_x = extent_x / 2 + (1 - extent_x) * next(u)
    centre_y = extent_y / 2 + (1 - extent_y) * next(u)
    mirrored = np.where(next(u) < config.flip, -1.0, 1.0)
    angle = np.deg2rad(config.rotate_deg) * (2 * next(u) - 1)
    jitter = config.window_jitter
    gain = 1 / (1 + between((-jitter, jitter)))  # a window that is wider by the jitter
    bias = 0.5 - (0.5 + between((-jitter, jitter))) * gain  # and whose centre moved
    bend = 4 * (0.5 ** between_ratios(config.gamma) - 0.5)
    blur = np.where(next(u) < config.blur, between(config.blur_sd_px), 0.0)
    noise, noise_seed = config.noise_sd * next(u), np.floor(next(u) * 2**24)  # exact in float32
    side = np.where(next(u) < config.cutout, np.sqrt(between(config.cutout_area)), 0.0)
    cut_x, cut_y = next(u) * (1 - side), next(u) * (1 - side)
    return np.stack(
        [
            *(centre_x, centre_y, extent_x * mirrored, extent_y, np.cos(angle), np.sin(angle), gain, bias, bend),
            *(blur, noise, noise_seed, cut_x, cut_y, cut_x + side, cut_y + side),
        ],
        axis=1,
    ).astype(np.float32)


def still_table(count: int) -> Float32[np.ndarray, "m p"]:
    """``count`` rows that change nothing: the whole slice, upright, as it is seen at inference."""
    row = dict.fromkeys(COLUMNS, 0.0) | {"centre_x": 0.5, "centre_y": 0.5, "extent_x": 1.0, "extent_y": 1.0}
    row |= {"cosine": 1.0, "gain": 1.0}
    return np.tile(np.array([row[name] for name in COLUMNS], np.float32), (count, 1))


def geometry_only(table: Float32[np.ndarray, "m p"]) -> Float32[np.ndarray, "m p"]:
    """The same rows without window, contrast, blur, noise and cut-out: what a mask shares with its image."""
    moved = still_table(len(table))
    moved[:, :_GEOMETRY] = table[:, :_GEOMETRY]
    return moved


@dataclass(frozen=True)
class Plan:
    """The table turned into what the pixels meet: (M, ...) arrays, made alike for the kernel and its twin."""

    affine: Float32[np.ndarray, "m 6"]  # source pixel of output (row, column): x = a0 + a1 column + a2 row, y likewise
    tone: Float32[np.ndarray, "m 3"]  # gain and bias from the stored value, bend
    taps: Float32[np.ndarray, "m 13"]
    radius: Int[np.ndarray, " m"]
    deviation: Float32[np.ndarray, " m"]
    offset: Int[np.ndarray, "m size"]  # of every pixel row into the noise pool
    cut: Int[np.ndarray, "m 4"]  # x0, y0, x1, y1

    def part(self, rows: slice) -> Plan:
        """The views of ``rows`` only."""
        return Plan(*(getattr(self, field.name)[rows] for field in fields(self)))


def _columns(table: Float32[np.ndarray, "m p"]) -> Mapping[str, Float[np.ndarray, " m"]]:
    return dict(zip(COLUMNS, table.astype(np.float64).T, strict=True))


def _affine(table: Float32[np.ndarray, "m p"], source: int, size: int) -> Float32[np.ndarray, "m 6"]:
    """Coefficients in pixels: sources are ``source`` wide, views ``size``; pixel centres lie at + 0.5."""
    p = _columns(table)
    scale = source / size
    along = np.stack([p["extent_x"] * p["cosine"], -p["extent_y"] * p["sine"]]) * scale
    down = np.stack([p["extent_x"] * p["sine"], p["extent_y"] * p["cosine"]]) * scale
    middle = (size - 1) / 2
    start_x = p["centre_x"] * source - 0.5 - middle * along.sum(0)
    start_y = p["centre_y"] * source - 0.5 - middle * down.sum(0)
    return np.stack([start_x, *along, start_y, *down], axis=1).astype(np.float32)


def _plan(table: Float32[np.ndarray, "m p"], source: int, size: int, to_unit: tuple[float, float]) -> Plan:
    p = _columns(table)
    gain, bias = to_unit
    tone = np.stack([gain * p["gain"], bias * p["gain"] + p["bias"], p["bend"]], axis=1)
    distance = np.arange(-_RADIUS, _RADIUS + 1)
    radius = np.ceil(3 * p["blur"])
    taps = np.exp(-0.5 * (distance / np.maximum(p["blur"], 1e-3)[:, None]) ** 2)
    taps *= abs(distance) <= radius[:, None]
    rows = np.arange(size, dtype=np.uint64) * _GAMMA
    offset = _mix(p["noise_seed"].astype(np.uint64)[:, None] * np.uint64(0xD1B54A32D192ED03) + rows)
    cut = np.stack([p["cut_x0"], p["cut_y0"], p["cut_x1"], p["cut_y1"]], axis=1)
    return Plan(
        affine=_affine(table, source, size),
        tone=tone.astype(np.float32),
        taps=(taps / taps.sum(1, keepdims=True)).astype(np.float32),
        radius=radius.astype(np.int64),
        deviation=p["noise"].astype(np.float32),
        offset=(offset & np.uint64(_POOL - 1)).astype(np.int64),
        cut=np.rint(cut * size).astype(np.int64),
    )


@cache
def _noise_pool() -> Float32[np.ndarray, " pool"]:
    """Standard normals, the same in every process; the end repeats the beginning, to be read on past it."""
    pool = np.random.Generator(np.random.PCG64(20250122)).standard_normal(_POOL, dtype=np.float32)
    pool = np.concatenate([pool, pool[:_LARGEST]])
    pool.setflags(write=False)
    return pool


def augment(
    pixels: Shaped[np.ndarray, "t side side"],
    rows: Int[np.ndarray, " m"],
    table: Float32[np.ndarray, "m p"],
    to_unit: tuple[float, float],
    size: int,
    threads: int = 1,
) -> Float32[np.ndarray, "m 1 size size"]:
    """Views in [0, 1] of ``pixels[rows]`` (uint8 or int16, square), one a row of ``table``; equal for any ``threads``.

    ``to_unit`` (gain, bias) maps stored values to the window's [0, 1]. Sources wider than twice a crop's
    share of ``size`` would alias: keep the working size below 2 x ``size``.
    """
    from medform.inputs.augment_kernel import warp_views

    plan = _plan(table, pixels.shape[-1], size, to_unit)
    out = np.empty((len(rows), size, size), np.float32)
    rows, pixels, pool = np.ascontiguousarray(rows, np.int64), np.asarray(pixels), _noise_pool()

    def run(part: slice) -> None:
        p = plan.part(part)
        warp_views(
            pixels,
            rows[part],
            p.affine,
            p.tone,
            p.taps,
            p.radius,
            p.deviation,
            p.offset,
            pool,
            p.cut,
            out[part],
        )

    bounds = np.linspace(0, len(rows), max(1, min(threads, len(rows))) + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    if len(parts) == 1:
        run(parts[0])
    else:
        with ThreadPoolExecutor(len(parts)) as workers:
            list(workers.map(run, parts))
    return out[:, None]


def augment_tensor(
    pixels: Shaped[Tensor, "m side side"],
    table: Float32[np.ndarray, "m p"],
    to_unit: tuple[float, float],
    size: int,
) -> Float[Tensor, "m 1 size size"]:
    """`augment` in torch, on the device of ``pixels`` (one a view): the same to 1e-3, median 1e-6."""
    device, count = pixels.device, len(pixels)
    plan = _plan(table, pixels.shape[-1], size, to_unit)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    start_x, along_x, down_x, start_y, along_y, down_y = tensor(plan.affine).double()[:, :, None, None].unbind(1)
    place = torch.arange(size, device=device, dtype=torch.float64)
    x = start_x + along_x * place + down_x * place[:, None]
    y = start_y + along_y * place + down_y * place[:, None]
    grid = ((torch.stack([x, y], dim=-1) + 0.5) * (2 / pixels.shape[-1]) - 1).float()
    image = torch.nn.functional.grid_sample(
        pixels.float()[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    gain, bias, bend = tensor(plan.tone)[:, :, None, None, None].unbind(1)
    image = (image * gain + bias).clamp(0, 1)
    image = image + bend * image * (1 - image)
    taps = tensor(plan.taps)[:, None, None]
    pad = torch.nn.functional.pad(image, (_RADIUS,) * 4, mode="replicate").transpose(0, 1)
    blurred = torch.nn.functional.conv2d(pad, taps, groups=count)
    blurred = torch.nn.functional.conv2d(blurred, taps.transpose(2, 3), groups=count).transpose(0, 1)
    image = torch.where(tensor(plan.radius > 0)[:, None, None, None], blurred, image)
    columns = torch.arange(size, device=device)
    normals = tensor(_noise_pool().copy())[tensor(plan.offset)[:, :, None] + columns]
    image = (image + tensor(plan.deviation)[:, None, None, None] * normals[:, None]).clamp(0, 1)
    x0, y0, x1, y1 = tensor(plan.cut)[:, :, None, None].unbind(1)
    inside = (columns >= x0) & (columns < x1) & (columns[:, None] >= y0) & (columns[:, None] < y1)
    return image.masked_fill(inside[:, None], 0.0)
