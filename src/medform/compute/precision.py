"""fp32 or bf16, and whether this machine should do it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch

from medform.compute.device import Device, cpu_flags
from medform.errors import InputError

__all__ = ["Precision", "PrecisionName", "choose_precision"]

PrecisionName = Literal["fp32", "bf16"]

NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Linux names of CPU instruction sets that multiply bf16 (x86 AVX-512 and AMX, ARM). Without one it is
emulated: 50 times slower than fp32 for a matrix product on an AVX2 machine."""


@dataclass(frozen=True)
class Precision:
    """The precision of a run. ``fabric`` is Lightning Fabric's name of it; ``note`` what a person should know."""

    name: PrecisionName
    note: str | None = None

    @property
    def fabric(self) -> Literal["32-true", "bf16-mixed"]:
        """Weights stay in float32 either way; bf16 is that of the layers' arithmetic."""
        return "bf16-mixed" if self.name == "bf16" else "32-true"


def choose_precision(wanted: PrecisionName, device: Device, *, flags: Collection[str] | None = None) -> Precision:
    """``wanted`` on ``device``. Raises `InputError` for bf16 where the hardware would emulate it.

    Where the CPU does not say what it can do (macOS, Windows) bf16 is taken, with a note. ``flags``
    overrides the CPU's own, for tests.
    """
    if wanted == "fp32":
        return Precision("fp32")
    if device.name == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16")
        raise _refusal(f"the GPU ({torch.cuda.get_device_name()})")
    flags = cpu_flags() if flags is None else flags
    if flags is None:
        return Precision("bf16", "whether this CPU computes bf16 itself is unknown; if it does not, fp32 is faster")
    if NATIVE_BF16.isdisjoint(flags):
        raise _refusal("this CPU")
    return Precision("bf16")


def _refusal(machine: str) -> InputError:
    return InputError(
        f"{machine} has no bf16 arithmetic and would emulate it, 10 to 50 times slower than fp32.",
        where="precision",
        consequence="Nothing was started.",
        fix="use fp32.",
    )
