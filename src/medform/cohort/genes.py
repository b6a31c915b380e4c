"""Gene expression of a store.

``genes.npy`` holds the values (patient, gene), ``genes.json`` says what they are, ``genes_join.csv`` who was joined
to which sample.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from medform.cohort.files import file_sha256, write_bytes, write_json, writing
from medform.cohort.genes_spec import GenesSpec, Tails
from medform.errors import InputError

__all__ = [
    "FACTS",
    "FILES",
    "Genes",
    "GenesRecord",
    "JoinRow",
    "JoinStatus",
    "read_facts",
    "read_genes",
    "write_genes",
]

SCHEMA_VERSION, ROWS = 1, 64
VALUES, FACTS, JOIN = "genes.npy", "genes.json", "genes_join.csv"
FILES = (VALUES, FACTS, JOIN)
JoinStatus = Literal["matched", "ambiguous", "orphan"]


@dataclass(frozen=True, eq=False)
class Genes:
    """Expression of the patients who have it.

    ``values`` (n, G) float32, mapped read-only, in ``scale``, as they came: NaN is missing, nothing is
    standardised and no tail is cut. ``tails`` is the rule that the inputs apply after standardising.
    ``upstream_transductive``: the publisher made the values with all patients at once.
    """

    patient_ids: tuple[str, ...] = field(repr=False)
    gene_ids: tuple[str, ...] = field(repr=False)
    values: NDArray[np.float32] = field(repr=False)
    scale: str
    tails: Tails = "none"
    upstream_transductive: bool = False

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.patient_ids), len(self.gene_ids)):
            raise ValueError(f"{self.values.shape} values for {len(self.patient_ids)} x {len(self.gene_ids)} ids")

    def select(self, ids: Iterable[str]) -> Genes:
        """The patients of ``ids`` that have expression, in the order of this object."""
        wanted = set(ids)
        rows = [row for row, one in enumerate(self.patient_ids) if one in wanted]
        if len(rows) == len(self.patient_ids):
            return self
        return replace(self, patient_ids=tuple(self.patient_ids[row] for row in rows), values=self.values[rows])


@dataclass(frozen=True, order=True)
class JoinRow:
    """What became of one sample of the matrix, or (``sample_id`` empty) of a patient who has none there.

    ``matched``: its values are the patient's. ``ambiguous``: the patient's as well, but another sample was taken.
    ``orphan``: nobody's. ``reason`` says why, and by which rule.
    """

    status: JoinStatus
    patient_id: str
    sample_id: str
    source: str = ""
    reason: str = ""


JOIN_HEADER = tuple(part.name for part in fields(JoinRow))


@dataclass(frozen=True, eq=False)
class GenesRecord:
    """What is to be stored: ``values`` (n, G) float32 with its ids in any order, and how they were read.

    ``facts`` are JSON-able: dropped and constant genes with reasons, suspected damage, merged duplicates.
    """

    patient_ids: tuple[str, ...]
    gene_ids: tuple[str, ...]
    values: NDArray[np.float32] = field(repr=False)
    spec: GenesSpec
    facts: Mapping[str, Any] = field(default_factory=dict)
    join: Sequence[JoinRow] = ()


def write_genes(root: Path, record: GenesRecord, order: Sequence[str]) -> dict[str, str]:
    """Write the three files, patients in the ``order`` of the store; who is not in it is left out.

    A few rows at a time go to the file. Returns the digests of ``genes.json`` and ``genes_join.csv``; that of the
    values stands in ``genes.json``.
    """
    place = {one: row for row, one in enumerate(record.patient_ids)}
    patients = [one for one in order if one in place]
    digest = hashlib.sha256()
    with writing(root / VALUES) as stream:
        for piece in _pieces(record.values, [place[one] for one in patients]):
            stream.write(piece)
            digest.update(piece)
    facts = {
        "schema_version": SCHEMA_VERSION,
        "scale": record.spec.scale,
        "id_kind": record.spec.id_kind,
        "tails": record.spec.model_dump(mode="json")["tails"],
        "upstream_transductive": record.spec.upstream_transductive,
        "shape": [len(patients), len(record.gene_ids)],
        "sha256": digest.hexdigest(),
        **record.facts,
        "patients": patients,
        "genes": list(record.gene_ids),
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(JOIN_HEADER)
    writer.writerows(astuple(row) for row in sorted(record.join))
    return {FACTS: write_json(root / FACTS, facts), JOIN: write_bytes(root / JOIN, text.getvalue().encode())}


def _pieces(values: NDArray[np.float32], rows: Sequence[int]) -> Iterable[bytes]:
    """The bytes of an .npy file, some rows at a time (of a matrix that may lie turned in memory)."""
    header = io.BytesIO()
    tree = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), values.shape[1])}
    np.lib.format.write_array_header_1_0(header, tree)
    yield header.getvalue()
    for start in range(0, len(rows), ROWS):
        yield np.ascontiguousarray(values[list(rows[start : start + ROWS])], dtype="<f4").tobytes()


def read_genes(root: Path) -> Genes:
    """The expression of a store, its digest checked.

    Raises `InputError` where a file is damaged or of another version.
    """
    facts = read_facts(root)
    path = root / VALUES
    if not path.is_file() or file_sha256(path) != facts["sha256"]:
        raise InputError(
            "missing or changed since it was written.",
            where=str(path),
            consequence="It is not used.",
            fix="make the store anew with `medform ingest --overwrite`.",
        )
    return Genes(
        patient_ids=tuple(facts["patients"]),
        gene_ids=tuple(facts["genes"]),
        values=np.load(path, mmap_mode="r", allow_pickle=False),
        scale=str(facts["scale"]),
        tails=TypeAdapter(Tails).validate_python(facts["tails"]),
        upstream_transductive=bool(facts["upstream_transductive"]),
    )


def read_facts(root: Path) -> dict[str, Any]:
    """``genes.json``: ids in the order of the matrix, scale, dropped and constant genes, damage, duplicates."""
    facts = json.loads((root / FACTS).read_text(encoding="utf-8"))
    if (version := facts.get("schema_version")) != SCHEMA_VERSION:
        raise InputError(
            f"the expression has schema version {version}; this medform reads version {SCHEMA_VERSION}.",
            where=str(root / FACTS),
            fix="open it with the version of medform that wrote it, or ingest the source files again.",
        )
    return facts
