"""Row numbers in the place of ids: told where another column may be the ids, and never where patients are numbered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort.genes_spec import GenesSpec
from medform.ingestion.expression_text import read_head
from medform.ingestion.row_numbers import other_id_columns

GENES = ["TP53", "BRCA1", "HLA-A", "C1orf112", "EGFR", "MYC", "KRAS"]
PATIENTS = {str(number) for number in range(1, 101)}


def frame_of(rows: int, scale: str = "log2p1") -> pd.DataFrame:
    random = np.random.default_rng(0)
    values = random.gamma(2, 2, (rows, len(GENES)))
    return pd.DataFrame(random.integers(1, 90, values.shape) if scale == "counts" else values, columns=GENES)


def found(folder: Path, frame: pd.DataFrame, patients: set[str] = PATIENTS, **spec: Any) -> list[str]:
    """Columns that may be the ids, in a file as pandas writes it with its index."""
    path = folder / "m.csv"
    frame.to_csv(path)
    head = read_head(path, 200)
    chosen = GenesSpec.model_validate({"path": "m.csv", "scale": "log2p1", **spec})
    return [head.names[place] for place in other_id_columns(path, head, chosen, patients.__contains__)]


@pytest.mark.proves("G.input", "G1.2")
@pytest.mark.parametrize("scale", ["log2p1", "counts"])
@pytest.mark.parametrize("start", [0, 1])
def test_ids_in_a_later_column_are_found_wherever_it_stands(tmp_path: Path, scale: str, start: int) -> None:
    frame = frame_of(40, scale).set_axis(np.arange(start, 40 + start))
    ids = np.random.default_rng(1).permutation(np.arange(31, 131))[:40]  # some are nobody's; row numbers match more
    assert found(tmp_path, frame.assign(case=ids), scale=scale) == ["case"]
    assert found(
        tmp_path, pd.concat([pd.Series(ids % 100 + 1, frame.index, name="KRANKENNR"), frame], axis=1), scale=scale
    )
    assert found(tmp_path, frame.assign(ID=ids).head(4), {*map(str, ids), "2"}, scale=scale) == ["ID"]
    text = [f"P{one}" for one in ids]
    assert found(tmp_path, frame.assign(who=text), {*PATIENTS, *text}, scale=scale) == ["who"]
    assert found(tmp_path, frame.sample(frac=1, random_state=0).assign(case=ids), scale=scale) == ["case"]


@pytest.mark.proves("G.input", "G1.2")
def test_an_ignored_column_is_looked_at_and_rows_beyond_the_first_ones_count(tmp_path: Path) -> None:
    frame = frame_of(300)
    ids = np.concatenate([np.arange(1000, 1200), np.random.default_rng(1).permutation(np.arange(1, 101))])
    assert found(tmp_path, frame.assign(case=ids)) == ["case"]  # no patient among the first 200 rows
    assert found(tmp_path, frame.assign(case=ids), ignore=["case"]) == ["case"]


@pytest.mark.proves("G.input", "G1.2")
@pytest.mark.parametrize("scale", ["log2p1", "counts"])
def test_patients_who_are_numbered_stay_where_no_other_column_holds_their_ids(tmp_path: Path, scale: str) -> None:
    frame = frame_of(60, scale).set_axis(np.arange(1, 61))
    assert found(tmp_path, frame, scale=scale) == []
    assert found(tmp_path, frame.assign(age=np.arange(60) % 37 + 40), scale=scale) == []
    assert found(tmp_path, frame.assign(same=np.arange(1, 61)), scale=scale) == [], "the ids once more"
    assert found(tmp_path, frame_of(3, scale).set_axis([1, 2, 3]), scale=scale) == []
    case = frame.assign(case=np.random.default_rng(1).permutation(np.arange(1, 61)))
    assert found(tmp_path, case.rename_axis("patient"), scale=scale) == [], "a first column with a name of its own"
    assert found(tmp_path, case.set_axis([f"S{one}" for one in range(60)]), scale=scale) == [], "no numbers"


def test_names_that_software_gives_are_none(tmp_path: Path) -> None:
    ids = np.random.default_rng(1).permutation(np.arange(1, 61))
    for name in ("Unnamed: 0", "index", "X", "...1"):
        assert found(tmp_path, frame_of(60).assign(case=ids).rename_axis(name)) == ["case"]
