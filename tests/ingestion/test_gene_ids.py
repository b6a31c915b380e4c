"""Gene names are text; what a spreadsheet did to them is listed, doubled ones need a declared rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medform.cohort.genes_spec import GenesSpec
from medform.ingestion.expression_matrix import Matrix
from medform.ingestion.gene_ids import is_damaged, merge_duplicates, name_genes


def named(ids: list[str], **spec: Any):
    matrix = Matrix(
        "m.csv", "wide", "genes_in_rows", (), (), tuple(ids), tuple(range(2, len(ids) + 2)), np.empty((0, len(ids)))
    )
    return name_genes(matrix, GenesSpec.model_validate({"path": "m.csv", "scale": "tpm", **spec}))


@pytest.mark.proves("G1.1", "R27")
@pytest.mark.parametrize(
    "gene", ["2-Sep", "1-Mar", "Sep-02", "02-Sep-23", "2002-09-02", "9/2/2002", "44621", "2.31E+13"]
)
def test_what_a_spreadsheet_makes_of_a_gene_is_suspected(gene: str) -> None:
    assert is_damaged(gene)
    assert named(["TP53", gene]).damaged == (gene,) and gene in named(["TP53", gene]).ids


@pytest.mark.proves("G1.1", "R27")
@pytest.mark.parametrize("gene", ["SEPT2", "MARCH1", "SEPTIN2", "MARCHF1", "DEC1", "NA", "nan", "TRUE", "HLA-A", "7SK"])
def test_genes_with_odd_names_are_genes(gene: str) -> None:
    assert not is_damaged(gene)
    found = named(["TP53", gene])
    assert found.ids == ("TP53", gene) and not found.problems


def test_five_digits_are_no_damage_among_entrez_ids() -> None:
    assert not is_damaged("44621", "entrez")


def test_summary_lines_and_versions_are_taken_off() -> None:
    found = named(["N_unmapped", "ENSG00000000003.15", "ENSG00000182378.15_PAR_Y", "__no_feature"], id_kind="ensembl")
    assert found.ids == ("ENSG00000000003", "ENSG00000182378_PAR_Y")
    assert found.kept.tolist() == [1, 2] and found.summary == ("N_unmapped", "__no_feature")


@pytest.mark.proves("G.input")
def test_doubled_nameless_and_other_ids_are_all_named() -> None:
    text = "\n".join(map(str, named(["A", "B", "A", "", "B"]).problems))
    assert "'A': this gene stands in rows 2, 4." in text and "'B': this gene stands in rows 3, 6." in text
    assert "row 5: a gene without a name" in text and "genes.duplicates" in text
    assert not named(["A", "B", "A"], duplicates="mean").problems
    assert "genes.id_kind: ensembl" in str(named(["ENSG00000000003", "ENSG00000000005"]).problems[0])
    assert "genes.id_kind: symbol" in str(named(["TP53", "EGFR"], id_kind="ensembl").problems[0])
    assert "genes.id_kind: entrez" in str(named(["7157", "1956"]).problems[0])


@pytest.mark.proves("G.input")
@pytest.mark.parametrize(
    ("rule", "expected"),
    [("mean", [[4.5], [5.0], [np.nan]]), ("first", [[1.0], [5.0], [np.nan]]), ("max", [[8.0], [np.nan], [np.nan]])],
)
def test_copies_are_merged_by_the_declared_rule(rule: Any, expected: list[list[float]]) -> None:
    nan = np.nan
    values = np.array([[1, 9, 8], [5, 8, nan], [nan, 7, nan]], np.float32)
    ids, merged, copies = merge_duplicates(["A", "B", "A"], values, rule)
    assert ids == ("A", "B") and copies == {"A": 2} and merged.dtype == np.float32
    np.testing.assert_array_equal(merged[:, :1], expected)
    np.testing.assert_array_equal(merged[:, 1], values[:, 1])


def test_nothing_is_copied_where_no_gene_stands_twice() -> None:
    values = np.ones((2, 2), np.float32)
    assert merge_duplicates(["A", "B"], values, "mean")[1] is values
