"""An ``.h5ad`` file (AnnData on disk) by h5py alone: dense, CSR and CSC matrices, ids from obs and var."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medform.cohort.genes_spec import GenesSpec
from medform.errors import ExtraMissing, InputError
from medform.ingestion.expression_formats import Wanted
from medform.ingestion.expression_join import Sample
from medform.ingestion.expression_matrix import Matrix

__all__ = ["read_h5ad"]

ROWS, COLUMNS = 64, 256
"""Rows of a dense matrix, and columns of a sparse one, that are read at once."""


def read_h5ad(path: Path, spec: GenesSpec, wanted: Wanted) -> Matrix:
    """Read the observations that are ``wanted``; ``genes.patient_id`` may name a column of obs.

    Only ``X`` is read. Raises `ExtraMissing` without h5py, and `InputError` for a file that is not of this
    format.
    """
    try:
        import h5py
    except ImportError:
        raise ExtraMissing("reading .h5ad needs h5py.", where=str(path), fix='pip install "medform[genes]".') from None
    try:
        with h5py.File(path, "r") as file:
            return _matrix(file, path, spec, wanted)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not a readable .h5ad file ({error}).",
            where=str(path),
            consequence="Nothing was written.",
            fix="write it again with AnnData 0.8 or later (X, obs, var), or export a CSV.",
        ) from None


def _matrix(file: Any, path: Path, spec: GenesSpec, wanted: Wanted) -> Matrix:
    ids, genes = _index(file["obs"]), _index(file["var"])
    patients: list[str | None] = [None] * len(ids)
    if spec.patient_id is not None:
        if spec.patient_id not in file["obs"]:
            known = ", ".join(sorted(file["obs"]))
            raise InputError(f"obs has no column '{spec.patient_id}'.", where=str(path), fix=f"use one of: {known}.")
        patients = list(_texts(file["obs"][spec.patient_id]))
    samples = tuple(
        Sample(one, patient=patient, place=f"observation {row + 1}")
        for row, (one, patient) in enumerate(zip(ids, patients, strict=True))
    )
    taken = [row for row, sample in enumerate(samples) if wanted(sample)]
    values = np.empty((len(taken), len(genes)), np.float32)
    shape = tuple(int(one) for one in (file["X"].attrs["shape"] if hasattr(file["X"], "keys") else file["X"].shape))
    if shape != (len(ids), len(genes)):
        raise InputError(f"X is {shape}, obs and var name {len(ids)} x {len(genes)}.", where=str(path))
    for where, block in _rows(file["X"], taken, len(genes)):
        values[where] = block
    return Matrix(
        path.name, "h5ad", "patients_in_rows", samples, tuple(taken), genes, tuple(range(1, len(genes) + 1)), values
    )


def _rows(matrix: Any, taken: list[int], width: int) -> Iterator[tuple[slice | tuple[Any, Any], NDArray[np.float32]]]:
    """Places of the output and the values that belong there."""
    if not hasattr(matrix, "keys"):
        for start in range(0, len(taken), ROWS):
            rows = taken[start : start + ROWS]
            yield slice(start, start + len(rows)), np.asarray(matrix[rows], np.float32)
        return
    kind, ends = str(matrix.attrs.get("encoding-type", matrix.attrs.get("h5sparse_format"))), matrix["indptr"][:]
    if kind in ("csr_matrix", "csr"):
        for place, row in enumerate(taken):
            part = slice(int(ends[row]), int(ends[row + 1]))
            line = np.zeros((1, width), np.float32)
            line[0, matrix["indices"][part]] = matrix["data"][part]
            yield slice(place, place + 1), line
    elif kind in ("csc_matrix", "csc") and taken:
        place_of = np.full(max(taken) + 1, -1)
        place_of[taken] = np.arange(len(taken))
        yield slice(None), np.zeros((len(taken), width), np.float32)
        for start in range(0, width, COLUMNS):
            stop = min(start + COLUMNS, width)
            part = slice(int(ends[start]), int(ends[stop]))
            columns = np.repeat(np.arange(start, stop), np.diff(ends[start : stop + 1]))
            rows, found = matrix["indices"][part], np.asarray(matrix["data"][part], np.float32)
            places = np.where(rows < len(place_of), place_of[np.minimum(rows, len(place_of) - 1)], -1)
            mine = places >= 0
            yield (places[mine], columns[mine]), found[mine]
    elif taken:
        raise TypeError(f"X is stored as {kind}")


def _index(group: Any) -> tuple[str, ...]:
    """Row names of obs or var."""
    return _texts(group[group.attrs["_index"]])


def _texts(column: Any) -> tuple[str, ...]:
    """A column of text, categorical or not."""
    if hasattr(column, "keys"):
        words = _texts(column["categories"])
        return tuple("" if code < 0 else words[code] for code in column["codes"][:].tolist())
    return tuple(one.decode() if isinstance(one, bytes) else str(one) for one in column[:].tolist())
