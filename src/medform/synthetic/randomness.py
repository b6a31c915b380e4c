"""Named random generators: the same seed and names give the same numbers, whatever was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["chosen_share", "generator", "hash_order"]


def generator(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for ``names`` under ``seed``."""
    digest = hashlib.sha256("\x1f".join([str(seed), *names]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def hash_order(seed: int, purpose: str, ids: list[str]) -> list[str]:
    """``ids`` in an order that depends on ``seed`` and ``purpose`` only, not on how they were listed."""
    return sorted(ids, key=lambda one: hashlib.sha256(f"{seed}:{purpose}:{one}".encode()).hexdigest())


def chosen_share(seed: int, purpose: str, ids: list[str], share: float) -> frozenset[str]:
    """``round(share * n)`` of the ids (at least one where ``share`` > 0), drawn without regard to order."""
    count = max(round(share * len(ids)), 1 if share > 0 and ids else 0)
    return frozenset(hash_order(seed, purpose, ids)[:count])
