"""Named numpy arrays with JSON notes in one safetensors file: fitted inputs, cached features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medform.errors import InputError
from medform.runs.folder import write_atomically

__all__ = ["read_arrays", "write_arrays"]

_NOTES = "medform"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any] | None = None) -> None:
    """Write ``arrays`` and JSON-able ``notes``, whole or not at all; equal content gives equal bytes."""
    from safetensors.numpy import save

    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    metadata = {_NOTES: json.dumps(notes or {}, sort_keys=True)}
    write_atomically(path, save(ordered, metadata=metadata))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and notes of `write_arrays`; raises `InputError` where the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            notes = json.loads((file.metadata() or {}).get(_NOTES, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise InputError("no such file.", where=str(path), fix="check the path of the run or model folder.") from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(
            f"not a readable safetensors file ({error}).", where=str(path), fix="restore the file."
        ) from None
