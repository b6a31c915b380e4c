"""Checkpoints of training: weights and optimizer state in one safetensors file a step, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medform.errors import InputError
from medform.runs.folder import write_atomically

__all__ = ["Checkpoint", "latest", "load_weights", "remove_all", "save", "save_weights"]

SCHEMA_VERSION = 1
_NOTES = "medform"


@dataclass(frozen=True)
class Checkpoint:
    """A moment of training: ``step`` steps are done.

    ``model`` is a module's state dict, ``optimizer`` an optimizer's, ``notes`` is JSON-able: the seed, from
    which every step makes its generators, and counters.
    """

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU; tied weights become two tensors, which safetensors asks for."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _flatten(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by dotted name, and everything that is no tensor as a JSON tree."""
    tensors = {f"model.{name}": _own(tensor) for name, tensor in checkpoint.model.items()}
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in checkpoint.optimizer.get("state", {}).items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = _own(value)
            else:
                numbers.setdefault(str(index), {})[name] = value
    tree = {
        "schema_version": SCHEMA_VERSION,
        "step": checkpoint.step,
        "groups": checkpoint.optimizer.get("param_groups", []),
        "numbers": numbers,
        "notes": checkpoint.notes,
    }
    return tensors, tree


def save(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write ``folder/step-<n>.safetensors`` whole or not at all, then remove all but the newest ``keep``."""
    from safetensors.torch import save as to_bytes

    tensors, tree = _flatten(checkpoint)
    path = folder / f"step-{checkpoint.step:09d}.safetensors"
    write_atomically(path, to_bytes(tensors, metadata={_NOTES: json.dumps(tree)}))
    for old in _all(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))


def remove_all(folder: Path) -> None:
    """Remove every checkpoint of a stage that is complete."""
    for path in _all(folder):
        path.unlink(missing_ok=True)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of ``folder``, None where there is none."""
    found = _all(folder)
    return _read(found[-1]) if found else None


def _read(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads(file.metadata()[_NOTES])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(
            f"not a readable checkpoint ({error}).",
            where=str(path),
            fix="remove the file: the one before it is used.",
        ) from None
    if tree["schema_version"] != SCHEMA_VERSION:
        raise InputError(f"checkpoint of format {tree['schema_version']}, not {SCHEMA_VERSION}.", where=str(path))
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in tree["numbers"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    return Checkpoint(
        step=tree["step"],
        model={name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")},
        optimizer={"state": state, "param_groups": tree["groups"]},
        notes=tree["notes"],
    )


def save_weights(path: Path, model: nn.Module, notes: Mapping[str, Any] | None = None) -> None:
    """Write a module's state dict as safetensors, whole or not at all."""
    from safetensors.torch import save as to_bytes

    tensors = {name: _own(tensor) for name, tensor in model.state_dict().items()}
    write_atomically(path, to_bytes(tensors, metadata={_NOTES: json.dumps(notes or {}, sort_keys=True)}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load `save_weights` into ``model`` strictly; raises `InputError` with the keys that do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise InputError(f"weights cannot be read ({error}).", where=str(path), fix="restore the file.") from None
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [name for name in sorted(own.keys() & tensors.keys()) if own[name].shape != tensors[name].shape]
    if missing or extra or shapes:
        raise InputError(
            f"weights of another architecture: missing {missing[:5]}, unknown {extra[:5]}, other shape {shapes[:5]}.",
            where=str(path),
            consequence="Nothing was loaded.",
            fix="use the recipe that made the weights.",
        )
    with torch.no_grad():
        model.load_state_dict(tensors, strict=True)
