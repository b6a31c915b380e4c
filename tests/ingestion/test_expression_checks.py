"""A declared scale that the numbers contradict is refused; what is only odd is noted."""

from __future__ import annotations

import numpy as np
import pytest

from medform.cohort.genes_spec import GenesSpec
from medform.ingestion.expression_checks import Numbers, check_scale, uninformative

COUNTS = GenesSpec.model_validate({"path": "m", "scale": "counts"})
PATIENTS, GENES = [f"P{at}" for at in range(100)], ["A", "B", "C"]


def check(scale: str, values: list[list[float]] | np.ndarray) -> Numbers:
    table = np.array(values, np.float32)
    spec = GenesSpec.model_validate({"path": "m", "scale": scale})
    return check_scale(table, spec, PATIENTS[: len(table)], GENES[: table.shape[1]], "m.csv")


@pytest.mark.proves("G1.2", "G.input")
@pytest.mark.parametrize(
    ("scale", "values", "message"),
    [
        ("counts", [[1, 2], [-3, 4]], "column 'A': '-3': patient 'P1': negative under genes.scale: counts"),
        ("counts", [[1, 2.5], [3, 4.5]], "not a whole number of reads (2 values)"),
        ("tpm", [[1e6, -1], [5e5, 5e5]], "negative under genes.scale: tpm"),
        ("log2p1", [[1, -0.1], [2, 3]], "negative under genes.scale: log2p1"),
        ("log2p1", [[1, 30.5], [2, 3]], "column 'B': '30.5': patient 'P0': beyond 30"),
        ("log2", [[1, -31], [2, 3]], "beyond 30"),
        ("zscore", [[0.1, 4], [2, 3]], "no value is negative (0.1 to 4)"),
        ("zscore", [[-1, np.inf], [2, 3]], "infinite"),
    ],
)
def test_contradictions_are_refused(scale: str, values: list[list[float]], message: str) -> None:
    assert message in "\n".join(map(str, check(scale, values).problems))


@pytest.mark.parametrize(
    ("scale", "values"),
    [
        ("counts", [[7, 0], [16_000_000, np.nan]]),
        ("log2p1", [[0, 12.5], [3, np.nan]]),
        ("log2", [[-3, 12.5], [3, np.nan]]),
        ("zscore", [[-3, 127.8], [3, np.nan]]),
        ("tpm", [[1e6, 0], [4e5, 6e5]]),
    ],
)
def test_plausible_values_pass(scale: str, values: list[list[float]]) -> None:
    found = check(scale, values)
    assert not found.problems and not found.notes and found.missing == int(np.isnan(values).sum())


def sequenced(lost: int) -> np.ndarray:
    """A hundred patients of the same three genes; the middle gene has ``lost`` of 10,000 reads and P1 none of it."""
    values = np.tile(np.array([[4000.0, lost, 6000.0 - lost]]), (100, 1))
    values[::2] /= 10  # how deeply a sample was sequenced does not matter
    values[1, 1] = np.nan
    return values


@pytest.mark.proves("G.input", "G1.2")
def test_a_patient_whose_missing_counts_had_many_reads_is_refused_and_few_are_noted() -> None:
    (problem,) = check("counts", sequenced(600)).problems
    assert "column 'B': patient 'P1': 1 genes without a count have 6% of the reads of the others" in str(problem)
    two = sequenced(600)
    two[4, :2] = np.nan
    assert "of the others (2 such patients)" in str(check("counts", two).problems[0])
    found = check("counts", sequenced(400))
    assert not found.problems and found.unread == {"P1": pytest.approx(0.04, abs=1e-3)}
    assert found.notes[0].startswith("genes: 1 patients lack counts that have up to 4.0")
    for scale in ("tpm", "log2p1"):  # nothing is divided by a sum of these
        assert not check(scale, sequenced(600) / (1 if scale == "tpm" else 1000)).unread


def test_a_patient_without_any_count_and_a_gene_that_nobody_has_lack_no_reads() -> None:
    values = sequenced(600)
    values[1] = np.nan
    values = np.column_stack([values, np.full(100, np.nan)])
    found = check_scale(values.astype(np.float32), COUNTS, PATIENTS, ["A", "B", "C", "D"], "m.csv")
    assert not found.problems and not found.unread and not found.notes


@pytest.mark.proves("G1.2")
def test_sums_far_from_a_million_and_small_tpm_are_noted() -> None:
    notes = "\n".join(check("tpm", [[10, 5], [12, 0]]).notes)
    assert "2 of 2 patients sum to far from a million TPM (median 13.5)" in notes and "logarithms" in notes


def test_every_block_of_patients_is_looked_at() -> None:
    values = np.ones((100, 3), np.float32)
    values[99, 2] = -5
    found = check("counts", values)
    assert (found.minimum, found.maximum) == (-5, 1) and "column 'C': '-5': patient 'P99'" in str(found.problems[0])


@pytest.mark.proves("G.input")
def test_genes_that_tell_no_patients_apart_have_a_reason() -> None:
    nan = np.nan
    values = np.array([[0, 2, nan, nan, 1], [0, 2, nan, 5, 2]], np.float32)
    assert uninformative(values) == {0: "all zero", 1: "always 2", 2: "no value", 3: "always 5"}
    assert uninformative(values[:1]) == {2: "no value", 3: "no value"}
