"""Cox's partial likelihood: against a loop in float64, both rules for ties, risk sets over the whole fold."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medform.compute.seed import generator
from medform.errors import ExtraMissing, InputError
from medform.interfaces import Block
from medform.metrics.concordance import harrell_c
from medform.models.tabular import LinearConfig
from medform.objectives.cox import Cox, CoxConfig, Ties, cox_loss, fit_cox


def by_loop(hazard: list[float], time: list[float], event: list[bool], ties: Ties) -> float:
    """Breslow 1974 and Efron 1977, one event at a time."""
    total = 0.0
    for moment in sorted({t for t, e in zip(time, event, strict=True) if e}):
        dead = [i for i, t in enumerate(time) if t == moment and event[i]]
        at_risk = sum(math.exp(hazard[i]) for i, t in enumerate(time) if t >= moment)
        tied = sum(math.exp(hazard[i]) for i in dead)
        for place, i in enumerate(dead):
            share = place / len(dead) if ties == "efron" else 0.0
            total -= hazard[i] - math.log(at_risk - share * tied)
    return total / max(sum(event), 1)


patients = st.lists(st.tuples(st.floats(-4, 4), st.integers(1, 6), st.booleans()), min_size=2, max_size=20)


@pytest.mark.proves("G6.3")
@settings(max_examples=60)
@given(patients, st.sampled_from(["efron", "breslow"]))
def test_the_loss_is_that_of_the_loop_whatever_is_tied(found: list[tuple[float, int, bool]], ties: Ties) -> None:
    hazard, time, event = ([row[column] for row in found] for column in range(3))
    mine = cox_loss(torch.tensor(hazard), torch.tensor(time).float(), torch.tensor(event), ties)
    wanted = by_loop(np.float32(hazard).tolist(), [float(t) for t in time], [bool(e) for e in event], ties)
    assert float(mine) == pytest.approx(wanted, rel=2e-5, abs=2e-5)


@pytest.mark.proves("G6.3")
def test_who_is_lost_at_the_time_of_an_event_was_at_risk_in_any_order() -> None:
    hazard = torch.tensor([0.3, 2.0, -1.0])
    time, event = torch.tensor([5.0, 5.0, 9.0]), torch.tensor([True, False, True])
    wanted = by_loop(hazard.tolist(), time.tolist(), event.tolist(), "efron")
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        assert float(cox_loss(hazard[order], time[order], event[order])) == pytest.approx(wanted, rel=1e-6)


def test_large_hazards_and_no_event_stay_finite() -> None:
    hazard = torch.tensor([300.0, 299.0, 290.0], requires_grad=True)
    time = torch.tensor([1.0, 1.0, 2.0])
    loss = cox_loss(hazard, time, torch.tensor([True, True, False]))
    loss.backward()
    assert math.isfinite(float(loss.detach())) and hazard.grad is not None and bool(hazard.grad.isfinite().all())
    assert float(cox_loss(hazard, time, torch.zeros(3, dtype=torch.bool)).detach()) == 0


def follow_up(n: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors whose first component is the log hazard, times that are tied, a third censored."""
    random = generator(0)
    x = torch.randn(n, 6, generator=random)
    time = (-torch.rand(n, generator=random).log() * (-1.5 * x[:, 0]).exp() * 10).ceil()
    return x, time, torch.rand(n, generator=random) < 0.7


@pytest.mark.proves("G6.3")
@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_the_fitted_model_is_at_the_minimum_and_ranks_patients(ties: Ties) -> None:
    x, time, event = follow_up()
    model = fit_cox(3 * x + 5, time, event, penalty=0.05, ties=ties)
    again = fit_cox(3 * x + 5, time, event, penalty=0.05, ties=ties)
    assert torch.equal(model.weight, again.weight)
    z = ((3 * x + 5 - model.centre) / model.scale).double().numpy()

    def loss(weight: np.ndarray) -> float:
        return by_loop((z @ weight).tolist(), time.tolist(), event.tolist(), ties) + 0.025 * float(weight @ weight)

    best = model.weight.double().numpy()
    slope = [(loss(best + step) - loss(best - step)) / 2e-4 for step in 1e-4 * np.eye(6)]
    assert np.abs(slope).max() < 1e-4
    risk = model.risk(3 * x + 5)
    assert abs(float(risk.mean())) < 1e-4
    assert harrell_c(time.numpy(), event.numpy(), risk.numpy()) > 0.7
    with pytest.raises(InputError, match="no event"):
        fit_cox(x, time, torch.zeros_like(event))


def blocks(n: int = 12, followed: int = 9) -> dict[str, Block]:
    x, time, event = follow_up(n)
    ids, some = torch.arange(n), torch.arange(followed).flip(0)
    survival = Block({"time": time[some], "event": event[some]}, some, some)
    return {"clinical": Block({"table": x}, ids, ids), "survival": survival}


def objective() -> Cox:
    tower = LinearConfig(width=4).build(6, generator(0))
    return CoxConfig().build({"clinical": tower}, generator(1))


@pytest.mark.proves("G6.3")
def test_the_objective_learns_from_all_patients_with_a_follow_up() -> None:
    model, whole = objective(), blocks()
    model.start(whole)
    loss, logs = model(whole, 0, generator(0))
    risk = model.risk(whole["clinical"])[:9]
    _, time, event = follow_up(12)
    assert float(loss.detach()) == pytest.approx(
        by_loop(risk.tolist(), time[:9].tolist(), event[:9].tolist(), "efron"), rel=1e-4
    )
    assert (logs["patients"], logs["events"]) == (9, float(event[:9].sum()))
    assert logs["chance"] == pytest.approx(by_loop([0.0] * 9, time[:9].tolist(), event[:9].tolist(), "efron"), rel=1e-5)
    solver = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(30):
        solver.zero_grad()
        now, _ = model(whole, step, generator(step))
        now.backward()
        solver.step()
    assert float(now.detach()) < float(loss.detach()) - 0.1


@pytest.mark.proves("G6.3")
def test_a_batch_that_is_not_the_whole_fold_is_refused_also_after_resuming() -> None:
    model, whole = objective(), blocks()
    model.start(whole)
    resumed = objective()
    resumed.load_state_dict(model.state_dict())
    part = {**whole, "clinical": whole["clinical"].take(torch.arange(5))}
    with pytest.raises(InputError, match="holds 5 of the 9 training patients"):
        resumed(part, 0, generator(0))
    other = LinearConfig(width=4).build(6, generator(2))
    with pytest.raises(InputError, match="on one tower; there are a, b"):
        CoxConfig().build({"a": other, "b": other}, generator(3))


def test_without_torchsurv_the_pip_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchsurv.loss.cox", None)
    with pytest.raises(ExtraMissing, match=r'pip install "medform\[survival\]"'):
        cox_loss(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([True, True]))
