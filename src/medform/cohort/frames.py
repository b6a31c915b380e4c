"""The tables of a store, from the records of its series: schemas, order, pseudonyms, counts and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from medform.cohort.certificate import certify, declared_groups, linked_patients, refuse_leaking
from medform.cohort.cohort_file import CohortFile
from medform.cohort.files import column, write_bytes, write_frame, write_json
from medform.cohort.labels import slice_label, task_label
from medform.cohort.quarantine import Quarantined, quarantine_csv
from medform.cohort.split import Split, patient_order
from medform.cohort.split_file import read_own_split
from medform.errors import InputError, Problem, nearest

__all__ = ["SCHEMA_VERSION", "StoreFrames", "build_frames", "digest_of"]

SCHEMA_VERSION = 1
TYPES = {"text": pa.string(), "count": pa.int64(), "number": pa.float64(), "truth": pa.bool_()}


def _schema(**columns: str) -> pa.Schema:
    fields = [(name, kind) for kind, names in columns.items() for name in names.split()]
    return pa.schema([(name, TYPES[kind]) for name, kind in fields])


PATIENTS = _schema(text="patient_id pseudonym", count="n_series n_slices", truth="has_table")
SERIES = _schema(
    text="series_id patient_id modality unit dtype verdict codes details study person header file sha256"
    " mask_sha256 inputs",
    count="rows cols n_slices bytes",
    number="spacing_z_mm spacing_y_mm spacing_x_mm low high",
).append(pa.field("affine_lps", pa.list_(pa.float64())))
SLICES = _schema(
    text="slice_id series_id patient_id source file_digest fingerprint",
    count="index",
    number="position_mm slope intercept",
)
Part = Mapping[str, Any]


def digest_of(tree: Any) -> str:
    """SHA-256 of a JSON-able tree with sorted keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class StoreFrames:
    """Everything a store says besides voxels; `write` puts it on disk, ``cohort.json`` last."""

    file: CohortFile
    patients: pd.DataFrame
    series: pd.DataFrame
    slices: pd.DataFrame
    slice_schema: pa.Schema
    clinical: pd.DataFrame | None
    window: tuple[float, float]
    mask_values: list[int]
    own_split: Split | None

    def write(
        self,
        root: Path,
        inputs: str,
        *,
        written: Mapping[str, str],
        quarantine: Sequence[Quarantined],
        counts: Mapping[str, int],
        undeclared: Sequence[str],
        notes: Sequence[str],
    ) -> None:
        """Write the tables and lists, then the manifest that makes the folder a store.

        ``written`` are digests of files that are there already.
        """
        digests = {
            **written,
            "patients.parquet": write_frame(root / "patients.parquet", self.patients, PATIENTS),
            "series.parquet": write_frame(root / "series.parquet", self.series, SERIES),
            "slices.parquet": write_frame(root / "slices.parquet", self.slices, self.slice_schema),
            "columns.json": write_json(root / "columns.json", self._columns(undeclared, notes)),
            "quarantine.csv": write_bytes(root / "quarantine.csv", quarantine_csv(quarantine).encode()),
        }
        if self.clinical is not None:
            frame = self.clinical.rename_axis("patient_id").reset_index()
            digests["clinical.parquet"] = write_frame(root / "clinical.parquet", frame, _clinical_schema(frame))
        if self.own_split is not None:
            name = f"splits/{self.own_split.name}.json"  # other folds are another cohort: no run may mix the two
            digests[name] = write_bytes(root / name, self.own_split.to_json().encode())
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "name": self.file.name,
            "licence": self.file.licence,
            "unit": self.file.images.unit,
            "window": list(self.window),
            "counts": self._counts(quarantine) | dict(sorted(counts.items())),
            "mask_values": self.mask_values,
            "files": dict(sorted(digests.items())),
            "cohort_file": self.file.portable(),
        }
        write_json(root / "cohort.json", manifest | {"inputs": inputs, "digest": digest_of(manifest)})

    def _counts(self, quarantine: Sequence[Quarantined]) -> dict[str, int]:
        return {
            "patients": len(self.patients),
            "patients_with_images": int(np.count_nonzero(self.patients["n_series"])),
            "patients_with_table": int(np.count_nonzero(self.patients["has_table"])),
            "series": len(self.series),
            "slices": len(self.slices),
            "quarantined": len(quarantine),
        }

    def _columns(self, undeclared: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
        columns = {}
        for name, spec in self.file.columns.items():
            entry: dict[str, Any] = spec.model_dump(mode="json")
            if self.clinical is not None and name in self.clinical:
                values = column(self.clinical, name)
                entry["missing"] = int(np.count_nonzero(values.isna()))
                if spec.type in ("category", "ordinal", "boolean"):
                    found = values.dropna().astype("string").value_counts()
                    entry["found"] = {str(word): int(count) for word, count in sorted(found.items())}
            columns[name] = entry
        return {
            "schema_version": SCHEMA_VERSION,
            "columns": columns,
            "undeclared": sorted(undeclared),
            "notes": list(notes),
        }


def build_frames(file: CohortFile, parts: Sequence[Part], clinical: pd.DataFrame | None) -> StoreFrames:
    """Frames of a store, ordered by patient (hash of the split's seed and the id), then series, then slice.

    Raises `InputError` with all faults of labels, for an own split that leaks or names unknown patients, and where
    ``splits.group`` leaves fewer groups than folds.
    """
    imaged = {str(part["patient_id"]) for part in parts}
    rows = set() if clinical is None else set(clinical.index.astype(str))
    order = patient_order(imaged | rows, file.splits.seed)
    rank = {one: number for number, one in enumerate(order)}
    ordered = sorted(parts, key=lambda part: (rank[part["patient_id"]], part["series_id"]))
    series = pd.DataFrame([_series_row(part) for part in ordered], columns=SERIES.names)
    slices, schema = _slices(ordered)
    if clinical is not None:
        clinical = clinical.set_axis(clinical.index.astype(str)).loc[[one for one in order if one in rows]]
    _refuse_faulty_labels(file, slices, clinical)
    groups = declared_groups(file, clinical)
    own = None
    if file.splits.file is None and groups is not None:
        _refuse_few_groups(file, order, linked_patients(series, slices, groups))
    if file.splits.file is not None:
        path = file.path(file.splits.file)
        own = read_own_split(path, file.splits.name, order)
        refuse_leaking(own, series, slices, str(path), groups)
        own = Split(own.name, own.folds, certify(own, series, slices, groups), own.settings)
    return StoreFrames(
        file=file,
        patients=_patients(file, order, ordered, rows),
        series=series,
        slices=slices,
        slice_schema=schema,
        clinical=clinical,
        window=file.window or _window(ordered),
        mask_values=sorted({value for part in parts for value in part.get("mask_values", [])}),
        own_split=own,
    )


def _refuse_few_groups(file: CohortFile, patients: Sequence[str], group_of: Mapping[str, str]) -> None:
    count = len({group_of.get(one, one) for one in patients})
    if count < file.splits.folds:
        fix = f"Set splits.folds: {count}, or leave splits.group out." if count >= 2 else "Leave splits.group out."
        text = f"column '{file.splits.group}' leaves {count} groups of patients for {file.splits.folds} folds."
        raise InputError(
            "the patients cannot be divided.",
            where=f"cohort '{file.name}'",
            consequence="The store was not finished.",
            problems=[Problem(text, column="splits.group", value=file.splits.group, suggestion=fix)],
        )


def _patients(file: CohortFile, order: Sequence[str], parts: Sequence[Part], rows: set[str]) -> pd.DataFrame:
    shuffled = patient_order(order, f"pseudonym:{file.name}")
    pseudonym = {one: f"patient-{number:04d}" for number, one in enumerate(shuffled, start=1)}
    counts: dict[str, list[int]] = {}
    for part in parts:
        counts.setdefault(part["patient_id"], []).append(len(part["slices"]))
    table = [(one, pseudonym[one], len(counts.get(one, [])), sum(counts.get(one, [])), one in rows) for one in order]
    return pd.DataFrame(table, columns=PATIENTS.names)


def _series_row(part: Part) -> dict[str, Any]:
    spacing = part["spacing_mm"] or (None, None, None)
    verdict = part["verdict"]
    row = {name: part.get(name) for name in SERIES.names}
    return row | {
        "n_slices": part["shape"][0],
        "rows": part["shape"][1],
        "cols": part["shape"][2],
        "spacing_z_mm": spacing[0],
        "spacing_y_mm": spacing[1],
        "spacing_x_mm": spacing[2],
        "verdict": verdict["status"],
        "codes": ";".join(verdict["codes"]),
        "details": "\n".join(verdict["details"]),
        "header": json.dumps(dict(part["header"]), sort_keys=True, ensure_ascii=False),
        "file": f"voxels/{part['file']}",
    }


def _slices(parts: Sequence[Part]) -> tuple[pd.DataFrame, pa.Schema]:
    labels = sorted({name for part in parts for one in part["slices"] for name in one["labels"]})
    rows = [
        {
            "slice_id": f"{part['series_id']}:{index:04d}",
            "series_id": part["series_id"],
            "patient_id": part["patient_id"],
            "index": index,
            "fingerprint": print_,
            **{name: one[name] for name in ("position_mm", "slope", "intercept", "source", "file_digest")},
            **{f"label.{name}": one["labels"].get(name) for name in labels},
        }
        for part in parts
        for index, (one, print_) in enumerate(zip(part["slices"], part["fingerprints"], strict=True))
    ]
    schema = SLICES
    for name in labels:
        schema = schema.append(pa.field(f"label.{name}", pa.string()))
    return pd.DataFrame(rows, columns=schema.names), schema


def _window(parts: Sequence[Part]) -> tuple[float, float]:
    """Window of images in arbitrary units: medians over the series of their 0.5 and 99.5 percentiles."""
    if not parts:
        return (0.0, 1.0)
    low, high = (float(np.median([part[name] for part in parts])) for name in ("low", "high"))
    return (low, high) if high > low else (low, low + 1.0)


def _clinical_schema(frame: pd.DataFrame) -> pa.Schema:
    def kind(values: pd.Series) -> pa.DataType:
        if pd.api.types.is_bool_dtype(values.dtype):
            return pa.bool_()
        return pa.float64() if pd.api.types.is_numeric_dtype(values.dtype) else pa.string()

    return pa.schema([(str(name), kind(column(frame, name))) for name in frame.columns])


def _refuse_faulty_labels(file: CohortFile, slices: pd.DataFrame, clinical: pd.DataFrame | None) -> None:
    problems = []
    for task in file.tasks:
        try:
            if clinical is not None:
                task_label(task, clinical, file.columns[task.column])
        except InputError as error:
            problems.append(Problem(error.what, column=error.where, suggestion=error.fix))
    known = [name.removeprefix("label.") for name in slices.columns if name.startswith("label.")]
    for task in file.slice_tasks:
        if task.column not in known:
            close = nearest(task.column, known)
            hint = f"Did you mean '{close[0]}'?" if close else f"Columns there: {', '.join(known) or 'none'}."
            problems.append(Problem(f"the index has no column '{task.column}'.", column=task.label, suggestion=hint))
            continue
        try:
            slice_label(task, column(slices, f"label.{task.column}"))
        except InputError as error:
            problems.append(Problem(error.what, column=error.where, suggestion=error.fix))
    if problems:
        raise InputError(
            f"{len(problems)} labels cannot be used.",
            where=f"cohort '{file.name}'",
            consequence="The store was not finished.",
            problems=problems,
        )
