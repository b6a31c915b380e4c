"""The loop: every gradient step of medform is taken here, whatever is learnt.

A step is a function of (seed, step) and the weights, so a run that goes on from a checkpoint ends, on a CPU,
with the same bits as one that was never stopped.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medform.compute.seed import draws_from, generator
from medform.errors import Interrupted, MedformError
from medform.inputs.loader import Loader
from medform.interfaces import Batch, Objective
from medform.runs import checkpoint
from medform.runs.checkpoint import Checkpoint
from medform.runs.log import StageLog
from medform.training.optimizer import OptimizerConfig, build_optimizer, learning_rate, set_rate

__all__ = ["FitResult", "FitSettings", "Monitor", "fit"]

Monitor = Callable[[Objective], Mapping[str, float]]
Progress = Callable[[int, int], None]
Names = Callable[[Sequence[int]], Sequence[str]]

COLLAPSED_RANK = 2.0  # centred effective rank below which 64 slices lie on a line
COLLAPSED_LOGS = 2  # in a row
SMALL_NETWORK = 1_000_000  # weights


@dataclass(frozen=True)
class FitSettings:
    """``steps`` in all, the first ``warmup`` of them rising to ``rate``, the highest learning rate."""

    steps: int
    rate: float
    warmup: int
    seed: int
    log_every: int = 10
    checkpoint_every: int = 50


@dataclass(frozen=True)
class FitResult:
    """How the loop ended. ``logs`` is the last logged line."""

    status: Literal["done", "collapsed"]
    steps: int
    logs: Mapping[str, float] = field(default_factory=dict)


class _Packet:
    """Keeps a batch out of Fabric's sight, which would copy its blocks and cast what must stay as it is."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class _Step(nn.Module):
    """The one module that Fabric wraps: an objective whose batch comes in a packet."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, packet: _Packet, step: int, random: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.objective(packet.batch, step, random)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or a termination request sets, so that the step in hand is finished first.

    A second signal acts at once. Outside the main thread, where Python allows no handlers, nothing is caught.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler is not None}

    def note(number: int, _frame: Any) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _fitting_threads(objective: Objective) -> Iterator[None]:
    """One thread for a small network: sharing out its pieces costs more (measured: six times) than its work.

    The choice depends on the network alone, so that sums are made in the same order in every run.
    """
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in objective.parameters()) < SMALL_NETWORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Batches:
    """The loader's batches on the device, the next one made in a thread while the step runs."""

    def __init__(self, loader: Loader, device: torch.device, last: int) -> None:
        self._loader, self._device, self._last = loader, device, last
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._next: tuple[int, Future[Batch]] | None = None

    def at(self, step: int) -> Batch:
        made = self._next
        batch = made[1].result() if made is not None and made[0] == step else self._loader.batch(step)
        if step + 1 < self._last:
            self._next = (step + 1, self._pool.submit(self._loader.batch, step + 1))
        return {modality: block.to(self._device) for modality, block in batch.items()}

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class _Course:
    """What the loop knows beside the weights: steps done, logs in a row that looked collapsed, last save."""

    step: int = 0
    collapsed: int = 0
    saved: int = 0


def fit(
    objective: Objective,
    loader: Loader,
    optimizer_config: OptimizerConfig,
    settings: FitSettings,
    fabric: Fabric,
    *,
    folder: Path,
    log: StageLog | None = None,
    monitor: Monitor | None = None,
    names: Names | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Train ``objective`` in place up to ``settings.steps``, on from the newest checkpoint in ``folder``.

    ``monitor(objective)`` is called at every logged step; where its ``effective_rank`` is below 2 at two logs
    in a row after the warm-up, training stops as "collapsed". ``names`` turns a batch's patient numbers into
    pseudonyms for messages. Raises `MedformError` where loss or gradient is not finite (the last checkpoint
    is kept), and `Interrupted` after Ctrl-C or a termination request, once the step in hand is saved.
    """
    objective.to(fabric.device)
    course = _Course()
    if settings.steps == 0:
        return FitResult("done", 0)
    optimizer = build_optimizer(optimizer_config, objective, settings.rate)
    module, wrapped = fabric.setup(_Step(objective), optimizer)
    _restore(folder, objective, optimizer, course)
    if log is not None:
        log.cut_after(course.step)
    loop = _Loop(objective, module, wrapped, optimizer_config, settings, fabric, folder, log, course)
    batches = _Batches(loader, fabric.device, settings.steps)
    try:
        with _stop_signals() as asked, _fitting_threads(objective):
            return loop.run(batches, asked, monitor, names, progress)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted.",
            where=str(folder),
            fix="the same command with --resume goes on from the last checkpoint.",
        ) from None
    finally:
        batches.close()


def _restore(folder: Path, objective: Objective, optimizer: torch.optim.Optimizer, course: _Course) -> None:
    """Put the newest checkpoint, where there is one, into everything that changes from step to step."""
    found = checkpoint.latest(folder)
    if found is None:
        return
    objective.load_state_dict(found.model, strict=True)
    optimizer.load_state_dict(dict(found.optimizer))
    course.step = course.saved = found.step
    course.collapsed = int(found.notes["collapsed"])


@dataclass
class _Loop:
    """The loop over steps, with what it needs at each of them."""

    objective: Objective
    module: Any
    optimizer: Any
    config: OptimizerConfig
    settings: FitSettings
    fabric: Fabric
    folder: Path
    log: StageLog | None
    course: _Course

    def run(
        self,
        batches: _Batches,
        asked: threading.Event,
        monitor: Monitor | None,
        names: Names | None,
        progress: Progress | None,
    ) -> FitResult:
        settings, course = self.settings, self.course
        logs: dict[str, float] = {}
        self.objective.train()
        started, images = time.perf_counter(), 0
        while course.step < settings.steps:
            batch = batches.at(course.step)
            found = self._step(batch, names)
            images += max(len(block) for block in batch.values())
            course.step += 1
            last = course.step == settings.steps
            if course.step % settings.log_every == 0 or course.step == 1 or last:
                seconds = time.perf_counter() - started
                logs = {**found, **self._monitored(monitor)}
                self._write(logs, seconds, images)
                if self._has_collapsed(logs):
                    return FitResult("collapsed", course.step, logs)
            if course.step % settings.checkpoint_every == 0 and not last:
                self._save()
            if progress is not None:
                progress(course.step, settings.steps)
            if asked.is_set():
                if not last:
                    self._save()
                raise Interrupted(
                    f"interrupted; {course.saved} of {settings.steps} steps are saved.",
                    where=str(self.folder),
                    fix="the same command with --resume goes on from there.",
                )
        return FitResult("done", course.step, logs)

    def _write(self, logs: Mapping[str, float], seconds: float, images: int) -> None:
        if self.log is not None:
            speed = {"seconds": seconds, "images_per_second": images / max(seconds, 1e-9)}
            self.log.append(self.course.step, {**logs, **speed})

    def _step(self, batch: Batch, names: Names | None) -> dict[str, float]:
        settings, step = self.settings, self.course.step
        rate = learning_rate(self.config, settings.rate, step, settings.steps, settings.warmup)
        set_rate(self.optimizer, rate)
        random = generator(settings.seed, "step", step)
        with draws_from(generator(settings.seed, "modules", step)):  # for modules that take no generator
            loss, logs = self.module(_Packet(batch), step, random)
        if not math.isfinite(value := float(loss.detach())):
            self._stop_not_finite("loss", batch, names)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        norm = self._clip()
        if not math.isfinite(norm):
            self._stop_not_finite("gradient", batch, names)
        self.optimizer.step()
        self.objective.after_step()
        return {"loss": value, **logs, "lr": rate, "gradient_norm": norm}

    def _clip(self) -> float:
        largest = math.inf if self.config.clip is None else self.config.clip
        norm = self.fabric.clip_gradients(self.module, self.optimizer, max_norm=largest, error_if_nonfinite=False)
        return float(norm) if norm is not None else 0.0

    def _monitored(self, monitor: Monitor | None) -> Mapping[str, float]:
        if monitor is None:
            return {}
        with draws_from(generator(self.settings.seed, "monitor", self.course.step)):
            found = monitor(self.objective)
        self.objective.train()
        return found

    def _has_collapsed(self, logs: Mapping[str, float]) -> bool:
        rank = logs.get("effective_rank", math.inf)
        low = rank < COLLAPSED_RANK and self.course.step > self.settings.warmup
        self.course.collapsed = self.course.collapsed + 1 if low else 0
        return self.course.collapsed >= COLLAPSED_LOGS

    def _save(self) -> None:
        self.course.saved = self.course.step
        checkpoint.save(
            self.folder,
            Checkpoint(
                step=self.course.step,
                model=self.objective.state_dict(),
                optimizer=self.optimizer.state_dict(),
                notes={"seed": self.settings.seed, "collapsed": self.course.collapsed},
            ),
        )

    def _stop_not_finite(self, what: str, batch: Batch, names: Names | None) -> None:
        """Name the patients of the batch. Nothing is saved: statistics of norms may already be spoilt."""
        codes = sorted({int(code) for block in batch.values() for code in block.patient})
        shown = [str(name) for name in (names(codes) if names else [f"number {code}" for code in codes])]
        listed = ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
        raise MedformError(
            f"the {what} of step {self.course.step + 1} is not a finite number. Patients in the batch: {listed}.",
            where=str(self.folder),
            consequence=f"Training stopped; the checkpoint after step {self.course.saved} is kept.",
            fix="look at these patients' images and table rows, or lower optimizer.lr, then use --overwrite.",
        )
