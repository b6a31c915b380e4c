"""The loop: the same bits after a kill, a stop that names its cause, and nothing hidden in global state."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from medform.errors import Interrupted, MedformError
from medform.inputs.loader import SliceLoader
from medform.interfaces import Batch, Objective
from medform.runs.log import TIME_FIELDS
from medform.training.infer import RankMonitor

Make = Callable[..., Any]


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


def weights(objective: Objective) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in objective.state_dict().items()}


def lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIME_FIELDS} for row in rows]


def kill_after(step: int) -> Callable[[int, int], None]:
    def progress(done: int, _total: int) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.proves("A4.2", "A.tests", "U7", "R43")
@pytest.mark.parametrize("kills", [(1,), (4,), (6,), (13,), (5, 5, 9)])
def test_a_killed_run_ends_with_the_bits_and_lines_of_an_undisturbed_one(
    bench: Any, simclr: Make, kills: tuple[int, ...]
) -> None:
    whole = simclr()
    ended = bench.run(whole, "whole", monitor=RankMonitor.over(bench.store, np.arange(24)))
    assert (ended.status, ended.steps) == ("done", 14) and ended.logs["loss"] > 0
    for step in kills:
        torch.manual_seed(step)  # whatever else happened in that process
        with pytest.raises(Killed):
            bench.run(simclr(), progress=kill_after(step), monitor=RankMonitor.over(bench.store, np.arange(24)))
        assert not list((bench.folder / "a").glob(".*"))
    # from a checkpoint the weights it began with no longer count; before the first one they are drawn again
    resumed = simclr(seed=99 if max(kills) >= 4 else 0)
    again = bench.run(resumed, monitor=RankMonitor.over(bench.store, np.arange(24)))
    assert weights(resumed) == weights(whole)
    assert lines(bench.folder / "a" / "metrics.jsonl") == lines(bench.folder / "whole" / "metrics.jsonl")
    assert dict(again.logs) == dict(ended.logs)


KILLED_PROCESS = """
import os, signal, sys
from pathlib import Path
from lightning_fabric import Fabric
from tests.training.conftest import Bench, TinySimclr, noise_store
step, folder = int(sys.argv[1]), Path(sys.argv[2])
bench = Bench(noise_store(), Fabric(accelerator="cpu", devices=1), folder)
kill = lambda done, _: os.kill(os.getpid(), signal.SIGKILL) if done >= step else None
bench.run(TinySimclr(), progress=kill)
"""


def end_by_kill_9(folder: Path, step: int) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED_PROCESS, str(step), str(folder)]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.proves("U7", "R43")
def test_a_process_ended_by_kill_9_is_gone_on_with_by_another(bench: Any, simclr: Make) -> None:
    end_by_kill_9(bench.folder, 10)
    resumed, whole = simclr(seed=99), simclr()
    bench.run(resumed)
    bench.run(whole, "whole")
    assert weights(resumed) == weights(whole)
    assert lines(bench.folder / "a" / "metrics.jsonl") == lines(bench.folder / "whole" / "metrics.jsonl")


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_twenty_kills_in_a_row_leave_no_trace(bench: Any, simclr: Make, random: np.random.Generator) -> None:
    for step in sorted(random.integers(1, 14, 20).tolist()):
        end_by_kill_9(bench.folder, step)
    resumed, whole = simclr(), simclr()
    bench.run(resumed)
    bench.run(whole, "whole")
    assert weights(resumed) == weights(whole)


@pytest.mark.proves("U7", "A.input")
def test_a_full_disk_stops_with_the_earlier_checkpoint_whole(
    bench: Any, simclr: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "step-000000008.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        written(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("medform.runs.folder.os.replace", full)
        with pytest.raises(MedformError, match=r"(?s)the disk is full.*free some space.*--resume"):
            bench.run(simclr())
    assert [path.name for path in (bench.folder / "a").glob("*step*")] == ["step-000000004.safetensors"]
    resumed, whole = simclr(seed=99), simclr()
    bench.run(resumed)
    bench.run(whole, "whole")
    assert weights(resumed) == weights(whole)


def test_every_logged_line_has_what_a_reader_needs(bench: Any, simclr: Make) -> None:
    bench.run(simclr(), monitor=RankMonitor.over(bench.store, np.arange(24)))
    rows = bench.log().read()
    assert [row["step"] for row in rows] == [1, 3, 6, 9, 12, 14]
    expected = {
        "fold",
        "stage",
        "step",
        "loss",
        "chance",
        "lr",
        "gradient_norm",
        "effective_rank",
    } | TIME_FIELDS
    assert all(set(row) == expected for row in rows)
    assert rows[0]["lr"] == 0.005 and rows[-1]["lr"] == 0.0 and rows[0]["images_per_second"] > 0


def test_training_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(bench: Any, simclr: Make) -> None:
    first, second = simclr(), simclr()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    bench.run(first, "one")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    bench.run(second, "two")
    assert weights(first) == weights(second)
    assert int(first.steps) == 14, "after_step follows each step"


@pytest.mark.proves("A5.3", "A4.4")
@pytest.mark.parametrize("slices", [1, 2, 3])
def test_one_two_or_three_slices_train(bench: Any, simclr: Make, slices: int) -> None:
    bench.batch = 64
    objective = simclr()
    monitor = RankMonitor.over(bench.store, np.arange(slices))
    result = bench.run(objective, loader=bench.loader(slices), monitor=monitor)
    assert result.status == "done" and all(torch.isfinite(p).all() for p in objective.parameters())


@pytest.mark.proves("A4.2")
def test_a_collapsed_encoder_stops_after_two_logs_past_the_warm_up(bench: Any, simclr: Make) -> None:
    objective = simclr()
    with torch.no_grad():
        objective.towers["image"].norm.weight.zero_()
        objective.towers["image"].norm.bias.fill_(1.0)
    bench.config = bench.config.model_copy(update={"clip": 1e-12, "weight_decay": 0.0, "kind": "sgd"})
    result = bench.run(objective, monitor=RankMonitor.over(bench.store, np.arange(24)))
    assert (result.status, result.steps) == ("collapsed", 6)
    assert [row["effective_rank"] < 2 for row in bench.log().read()] == [True, True, True]
    resumed = bench.run(simclr(seed=4), monitor=RankMonitor.over(bench.store, np.arange(24)))
    assert (resumed.status, resumed.steps) == ("collapsed", 6), "also where it goes on from step 4"


class BrokenAt(SliceLoader):
    """An image of nothing but NaN at step 6."""

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        if step == 6:
            batch["image"].value["image"].fill_(torch.nan)
        return batch


@pytest.mark.proves("R54", "A.input")
def test_a_loss_that_is_not_a_number_stops_and_names_the_batch_by_pseudonym(bench: Any, simclr: Make) -> None:
    plain, objective = bench.loader(), simclr()
    loader = BrokenAt(bench.store, np.arange(24), plain.config, 5, seed=1)
    with pytest.raises(MedformError) as caught:
        bench.run(objective, loader=loader, names=lambda codes: [f"patient-{code:04d}" for code in codes])
    assert caught.value.exit_code == 2
    patients = sorted(set(plain.batch(6)["image"].patient.tolist()))
    assert f"step 7 is not a finite number. Patients in the batch: patient-{patients[0]:04d}" in str(caught.value)
    assert "the checkpoint after step 4 is kept" in str(caught.value)
    mended, whole = simclr(seed=5), simclr()
    bench.run(mended)
    bench.run(whole, "whole")
    assert weights(mended) == weights(whole), "the last good checkpoint knows nothing of the broken step"


class ExplodingGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * torch.inf


@pytest.mark.proves("R54")
def test_a_gradient_that_is_not_finite_changes_no_weight(
    bench: Any, simclr: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = simclr()
    before = {name: parameter.clone() for name, parameter in objective.named_parameters()}
    forward = type(objective).forward

    def explode(self: Any, batch: Batch, step: int, random: torch.Generator) -> Any:
        loss, logs = forward(self, batch, step, random)
        return ExplodingGradient.apply(loss), logs

    monkeypatch.setattr(type(objective), "forward", explode)
    with pytest.raises(MedformError, match="the gradient of step 1 is not a finite number"):
        bench.run(objective)
    assert all(torch.equal(before[name], parameter) for name, parameter in objective.named_parameters())


@pytest.mark.proves("A.input", "U7")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_step_saves_it_and_goes_on_from_there(
    bench: Any, simclr: Make, number: signal.Signals
) -> None:
    before = signal.getsignal(number)

    def interrupt(done: int, _total: int) -> None:
        if done == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"(?s)interrupted; [56] of 14 steps are saved.*--resume") as caught:
        bench.run(simclr(), progress=interrupt)
    assert caught.value.exit_code == 130 and signal.getsignal(number) is before
    resumed, whole = simclr(seed=8), simclr()
    bench.run(resumed)
    bench.run(whole, "whole")
    assert weights(resumed) == weights(whole)


def test_a_keyboard_interrupt_from_within_is_an_interrupted_run(bench: Any, simclr: Make) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="--resume goes on from the last checkpoint"):
        bench.run(simclr(), progress=interrupt)


def test_training_works_outside_the_main_thread(bench: Any, simclr: Make) -> None:
    threaded, plain = simclr(), simclr()
    thread = threading.Thread(target=bench.run, args=(threaded, "thread"))
    thread.start()
    thread.join()
    bench.run(plain, "plain")
    assert weights(threaded) == weights(plain)


@pytest.mark.proves("D20", "A4.2")
def test_declared_bf16_is_what_the_layers_compute_in(bench: Any, simclr: Make) -> None:
    objective = simclr()
    bench.run(objective, fabric=Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    assert objective.dtype == torch.bfloat16 and objective.head.weight.dtype == torch.float32
    plain = simclr()
    bench.run(plain, "plain")
    assert plain.dtype == torch.float32


def test_gradients_are_clipped_to_the_declared_norm(bench: Any, simclr: Make) -> None:
    objective = simclr()
    before = torch.cat([parameter.detach().flatten() for parameter in objective.parameters()])
    bench.steps = 1
    bench.config = bench.config.model_copy(update={"clip": 0.1, "weight_decay": 0.0, "kind": "sgd", "momentum": 0.0})
    bench.run(objective)
    (row,) = bench.log().read()
    moved = torch.cat([parameter.detach().flatten() for parameter in objective.parameters()]) - before
    assert row["gradient_norm"] > 0.1 and float(moved.norm()) == pytest.approx(0.1 * row["lr"], rel=1e-3)


def test_no_steps_are_no_training(bench: Any, simclr: Make) -> None:
    objective = simclr()
    before = weights(objective)
    bench.steps = 0
    assert bench.run(objective).steps == 0 and weights(objective) == before
    assert not (bench.folder / "a").exists()
