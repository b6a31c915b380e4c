"""Two augmented views a slice: medform's kernel beside lightly's transform and batched torch, one thread.

Peers: ``lightly`` works on RGB uint8 through PIL with colour jitter, which is what its users run on CT today;
``torch`` is the kernel's own augmentation in batched operations (`augment_tensor`). CPU time of the process,
variants interleaved; ratio = median of the rounds' ratios, low and high their extremes.

    python benchmarks/augment.py [--json] [--rounds 5]

Exit code 1 where a ratio is below its bound.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rows import options, tell

from medform.inputs.augment import AugmentConfig, augment, augment_tensor, parameter_table

SLICES = 32
TO_UNIT = (1 / 1400, 1000 / 1400)  # window [-1000, 400] HU
BOUNDS = {(224, "lightly"): 10.0, (96, "lightly"): 15.0, (224, "torch"): 3.0, (96, "torch"): 2.0}


def chest_like(side: int) -> np.ndarray:
    """Smooth slices (SLICES, side, side) in HU: noise on a coarse grid, enlarged."""
    random = np.random.default_rng(0)
    coarse = random.uniform(-1000, 400, (SLICES, side // 16, side // 16))
    return np.kron(coarse, np.ones((16, 16))).astype(np.int16)


def variants(size: int, source: int) -> dict[str, Callable[[int], Any]]:
    """Name -> function of the round's number: 2 x SLICES views of ``size`` from slices of ``source``."""
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    pixels = chest_like(source)
    rows, view = np.tile(np.arange(SLICES), 2), np.repeat([0, 1], SLICES)
    config = AugmentConfig()
    shown = ((pixels + 1000.0).clip(0, 1400) * (255 / 1400)).astype(np.uint8)
    pictures = [Image.fromarray(image).convert("RGB") for image in shown]
    transform = SimCLRTransform(input_size=size)
    stored = torch.from_numpy(pixels)

    def table(number: int) -> np.ndarray:
        return parameter_table(config, rows, view, number, 0)

    return {
        "medform": lambda number: augment(pixels, rows, table(number), TO_UNIT, size),
        "torch": lambda number: augment_tensor(stored[rows], table(number), TO_UNIT, size),
        "lightly": lambda number: [transform(picture) for picture in pictures],
    }


def seconds(work: Callable[[int], Any], number: int) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    work(number)
    return time.process_time() - started


def measure(size: int, source: int, rounds: int) -> list[dict[str, Any]]:
    """One row a peer."""
    made = variants(size, source)
    for work in made.values():  # compile, fill caches
        work(0)
    times = [{name: seconds(work, number) for name, work in made.items()} for number in range(1, rounds + 1)]
    rows = []
    for peer in ("lightly", "torch"):
        ratios = [taken[peer] / taken["medform"] for taken in times]
        rows.append(
            {
                "item": "augment" if size == 224 else f"augment_{size}",
                "peer": peer,
                "ratio": round(statistics.median(ratios), 2),
                "low": round(min(ratios), 2),
                "high": round(max(ratios), 2),
                "bound": BOUNDS[size, peer],
            }
        )
    return rows


def main() -> int:
    """Measure, print, and compare with the bounds."""
    asked = options(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = [*measure(224, 256, asked.rounds), *measure(96, 128, asked.rounds)]
    return tell(rows, asked)


if __name__ == "__main__":
    sys.exit(main())
