"""Expression in a store: rows in the store's order, verified on read, consistent when patients are chosen."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort.cohort_file import CohortFile, parse_cohort_file
from medform.cohort.genes import Genes, GenesRecord, JoinRow, read_facts, read_genes, write_genes
from medform.cohort.genes_spec import ClippedTails, GenesSpec
from medform.cohort.store import Cohort, CohortWriter
from medform.errors import InputError

PATIENTS = tuple(f"{number:03d}" for number in range(6))
VALUES = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
VALUES[1, 2] = np.nan
JOIN = [JoinRow("orphan", "005", "", "", "none"), JoinRow("matched", "000", "S0", "m.csv", "equal ids.")]


def cohort_file(**genes: Any) -> CohortFile:
    tree = {
        "name": "c",
        "licence": "CC0",
        "images": {},
        "tables": {"clinical": {"path": "t.csv", "patient_id": "id"}},
        "columns": {"age": {"role": "feature", "type": "number", "known_at": "scan"}},
        "genes": {"path": "m.csv", "scale": "zscore", **genes},
    }
    return parse_cohort_file(tree, "c.yaml")


def record(file: CohortFile, rows: tuple[int, ...] = (3, 0, 4, 2, 1)) -> GenesRecord:
    assert file.genes is not None
    patients = tuple(PATIENTS[row] for row in rows)
    return GenesRecord(patients, ("A", "NA", "nan", "B"), VALUES[list(rows)], file.genes, {"dropped": []}, JOIN)


def make_store(root: Path, genes: GenesRecord | None, **spec: Any) -> Cohort:
    writer = CohortWriter(root, cohort_file(**spec))
    table = pd.DataFrame({"age": np.arange(6.0)}, index=pd.Index(PATIENTS, name="patient_id"))
    writer.finish([], clinical=table, genes=genes)
    return Cohort.read(root, verify=True)


@pytest.mark.proves("G1.1", "G1.2", "G.tests")
def test_a_store_gives_back_what_was_written_in_its_own_order(tmp_path: Path) -> None:
    file = cohort_file(tails={"clip": 10}, upstream_transductive=True)
    cohort = make_store(tmp_path / "a", record(file), tails={"clip": 10}, upstream_transductive=True)
    genes = cohort.genes()
    assert genes is not None and isinstance(genes.values, np.memmap) and genes.values.dtype == np.float32
    assert genes.patient_ids == tuple(one for one in cohort.patient_ids if one != "005")
    assert genes.gene_ids == ("A", "NA", "nan", "B") and genes.scale == "zscore"
    assert genes.tails == ClippedTails(clip=10) and genes.upstream_transductive
    np.testing.assert_array_equal(genes.values, VALUES[[int(one) for one in genes.patient_ids]])
    with (tmp_path / "a" / "genes_join.csv").open(newline="") as lines:
        assert [JoinRow(**row) for row in csv.DictReader(lines)] == sorted(JOIN)  # pyright: ignore[reportArgumentType]
    again = make_store(tmp_path / "b", record(file, (0, 1, 2, 3, 4)), tails={"clip": 10}, upstream_transductive=True)
    assert again.digest == cohort.digest
    for name in ("genes.npy", "genes.json", "genes_join.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.proves("G1.1")
def test_a_selected_cohort_has_its_patients_expression(tmp_path: Path) -> None:
    cohort = make_store(tmp_path / "s", record(cohort_file()))
    some = cohort.select(["005", "001", "003"]).genes()
    assert some is not None and set(some.patient_ids) == {"001", "003"}
    np.testing.assert_array_equal(some.values, VALUES[[int(one) for one in some.patient_ids]])
    none = cohort.select(["005"]).genes()
    assert none is not None and none.patient_ids == () and none.values.shape == (0, 4)


def test_patients_who_are_not_in_the_store_are_left_out(tmp_path: Path) -> None:
    full = record(cohort_file())
    write_genes(tmp_path, full, ["004", "777", "000"])
    assert read_genes(tmp_path).patient_ids == ("004", "000")
    write_genes(tmp_path, full, ["777"])
    assert read_genes(tmp_path).values.shape == (0, 4)


def test_a_cohort_without_expression_has_none(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    cohort = make_store(tmp_path / "s", None)
    assert replace(cohort, file=cohort.file.model_copy(update={"genes": None})).genes() is None
    assert not (tmp_path / "s/genes.npy").exists()
    with pytest.raises(InputError, match="names gene expression and the store holds none"):
        cohort.genes()
    with_genes = make_store(tmp_path / "t", record(cohort_file()))
    assert with_genes.genes() is not None
    writer = CohortWriter(tmp_path / "t", cohort_file(), overwrite=True)
    writer.finish([], clinical=with_genes.clinical)
    assert not (tmp_path / "t/genes.npy").exists() and not (tmp_path / "t/genes.json").exists()


@pytest.mark.proves("A1.5", "G1.1")
def test_damage_is_found_on_read(tmp_path: Path) -> None:
    cohort = make_store(tmp_path / "s", record(cohort_file()))
    content = bytearray((tmp_path / "s/genes.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "s/genes.npy").write_bytes(content)
    with pytest.raises(InputError, match="missing or changed since it was written"):
        cohort.genes()
    with pytest.raises(InputError, match=r"genes\.npy"):
        Cohort.read(tmp_path / "s", verify=True)
    facts = read_facts(tmp_path / "s")
    (tmp_path / "s/genes.json").write_text(json.dumps(facts | {"scale": "counts"}))
    with pytest.raises(InputError, match="the store is damaged"):
        Cohort.read(tmp_path / "s")
    (tmp_path / "s/genes.json").write_text(json.dumps(facts | {"schema_version": 9}))
    with pytest.raises(InputError, match="schema version 9"):
        read_genes(tmp_path / "s")


def test_ids_and_values_must_fit() -> None:
    with pytest.raises(ValueError, match="values for"):
        Genes(("a",), ("A", "B"), np.zeros((2, 1), np.float32), "tpm")


@pytest.mark.proves("G1.2", "A.input")
@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ({"path": "m", "scale": "rpkm"}, "'counts', 'tpm', 'log2p1', 'log2' or 'zscore'"),
        ({"path": "m"}, "this key is required"),
        ({"path": "m", "scale": "tpm", "format": "gdc"}, "genes.samples"),
        ({"path": "m", "scale": "zscore", "format": "gdc", "samples": "s"}, "scale: counts or tpm"),
        ({"path": "m", "scale": "tpm", "format": "xena", "orientation": "patients_in_rows"}, "genes in rows"),
        ({"path": "m", "scale": "tpm", "tails": {"clip": 0}}, "greater than 0"),
        ({"path": "m", "scale": "tpm", "tails": "winsor"}, "'rank' or 'none'"),
    ],
)
def test_a_wrong_declaration_is_told(genes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_cohort_file({"name": "c", "licence": "x", "images": {}, "genes": genes}, "c.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("tails", ["none", "rank", {"clip": "10"}])
def test_tails_are_a_word_or_a_clip(tails: Any) -> None:
    spec = GenesSpec.model_validate({"path": "m", "scale": "zscore", "tails": tails})
    assert spec.tails == (ClippedTails(clip=10) if isinstance(tails, dict) else tails)


def test_files_of_the_expression_that_are_missing_are_named(tmp_path: Path) -> None:
    genes = {"path": "m.csv", "scale": "tpm", "samples": "s.csv", "id_map": "i.csv"}
    with pytest.raises(InputError) as caught:
        parse_cohort_file({"name": "c", "licence": "x", "images": {}, "genes": genes}, "c.yaml", tmp_path)
    assert all(f"genes.{key}" in str(caught.value) for key in ("path", "samples", "id_map"))
