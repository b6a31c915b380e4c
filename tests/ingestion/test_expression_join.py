"""Samples and patients: barcodes, sheets, rules; every sample ends as matched, ambiguous or orphan."""

from __future__ import annotations

import random as python_random
from typing import Any

import pytest

from medform.cohort.genes import JoinRow
from medform.cohort.genes_spec import GenesSpec
from medform.ingestion.expression_join import Joined, Sample, SampleMatcher, sample_counts
from medform.ingestion.sample_sheet import SheetRow


def join(
    samples: list[str] | list[Sample],
    known: list[str],
    sheet: dict[str, SheetRow] | None = None,
    id_map: dict[str, str] | None = None,
    **spec: Any,
) -> Joined:
    made = [Sample(one, place=f"column {at}") if isinstance(one, str) else one for at, one in enumerate(samples, 2)]
    matcher = SampleMatcher(known, GenesSpec.model_validate({"path": "g", "scale": "tpm", **spec}), sheet, id_map)
    joined = matcher.join(made)
    assert all(matcher.wanted(made[number]) for number in joined.sample_of.values())
    return joined


TCGA = [
    "TCGA-CS-4943-01B-11R-1470-07",
    "TCGA-CS-4943-01A-11R-1896-07",
    "TCGA-CS-4943-01A-11R-1470-07",
    "TCGA-CS-4943-02A-11R-1470-07",
    "TCGA-CS-4943-11A-11R-1470-07",
    "TCGA-DU-7014-11A-11R-1470-07",
    "TCGA-ZZ-0001-01A-11R-1470-07",
]


@pytest.mark.proves("G1.1", "G.tests")
def test_tcga_replicates_are_chosen_by_the_stated_rule_whatever_their_order() -> None:
    known = ["TCGA-CS-4943", "TCGA-DU-7014"]
    joined = join(TCGA, known)
    assert joined.sample_of == {"TCGA-CS-4943": 2} and not joined.problems
    status = {row.sample_id: row.status for row in joined.rows if row.sample_id}
    assert [status[one] for one in TCGA] == ["ambiguous"] * 2 + ["matched"] + ["ambiguous"] + ["orphan"] * 3
    reasons = {row.sample_id: row.reason for row in joined.rows}
    assert "lowest sample code, then lowest vial, portion, plate" in reasons[TCGA[0]] and TCGA[2] in reasons[TCGA[0]]
    assert "11, solid tissue normal" in reasons[TCGA[4]]
    assert "neither images nor a row" in reasons[TCGA[6]]
    assert JoinRow("orphan", "TCGA-DU-7014", "", "", "the matrix has no sample of this patient.") in joined.rows
    assert sample_counts(joined.rows) == {
        "genes_samples": 7,
        "genes_matched": 1,
        "genes_ambiguous": 3,
        "genes_orphan": 3,
    }
    for seed in range(5):
        mixed = python_random.Random(seed).sample(TCGA, len(TCGA))
        again = join(mixed, known)
        assert again.rows == joined.rows and mixed[again.sample_of["TCGA-CS-4943"]] == TCGA[2]


@pytest.mark.proves("G1.1", "G.tests")
def test_normal_tissue_only_where_it_is_asked_for() -> None:
    assert join(TCGA, ["TCGA-DU-7014"], tissue="normal").sample_of == {"TCGA-DU-7014": 5}
    assert join(TCGA, ["TCGA-CS-4943"], tissue="any").sample_of == {"TCGA-CS-4943": 2}


def test_ids_as_written_come_before_barcodes() -> None:
    joined = join(["TCGA-CS-4943-11", "TCGA-CS-4943-01"], ["TCGA-CS-4943-11", "TCGA-CS-4943"])
    assert joined.sample_of == {"TCGA-CS-4943-11": 0, "TCGA-CS-4943": 1}


@pytest.mark.proves("G1.1", "A3.2")
def test_ids_join_by_declared_rules_and_map_only() -> None:
    assert join(["P-1", "p2"], ["P1", "P2"]).sample_of == {}
    by_rule = join(["P-1", "p2"], ["P1", "P2"], id_rules=["separators", "case"])
    assert by_rule.sample_of == {"P1": 0, "P2": 1}
    assert {row.reason for row in by_rule.rows} == {"by rules separators, case."}
    by_map = join(["x", "p2"], ["P1", "P2"], id_map={"x": "P1"})
    assert by_map.sample_of == {"P1": 0} and by_map.rows[0].reason == "by genes.id_map."
    clash = join(["p1", "P-1"], ["P1"], id_rules=["separators", "case"])
    assert "become one" in str(clash.problems[0])


@pytest.mark.proves("G1.1")
def test_a_sheet_says_whose_a_sample_is_and_leaves_the_others_out() -> None:
    sheet = {
        "S1": SheetRow("S1", "P1", "Primary"),
        "S2": SheetRow("S2", "P2", "Solid Tissue Normal"),
        "S4": SheetRow("S4", "P9", "Primary"),
    }
    joined = join(["S1", "S2", "S3", "S4"], ["P1", "P2"], sheet)
    assert joined.sample_of == {"P1": 0}
    reasons = {row.sample_id: row.reason for row in joined.rows}
    assert reasons["S1"] == "by the sheet." and reasons["S3"] == "not in the sample sheet."
    assert "Solid Tissue Normal" in reasons["S2"]


@pytest.mark.proves("G.input")
def test_what_no_rule_decides_is_a_problem() -> None:
    twice = join(["P1", "P2", "P1"], ["P1", "P2"])
    assert "stands 2 times (column 2, column 4)" in str(twice.problems[0])
    sheet = {one: SheetRow(one, "P1") for one in ("S1", "S2")}
    several = join(["S1", "S2"], ["P1"], sheet)
    assert "2 samples of patient 'P1': 'S1', 'S2'." in str(several.problems[0])
    assert not join(["Q1", "Q1", "P1"], ["P1"]).problems  # of nobody here


def test_two_files_of_one_sample_are_ranked_by_name() -> None:
    files = [Sample("TCGA-CS-4943-01A", name, "TCGA-CS-4943", "Primary Tumor") for name in ("b.tsv", "a.tsv")]
    joined = join(files, ["TCGA-CS-4943"])
    assert joined.sample_of == {"TCGA-CS-4943": 1} and not joined.problems


@pytest.mark.proves("G1.1")
def test_the_sheet_says_the_tissue_of_a_barcode_that_ends_before_it() -> None:
    one = "TCGA-CS-4943"
    joined = join([Sample(one, "a.tsv", one, "Solid Tissue Normal")], ["P", one, "TCGA-CS"])
    assert joined.sample_of == {} and "genes.tissue is tumour" in " ".join(row.reason for row in joined.rows)


def test_a_patient_with_a_barcode_and_another_id_is_named_not_guessed() -> None:
    sheet = {one: SheetRow(one, "P1") for one in ("TCGA-CS-4943-01A", "X12")}
    joined = join(["X12", "TCGA-CS-4943-01A"], ["P1"], sheet)
    assert "2 samples of patient 'P1'" in str(joined.problems[0])


def test_a_map_cannot_give_a_patient_a_second_sample() -> None:
    joined = join(["x", "P1"], ["P1"], id_map={"x": "P1"})
    assert "stands in the table itself" in str(joined.problems[0]) and joined.sample_of == {"P1": 0}
