"""One stage from its start to its final weights on disk: begun, gone on with, or found complete."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from lightning_fabric import Fabric
from pydantic import Field, model_validator

from medform.config import Config
from medform.errors import InputError
from medform.inputs.loader import Loader
from medform.interfaces import Objective
from medform.runs import checkpoint
from medform.runs.arrays import write_arrays
from medform.runs.folder import read_json, write_json
from medform.runs.log import StageLog
from medform.training.fit import FitSettings, Monitor, Names, Progress, fit
from medform.training.optimizer import OptimizerConfig, base_rate

__all__ = ["Budget", "StageResult", "load_stage", "run_stage", "seconds_per_step", "stage_is_complete"]

SCHEMA_VERSION = 1
TIMED_STEPS = 3  # steps of a copy that tell how long one takes


class Budget(Config):
    """How long a stage trains: exactly one of ``steps``, ``epochs``, ``cpu_minutes``; all become steps."""

    steps: int | None = Field(default=None, ge=0)
    epochs: float | None = Field(default=None, gt=0)
    cpu_minutes: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.steps, self.epochs, self.cpu_minutes)) != 1:
            raise ValueError("give exactly one of steps, epochs, cpu_minutes.")
        return self

    def count(self, steps_per_epoch: int, seconds_per_step: float | None = None) -> int:
        """Number of steps; ``cpu_minutes`` needs the measured CPU seconds of a step."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return math.ceil(self.epochs * steps_per_epoch)
        if seconds_per_step is None:
            raise ValueError("cpu_minutes need a measured time per step")
        return max(1, int(60 * (self.cpu_minutes or 0.0) / seconds_per_step))


@dataclass(frozen=True)
class StageResult:
    """A stage that is complete. ``skipped``: it was so before. ``cpu_seconds`` counts this process only."""

    status: Literal["done", "collapsed"]
    steps: int
    folder: Path
    skipped: bool = False
    cpu_seconds: float = 0.0
    logs: Mapping[str, Any] = field(default_factory=dict)


def stage_is_complete(folder: Path) -> bool:
    """Whether the stage's final weights lie in ``folder``."""
    return (folder / "stage.json").is_file()


def load_stage(folder: Path, objective: Objective) -> StageResult:
    """Put a complete stage's weights into ``objective`` (strictly)."""
    record = read_json(folder / "stage.json")
    if record["schema_version"] != SCHEMA_VERSION:
        raise InputError(
            f"stage.json has format {record['schema_version']!r}; this medform reads {SCHEMA_VERSION}.",
            where=str(folder),
            fix="use the version of medform that wrote the run, or a newer one.",
        )
    checkpoint.load_weights(folder / "model.safetensors", objective)
    return StageResult(record["status"], record["steps"], folder, skipped=True, logs=record["logs"])


def run_stage(
    objective: Objective,
    loader: Loader,
    *,
    folder: Path,
    digest: str,
    optimizer: OptimizerConfig,
    budget: Budget,
    seed: int,
    fabric: Fabric,
    log: StageLog,
    inputs: Mapping[str, np.ndarray] | None = None,
    notes: Mapping[str, Any] | None = None,
    log_every: int = 10,
    checkpoint_every: int = 50,
    monitor: Monitor | None = None,
    names: Names | None = None,
    progress: Progress | None = None,
) -> StageResult:
    """Train ``objective`` in place and leave ``folder`` complete.

    ``digest`` names everything the stage depends on (its configuration, its patients, the weights before it):
    a complete folder with the same one is only loaded, one with checkpoints is gone on with, one of another
    digest is refused. ``inputs`` are the fitted arrays and ``notes`` the fitted JSON of the stage's inputs,
    written to inputs.safetensors.
    """
    _refuse_other(folder, digest)
    objective.to(fabric.device)
    if stage_is_complete(folder):
        return load_stage(folder, objective)
    started = time.process_time()
    plan = _plan(objective, loader, folder, digest, optimizer, budget, seed, fabric)
    settings = FitSettings(
        steps=plan["steps"],
        rate=plan["rate"],
        warmup=optimizer.warmup.count(plan["steps"], loader.steps_per_epoch),
        seed=seed,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
    )
    result = fit(
        objective,
        loader,
        optimizer,
        settings,
        fabric,
        folder=folder,
        log=log,
        monitor=monitor,
        names=names,
        progress=progress,
    )
    write_arrays(folder / "inputs.safetensors", inputs or {}, notes)
    checkpoint.save_weights(folder / "model.safetensors", objective, {"digest": digest})
    record = {
        "schema_version": SCHEMA_VERSION,
        "digest": digest,
        "status": result.status,
        "steps": result.steps,
        "planned_steps": plan["steps"],
        "logs": {name: value for name, value in result.logs.items() if math.isfinite(value)},
    }
    write_json(folder / "stage.json", record)
    checkpoint.remove_all(folder)
    seconds = time.process_time() - started
    return StageResult(result.status, result.steps, folder, cpu_seconds=seconds, logs=record["logs"])


def _refuse_other(folder: Path, digest: str) -> None:
    for name in ("stage.json", "plan.json"):
        path = folder / name
        if path.is_file() and (found := read_json(path)["digest"]) != digest:
            raise InputError(
                f"this stage was made from other settings, patients or weights ({found}, now {digest}).",
                where=str(folder),
                consequence="Nothing was trained.",
                fix="name another run folder, or start anew with --overwrite.",
            )


def _plan(
    objective: Objective,
    loader: Loader,
    folder: Path,
    digest: str,
    optimizer: OptimizerConfig,
    budget: Budget,
    seed: int,
    fabric: Fabric,
) -> dict[str, Any]:
    """Steps and rate, settled once after the objective's own start, and stored: resuming repeats them."""
    path = folder / "plan.json"
    resumed = path.is_file()
    begins = not resumed or checkpoint.latest(folder) is None
    if begins and objective.fits_start:
        objective.start({modality: block.to(fabric.device) for modality, block in loader.whole().items()})
    if resumed:
        return read_json(path)
    seconds = None
    if budget.cpu_minutes is not None:
        seconds = seconds_per_step(objective, loader, folder, optimizer, seed, fabric)
    steps = budget.count(loader.steps_per_epoch, seconds)
    rate = base_rate(optimizer, objective) if steps else 0.0
    plan = {
        "schema_version": SCHEMA_VERSION,
        "digest": digest,
        "steps": steps,
        "rate": rate,
        "timed": seconds,
    }
    write_json(path, plan)
    return plan


def seconds_per_step(
    objective: Objective, loader: Loader, folder: Path, optimizer: OptimizerConfig, seed: int, fabric: Fabric
) -> float:
    """CPU seconds of one step, from a few steps of a copy (after one that is not counted).

    Nothing is left in ``folder``, not even where the user stops it.
    """
    trial = copy.deepcopy(objective)
    rate = base_rate(optimizer, trial)
    times: list[float] = []

    def note(_done: int, _total: int) -> None:
        times.append(time.process_time())

    settings = FitSettings(TIMED_STEPS + 1, rate, 0, seed, log_every=10**9, checkpoint_every=10**9)
    try:  # there is no log and no checkpoint falls due, but an interrupted loop saves its step
        fit(trial, loader, optimizer, settings, fabric, folder=folder / "timing", progress=note)
    finally:
        shutil.rmtree(folder / "timing", ignore_errors=True)
    return (times[-1] - times[0]) / TIMED_STEPS
