"""How medform's kernels are compiled: by numba, without the GIL, for exact signatures, kept in numba's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["compiled"]


def compiled(*signatures: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for exactly ``signatures``; uncached where no cache folder can be written.

    ``options`` are `numba.njit`'s, such as ``fastmath`` and ``error_model``.
    """

    def wrap(function: Callable[..., Any]) -> Any:
        chosen = {"nogil": True, "boundscheck": False, **options}
        try:
            return numba.njit(list(signatures), cache=True, **chosen)(function)
        except RuntimeError:
            return numba.njit(list(signatures), **chosen)(function)

    return wrap
