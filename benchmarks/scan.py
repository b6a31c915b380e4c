"""The selective scan and a whole Mamba encoder beside mambapy and transformers, on one thread.

``scan_L``: 2 sequences of L steps, 128 channels of 16 states, forward and backward (``scan_20000_forward`` without).
Peers: mambapy's parallel scan as its block calls it; transformers' ``mamba_selective_scan``, which is what its
models run without a CUDA kernel. CPU time of the process, variants interleaved; ratio = median of the rounds'
ratios, low and high their extremes. ``scan_memory``: the peak of resident memory above what it was before, forward and
backward at L = 20,000 (Linux). ``scan_encoder_L``: 4 layers of width 256, with projections and convolution; one
sequence (64 of L = 128), forward and backward.

    python benchmarks/scan.py [--json] [--rounds 5] [--only scan_1024 ...]

All of it takes about ten minutes and 11 GB, nearly all for the peers; the slow ones run fewer rounds. Exit code
1 where a ratio is below its bound.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rows import options, tell
from torch import Tensor

from medform.compute.seed import generator
from medform.models.mamba import Mamba
from medform.models.scan import selective_scan

BATCH, CHANNELS, STATES = 2, 128, 16
WIDTH, LAYERS = 256, 4
LONGEST = 20_000
# item -> peer, bound, most rounds
ITEMS = {
    "scan_memory": ("mambapy", 30.0, 1),
    "scan_1024": ("mambapy", 8.0, 9),
    "scan_1024_transformers": ("transformers", 200.0, 1),
    "scan_4096": ("mambapy", 16.0, 7),
    "scan_20000": ("mambapy", 25.0, 3),
    "scan_20000_forward": ("mambapy", 35.0, 3),
    "scan_encoder_128": ("mambapy", 6.0, 5),
    "scan_encoder_2048": ("mambapy", 5.0, 3),
    "scan_encoder_16384": ("mambapy", 5.0, 1),
}
ROUNDS = 5


def inputs(length: int) -> list[Tensor]:
    """x, delta, a, b, c, skip as at Mamba's start, and the gradient of y."""
    random = generator(0)
    rows = (BATCH, length)
    x, dy = (torch.randn(*rows, CHANNELS, generator=random) for _ in range(2))
    b, c = (torch.randn(*rows, STATES, generator=random) for _ in range(2))
    delta = 10 ** (-3 + 2 * torch.rand(*rows, CHANNELS, generator=random))
    a = -torch.arange(1, STATES + 1, dtype=torch.float32).repeat(CHANNELS, 1)
    return [*(tensor.requires_grad_() for tensor in (x, delta, a, b, c, torch.ones(CHANNELS))), dy]


def by_mambapy(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
    """What mambapy's block does between its projections."""
    from mambapy.pscan import pscan

    decay = torch.exp(delta[..., None] * a)
    drive = delta[..., None] * b[:, :, None] * x[..., None]
    states: Any = pscan(decay, drive)
    return (states @ c[..., None]).squeeze(3) + skip * x


def by_transformers(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
    """The loop over steps that transformers falls back on."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    x, delta, b, c = (tensor.transpose(1, 2) for tensor in (x, delta, b, c))
    return mamba_selective_scan(x, delta, a, b, c, skip).transpose(1, 2)


def scan_step(scan: Callable[..., Tensor], length: int, *, backward: bool) -> Callable[[], object]:
    """One scan with fixed inputs."""
    *given, dy = inputs(length)

    def run() -> object:
        if backward:
            return torch.autograd.grad(scan(*given), given, dy)
        with torch.no_grad():
            return scan(*given)

    return run


def encoder_step(model: torch.nn.Module, length: int) -> Callable[[], object]:
    """Forward and backward of a stack of layers."""
    u = torch.randn(64 if length == 128 else 1, length, WIDTH, generator=generator(1))

    def run() -> object:
        model.zero_grad()
        return model(u).square().mean().backward()

    return run


def variants(item: str) -> dict[str, Callable[[], object]]:
    """Name -> one run of it."""
    if item.startswith("scan_encoder"):
        from mambapy.mamba import Mamba as MambapyMamba
        from mambapy.mamba import MambaConfig

        length = int(item.rsplit("_", 1)[1])
        theirs = MambapyMamba(MambaConfig(d_model=WIDTH, n_layers=LAYERS))
        return {"medform": encoder_step(Mamba(WIDTH, LAYERS), length), "mambapy": encoder_step(theirs, length)}
    peer = ITEMS[item][0]
    length = LONGEST if item == "scan_memory" else int(item.split("_")[1])
    backward = not item.endswith("forward")
    theirs = {"mambapy": by_mambapy, "transformers": by_transformers}[peer]
    return {
        "medform": scan_step(selective_scan, length, backward=backward),
        peer: scan_step(theirs, length, backward=backward),
    }


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one run."""
    started = time.process_time()
    run()
    return time.process_time() - started


def resident(kind: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the peak), kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


def peak_kilobytes(run: Callable[[], object]) -> float:
    """How far one run takes resident memory above where it stood."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def measure(item: str, rounds: int) -> dict[str, Any]:
    """The row of one item."""
    peer, bound, most = ITEMS[item]
    runs = variants(item)
    if item == "scan_memory":
        scan_step(selective_scan, 64, backward=True)()  # code is loaded before memory is measured
        cost = peak_kilobytes
    else:
        runs["medform"]()
        cost = seconds
    ratios = []
    for _ in range(min(rounds, most)):
        ours = cost(runs["medform"])
        ratios.append(cost(runs[peer]) / ours)
    return {
        "item": item,
        "peer": peer,
        "ratio": round(statistics.median(ratios), 2),
        "low": round(min(ratios), 2),
        "high": round(max(ratios), 2),
        "bound": bound,
    }


def main() -> int:
    """Measure, print, and compare with the bounds."""
    parser = options(__doc__, ROUNDS)
    parser.add_argument("--only", nargs="+", choices=ITEMS, default=list(ITEMS), help="measure these items alone")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(item, asked.rounds) for item in asked.only]
    return tell(rows, asked)


if __name__ == "__main__":
    sys.exit(main())
