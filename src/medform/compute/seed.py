"""One seed for everything: named generators, and modules that draw from a generator that is handed to them.

A generator depends on the seed and its names only, never on what was drawn before, on threads or on time. So
``generator(seed, "pretrain", fold, step)`` gives the same numbers in an undisturbed run and in a resumed one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive", "draws_from", "generator", "numpy_generator"]


def derive(seed: int, *names: str | int) -> int:
    """A number in [0, 2^63) that depends on ``seed`` and ``names`` only (SHA-256 of both)."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator (on the CPU, whatever the device of the run) of its own for ``names`` under ``seed``."""
    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator of its own for ``names`` under ``seed``."""
    return np.random.default_rng(derive(seed, *names))


@contextmanager
def draws_from(random: torch.Generator) -> Iterator[None]:
    """What draws from torch's global generator inside the block draws from ``random`` instead.

    For code that takes no generator: initial weights of ``nn`` and timm modules, ``nn.Dropout``. The block
    is seeded by one number drawn from ``random``, on the CPU and on the current GPU; the global state is
    put back afterwards.
    """
    seed = int(torch.randint(2**62, (1,), generator=random))
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield
