"""The supervised control: learns from patients with a label only."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from medform.compute.seed import generator
from medform.interfaces import Block
from medform.models.bag import BagConfig
from medform.models.pooling import AbmilConfig
from medform.objectives.classify import Classify, ClassifyConfig


def batch(n: int = 12, classes: int = 2) -> dict[str, Block]:
    ids = torch.arange(n)
    offset = torch.arange(n + 1) * 2
    label = (ids % classes).float()
    feature = torch.randn(2 * n, 6, generator=generator(0))
    feature[:, 0] += 8 * label.repeat_interleave(2)
    image = Block({"feature": feature}, ids, ids, offset=offset)
    known = ids[3:].flip(0)  # the first three have no label; the others stand in another order
    return {"image": image, "label": Block({"label": label[known]}, known, known)}


def objective(classes: int = 2) -> Classify:
    tower = BagConfig(pool=AbmilConfig(hidden=4, dropout=0.0)).build(6, generator(0))
    return ClassifyConfig(classes=classes).build({"image": tower}, generator(1))


@pytest.mark.proves("A6.1")
def test_the_loss_is_that_of_the_labelled_patients_only() -> None:
    model, whole = objective(), batch()
    loss, logs = model(whole, 0, generator(0))
    logit = model.last(model.towers["image"](whole["image"]).pooled)[3:, 0]
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logit, (torch.arange(3, 12) % 2).float()))
    shares = [4 / 9, 5 / 9]
    assert logs["chance"] == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert logs["labelled"] == 9
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.proves("A6.1")
@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns_what_is_there_and_gives_probabilities(classes: int) -> None:
    model, whole = objective(classes), batch(classes=classes)
    model.start(whole)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(150):
        loss, _ = model(whole, step, generator(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probability = model.predict(whole["image"])
    if classes == 2:
        assert bool(((probability > 0.5) == (torch.arange(12) % 2).bool())[3:].all())
    else:
        torch.testing.assert_close(probability.sum(1), torch.ones(12))
        assert bool((probability.argmax(1) == torch.arange(12) % 3)[3:].all())
    assert model.training


def test_a_batch_without_labels_teaches_nothing() -> None:
    nobody = torch.tensor([99])
    label = Block({"label": torch.ones(1)}, nobody, nobody)
    for given in ({"label": label}, {}):  # nobody known by this batch, or no label block at all, as loaders make it
        loss, logs = objective()({"image": batch()["image"], **given}, 0, generator(0))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logs["labelled"] == 0
