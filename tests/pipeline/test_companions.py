"""What belongs to a fold's patients beside their images: encoded table and genes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort.genes import Genes
from medform.inputs.genes import EncodedGenes, GeneEncoder, GeneInputConfig
from medform.pipeline import external, segment
from medform.pipeline.companions import GENES, Companions, encode_companions

PATIENTS = tuple(f"P{number:02d}" for number in range(30))


def sequenced() -> Genes:
    """100 genes with counts that hardly vary; the first 20 have most of the reads."""
    values = np.rint(1000 * np.exp2(np.random.default_rng(0).normal(0, 0.2, (30, 100))))
    values[:, :20] *= 10
    return Genes(PATIENTS, tuple(f"G{number:02d}" for number in range(100)), values.astype(np.float32), "counts")


def test_a_value_at_the_mean_and_a_missing_one_are_not_the_same_data() -> None:
    def digest(known: bool) -> str:
        there = np.array([[True, known]])
        genes = EncodedGenes(("A",), ("G1", "G2"), np.array([[1.0, 0.0]], np.float32), there, ())
        return Companions(("A",), None, None, genes, None, ()).digest([GENES])

    assert digest(known=True) != digest(known=False) and digest(known=True) == digest(known=True)


def test_a_patient_who_loses_the_genes_in_a_fold_is_told_without_a_name() -> None:
    """Near the limit: the training patients have a little more reads in the gene that the patient lacks."""
    genes = sequenced()
    genes.values[:20, 0] *= 3  # training: about 10 % of the reads
    genes.values[25, 0] = np.nan
    recipe: Any = SimpleNamespace(stages={"align": SimpleNamespace(inputs={"genes": GeneInputConfig()})})

    def notes(train: tuple[str, ...]) -> tuple[str, ...]:
        cohort: Any = SimpleNamespace(clinical=None, patient_ids=PATIENTS, genes=lambda: genes)
        found = encode_companions(cohort, train, recipe)
        assert (PATIENTS[25] in found.patients(GENES)) == (not found.notes)
        return found.notes

    assert notes(PATIENTS[20:]) == ()
    (said,) = notes(PATIENTS[:20])
    assert said.startswith("1 of 30 patients with genes count as ones without: their genes without a count")
    assert "more than 5% of its training patients' reads" in said and "P25" not in said


@pytest.fixture
def reads_counts() -> Any:
    """A model that reads counts, fitted on `sequenced`."""
    encoder = GeneEncoder.fit(sequenced(), PATIENTS)
    return SimpleNamespace(genes=encoder, reads_genes=True, gene_file={})


def test_a_patient_of_another_cohort_whose_counts_are_missing_does_not_stop_the_others(reads_counts: Any) -> None:
    genes = sequenced()
    genes.values[4, :20] = np.nan
    cohort: Any = SimpleNamespace(genes=lambda: genes)
    encoded, notes, problem = external._genes(reads_counts, cohort)
    assert problem is None and encoded is not None
    assert encoded.patient_ids == tuple(one for one in PATIENTS if one != "P04")
    assert len(notes) == 1 and notes[0].endswith("the patient counts as one without genes")
    genes.values[6] **= 2  # complete, and nothing like training
    _, _, problem = external._genes(reads_counts, cohort)
    assert "the expression of patient 'P06' is not counts as in training" in str(problem)


def test_a_scan_s_genes_that_look_like_logarithms_are_told(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = np.exp2(random.normal(3, 2, (30, 100))).astype(np.float32)
    genes = Genes(PATIENTS, tuple(f"G{number:02d}" for number in range(100)), values, "tpm")
    reads: Any = SimpleNamespace(genes=GeneEncoder.fit(genes, PATIENTS), reads_genes=True, gene_file={})
    pd.DataFrame(np.log2(values[:1] + 1), columns=list(genes.gene_ids)).to_csv(tmp_path / "row.csv", index=False)
    encoded, notes, problems = segment._genes(reads, SimpleNamespace(patient_ids=("A",)), tmp_path / "row.csv")  # pyright: ignore[reportArgumentType]
    assert problems == [] and encoded is not None and encoded.patient_ids == ("A",)
    assert any("are these logarithms (the model takes tpm)?" in one for one in notes)


@pytest.mark.parametrize("remembered", [{}, {"patient_id": "case"}])
def test_rows_of_a_table_with_row_numbers_reach_their_own_patients_or_nobody(
    reads_counts: Any, tmp_path: Path, remembered: dict[str, str]
) -> None:
    genes = sequenced()
    frame = pd.DataFrame(genes.values[:3].astype(int), columns=list(genes.gene_ids))
    frame.insert(0, "case", [3, 1, 2])
    frame.to_csv(tmp_path / "row.csv")
    reads_counts.gene_file = remembered
    cohort: Any = SimpleNamespace(patient_ids=("1", "2", "3"))
    encoded, _, problems = segment._genes(reads_counts, cohort, tmp_path / "row.csv")
    if not remembered:
        assert encoded is None and "the patients' ids may stand in 'case'" in str(problems[0])
        return
    assert encoded is not None and problems == []
    own = reads_counts.genes.encode(genes)
    for patient, row in (("3", 0), ("1", 1), ("2", 2)):
        mine = encoded.patient_ids.index(patient)
        np.testing.assert_array_equal(encoded.expression[mine], own.expression[row])


def test_a_scan_s_row_with_most_counts_missing_counts_as_no_genes(reads_counts: Any, tmp_path: Path) -> None:
    genes = sequenced()
    row = pd.DataFrame(genes.values[:1].astype(int), columns=list(genes.gene_ids)).astype(object)
    row.iloc[0, :20] = ""
    row.to_csv(tmp_path / "row.csv", index=False)
    cohort: Any = SimpleNamespace(patient_ids=("A",))
    encoded, notes, problems = segment._genes(reads_counts, cohort, tmp_path / "row.csv")
    assert problems == [] and encoded is not None and encoded.patient_ids == ()
    assert notes[0] == "1 patients have no genes: their learnt stand-in was used"
    assert notes[1].endswith("the patient counts as one without genes")
