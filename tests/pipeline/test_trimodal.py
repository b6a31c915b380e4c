"""Images, table and genes in one space: any patient may lack any of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.pipeline.run import run_stages
from medform.recipes.recipe import read_recipe
from medform.runs.folder import RunFolder
from medform.runs.scores import read_scores

TINY = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.batch=24",
    "stages.pretrain.budget={steps: 2}",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [2, head], pca: 16}",
    "stages.align.towers.genes={kind: mamba, width: 8, layers: 1, state: 4, patch: 8}",
    "stages.align.budget={steps: 5}",
    "variants={out_of_fold: {stages.align.patients: {inner_folds: 2}}}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)


@pytest.mark.proves("G3.2")
def test_three_modalities_are_aligned_and_each_patient_brings_what_it_has(gene_store: Cohort, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        done = run_stages(
            folder, gene_store, read_recipe("trimodal", TINY), [0], "cpu", resume=False, overwrite=False, progress=None
        )
    found = pd.read_parquet(done.run / "embeddings.parquet")
    aligned = found[(found["model"] == "aligned") & (found["supports"] == "aligned")]
    assert set(aligned["patient_id"]) == set(gene_store.patient_ids)
    projected = pd.read_parquet(done.run / "projections.parquet")
    assert set(projected["modality"]) == {"image", "clinical", "genes"}
    rows = read_scores(done.run / "scores.json")
    tasks = {row.task for row in rows if row.protocol == "retrieval" and row.model == "aligned"}
    assert tasks == {"image_to_table", "table_to_image", "image_to_genes", "genes_to_image"}
