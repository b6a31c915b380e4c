"""Checkpoints: everything comes back bit by bit, without pickle, and only into its own architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medform.errors import InputError
from medform.runs import checkpoint
from medform.runs.arrays import read_arrays, write_arrays
from medform.runs.checkpoint import Checkpoint


def trained(kind: type[torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    options = {"lr": 0.1} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    optimizer = kind(model.parameters(), **options)  # pyright: ignore[reportCallIssue]
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_model_and_optimizer_come_back_bit_by_bit(tmp_path: Path, kind: type[torch.optim.Optimizer]) -> None:
    model, optimizer = trained(kind)
    before = Checkpoint(3, model.state_dict(), optimizer.state_dict(), {"seed": 7, "collapsed": 1})
    path = checkpoint.save(tmp_path, before)
    after = checkpoint.latest(tmp_path)
    assert after is not None and b"pickle" not in path.read_bytes()
    assert (after.step, after.notes) == (3, {"seed": 7, "collapsed": 1})
    assert same(dict(model.state_dict()), dict(after.model))
    assert same(optimizer.state_dict(), dict(after.optimizer))
    other, fresh = trained(kind)
    other.load_state_dict(after.model)
    fresh.load_state_dict(dict(after.optimizer))
    assert same(fresh.state_dict(), optimizer.state_dict())


def test_the_newest_are_kept_and_all_can_go(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, Checkpoint(step, {"w": torch.full((2,), float(step))}, {}))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000010.safetensors",
        "step-000000015.safetensors",
    ]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and newest.step == 15 and float(newest.model["w"][0]) == 15
    checkpoint.remove_all(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, Checkpoint(5, {"w": torch.ones(2)}, {}))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"step-000000005.safetensors: not a readable checkpoint"):
        checkpoint.latest(tmp_path)


def test_weights_load_strictly(tmp_path: Path) -> None:
    model, _ = trained(torch.optim.SGD)
    checkpoint.save_weights(tmp_path / "model.safetensors", model, {"digest": "abc"})
    other, _ = trained(torch.optim.SGD)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    checkpoint.load_weights(tmp_path / "model.safetensors", other)
    assert same(dict(model.state_dict()), dict(other.state_dict()))
    with pytest.raises(InputError, match=r"missing \['3.bias', '3.weight'\]"):
        checkpoint.load_weights(tmp_path / "model.safetensors", nn.Sequential(*other, nn.Linear(1, 1)))
    with pytest.raises(InputError, match=r"(?s)other shape.*Nothing was loaded"):
        checkpoint.load_weights(
            tmp_path / "model.safetensors", nn.Sequential(nn.Linear(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        )
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load_weights(tmp_path / "nothing.safetensors", other)


def test_tied_weights_are_written_twice(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    checkpoint.save_weights(tmp_path / "model.safetensors", model)
    checkpoint.load_weights(tmp_path / "model.safetensors", model)


def test_arrays_and_notes_come_back_and_give_equal_bytes(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6.0).reshape(2, 3).T, "a": np.array(True), "empty": np.empty((0, 3), np.float32)}
    write_arrays(tmp_path / "one", arrays, {"levels": ["ä"], "fill": 0.1})
    write_arrays(tmp_path / "two", dict(reversed(arrays.items())), {"fill": 0.1, "levels": ["ä"]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found, notes = read_arrays(tmp_path / "one")
    assert notes == {"levels": ["ä"], "fill": 0.1} and found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    (tmp_path / "one").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_arrays(tmp_path / "one")
