"""A matrix that was exported together with labels is refused; genes that are only named like a column pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medform.cohort.cohort_file import CohortFile, parse_cohort_file
from medform.cohort.genes import GenesRecord
from medform.errors import InputError
from medform.ingestion.gene_leaks import find_gene_leaks
from medform.ingestion.ingest import ingest
from medform.ingestion.leaks import Leak

N = 40
COLUMNS: dict[str, dict[str, Any]] = {
    "idh": {"role": "label", "type": "boolean"},
    "grade": {"role": "label", "type": "category"},
    "os_months": {"role": "time", "type": "number"},
    "status": {"role": "outcome", "type": "category"},
    "mutations": {"role": "outcome"},
    "age": {"role": "feature", "type": "number", "known_at": "scan"},
    "AFP": {"role": "feature", "type": "number", "known_at": "scan"},
    "sex": {"role": "feature", "type": "category", "known_at": "scan"},
}


def cohort(root: Path | None = None, **columns: dict[str, Any]) -> CohortFile:
    tree = {
        "name": "c",
        "licence": "CC0",
        "images": {"layout": "slices", "index": "slices.csv", "unit": "display"},
        "tables": {"clinical": {"path": "clinical.csv", "patient_id": "id"}},
        "columns": {name: keys | columns.get(name, {}) for name, keys in COLUMNS.items()},
        "tasks": [
            {"name": "idh", "label": "clinical.idh", "predicted_at": "scan"},
            {"name": "high", "label": "clinical.grade", "predicted_at": "scan", "positive": ["G3", "G4"]},
        ],
        "survival": {"time": "os_months", "event": "status", "positive": ["dead of it", "dead"]},
        "genes": {"path": "genes.csv", "scale": "zscore"},
    }
    return parse_cohort_file(tree, "c.yaml", root)


def patients(random: np.random.Generator, n: int = N) -> pd.DataFrame:
    def words(*levels: str) -> Any:
        return pd.array(np.array(levels)[random.permutation(np.arange(n) % len(levels))], dtype="string")

    return pd.DataFrame(
        {
            "idh": pd.array(random.permutation(np.arange(n) % 2 == 0), dtype="boolean"),
            "grade": words("G2", "G3", "G4"),
            "os_months": random.exponential(30, n).round(2),
            "status": words("alive", "dead of it", "dead"),
            "mutations": pd.array([str(one) for one in random.permutation(n)], dtype="string"),
            "age": random.permutation(np.arange(n) + 30.0),
            "AFP": random.normal(0, 1, n),
            "sex": words("f", "m"),
        },
        index=pd.Index([f"P{at:02d}" for at in range(n)], name="patient_id"),
    )


def restating(table: pd.DataFrame, file: CohortFile, genes: dict[str, Any], others: int = 200) -> list[Leak]:
    """Leaks among ``genes`` and so many more that are noise; patients in another order, and one without a row."""
    ids = (*table.index[::-1], "STRANGER")
    noise = np.random.default_rng(1).normal(size=(len(ids), others))
    planted = pd.DataFrame(genes, index=table.index).reindex(ids).to_numpy(np.float64, copy=True)
    planted[-1] = 0.5
    names = (*(f"G{at}" for at in range(others)), *genes)
    assert file.genes is not None
    values = np.hstack([noise, planted]).astype(np.float32)
    return find_gene_leaks(file, table, GenesRecord(ids, names, values, file.genes))


def level(table: pd.DataFrame, name: str, **codes: float) -> np.ndarray:
    return np.array([codes[str(word).replace(" ", "_")] for word in table[name]], np.float64)


@pytest.mark.proves("A3.4", "G.input")
@pytest.mark.parametrize("column", ["idh", "grade", "os_months", "status", "mutations", "age", "sex", "AFP"])
def test_every_kind_of_leak_is_refused_by_its_column(random: np.random.Generator, column: str) -> None:
    table = patients(random)
    idh, months, died = table["idh"].to_numpy(float), table["os_months"], (table["status"] != "alive").astype(float)
    planted: dict[str, dict[str, Any]] = {
        "idh": {"mutant": idh, "wildtype": 1 - idh, "scored": 1.7 * idh - 0.9},
        "grade": {"who": level(table, "grade", G2=2, G3=3, G4=4), "high": level(table, "grade", G2=0, G3=1, G4=1)},
        "os_months": {"months": months, "days": (months * 30.4).round(), "log": np.log2(months + 1), "risk": -months},
        "status": {"os_event": died, "words": level(table, "status", alive=0, dead_of_it=5, dead=3)},
        "mutations": {"mutation_count": table["mutations"].astype(float)},
        "age": {"age": (table["age"] - 50) / 11},
        "sex": {"SEX": level(table, "sex", f=1, m=2)},
        "AFP": {"AFP": table["AFP"]},
    }
    leaks = restating(table, cohort(), planted[column])
    assert {(leak.column, leak.verdict, leak.how) for leak in leaks} == {
        (name, "refused", "values") for name in planted[column]
    }
    assert all(f"restate '{column}'" in leak.message and "genes.ignore" in leak.message for leak in leaks)
    gaps = {name: np.where(np.arange(N) % 7 == 0, np.nan, values) for name, values in planted[column].items()}
    assert {leak.column for leak in restating(table, cohort(), gaps)} == set(gaps)
    allowed = restating(table, cohort(None, **{column: {"allow_as_feature": True}}), planted[column])
    assert {leak.verdict for leak in allowed} == {"allowed"}


@pytest.mark.proves("A3.4", "G.input")
def test_genes_named_like_a_column_and_genes_that_follow_a_label_pass(random: np.random.Generator) -> None:
    table = patients(random)
    idh = table["idh"].to_numpy(float)
    almost = idh.copy()
    almost[0] = 1 - almost[0]
    innocent = {
        "AFP": table["AFP"] + random.normal(0, 0.1, N),
        "IDH": random.normal(0, 1, N),
        "idh1": almost,
        "separates": random.random(N) + 2 * idh,  # a marker, which tells them apart, and more
        "old": table["age"].to_numpy() / 10,  # like a feature, under another name: a feature may be known
        "sex": random.normal(0, 1, N) + 3 * level(table, "sex", f=0, m=1),  # XIST, say
        "zero": np.zeros(N),
        "time": table["os_months"] + random.normal(0, 3, N),
    }
    assert restating(table, cohort(), innocent) == []


@pytest.mark.proves("G.input")
def test_what_may_be_luck_is_warned_of_in_one_line_unless_its_name_says_what_it_is(random: np.random.Generator) -> None:
    table = patients(random, 12)
    few = {f"DETECTED{at}": random.permutation(np.arange(12) % 2) for at in range(60)}
    label = table["idh"].to_numpy(float)
    chance = restating(table, cohort(), {**few, "RARE": label, "SELDOM": 1 - label})
    (found,) = [leak for leak in chance if "'idh'" in leak.message]
    assert (found.verdict, found.column) == ("warned", "RARE") and "and 1 more" in found.message
    named = restating(table, cohort(), {**few, "RARE": label, "idh": label})
    assert {(leak.column, leak.verdict) for leak in named if "'idh'" in leak.message} == {
        ("RARE", "warned"),
        ("idh", "refused"),
    }
    assert [leak.verdict for leak in restating(table, cohort(), {"RARE": label})] == ["refused"]
    tiny = patients(random, 6)
    assert restating(tiny, cohort(), {"RARE": tiny["idh"].astype(float), "LONG": tiny["os_months"]}) == []


@pytest.mark.proves("A3.4", "G.input")
def test_a_merged_export_is_refused_before_anything_is_written(random: np.random.Generator, tmp_path: Path) -> None:
    table = patients(random, 12)
    table.to_csv(tmp_path / "clinical.csv", index_label="id")
    genes = pd.DataFrame(random.normal(size=(12, 30)).round(4), index=table.index).add_prefix("GENE")
    genes = genes.assign(IDH=table["idh"].astype(int), os_months=table["os_months"], age=table["age"])
    genes.to_csv(tmp_path / "genes.csv")
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "0.png")
    rows = [f"{one},0,0.png" for one in table.index]
    (tmp_path / "slices.csv").write_text("\n".join(["patient_id,slice_index,image", *rows]) + "\n")
    file = cohort(tmp_path)
    with pytest.raises(InputError) as caught:
        ingest(file, tmp_path / "store")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'genes.csv'}: 3 genes are columns of the clinical table")
    assert "column 'IDH': its values restate 'idh', the label of task 'idh', in all 12 patients" in text
    assert "column 'os_months': its values restate 'os_months', the survival time" in text
    assert "column 'age'" in text and not (tmp_path / "store").exists()
    tree = file.portable()
    tree["genes"]["ignore"] = ["IDH", "os_months", "age"]
    stored = ingest(parse_cohort_file(tree, "c.yaml", tmp_path), tmp_path / "store").genes()
    assert stored is not None and len(stored.gene_ids) == 30
