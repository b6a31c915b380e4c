"""The fused CPU pass behind `augment.augment`, compiled by numba. Its plain twin is `augment.augment_tensor`.

Importing this module compiles it, or reads the compiled code from numba's cache; so it is imported where it
is used. One thread runs one call, without the GIL; threads are the caller's (numba's own would kill forked
workers).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from medform.kernel import compiled

__all__ = ["warp_views"]

# not plain fastmath: that assumes that there are no NaN, and one in the input would pass unseen
_compiled = partial(compiled, fastmath={"reassoc", "contract", "nsz", "arcp"})
_IMAGES = ("uint8", "int16")


def _read_only(kind: str, dimensions: int) -> str:
    return f"Array({kind}, {dimensions}, 'C', readonly=True)"


@_compiled(*(f"void({_read_only(kind, 2)}, float32[::1], float32[::1], float32[:, ::1])" for kind in _IMAGES))
def _sample(image: np.ndarray, affine: np.ndarray, source: np.ndarray, out: np.ndarray) -> None:
    """Bilinear samples of ``image`` (H, W) at x = a0 + a1 column + a2 row, y = a3 + a4 column + a5 row.

    Edges repeat. ``source`` (H x W,) is scratch: floats can be gathered in vectors, 16-bit integers cannot.
    """
    height, width = image.shape
    size = out.shape[0]
    stored = image.reshape(-1)
    for place in range(stored.shape[0]):
        source[place] = np.float32(stored[place])
    last_x, last_y = np.float32(width - 1), np.float32(height - 1)
    last_left, last_top = np.float32(width - 2), np.float32(height - 2)
    step_x, step_y = affine[1], affine[4]
    stride = np.int32(width)
    corner = np.empty(size, np.uint32)
    share_x, share_y = np.empty(size, np.float32), np.empty(size, np.float32)
    for row in range(size):
        start_x = affine[0] + affine[2] * np.float32(row)
        start_y = affine[3] + affine[5] * np.float32(row)
        for column in range(size):
            x = min(max(start_x + step_x * np.float32(column), np.float32(0)), last_x)
            y = min(max(start_y + step_y * np.float32(column), np.float32(0)), last_y)
            left, top = np.int32(min(x, last_left)), np.int32(min(y, last_top))
            share_x[column], share_y[column] = x - np.float32(left), y - np.float32(top)
            corner[column] = top * stride + left
        line = out[row]
        for column in range(size):  # unsigned places need no check for negative ones
            upper = np.uint64(corner[column])
            lower = upper + np.uint64(stride)
            a, b = source[upper], source[upper + np.uint64(1)]
            c, d = source[lower], source[lower + np.uint64(1)]
            above = a + share_x[column] * (b - a)
            line[column] = above + share_y[column] * (c + share_x[column] * (d - c) - above)


@_compiled("void(float32[:, ::1], float32[::1])")
def _tone(image: np.ndarray, tone: np.ndarray) -> None:
    """In place: t = clip(gain value + bias, 0, 1), then t + bend t (1 - t)."""
    gain, bias, bend = tone[0], tone[1], tone[2]
    one, zero = np.float32(1), np.float32(0)
    for row in range(image.shape[0]):
        line = image[row]
        for column in range(line.shape[0]):
            t = min(max(gain * line[column] + bias, zero), one)
            line[column] = t + bend * t * (one - t)


@_compiled("void(float32[:, ::1], float32[::1], int64, float32[:, ::1], float32[::1])")
def _blur(image: np.ndarray, taps: np.ndarray, radius: int, across: np.ndarray, padded: np.ndarray) -> None:
    """In place: separable convolution with the 2 radius + 1 middle ``taps``; edges repeat."""
    size = image.shape[0]
    centre = taps.shape[0] // 2
    for row in range(size):
        line, result = image[row], across[row]
        for column in range(radius):
            padded[column] = line[0]
            padded[radius + size + column] = line[size - 1]
        for column in range(size):
            padded[radius + column] = line[column]
            result[column] = np.float32(0)
        for tap in range(-radius, radius + 1):
            weight = taps[centre + tap]
            shifted = padded[radius + tap :]
            for column in range(size):
                result[column] += weight * shifted[column]
    for row in range(size):
        result = image[row]
        for column in range(size):
            result[column] = np.float32(0)
        for tap in range(-radius, radius + 1):
            weight = taps[centre + tap]
            line = across[min(max(row + tap, 0), size - 1)]
            for column in range(size):
                result[column] += weight * line[column]


@_compiled(f"void(float32[:, ::1], float32, int64[::1], {_read_only('float32', 1)})")
def _noise(image: np.ndarray, deviation: float, offset: np.ndarray, pool: np.ndarray) -> None:
    """In place: add ``deviation`` times normals of the pool, from each row's own offset; clip to [0, 1]."""
    one, zero = np.float32(1), np.float32(0)
    for row in range(image.shape[0]):
        line = image[row]
        normals = pool[offset[row] :]
        for column in range(line.shape[0]):
            line[column] = min(max(line[column] + deviation * normals[column], zero), one)


@_compiled(
    *(
        f"void({_read_only(kind, 3)}, int64[::1], float32[:, ::1], float32[:, ::1], float32[:, ::1],"
        f" int64[::1], float32[::1], int64[:, ::1], {_read_only('float32', 1)}, int64[:, ::1],"
        " float32[:, :, ::1])"
        for kind in _IMAGES
    )
)
def warp_views(
    pixels: np.ndarray,
    rows: np.ndarray,
    affine: np.ndarray,
    tone: np.ndarray,
    taps: np.ndarray,
    radius: np.ndarray,
    deviation: np.ndarray,
    offset: np.ndarray,
    pool: np.ndarray,
    cut: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill ``out`` (M, S, S) with views of ``pixels[rows]``; the other arrays are `augment.Plan`'s."""
    size = out.shape[1]
    across = np.empty((size, size), np.float32)
    padded = np.empty(size + taps.shape[1], np.float32)
    source = np.empty(pixels.shape[1] * pixels.shape[2], np.float32)
    for view in range(out.shape[0]):
        image = out[view]
        _sample(pixels[rows[view]], affine[view], source, image)
        _tone(image, tone[view])
        if radius[view] > 0:
            _blur(image, taps[view], radius[view], across, padded)
        if deviation[view] > 0:
            _noise(image, deviation[view], offset[view], pool)
        for row in range(cut[view, 1], cut[view, 3]):
            for column in range(cut[view, 0], cut[view, 2]):
                image[row, column] = np.float32(0)
