"""SimCLR as a whole step: logs, chance, one patient, determinism, gradients."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from pydantic import ValidationError

from medform.compute.seed import generator
from medform.interfaces import Block, Encoded, Tower
from medform.models.image import TimmConfig
from medform.models.projection import ProjectionConfig
from medform.objectives.simclr import Simclr, SimclrConfig
from medform.objectives.targets import Negatives


class Constant(Tower):
    """A collapsed encoder."""

    width = 4

    def forward(self, block: Block) -> Encoded:
        return Encoded(torch.ones(len(block), 4))


def views(slices: int = 6, patients: int = 3) -> Block:
    item = torch.arange(slices).repeat(2)
    image = torch.rand(2 * slices, 1, 32, 32, generator=generator(5))
    return Block({"image": image}, patient=item % patients, item=item, z=item // patients)


def objective(**settings: object) -> Simclr:
    config = SimclrConfig.model_validate({"projection": ProjectionConfig(hidden=16, width=8), **settings})
    return config.build({"image": TimmConfig(model="resnet10t").build(generator(0))}, generator(1))


@pytest.mark.proves("A4.1", "A4.2")
def test_a_collapsed_encoder_has_the_loss_of_chance() -> None:
    model = SimclrConfig().build({"image": Constant()}, generator(0))
    loss, logs = model({"image": views()}, 0, generator(0))
    assert logs["chance"] == pytest.approx(math.log(11))
    assert float(loss.detach()) == pytest.approx(math.log(11), abs=1e-5)
    assert logs["alignment"] == pytest.approx(0, abs=1e-5)
    assert logs["uniformity"] == pytest.approx(0, abs=1e-4)
    assert logs["retrieval_at_1"] == pytest.approx(1 / 11)


@pytest.mark.proves("A4.1", "D25")
def test_every_parameter_learns_and_the_loss_falls_on_one_batch() -> None:
    model = objective()
    batch = {"image": views()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(12):
        loss, logs = model(batch, step, generator(0, step))
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        model.after_step()
        losses.append(logs["loss"])
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.proves("A4.2")
def test_a_step_is_a_function_of_its_generator_whatever_was_drawn_before() -> None:
    batch = {"image": views()}
    first, _ = objective().train()(batch, 3, generator(0, 3))
    torch.rand(1000)
    second, _ = objective().train()(batch, 3, generator(0, 3))
    assert torch.equal(first, second)


@pytest.mark.proves("A4.4")
def test_a_folder_of_one_patient_trains_and_the_log_says_that_its_negatives_were_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = objective(negatives=Negatives(same_patient="none"))
    batch = {"image": views(patients=1)}
    with caplog.at_level(logging.WARNING):
        loss, logs = model(batch, 0, generator(0))
        model(batch, 1, generator(0))
    assert logs["same_patient_kept"] == 1.0
    assert logs["chance"] == pytest.approx(math.log(11))
    assert float(loss.detach()) > 0
    assert sum("one patient" in record.message for record in caplog.records) == 1  # said once
    _, several = model({"image": views()}, 2, generator(0))
    assert several["same_patient_kept"] == 0.0


def test_two_views_of_a_single_slice_have_nothing_to_tell_apart() -> None:
    loss, logs = objective()({"image": views(slices=1, patients=1)}, 0, generator(0))
    assert float(loss.detach()) == 0.0
    assert logs["chance"] == 0.0


@pytest.mark.proves("A.input")
def test_a_temperature_without_meaning_is_refused() -> None:
    for temperature in ({"relative": 0.1}, 0.0, -1, "hot"):
        with pytest.raises(ValidationError):
            SimclrConfig.model_validate({"temperature": temperature})
    assert SimclrConfig.model_validate({"temperature": "0.2"}).temperature == 0.2  # as YAML is read: all text
    assert objective(temperature="learnt").temperature.learnt
