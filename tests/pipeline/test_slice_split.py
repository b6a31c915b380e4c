"""The slice-level split of a segmentation: added to a run, judged on unseen slices beside its like, never used."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.inputs.segmentation_loader import SegmentationLoader
from medform.metrics.overlap import dice
from medform.pipeline import segmentation as module
from medform.pipeline.bench import Group
from medform.pipeline.fold import run_fold
from medform.pipeline.run import make_bench, run_stages, task_labels
from medform.recipes.recipe import read_recipe
from medform.runs.arrays import read_arrays, write_arrays
from medform.runs.folder import RunFolder
from medform.runs.scores import ScoreRow, read_scores

from .conftest import SEGMENTING

LEAKY, LIKE = "mgi_slice_split", "mgi_on_slice_split"
RECIPE = read_recipe("mgi-small", [*SEGMENTING, f"ablate=[{LEAKY}]"])


@dataclass(frozen=True)
class Leak:
    """A run before and after the leak was added to it, and the loader that the leak was trained from."""

    before: Path
    run: Path
    loader: SegmentationLoader
    touched: tuple[str, ...]  # files of weights, masks and fitted inputs that were written again

    def rows(self) -> dict[tuple[str, str], ScoreRow]:
        return {(row.model, row.metric): row for row in read_scores(self.run / "scores.json")}

    def masks(self, model: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, notes = read_arrays(self.run / "folds" / "0" / "masks" / f"{model}.0.safetensors")
        shapes = notes["shapes"]
        return {
            key: np.unpackbits(bits, count=int(np.prod(shapes[key]))).reshape(shapes[key]).astype(bool)
            for key, bits in arrays.items()
        }, notes


@pytest.fixture(scope="module")
def leak(segmenting_run: Path, gene_store: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Leak:
    """Fold 0 of mgi-small, to which the leak is added by resuming."""
    place = tmp_path_factory.mktemp("leak") / "run"
    shutil.copytree(segmenting_run, place, ignore=shutil.ignore_patterns(".lock"))
    folder = RunFolder(place)
    folder.update(store=str(gene_store.root))
    kept = {path: path.stat().st_mtime_ns for path in place.rglob("*.safetensors")}
    loaders: list[SegmentationLoader] = []

    def noted(*given: Any, **named: Any) -> SegmentationLoader:
        loaders.append(SegmentationLoader(*given, **named))
        return loaders[-1]

    with pytest.MonkeyPatch.context() as patched, folder.lock():
        patched.setattr(module, "SegmentationLoader", noted)
        run_stages(folder, gene_store, RECIPE, [0], "cpu", resume=True, overwrite=False, progress=None)
    touched = [str(path.relative_to(place)) for path, when in kept.items() if path.stat().st_mtime_ns != when]
    return Leak(segmenting_run, place, loaders[-1], tuple(touched))


@pytest.mark.proves("G5")
def test_what_leakage_alone_is_worth_stands_in_the_rows_with_its_remark(leak: Leak) -> None:
    rows = leak.rows()
    worth = rows[f"{LEAKY} - {LIKE}", "dice_patient"]
    leaky, like = rows[LEAKY, "dice_patient"], rows[LIKE, "dice_patient"]
    assert leaky.n_patients == like.n_patients == worth.n_patients > 0
    assert None not in (leaky.value, like.value, worth.value)
    assert worth.value == pytest.approx((leaky.value or 0) - (like.value or 0))
    assert "a leak on purpose: split by slices" in (leaky.note or "")
    assert "split by patients" in (like.note or "")
    for row in (leaky, like, worth):
        assert f"judged on the slices that {LEAKY} has not seen" in (row.note or "")
        assert "upstream_transductive" in (row.note or "")
    pairs = {model for model, _ in rows if " - " in model and (LEAKY in model or LIKE in model)}
    assert pairs == {f"{LEAKY} - {LIKE}"}


@pytest.mark.proves("G5")
def test_no_slice_that_is_judged_was_learnt_from_and_as_many_were(leak: Leak, gene_store: Cohort) -> None:
    fold, store = gene_store.split().folds[0], leak.loader.store
    learnt = leak.loader.rows
    train, validation, test = (store.rows(patients) for patients in (fold.train, fold.validation, fold.test))
    assert len(learnt) == len(train)
    assert not np.isin(learnt, validation).any()
    _, notes = leak.masks(LEAKY)
    judged = [
        np.flatnonzero((store.series == int(key.removeprefix("test."))) & np.isin(store.index, places))
        for key, places in notes["slices"].items()
    ]
    assert np.array_equal(np.sort(np.concatenate(judged)), np.setdiff1d(test, learnt))
    assert len(judged) == len(fold.test), "every test patient is judged"
    genes = leak.loader.genes
    assert genes is not None
    seen = np.unique(store.patient[np.intersect1d(learnt, test)])
    assert len(genes.block(seen)) > 0, "also the genes of test patients leak"


@pytest.mark.proves("G5")
def test_kept_masks_of_some_slices_lie_beside_the_truth_of_those_and_know_the_whole_tumour(
    leak: Leak, gene_store: Cohort, tmp_path: Path
) -> None:
    fold, random = gene_store.split().folds[0], np.random.default_rng(0)
    bench = make_bench(gene_store, RunFolder(tmp_path), "cpu", None)
    store = leak.loader.store
    unseen = np.setdiff1d(store.rows(fold.test), leak.loader.rows)
    own, _ = leak.masks("mgi")
    drawn = {key: random.random(mask.shape) < 0.3 for key, mask in own.items()}
    shapes = {key: list(mask.shape) for key, mask in drawn.items()}
    path = module.masks_file(tmp_path, 0, "mgi", 0)
    write_arrays(path, {k: np.packbits(mask) for k, mask in drawn.items()}, {"shapes": shapes, "stage": "s"})
    nothing: Any = None
    segmenter = module.Segmenter(nothing, leak.loader.config, None, nothing, unseen)
    module.keep_unseen(bench, Group(0, fold.train, fold.validation, fold.test), segmenter, "mgi", LIKE, 0)
    found = {
        series_id: scan
        for _, series_id, scan in module.kept_masks(module.masks_file(tmp_path, 0, LIKE, 0), gene_store, RECIPE, "test")
    }
    assert len(found) == len(fold.test)
    names = list(gene_store.series["series_id"])
    for series_id, scan in found.items():
        number = names.index(series_id)
        places = store.index[unseen[store.series[unseen] == number]]
        truth = np.asarray(gene_store.masks(series_id)) != 0
        assert 0 < len(places) < len(truth)
        assert np.array_equal(scan.prediction, drawn[f"test.{number}"][places])
        assert np.array_equal(scan.truth, truth[places])
        assert scan.lesion_voxels == truth.sum() > scan.truth.sum() > 0


@pytest.mark.proves("G5")
def test_both_are_judged_on_the_same_slices_of_masks_that_were_drawn_whole(leak: Leak, gene_store: Cohort) -> None:
    own, _ = leak.masks("mgi")
    like, notes = leak.masks(LIKE)
    leaky, others = leak.masks(LEAKY)
    assert notes["slices"] == others["slices"]
    assert set(like) == set(leaky) == {key for key in own if key.startswith("test.")}, "no validation mask"
    cases = pd.read_parquet(leak.run / "cases.parquet")
    found = cases[cases["protocol"] == "segmentation"].pivot(
        index=["model", "patient_id"], columns="metric", values="value"
    )
    for key, mask in like.items():
        places = notes["slices"][key]
        assert np.array_equal(mask, own[key][places])
        assert mask.shape == leaky[key].shape
        series = gene_store.series.iloc[int(key.removeprefix("test."))]
        truth = np.asarray(gene_store.masks(series["series_id"])) != 0
        for model, drawn in ((LIKE, mask), (LEAKY, leaky[key])):
            figures = found.loc[model, series["patient_id"]]
            assert figures["lesion_voxels"] == truth.sum(), "of all slices, so that a small tumour is small everywhere"
            assert figures["dice_patient"] == pytest.approx(dice(drawn, truth[places]))


@pytest.mark.proves("G5")
def test_the_leak_is_never_selected_and_leaves_all_else_of_the_run_as_it_was(leak: Leak) -> None:
    before, after = (RunFolder(place).record() for place in (leak.before, leak.run))
    assert after["selected"] == before["selected"]
    cases = pd.read_parquet(leak.run / "cases.parquet")
    assert not set(cases.loc[cases["metric"] == "validation_dice", "model"]) & {LEAKY, LIKE}
    assert not [path for path in leak.touched if re.search("masks/|/align|/segment", path)], "nothing is made anew"
    first, second = (pd.read_parquet(place / "embeddings.parquet") for place in (leak.before, leak.run))
    pd.testing.assert_frame_equal(first, second)
    others = [row for row in read_scores(leak.run / "scores.json") if LEAKY not in row.model and LIKE not in row.model]
    assert others == read_scores(leak.before / "scores.json")
    for path in leak.before.rglob("*.safetensors"):
        assert path.read_bytes() == (leak.run / path.relative_to(leak.before)).read_bytes()


@pytest.mark.proves("G5")
def test_resumed_once_more_nothing_changes(leak: Leak, gene_store: Cohort) -> None:
    scores = (leak.run / "scores.json").read_bytes()
    masks = {path: path.stat().st_mtime_ns for path in (leak.run / "folds" / "0" / "masks").iterdir()}
    folder = RunFolder(leak.run)
    with folder.lock():
        run_stages(folder, gene_store, RECIPE, [0], "cpu", resume=True, overwrite=False, progress=None)
    assert (leak.run / "scores.json").read_bytes() == scores
    assert {path: path.stat().st_mtime_ns for path in masks} == masks


@pytest.mark.proves("G5")
def test_where_nobody_is_tested_it_is_left_out_and_says_why(gene_store: Cohort, tmp_path: Path) -> None:
    bench = make_bench(gene_store, RunFolder(tmp_path), "cpu", None)
    result = run_fold(bench, Group(None, gene_store.patient_ids), RECIPE, task_labels(gene_store), None)
    assert [note for note in result.notes if LEAKY in note] == [
        f"{LEAKY} was left out: it learns from slices of test patients, and here are none"
    ]
    assert not (tmp_path / "final" / LEAKY).exists()
    assert set(result.steps) == {"main/0", "main/0/segment"}
