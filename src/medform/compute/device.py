"""Which device a run uses, and what the machine can do: GPU, CPU flags, cores, measured speed."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from medform.errors import ExtraMissing, InputError

__all__ = [
    "Device",
    "choose_device",
    "cpu_flags",
    "gpu_is_visible",
    "keep_freed_memory",
    "measured_gflops",
    "out_of_memory",
    "set_threads",
    "usable_cores",
]

DEVICES = ("auto", "cpu", "cuda")
KEPT_BY_GLIBC = {-1: 2**31 - 1, -2: 2**28, -3: 2**30}
"""M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of glibc's malloc.h, in bytes."""


@dataclass(frozen=True)
class Device:
    """The device of a run. ``note``: what a person should know about the choice, or None."""

    name: Literal["cpu", "cuda"]
    note: str | None = None

    @property
    def torch(self) -> torch.device:
        """As torch names it."""
        return torch.device(self.name)


def gpu_is_visible(devices: Path = Path("/dev"), windows: Path = Path("C:/Windows/System32")) -> bool:
    """Whether the operating system shows an NVIDIA GPU, whatever torch can do with it."""
    return any(devices.glob("nvidia[0-9]*")) or (windows / "nvidia-smi.exe").is_file()


def choose_device(wanted: str = "auto", *, visible: bool | None = None) -> Device:
    """``auto``: the GPU where torch can use one, else the CPU, with a note where a GPU is there but stays idle.

    Raises `ExtraMissing` (exit code 4) where ``cuda`` is asked for and torch cannot use a GPU. ``visible``
    overrides what the operating system shows, for tests.
    """
    if wanted not in DEVICES:
        raise InputError(
            f"there is no device '{wanted}'.",
            where="--device",
            consequence="Nothing was started.",
            fix=f"use one of {', '.join(DEVICES)}.",
        )
    if wanted == "cpu":
        return Device("cpu")
    if torch.cuda.is_available():
        return Device("cuda")
    visible = gpu_is_visible() if visible is None else visible
    if not visible:
        reason, fix = "no NVIDIA GPU is visible on this machine", "use --device cpu, or a machine with a GPU."
    elif torch.version.cuda is None:
        reason = f"a GPU is visible, but this torch ({torch.__version__}) was built for the CPU only"
        fix = "install a CUDA build of torch: see https://pytorch.org/get-started/locally/."
    else:
        reason = f"a GPU is visible, but this torch ({torch.__version__}) cannot use its driver"
        fix = f"update the NVIDIA driver to one that supports CUDA {torch.version.cuda}."
    if wanted == "cuda":
        raise ExtraMissing(f"{reason}.", where="--device cuda", consequence="Nothing was started.", fix=fix)
    return Device("cpu", f"{reason}; running on the CPU. {fix[0].upper()}{fix[1:]}" if visible else None)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """Instruction sets of the CPU as Linux lists them (``avx2``, ``avx512_bf16``; on ARM ``bf16``); None elsewhere."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return None


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: its affinity, and a container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
        cores = min(cores, max(1, round(int(allowed) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        pass
    return cores


def set_threads(count: int | None = None) -> int:
    """Threads of torch's operations, which it returns; None: every usable core, or fewer if OMP_NUM_THREADS says so.

    A caller who runs several processes side by side says so by that variable; more threads than cores would only wait.
    """
    if count is None:
        allowed = os.environ.get("OMP_NUM_THREADS", "")
        count = min(usable_cores(), int(allowed)) if allowed.isdigit() and int(allowed) > 0 else usable_cores()
    torch.set_num_threads(count)
    return count


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors freed, for the next step's tensors; whether it was told.

    By itself glibc hands large pieces back to the system, which clears them page by page when they are asked for again
    in the next step. Elsewhere than on glibc, and where the environment
    says how memory is to be had (``MALLOC_...``, ``GLIBC_TUNABLES``), nothing is done.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(which, bound) for which, bound in KEPT_BY_GLIBC.items())


def measured_gflops(seconds: float = 0.3, size: int = 768) -> float:
    """Speed of one core at float32 matrix products, in GFLOP per CPU-second: the best of what fits in ``seconds``.

    CPU time, so that other programs on the machine count less. The thread setting is put back.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.ones(size, size)
        torch.mm(a, a)  # the first product pays for loading the kernels
        best, begin = float("inf"), time.process_time()
        while time.process_time() - begin < seconds:
            start = time.process_time()
            for _ in range(4):  # several, since the clock of CPU time may tick in 10 ms
                torch.mm(a, a)
            taken = time.process_time() - start
            best = min(best, taken / 4) if taken > 0 else best
    finally:
        torch.set_num_threads(threads)
    return 2 * size**3 / best / 1e9


def out_of_memory(error: BaseException) -> bool:
    """Whether torch, CUDA or numpy asked for more memory than there is."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
