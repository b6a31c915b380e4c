"""Expression for a trained model: ids or none, order free, and every fault with its place."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from medform.cohort.genes_spec import GenesSpec
from medform.errors import InputError
from medform.ingestion.gene_rows import GeneRows, read_gene_rows

KNOWN = [f"GENE{number}" for number in range(30)]
Z = GenesSpec(path="row.csv", scale="zscore")


def read(folder: Path, text: str, spec: GenesSpec = Z, known: list[str] = KNOWN) -> GeneRows:
    path = folder / "row.csv"
    path.write_text(text, encoding="utf-8")
    return read_gene_rows(path, known, spec)


def faults(rows: GeneRows) -> str:
    return "\n".join(map(str, rows.problems))


@pytest.mark.proves("G4.2", "G1.1")
def test_a_row_is_read_with_an_id_or_without_plain_or_gz_with_any_separator(tmp_path: Path) -> None:
    named = read(tmp_path, "\ufeffpatient;GENE1;GENE0\nP1;0.5;NA\nP2;-1;2\n")
    assert named.named and not named.problems and named.genes.patient_ids == ("P1", "P2")
    assert named.genes.gene_ids == ("GENE1", "GENE0") and np.isnan(named.genes.values[0, 1])
    bare = read(tmp_path, "GENE2,GENE0\n-0.25,1e-1\n")
    assert not bare.named and bare.genes.patient_ids == ("row 2",)
    np.testing.assert_allclose(bare.genes.values, [[-0.25, 0.1]])
    (tmp_path / "r.tsv.gz").write_bytes(gzip.compress(b"GENE0\tGENE1\nP1\t1\t-2\n"))  # as R writes row names
    packed = read_gene_rows(tmp_path / "r.tsv.gz", KNOWN, Z)
    assert packed.named and packed.genes.patient_ids == ("P1",) and packed.genes.values.tolist() == [[1.0, -2.0]]


@pytest.mark.proves("G2.1")
def test_the_version_of_an_ensembl_id_does_not_matter(tmp_path: Path) -> None:
    spec = GenesSpec(path="row.csv", scale="zscore", id_kind="ensembl")
    found = read(tmp_path, "ENSG00000000001.7,ENSG00000000002\n1,-1\n", spec, ["ENSG00000000001", "ENSG00000000002"])
    assert not found.named and not found.problems
    assert found.genes.gene_ids == ("ENSG00000000001", "ENSG00000000002")


@pytest.mark.proves("G.input")
def test_every_fault_of_a_table_is_said_with_its_place(tmp_path: Path) -> None:
    said = faults(read(tmp_path, "id,GENE0,GENE1,GENE0\nP1,high,1,2\nP1,1,2\n,1,2,3\n"))
    assert "row 2, column 'GENE0': 'high': not a number" in said
    assert "row 3: 3 fields for 4 columns" in said
    assert "'GENE0': this gene stands in columns 2, 4" in said
    assert "row 3: 'P1': this patient stands in row 2 as well" in said and "row 4: a row without an id" in said


@pytest.mark.proves("G.input", "G1.2")
def test_a_table_that_lies_the_other_way_has_other_genes_or_another_scale_is_told_so(tmp_path: Path) -> None:
    assert "lies the other way: 2 genes" in faults(read(tmp_path, "gene,P1\nGENE0,1\nGENE1,2\n"))
    other = faults(read(tmp_path, "id,BRCA1,TP53\nP1,1,2\n"))
    assert "the model has GENE0, GENE1, GENE10 ...; the header id, BRCA1, TP53" in other
    positive = ",".join(KNOWN) + "\n" + ",".join(["3.5"] * 30) + "\n"
    assert "no value is negative" in faults(read(tmp_path, positive)) and "genes.scale" not in faults(
        read(tmp_path, positive)
    )
    few = read(tmp_path, "GENE0,GENE1\n1,2\n")
    assert not few.problems, "two z-scores may both be positive"
    counts = GenesSpec(path="row.csv", scale="counts")
    fractions = ",".join(KNOWN) + "\n" + ",".join(["3.5"] * 30) + "\n"
    assert "not a whole number of reads" in faults(read(tmp_path, fractions, counts))


@pytest.mark.proves("G.input")
def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a header but no row"):
        read(tmp_path, "id,GENE0\n")
    with pytest.raises(InputError, match="cannot be read"):
        read_gene_rows(tmp_path / "nothing.csv", KNOWN, Z)
    with pytest.raises(InputError, match="every row ends in a separator"):
        read(tmp_path, "id,GENE0,GENE1\nP1,0.5,-1,\nP2,-1,2,\n")
    last_is_missing = read(tmp_path, "GENE0,GENE1\nP1,0.5,\nP2,-1,2\n")  # R's row names, and one empty cell
    assert last_is_missing.genes.patient_ids == ("P1", "P2") and last_is_missing.genes.gene_ids == ("GENE0", "GENE1")


@pytest.mark.proves("G4.2", "G.input")
def test_ids_stand_in_the_column_of_training_wherever_it_is(tmp_path: Path) -> None:
    spec = GenesSpec(path="row.csv", scale="zscore", patient_id="case")
    for text in (
        ",case,GENE0,GENE1\n0,17,0.5,1\n1,4,-1,2\n",
        "Unnamed: 0,GENE0,GENE1,case\n0,0.5,1,17\n1,-1,2,4\n",
        "GENE0,case,GENE1\n0.5,17,1\n-1,4,2\n",
        "patient,GENE0,GENE1\n17,0.5,1\n4,-1,2\n",
    ):
        found = read(tmp_path, text, spec)
        assert found.named and not found.problems and found.genes.patient_ids == ("17", "4")
        assert found.genes.gene_ids == ("GENE0", "GENE1") and found.genes.values.tolist() == [[0.5, 1.0], [-1.0, 2.0]]


@pytest.mark.proves("G4.2", "G.input")
def test_row_numbers_are_no_ids_where_another_column_holds_the_patients(tmp_path: Path) -> None:
    def told(text: str, patients: list[str]) -> str:
        (tmp_path / "row.csv").write_text(text)
        return faults(read_gene_rows(tmp_path / "row.csv", KNOWN, Z, patients))

    text = '"","case","GENE0"\n"1",3,0.5\n"2",1,-1\n"3",2,-2\n'
    said = told(text, ["1", "2", "3"])
    assert "row 1: the first column may only number the rows: the patients' ids may stand in 'case'" in said
    assert "Remove the column of row numbers; or, if it holds the ids, name it" in said and "genes." not in said
    assert told(",who,GENE0\n0,A,0.5\n1,B,-1\n", ["A", "B"]).count("\n") == 0, "one fault, not two"
    assert told(text.replace('""', "patient"), ["1", "2", "3"]) == ""
    assert told("GENE0,GENE1\n1,0.5,3\n2,-1,1\n3,1,2\n", ["1", "2", "3"]) == "", "genes of the model are no ids"
    assert told(",case,GENE0\n0,17,0.5\n", ["17"]) == "", "a single row is the single patient's"


@pytest.mark.proves("G4.2", "G1.2")
def test_values_that_are_odd_for_the_scale_are_noted_in_words_that_fit_a_model(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0, 13, (1, 30)).round(2)
    logarithms = ",".join(KNOWN) + "\n" + ",".join(map(str, values[0])) + "\n"
    found = read(tmp_path, logarithms, GenesSpec(path="row.csv", scale="tpm"))
    assert not found.problems and len(found.notes) == 2
    assert "are these logarithms (the model takes tpm)?" in found.notes[0] and "a million" in found.notes[1]
    assert not any("genes.scale" in one or "genes_join" in one for one in found.notes)
    assert read(tmp_path, "id,GENE0\nP1,1\n").notes == ()
