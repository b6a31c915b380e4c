"""A cohort store on disk: read-only, verified by digests, one slice at a time. `CohortWriter` makes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.certificate import certify, declared_groups, linked_patients, refuse_leaking
from medform.cohort.cohort_file import CohortFile, ColumnSpec, SliceTask, Task, Unit
from medform.cohort.columns import feature_columns
from medform.cohort.files import column, file_sha256, file_stem, read_frame, write_bytes
from medform.cohort.frames import SCHEMA_VERSION, digest_of
from medform.cohort.genes import FACTS, Genes, read_genes
from medform.cohort.labels import check_classes, slice_label, task_label
from medform.cohort.patient import Patient, Series
from medform.cohort.quarantine import Quarantined, read_quarantine
from medform.cohort.split import Split, make_split
from medform.cohort.survival import survival_frame
from medform.cohort.writer import CohortWriter, SeriesRecord, SliceRecord, series_complete, write_series
from medform.config import parse
from medform.errors import InputError, Problem

SLICE_NUMBERS = ("position_mm", "slope", "intercept")
__all__ = [
    "Cohort",
    "CohortWriter",
    "SeriesRecord",
    "SliceRecord",
    "series_complete",
    "write_series",
]


@dataclass(frozen=True, eq=False)
class Cohort:
    """A read-only view of a store, or of some of its patients (`select`).

    ``patients``: patient_id, pseudonym, n_series, n_slices, has_table. ``series``: series_id, patient_id,
    modality, unit, rows, cols, n_slices, spacing_{z,y,x}_mm, verdict, codes, study, sha256 ... ``slices``:
    slice_id, series_id, patient_id, index, position_mm, slope, intercept, source, file_digest, label.*. All
    are ordered by patient (a hash, never the id), then series, then slice. ``window`` is what [0, 1] stands
    for, in ``unit``.
    """

    root: Path
    name: str
    licence: str
    unit: Unit
    window: tuple[float, float]
    digest: str
    file: CohortFile
    counts: Mapping[str, int]
    patients: pd.DataFrame = field(repr=False)
    series: pd.DataFrame = field(repr=False)
    slices: pd.DataFrame = field(repr=False)
    clinical: pd.DataFrame | None = field(repr=False)
    _whole: Cohort | None = field(default=None, repr=False)

    @classmethod
    def read(cls, root: Path, *, verify: bool = False) -> Cohort:
        """Open a finished store. Tables are checked against their digests; with ``verify`` so is every voxel file.

        Raises `InputError` where there is no finished store, where it is of another version, or where a file
        is damaged.
        """
        root = Path(root)
        manifest = _manifest(root)
        _verify(root, manifest["files"])
        series = read_frame(root / "series.parquet")
        if verify:
            voxels = dict(zip(series["file"], series["sha256"], strict=True))
            masked = series[series["mask_sha256"].notna()]
            masks = {f"masks/{Path(f).name}": d for f, d in zip(masked["file"], masked["mask_sha256"], strict=True)}
            _verify(root, voxels | masks)
            if FACTS in manifest["files"]:
                read_genes(root)
        clinical = None
        if "clinical.parquet" in manifest["files"]:
            clinical = read_frame(root / "clinical.parquet").set_index("patient_id")
        return cls(
            root=root,
            name=manifest["name"],
            licence=manifest["licence"],
            unit=manifest["unit"],
            window=(float(manifest["window"][0]), float(manifest["window"][1])),
            digest=manifest["digest"],
            file=parse(CohortFile, manifest["cohort_file"], where=str(root / "cohort.json")),
            counts=manifest["counts"],
            patients=read_frame(root / "patients.parquet"),
            series=series,
            slices=read_frame(root / "slices.parquet"),
            clinical=clinical,
        )

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Everybody who has images or a row of the table, in the order of the store."""
        return tuple(map(str, self.patients["patient_id"]))

    @property
    def columns(self) -> dict[str, ColumnSpec]:
        """The declared columns of the clinical table."""
        return dict(self.file.columns)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Patient tasks, as in the cohort file."""
        return tuple(self.file.tasks)

    @property
    def slice_tasks(self) -> tuple[SliceTask, ...]:
        """Slice tasks, as in the cohort file."""
        return tuple(self.file.slice_tasks)

    def patient(self, patient_id: str) -> Patient:
        """One patient; `KeyError` for an id that is not here."""
        row = self.patients[self.patients["patient_id"] == patient_id]
        if row.empty:
            raise KeyError(patient_id)
        mine = self.series.loc[self.series["patient_id"] == patient_id, "series_id"]
        one = row.iloc[0]
        return Patient(
            patient_id,
            str(one["pseudonym"]),
            tuple(mine),
            int(one["n_slices"]),
            bool(one["has_table"]),
            self.root,
        )

    def open(self, series_id: str) -> Series:
        """A series, its voxels mapped read-only (safe beside other readers); `KeyError` for an id that is not here."""
        rows = self.series[self.series["series_id"] == series_id]
        if rows.empty:
            raise KeyError(series_id)
        row = rows.iloc[0]
        slices = self.slices.loc[column(self.slices, "series_id") == series_id]
        numbers = {name: column(slices, name).to_numpy(dtype=np.float64) for name in SLICE_NUMBERS}
        path = self.root / str(row["file"])
        if not path.is_file() or path.stat().st_size != row["bytes"]:
            raise _damaged([Problem("missing or of another size than was written.", file=str(path))], self.root)
        spacing = tuple(float(row[f"spacing_{axis}_mm"]) for axis in "zyx")
        return Series(
            series_id=series_id,
            patient_id=str(row["patient_id"]),
            modality=str(row["modality"]),
            shape=(int(row["n_slices"]), int(row["rows"]), int(row["cols"])),
            unit=self.unit,
            affine_lps=None if row["affine_lps"] is None else np.asarray(row["affine_lps"]).reshape(4, 4),
            spacing_mm=None if np.isnan(spacing[1]) else (spacing[0], spacing[1], spacing[2]),
            **numbers,
            sha256=str(row["sha256"]),
            voxels=np.load(path, mmap_mode="r", allow_pickle=False),
        )

    def masks(self, series_id: str) -> NDArray[np.uint8] | None:
        """Masks (N, H, W) of a series, mapped read-only; None where it has none."""
        rows = self.series[self.series["series_id"] == series_id]
        if rows.empty:
            raise KeyError(series_id)
        if pd.isna(rows.iloc[0]["mask_sha256"]):
            return None
        return np.load(self.root / "masks" / Path(str(rows.iloc[0]["file"])).name, mmap_mode="r", allow_pickle=False)

    def mask_numbers(self) -> list[int]:
        """The numbers that occur in the masks of the whole store, 0 among them, in ascending order."""
        return list(_manifest(self.root)["mask_values"])

    def table(self, name: str = "clinical") -> pd.DataFrame:
        """The typed table, indexed by patient id in the order of the store; only patients who have a row.

        Numbers are float64, truth values boolean, everything else text (dates as YYYY-MM-DD, sets joined by
        their separator); a missing value is NaN or NA. Only declared columns are there.
        """
        if name != "clinical" or self.clinical is None:
            raise InputError(
                f"the cohort has no table '{name}'.",
                where=f"cohort '{self.name}'",
                fix="set tables.clinical in the cohort file and ingest again.",
            )
        return self.clinical.copy()

    def genes(self) -> Genes | None:
        """Expression of the patients who have it, in the order of the store, its digest checked.

        None where the cohort file names no ``genes``. `InputError` where it names them and the store was made
        without.
        """
        if self.file.genes is None:
            return None
        if not (self.root / FACTS).is_file():
            raise InputError(
                "the cohort file names gene expression and the store holds none.",
                where=str(self.root / FACTS),
                consequence="Nothing was done without it.",
                fix="make the store anew with `medform ingest --overwrite`.",
            )
        return read_genes(self.root).select(self.patient_ids)

    def survival(self) -> pd.DataFrame:
        """Follow-up of the patients who have time and event (index patient_id, order of the store).

        ``time`` is float64 in the unit of its column, ``event`` 1 (it happened) or 0 (censored). `InputError` where
        none is declared.
        """
        return survival_frame(self.file, self.table())

    def labels(self, task: str) -> pd.Series:
        """Label of every patient (index patient_id, order of the store): 1.0, 0.0 or NaN."""
        asked = self.file.task(task)
        labels = task_label(asked, self.table(), self.columns[asked.column])
        return labels.reindex(pd.Index(self.patient_ids, name="patient_id"))

    def slice_labels(self, task: str) -> pd.Series:
        """Label of every slice (index slice_id, order of the store): 1.0, 0.0 or NaN."""
        for asked in self.slice_tasks:
            if asked.name == task:
                return slice_label(asked, column(self.slices.set_index("slice_id"), f"label.{asked.column}"))
        known = ", ".join(one.name for one in self.slice_tasks) or "none"
        raise InputError(f"no slice task '{task}' in cohort '{self.name}'.", fix=f"use one of: {known}.")

    def features(self, task: str | None = None) -> list[str]:
        """Columns that may enter a tower: for one task, or (None) for an alignment that serves all of them."""
        return feature_columns(self.file, task)

    def quarantine(self) -> list[Quarantined]:
        """What was set aside, with reasons."""
        return read_quarantine(self.root / "quarantine.csv")

    def preview(self, patient_id: str) -> Path:
        """Where the patient's preview picture lies (it may not exist)."""
        return self.root / "previews" / f"{file_stem(patient_id)}.png"

    def select(self, ids: Iterable[str]) -> Cohort:
        """The same store with the patients of ``ids`` only; order, pseudonyms and folds stay.

        Raises `KeyError` for unknown ids.
        """
        kept = set(ids)
        if unknown := sorted(kept - set(self.patient_ids)):
            raise KeyError(unknown[0])
        frames = {
            name: frame[frame["patient_id"].isin(sorted(kept))].reset_index(drop=True)
            for name, frame in (("patients", self.patients), ("series", self.series), ("slices", self.slices))
        }
        clinical = None if self.clinical is None else self.clinical[self.clinical.index.isin(sorted(kept))]
        digest = digest_of([self.digest, sorted(kept)])
        return replace(self, digest=digest, clinical=clinical, _whole=self._whole or self, **frames)

    def split(self, name: str | None = None) -> Split:
        """The split called ``name`` (default: the cohort file's), made from ``splits`` and stored where it is missing.

        It is always of the whole store; a `select`ed cohort gets its patients' part of it. Raises
        `InputError` where the primary task has too few patients (or groups) of a class, or where a stored split leaks.
        """
        if self._whole is not None:
            return self._whole.split(name).select(self.patient_ids)
        name = name or self.file.splits.name
        path = self.root / "splits" / f"{name}.json"
        if path.is_file():
            split = Split.read(path)
            refuse_leaking(split, self.series, self.slices, str(path), declared_groups(self.file, self.clinical))
            return split
        if name != self.file.splits.name:
            raise InputError(
                f"no split '{name}'.",
                where=str(path),
                fix=f"the cohort's split is '{self.file.splits.name}'.",
            )
        split = self._make_split()
        try:
            write_bytes(path, split.to_json().encode())
        except InputError:
            return split  # a read-only store: the split follows from it and is the same each time
        return split

    def _make_split(self) -> Split:
        wanted = self.file.splits
        declared = declared_groups(self.file, self.clinical)
        groups = linked_patients(self.series, self.slices, declared)
        strata = pd.DataFrame({task: self.labels(task) for task in self.file.stratify}, index=self.patient_ids)
        strata["imaged"] = column(self.patients, "n_series").to_numpy() > 0
        if primary := self.file.primary:
            labels, imaged = self.labels(primary.name).to_numpy(), column(strata, "imaged").to_numpy()
            counted = imaged if imaged.any() else np.ones(len(labels), bool)
            scored = labels[counted]
            if why := check_classes(primary.name, scored, wanted.folds):
                raise _too_few(why, scored, self.name)
            if declared is not None:
                _refuse_few_groups(np.array(self.patient_ids)[counted], scored, groups, self.file)
        split = make_split(
            self.patient_ids,
            strata,
            wanted.folds,
            wanted.validation,
            wanted.seed,
            groups=groups,
            draw_groups=declared is not None,
            name=wanted.name,
        )
        settings = dict(split.settings) | {"stratify": self.file.stratify}
        if declared is not None:
            settings["group"] = wanted.group
        return replace(split, certificate=certify(split, self.series, self.slices, declared), settings=settings)


def _refuse_few_groups(
    patients: NDArray[np.str_], labels: NDArray[np.float64], groups: Mapping[str, str], file: CohortFile
) -> None:
    """Raise `InputError` where fewer groups than folds have a patient of either class of the primary task."""
    counts = {
        what: len({groups.get(one, one) for one in patients[labels == value].tolist()})
        for value, what in ((1.0, "positive"), (0.0, "negative"))
    }
    few = min(counts, key=lambda what: counts[what])
    if counts[few] < file.splits.folds:
        fix = f"set splits.folds: {counts[few]}, or leave splits.group out."
        raise InputError(
            f"only {counts[few]} groups of column '{file.splits.group}' have a {few} patient, "
            f"for {file.splits.folds} folds.",
            where=f"cohort '{file.name}', primary task",
            consequence="No split was made.",
            fix=fix if counts[few] >= 2 else "leave splits.group out.",
            problems=[Problem(f"{what} in {count} groups.", column="splits.group") for what, count in counts.items()],
        )


def _too_few(why: str, labels: NDArray[np.float64], cohort: str) -> InputError:
    minority = min(np.count_nonzero(labels == 0.0), np.count_nonzero(labels == 1.0))
    if minority >= 2:
        fix = f"set splits.folds: {minority}, or bring more patients."
    else:
        fix = "bring more patients (two of each class are the least that can be divided), or change positive."
    return InputError(why, where=f"cohort '{cohort}', primary task", consequence="No split was made.", fix=fix)


def _manifest(root: Path) -> dict[str, Any]:
    path = root / "cohort.json"
    if not path.is_file():
        begun = (root / "parts").is_dir()
        raise InputError(
            "this store is unfinished." if begun else "no cohort store here.",
            where=str(root),
            fix="run the same `medform ingest` again with --resume." if begun else "make one with `medform ingest`.",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise _damaged([Problem("not a manifest.", file=str(path))], root) from None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"this store has schema version {version}; this medform reads version {SCHEMA_VERSION}.",
            where=str(root),
            fix="open it with the version of medform that wrote it, or ingest the source files again.",
        )
    content = {key: value for key, value in manifest.items() if key not in ("inputs", "digest")}
    if digest_of(content) != manifest.get("digest"):
        raise _damaged([Problem("its content does not match its digest.", file=str(path))], root)
    return manifest


def _verify(root: Path, digests: Mapping[str, str]) -> None:
    problems = [
        Problem("missing or changed since it was written.", file=str(root / name))
        for name, digest in digests.items()
        if not (root / name).is_file() or file_sha256(root / name) != digest
    ]
    if problems:
        raise _damaged(problems, root)


def _damaged(problems: list[Problem], root: Path) -> InputError:
    return InputError(
        "the store is damaged.",
        where=str(root),
        consequence="It is not used.",
        fix="make it anew with `medform ingest --overwrite`.",
        problems=problems,
    )
