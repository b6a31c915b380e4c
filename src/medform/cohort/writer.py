"""Writing a cohort store: a series at a time, in any process and any order, resumable; ``cohort.json`` last.

While a store is being written, each finished series has a record in ``parts/``. `CohortWriter.finish` turns
the records into tables and removes them. Nothing in the bytes depends on the order, the number of workers or
the time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.cohort_file import CohortFile, Unit
from medform.cohort.files import PARTIAL, file_stem, write_bytes, write_json, writing
from medform.cohort.fingerprint import fingerprint
from medform.cohort.frames import build_frames
from medform.cohort.genes import FILES as GENES_FILES
from medform.cohort.genes import GenesRecord, write_genes
from medform.cohort.quarantine import Quarantined, Verdict
from medform.errors import InputError

__all__ = [
    "CohortWriter",
    "SeriesRecord",
    "SliceRecord",
    "ingest_anew",
    "made_from",
    "renewal_by_ingest",
    "series_complete",
    "write_series",
]

DTYPES = ("uint8", "int16", "uint16", "float32")
SAMPLES = 4096
"""Pixels of a slice that enter the percentiles of its series."""
UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class SliceRecord:
    """One slice as it came: position along the normal in mm (NaN where unknown), rescale, and where it is from.

    ``source`` names the instance (a SOP instance UID or a path relative to the root), ``file_digest`` is the
    SHA-256 of its file, ``labels`` are the other columns of the index, as text.
    """

    position_mm: float = math.nan
    slope: float = 1.0
    intercept: float = 0.0
    source: str = ""
    file_digest: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SeriesRecord:
    """One usable series: whose it is, what its numbers mean, where its slices lie (in stored order).

    ``affine_lps`` is (4, 4) row by row, ``spacing_mm`` (z, y, x) with z None for a single slice; both None
    where unknown. ``study`` groups series of one visit; ``person`` is a digest of who the header says it is
    (name and birth date), used only to find one person under two ids. ``header`` holds a few facts for
    reports (vendor, kernel); no identities.
    """

    series_id: str
    patient_id: str
    modality: str
    unit: Unit
    verdict: Verdict
    slices: tuple[SliceRecord, ...]
    affine_lps: tuple[float, ...] | None = None
    spacing_mm: tuple[float | None, float, float] | None = None
    study: str = ""
    person: str = ""
    header: Mapping[str, str] = field(default_factory=dict)


def series_complete(
    root: Path,
    series_id: str,
    inputs: str,
    *,
    files: Sequence[str] | None = None,
    masks: NDArray[np.uint8] | None = None,
) -> bool:
    """Whether a series was written from the same ``inputs`` (a digest of its sources and settings) before.

    With ``files``, the SHA-256 of each slice's file, it must also have been written from these, and with ``masks``
    (N, H, W) or none: a file can change without a trace in ``inputs``, which hold no pixels.
    """
    part = _read_part(root, series_id)
    voxels = root / "voxels" / f"{file_stem(series_id)}.npy"
    if part is None or part["inputs"] != inputs or not voxels.is_file() or voxels.stat().st_size != part["bytes"]:
        return False
    if files is None:
        return True
    return [one["file_digest"] for one in part["slices"]] == list(files) and part.get("mask_sha256") == _sha256(masks)


def _sha256(masks: NDArray[np.uint8] | None) -> str | None:
    """SHA-256 of the file in which `write_series` puts masks."""
    if masks is None:
        return None
    digest = hashlib.sha256(_npy_header(masks.shape, masks.dtype))
    for one in masks:
        digest.update(one.tobytes())
    return digest.hexdigest()


def write_series(
    root: Path,
    record: SeriesRecord,
    slices: Iterable[NDArray[np.generic]],
    *,
    inputs: str = "",
    masks: Iterable[NDArray[np.uint8]] | None = None,
) -> None:
    """Write the voxels of a series slice by slice (one slice in memory at a time), then its record.

    ``slices`` yields (H, W) arrays of one type among uint8, int16, uint16, float32, in the order of
    ``record.slices``; ``masks`` likewise yields uint8. May run in any process; a kill leaves no file under a
    final name that is not whole. Raises `InputError` for a value that is not finite and `ValueError` where
    the arrays do not fit the record.
    """
    stem = file_stem(record.series_id)
    voxels = _Volume(record, "voxels")
    written = voxels.write(root / "voxels" / f"{stem}.npy", slices)
    part: dict[str, Any] = asdict(record) | written | voxels.statistics() | {"inputs": inputs, "file": f"{stem}.npy"}
    if masks is not None:
        mask = _Volume(record, "mask")
        found = mask.write(root / "masks" / f"{stem}.npy", masks)
        if found["shape"] != written["shape"] or found["dtype"] != "uint8":
            raise ValueError(
                f"series {record.series_id}: mask {found['dtype']} {found['shape']} for {written['shape']}"
            )
        part |= {"mask_sha256": found["sha256"], "mask_values": sorted(mask.values)}
    for one in part["slices"]:
        one["position_mm"] = None if math.isnan(one["position_mm"]) else one["position_mm"]
    write_json(_part_path(root, record.series_id), part)


class _Volume:
    """One pass over the slices of a series: to the file, into its digest, and into what is said about it."""

    def __init__(self, record: SeriesRecord, kind: str) -> None:
        self.record, self.kind = record, kind
        self.prints: list[str] = []
        self.samples: list[NDArray[np.float32]] = []
        self.values: set[int] = set()

    def write(self, path: Path, slices: Iterable[NDArray[np.generic]]) -> dict[str, Any]:
        """Write an .npy of (N, H, W); returns shape, dtype, bytes and sha256 of the file."""
        stream_of = iter(slices)
        first = next(stream_of, None)
        count = len(self.record.slices)
        if first is None or count == 0 or first.dtype.name not in DTYPES or first.ndim != 2:
            got = "no slice" if first is None else f"{first.dtype} {first.shape}"
            raise ValueError(f"series {self.record.series_id}: {got}; {self.kind} need (H, W) of {', '.join(DTYPES)}")
        shape, dtype = (count, *first.shape), first.dtype
        digest, done, size = hashlib.sha256(), 0, 0
        with writing(path) as stream:
            header = _npy_header(shape, dtype)
            for piece in itertools.chain([header], map(self._checked(first), itertools.chain([first], stream_of))):
                stream.write(piece)
                digest.update(piece)
                size, done = size + len(piece), done + 1
            if done != count + 1:
                raise ValueError(f"series {self.record.series_id}: {done - 1} slices for {count} in its record")
        return {"shape": list(shape), "dtype": dtype.name, "bytes": size, "sha256": digest.hexdigest()}

    def _checked(self, first: NDArray[np.generic]) -> Any:
        number = itertools.count()

        def take(values: NDArray[np.generic]) -> bytes:
            index = next(number)
            if values.shape != first.shape or values.dtype != first.dtype:
                raise ValueError(
                    f"series {self.record.series_id}: slice {index} is {values.dtype} {values.shape}, "
                    f"the first was {first.dtype} {first.shape}"
                )
            self._note(index, values)
            return np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).tobytes()

        return take

    def _note(self, index: int, values: NDArray[np.generic]) -> None:
        if self.kind == "mask":
            self.values.update(np.unique(values).tolist())
            return
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(
                f"slice {index} holds values that are not finite.",
                where=f"series {self.record.series_id}",
                fix="mend the source, or leave this series out with images.select.",
            )
        bright = values
        if index < len(self.record.slices):
            one = self.record.slices[index]
            comb = values.reshape(-1)[:: max(1, values.size // SAMPLES)].astype(np.float32)
            self.samples.append(comb * np.float32(one.slope) + np.float32(one.intercept))
            if one.slope < 0:  # stored with black as high: a copy stored the other way must look the same
                bright = -values.astype(np.float64)
        self.prints.append(fingerprint(bright))

    def statistics(self) -> dict[str, Any]:
        """Hashes of the slices, and the 0.5 and 99.5 percentiles of the series in its unit."""
        low, high = np.percentile(np.concatenate(self.samples), [0.5, 99.5])
        return {"fingerprints": self.prints, "low": float(low), "high": float(high)}


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    import io

    text = io.BytesIO()
    little = dtype.newbyteorder("<")
    tree = {"descr": np.lib.format.dtype_to_descr(little), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(text, tree)
    return text.getvalue()


def _part_path(root: Path, series_id: str) -> Path:
    return root / "parts" / f"{file_stem(series_id)}.json"


def _read_part(root: Path, series_id: str) -> dict[str, Any] | None:
    path = _part_path(root, series_id)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def made_from(root: Path, inputs: str) -> bool:
    """Whether a finished store of the same ``inputs`` stands at ``root``; a damaged one is of none."""
    manifest = root / "cohort.json"
    if not manifest.is_file():
        return False
    try:
        stored = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(stored, dict) and stored.get("inputs") == inputs


def ingest_anew(root: Path) -> str:
    """The command that replaces the store at ``root``."""
    return shlex.join(["medform", "ingest", "COHORT", "-o", str(root), "--overwrite"])


def renewal_by_ingest(root: Path) -> str:
    """What to do about a store of other files, for whoever did not make it as a part of a run."""
    return (
        f"choose another folder, or replace it: {ingest_anew(root)}; "
        "where its data stay the same, runs go on with it (--resume)."
    )


class CohortWriter:
    """Writes one store. ``inputs`` is a digest of everything it is made from: sources, settings, cohort file.

    A finished store of the same ``inputs`` is left as it is (``finished`` is then True). Another one, or a
    folder that is not a store, is refused, unless ``overwrite`` (which removes a store, never anything else).
    ``renewal`` is what a refusal of another store advises (default: `renewal_by_ingest`).
    """

    def __init__(
        self,
        root: Path,
        file: CohortFile,
        *,
        inputs: str = "",
        overwrite: bool = False,
        renewal: str | None = None,
    ) -> None:
        self.root, self.file, self.inputs = Path(root), file, inputs
        self.finished = False
        if (self.root / "cohort.json").is_file() and not overwrite:
            self.finished = made_from(self.root, inputs)
            if not self.finished:
                raise InputError(
                    "this store was made from other files or another cohort file, or by an older medform.",
                    where=str(self.root),
                    consequence="Nothing was changed.",
                    fix=renewal or renewal_by_ingest(self.root),
                )
        elif self.root.exists():
            self._claim(overwrite=overwrite)
        if self.finished:
            shutil.rmtree(self.root / "parts", ignore_errors=True)
        else:
            write_bytes(self.root / "parts" / UNFINISHED, b"")

    def _claim(self, *, overwrite: bool) -> None:
        """Clear a store that is to be replaced and what a killed run left half-written; refuse a folder of others."""
        if not self.root.is_dir():
            raise InputError("this is a file, not a folder.", where=str(self.root), fix="choose another output folder.")
        ours = (self.root / "cohort.json").is_file() or (self.root / "parts").is_dir()
        if not ours and any(self.root.iterdir()):
            raise InputError(
                "the folder is not empty and holds no cohort store.",
                where=str(self.root),
                consequence="Nothing was written.",
                fix="choose an empty or a new folder.",
            )
        if overwrite and ours:
            (self.root / "cohort.json").unlink(missing_ok=True)
            for name in ("parts", "voxels", "masks", "splits", "previews"):
                shutil.rmtree(self.root / name, ignore_errors=True)
        for leftover in sorted(self.root.rglob(f"*{PARTIAL}")):
            leftover.unlink()

    def is_complete(self, series_id: str, inputs: str) -> bool:
        """`series_complete` in this store."""
        return series_complete(self.root, series_id, inputs)

    def write_series(
        self,
        record: SeriesRecord,
        slices: Iterable[NDArray[np.generic]],
        *,
        inputs: str = "",
        masks: Iterable[NDArray[np.uint8]] | None = None,
    ) -> None:
        """`write_series` into this store."""
        write_series(self.root, record, slices, inputs=inputs, masks=masks)

    def write_preview(self, patient_id: str, png: bytes) -> None:
        """Store a patient's preview picture."""
        write_bytes(self.root / "previews" / f"{file_stem(patient_id)}.png", png)

    def finish(
        self,
        series_ids: Iterable[str],
        *,
        clinical: pd.DataFrame | None = None,
        genes: GenesRecord | None = None,
        quarantine: Sequence[Quarantined] = (),
        counts: Mapping[str, int] | None = None,
        undeclared: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Write the tables from the records of ``series_ids``, then ``cohort.json``; afterwards `Cohort.read` opens it.

        ``clinical`` is indexed by patient id and typed (`ingestion.tables.type_table`); ``genes`` is stored for
        the patients who are in the store by image or row; ``undeclared`` are
        columns of the table without a role, ``notes`` what was read by a rule, ``counts`` further numbers
        (files found, unreadable ...). Raises `InputError`, before ``cohort.json`` exists, where a label
        cannot be made binary or an own split leaks.
        """
        parts = []
        for series_id in sorted(set(series_ids)):
            part = _read_part(self.root, series_id)
            if part is None:
                raise ValueError(f"series {series_id} was never written")
            parts.append(part)
        frames = build_frames(self.file, parts, clinical)
        self._sweep(parts, frames.patients["patient_id"])
        written = {} if genes is None else write_genes(self.root, genes, list(frames.patients["patient_id"]))
        frames.write(
            self.root,
            self.inputs,
            written=written,
            quarantine=quarantine,
            counts=counts or {},
            undeclared=undeclared,
            notes=notes,
        )
        shutil.rmtree(self.root / "parts", ignore_errors=True)
        self.finished = True

    def _sweep(self, parts: Sequence[Mapping[str, Any]], patients: Iterable[str]) -> None:
        """Remove voxels, masks, pictures and expression that are not of this store (left by an earlier, broken run)."""
        kept = {
            "voxels": {part["file"] for part in parts},
            "masks": {part["file"] for part in parts if "mask_sha256" in part},
            "previews": {f"{file_stem(one)}.png" for one in patients},
        }
        for folder, names in kept.items():
            for path in sorted((self.root / folder).glob("*")):
                if path.name not in names:
                    path.unlink()
        for name in GENES_FILES:
            (self.root / name).unlink(missing_ok=True)
