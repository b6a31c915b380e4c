"""The model folder on disk: weights, settings, preprocessing, table columns, probes, card, self-test; no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medform.errors import InputError
from medform.runs.arrays import read_arrays, write_arrays
from medform.runs.folder import read_json, write_atomically, write_json

__all__ = ["SCHEMA_VERSION", "ModelFiles", "find_model", "read_model", "write_model"]

SCHEMA_VERSION = 1
GENES = "genes.json"
"""There only where the model reads genes; a reader of version 1 from before there were segmentations ignores it."""
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ModelFiles:
    """The content of a model folder.

    ``weights``: encoder, second stage, segmentation (``segment.``) and (``inputs.``) what was fitted; ``config``: what
    rebuilds the parts; ``preprocess``: unit, window and size of what the encoder sees; ``columns``: how a table row
    becomes numbers (None without a table); ``probes``: arrays by ``task/input set/name``, ``readouts`` the numbers
    beside them; ``selftest``: an input and the vector (and probabilities of lesion) that it must give; ``texts``:
    README.md, LICENSE, CITATION.cff; ``genes``: how expression becomes numbers (None where no genes are read).
    """

    weights: Arrays
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    columns: Mapping[str, Any] | None
    probes: Arrays
    readouts: Mapping[str, Any]
    selftest: Arrays = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    genes: Mapping[str, Any] | None = None


def write_model(folder: Path, files: ModelFiles) -> None:
    """Write every file whole; ``config.json`` comes last, so that a folder with it is complete."""
    write_arrays(folder / "model.safetensors", files.weights)
    write_arrays(folder / "probes.safetensors", files.probes, dict(files.readouts))
    write_arrays(folder / "selftest.safetensors", files.selftest)
    write_json(folder / "preprocess.json", {"schema_version": SCHEMA_VERSION, **files.preprocess})
    write_json(folder / "columns.json", {"schema_version": SCHEMA_VERSION, "table": files.columns})
    if files.genes is not None:
        write_json(folder / GENES, {"schema_version": SCHEMA_VERSION, **files.genes})
    else:
        (folder / GENES).unlink(missing_ok=True)  # of a model that stood here before
    for name, text in files.texts.items():
        write_atomically(folder / name, text)
    write_json(folder / "config.json", {"schema_version": SCHEMA_VERSION, **files.config})


def find_model(folder: Path) -> Path:
    """The model folder that ``folder`` is, or, of a run, holds."""
    return folder / "model" if not (folder / "config.json").is_file() and (folder / "model").is_dir() else folder


def read_model(folder: Path) -> ModelFiles:
    """Read a model folder; raises `InputError` where it is none, is damaged, or is of another version."""
    if not (folder / "config.json").is_file():
        raise InputError(
            "this is no model folder (no config.json).",
            where=str(folder),
            fix="give the folder `model` of a run, or what `medform export` wrote.",
        )
    names = ["config", "preprocess", "columns", *(["genes"] if (folder / GENES).is_file() else [])]
    trees = {name: read_json(folder / f"{name}.json") for name in names}
    for name, tree in trees.items():
        if tree.pop("schema_version", None) != SCHEMA_VERSION:
            raise InputError(
                f"{name}.json is of another format than version {SCHEMA_VERSION}.",
                where=str(folder),
                fix="use the version of medform that wrote the model, or a newer one.",
            )
    probes, readouts = read_arrays(folder / "probes.safetensors")
    return ModelFiles(
        weights=read_arrays(folder / "model.safetensors")[0],
        config=trees["config"],
        preprocess=trees["preprocess"],
        columns=trees["columns"]["table"],
        probes=probes,
        readouts=readouts,
        selftest=read_arrays(folder / "selftest.safetensors")[0],
        texts={
            name: (folder / name).read_text(encoding="utf-8")
            for name in ("README.md", "LICENSE")
            if (folder / name).is_file()
        },
        genes=trees.get("genes"),
    )
