"""A stage: started once, found complete afterwards, gone on with in between, never mixed with another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medform.config import parse
from medform.errors import InputError
from medform.inputs.bags import BagSource
from medform.inputs.loader import PatientLoader, RowSource
from medform.interfaces import Batch, Objective
from medform.runs.arrays import read_arrays
from medform.training.infer import RankMonitor
from medform.training.optimizer import OptimizerConfig, RelativeRate
from medform.training.stage import Budget, load_stage, run_stage, stage_is_complete

Make = Callable[..., Any]


class Killed(BaseException):
    """Stands for a kill."""


class Pull(Objective):
    """Pulls a patient's mean bag and table row together; its start is the ratio of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict()
        self.factor = nn.Parameter(torch.zeros(2))
        self.starts = 0

    def start(self, batch: Batch) -> None:
        self.starts += 1
        image, table = batch["image"].value["feature"].mean(), batch["clinical"].value["table"].mean()
        with torch.no_grad():
            self.factor.fill_(float(image / table))

    def learning_rate_scale(self) -> float:
        return float(self.factor.detach().square().mean().sqrt())

    def forward(self, batch: Batch, step: int, random: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = batch["clinical"].value["table"]
        return (self.factor * rows + torch.randn(rows.shape, generator=random)).square().mean(), {"chance": 1.0}


def patients(count: int) -> PatientLoader:
    codes = np.arange(count)
    image = BagSource(
        np.full((2 * count, 3), 6, np.float32),
        np.repeat(codes, 2),
        np.arange(2 * count),
        np.zeros(2 * count, np.float32),
    )
    return PatientLoader(
        {"image": image, "clinical": RowSource(np.full((count, 2), 2, np.float32), codes)},
        codes,
        batch=4,
        seed=0,
    )


def settings(bench: Any, name: str = "a", **more: Any) -> dict[str, Any]:
    return {
        "folder": bench.folder / name,
        "digest": "d1",
        "optimizer": OptimizerConfig(lr=0.01),
        "budget": Budget(steps=9),
        "seed": 3,
        "fabric": bench.fabric,
        "log": bench.log(name),
        "checkpoint_every": 4,
        **more,
    }


def weights(objective: Objective) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in objective.state_dict().items()}


def test_a_stage_leaves_weights_inputs_and_a_record(bench: Any, simclr: Make) -> None:
    objective = simclr()
    inputs = {"features.mean": np.arange(3.0)}
    result = run_stage(objective, bench.loader(), **settings(bench, inputs=inputs, notes={"clinical": {"clip": 3.5}}))
    assert (result.status, result.steps, result.skipped) == ("done", 9, False) and result.cpu_seconds > 0
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "inputs.safetensors",
        "metrics.jsonl",
        "model.safetensors",
        "plan.json",
        "stage.json",
    ]
    arrays, notes = read_arrays(result.folder / "inputs.safetensors")
    assert arrays["features.mean"].tolist() == [0, 1, 2] and notes == {"clinical": {"clip": 3.5}}
    record = json.loads((result.folder / "stage.json").read_text())
    assert (record["schema_version"], record["digest"], record["planned_steps"]) == (1, "d1", 9)


@pytest.mark.proves("U7")
def test_a_complete_stage_is_loaded_and_not_trained_again(bench: Any, simclr: Make) -> None:
    first, again, other = simclr(), simclr(seed=1), simclr(seed=2)
    assert not stage_is_complete(bench.folder / "a")
    run_stage(first, bench.loader(), **settings(bench))
    before = {path.name: path.read_bytes() for path in (bench.folder / "a").iterdir()}
    moved: list[Any] = []
    again.to = moved.append  # what is loaded works where what is trained does
    result = run_stage(again, bench.loader(), **settings(bench))
    assert moved == [bench.fabric.device]
    assert result.skipped and result.steps == 9 and weights(again) == weights(first)
    assert load_stage(bench.folder / "a", other).status == "done" and weights(other) == weights(first)
    assert {path.name: path.read_bytes() for path in (bench.folder / "a").iterdir()} == before


@pytest.mark.proves("R46")
@pytest.mark.parametrize("killed", [True, False])
def test_a_stage_of_another_digest_is_refused(bench: Any, simclr: Make, killed: bool) -> None:
    def kill(_done: int, _total: int) -> None:
        if killed:
            raise Killed

    try:
        run_stage(simclr(), bench.loader(), **settings(bench), progress=kill)
    except Killed:
        assert not stage_is_complete(bench.folder / "a")
    with pytest.raises(InputError, match=r"(?s)other settings, patients or weights \(d1, now d2\).*--overwrite"):
        run_stage(simclr(), bench.loader(), **settings(bench, digest="d2"))


@pytest.mark.proves("A4.2", "U7", "R43")
@pytest.mark.parametrize("step", [2, 6])
def test_a_killed_stage_repeats_its_start_or_its_stored_rate(bench: Any, step: int) -> None:
    def kill(done: int, _total: int) -> None:
        if done == step:
            raise Killed

    relative = OptimizerConfig(lr=RelativeRate(relative=0.1))
    whole, first, second = Pull(), Pull(), Pull()
    run_stage(whole, patients(6), **settings(bench, "whole", optimizer=relative))
    plan = json.loads((bench.folder / "whole" / "plan.json").read_text())
    assert plan["rate"] == pytest.approx(0.3), "relative to the closed-form start, 6 / 2"
    with pytest.raises(Killed):
        run_stage(first, patients(6), **settings(bench, optimizer=relative), progress=kill)
    run_stage(second, patients(6), **settings(bench, optimizer=relative))
    assert weights(second) == weights(whole) and whole.starts == 1
    assert second.starts == (1 if step < 4 else 0), "the checkpoint already holds what the start gave"


@pytest.mark.proves("A5.3")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_two_or_three_patients_align(bench: Any, count: int) -> None:
    assert run_stage(Pull(), patients(count), **settings(bench)).status == "done"


@pytest.mark.proves("A4.2")
def test_a_collapsed_stage_is_complete_and_says_so(bench: Any, simclr: Make) -> None:
    objective = simclr()
    nn.init.zeros_(objective.towers["image"].norm.weight)
    still = OptimizerConfig(kind="sgd", lr=1e-12, weight_decay=0)
    monitor = RankMonitor.over(bench.store, np.arange(24))
    result = run_stage(objective, bench.loader(), **settings(bench, optimizer=still, log_every=2), monitor=monitor)
    assert result.status == "collapsed" and result.steps < 9
    again = run_stage(simclr(), bench.loader(), **settings(bench, optimizer=still))
    assert again.skipped and again.status == "collapsed"


def test_no_steps_leave_the_start_as_the_stage(bench: Any) -> None:
    objective = Pull()
    result = run_stage(objective, patients(5), **settings(bench, budget=Budget(steps=0)))
    assert result.steps == 0 and objective.factor.tolist() == [3, 3] and stage_is_complete(bench.folder / "a")


def test_budgets_become_steps() -> None:
    assert Budget(steps=7).count(10) == 7
    assert Budget(epochs=2.5).count(7) == 18
    assert Budget(cpu_minutes=0.5).count(7, 0.25) == 120
    with pytest.raises(ValueError, match="measured time"):
        Budget(cpu_minutes=1).count(7)


@pytest.mark.proves("A.input")
@pytest.mark.parametrize("tree", [{}, {"steps": 1, "epochs": 1}, {"steps": -1}, {"cpu_minutes": 0}])
def test_a_budget_is_exactly_one_of_its_kinds(tree: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"exactly one of|greater than"):
        parse(Budget, tree)


def test_minutes_are_measured_once_on_a_copy_and_stored(
    bench: Any, simclr: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medform.training import stage

    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr(stage.time, "process_time", lambda: float(next(clock)))
    minutes = Budget(cpu_minutes=10.5 / 60)
    timed, counted = simclr(), simclr()
    result = run_stage(timed, bench.loader(), **settings(bench, budget=minutes))
    plan = json.loads((bench.folder / "a" / "plan.json").read_text())
    assert result.steps == plan["steps"] == math.floor(10.5 / plan["timed"]) == 5
    run_stage(counted, bench.loader(), **settings(bench, "b", budget=Budget(steps=5)))
    assert weights(timed) == weights(counted), "timing leaves no trace in what is trained"
    assert not (bench.folder / "a" / "timing").exists()


def test_the_stage_folder_has_no_pickle(bench: Any, simclr: Make) -> None:
    run_stage(simclr(), bench.loader(), **settings(bench))
    suffixes = {path.suffix for path in Path(bench.folder).rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl"}
