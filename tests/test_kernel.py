"""How kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medform import kernel


@pytest.mark.proves("G2.3")
def test_where_no_cache_can_be_written_the_kernel_is_compiled_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(signatures: list[str], *, cache: bool = False, **options: object) -> Callable[[object], object]:
        def compiled(function: object) -> object:
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return function

        return compiled

    monkeypatch.setattr(kernel.numba, "njit", njit)
    assert kernel.compiled("void()")(len) is len
