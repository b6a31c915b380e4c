"""`medform evaluate --model`: a frozen segmentation on the patients of another cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.pipeline.evaluate import evaluate
from medform.pipeline.export import export
from medform.pipeline.frozen_segmentation import load_segmenter
from medform.pipeline.phantom import phantom
from medform.runs.folder import read_json
from medform.runs.scores import read_scores


@pytest.fixture(scope="module")
def model(segmenting_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(segmenting_run, tmp_path_factory.mktemp("external") / "model", fold=0)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("other")
    options: Any = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
    phantom(root / "h", patients=4, seed=11, options=options)
    return root / "h" / "cohort.yaml"


@pytest.mark.proves("G4.3")
def test_a_frozen_model_is_scored_on_other_patients_as_a_count_of_its_own_masks_says(
    model: Path, hospital: Path, other_store: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medform.ingestion.ingest.ingest", lambda *_, **__: other_store)
    scores = evaluate(model=model, cohort=hospital, out=tmp_path / "run")
    rows = read_scores(scores)
    assert rows and {row.protocol for row in rows} == {"external"}
    found = {(row.model, row.metric): row for row in rows}
    assert {"mgi", "mgi_null_genes", "mgi - mgi_null_genes"} <= {row.model for row in rows}
    cohort = other_store
    segmenter = load_segmenter(model)
    genes = cohort.genes()
    assert genes is not None and segmenter.genes is not None
    store, encoded = segmenter.slices(cohort), segmenter.genes.encode(genes)
    dice: dict[str, list[float]] = {}
    for place, series in enumerate(cohort.series["series_id"]):
        mask = cohort.masks(str(series))
        if mask is None:
            continue
        drawn, true = segmenter.draw(cohort, store, place, encoded), np.asarray(mask) > 0
        if both := drawn.sum() + true.sum():
            patient = str(cohort.series.iloc[place]["patient_id"])
            dice.setdefault(patient, []).append(2 * (drawn & true).sum() / both)
    assert found["mgi", "dice_patient"].n_patients == len(dice)
    assert found["mgi", "dice_patient"].value == pytest.approx(np.mean([one[0] for one in dice.values()]))
    cases = pd.read_parquet(tmp_path / "run" / "cases.parquet")
    assert set(cases["protocol"]) == {"external"}
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "complete" and any("must not share" in note for note in record["notes"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "On other cohorts" in page and "mgi_null_genes" in page


@pytest.mark.proves("G4.3", "G.input")
def test_the_model_s_own_cohort_one_of_another_scale_and_one_without_masks_are_refused(
    model: Path, hospital: Path, tmp_path: Path, gene_store: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medform.pipeline import external

    with pytest.raises(InputError, match=r"log2.*zscore"):
        external.judge_frozen(model, hospital, tmp_path / "scale")
    monkeypatch.setattr("medform.ingestion.ingest.ingest", lambda *_, **__: gene_store)
    with pytest.raises(InputError) as caught:
        external.judge_frozen(model, hospital, tmp_path / "own")
    assert [problem.problem for problem in caught.value.problems] == ["the model was trained on this very cohort."]
    monkeypatch.setattr(Cohort, "masks", lambda *_: None)
    with pytest.raises(InputError) as caught:
        external.judge_frozen(model, hospital, tmp_path / "none")
    assert "no series has a mask." in [problem.problem for problem in caught.value.problems]
    assert not (tmp_path / "none" / "scores.json").exists()


@pytest.mark.proves("G4.3")
def test_what_cannot_go_together_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--embeddings cannot go with --model") as caught:
        evaluate(model=tmp_path, embeddings=tmp_path)
    assert "--model MODEL --cohort FILE -o RUN" in (caught.value.fix or "")
