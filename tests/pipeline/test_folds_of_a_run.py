"""Which folds and seeds of a run are done, judged and recorded, also where it was killed while it grew.

Nothing is trained here: the folds leave vectors of no meaning.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.config import dump
from medform.errors import InputError
from medform.evaluation.settings import EvaluationSettings
from medform.pipeline.align import align
from medform.pipeline.bench import Group
from medform.pipeline.evaluate import _slice_rows, evaluate, evaluate_run
from medform.pipeline.fold import FoldResult
from medform.pipeline.fold_rows import rows_of
from medform.pipeline.plan import Plan
from medform.pipeline.run import RunResult, fold_groups, keep_fold, merge_folds, refuse_early, run_stages, task_labels
from medform.pipeline.segmentation import _write_masks, masks_file
from medform.recipes.recipe import Recipe, read_recipe
from medform.reporting.flow import read_flow
from medform.runs.arrays import write_arrays
from medform.runs.folder import RunFolder, RunIdentity, write_json
from medform.runs.scores import read_scores

LEAN = ("variants={}", "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}")


def lean(*overrides: str, name: str = "medform-small") -> Recipe:
    return read_recipe(name, (*LEAN, *overrides))


def vectors_of(group: Group, seeds: list[int]) -> FoldResult:
    """What a fold leaves, without training."""
    random = np.random.default_rng(0)
    drawn = random.normal(size=(len(group.everybody), 3))
    return FoldResult(
        embeddings=[rows_of(group, "image_only", "aligned", seed, group.everybody, drawn) for seed in seeds]
    )


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Folds are not trained and nothing is planned or exported; the primary task that each fold was told."""
    told: list[Any] = []

    def run_fold(_bench: Any, group: Group, recipe: Recipe, _labels: Any, primary: str | None) -> FoldResult:
        told.append(primary)
        return vectors_of(group, list(recipe.seeds))

    monkeypatch.setattr("medform.pipeline.fold.run_fold", run_fold)
    monkeypatch.setattr("medform.pipeline.plan.make_plan", lambda *_: Plan((), False, (), {}, 0.0, 0.0, {}))
    monkeypatch.setattr("medform.pipeline.export.export_model", lambda *_: None)
    return told


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is judged or reported."""
    monkeypatch.setattr("medform.pipeline.evaluate.evaluate_run", lambda *_: [])
    monkeypatch.setattr("medform.pipeline.report.report", lambda path: path / "report.html")


def start(cohort: Cohort, out: Path, recipe: Recipe, folds: list[int] | None = None, *, resume: bool) -> RunResult:
    folder = RunFolder(out)
    with folder.lock():
        return run_stages(folder, cohort, recipe, folds, "cpu", resume=resume, overwrite=False, progress=None)


def seeds_by_fold(run: Path) -> dict[int, set[int]]:
    frame: Any = pd.read_parquet(run / "embeddings.parquet")
    return {int(fold): set(part["seed"]) for fold, part in frame.groupby("fold")}


@pytest.mark.proves("A5.2", "U7")
@pytest.mark.usefixtures("untrained", "unjudged")
def test_a_fold_killed_while_a_seed_is_added_is_gone_through_again(
    small_store: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, more = tmp_path / "run", lean("seeds=[0, 1]")
    start(small_store, run, lean(), resume=False)
    assert RunFolder(run).record()["status"] == "complete"
    write = pd.DataFrame.to_parquet

    def killed(frame: pd.DataFrame, path: Path, **options: Any) -> None:
        if "embeddings" in path.name and path.parent.name == "1":
            raise KeyboardInterrupt
        write(frame, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_parquet", killed)
        with pytest.raises(KeyboardInterrupt):
            start(small_store, run, more, resume=True)
    assert RunFolder(run).record()["status"] == "running"
    with pytest.raises(InputError, match="has not finished"):
        align(run, tmp_path / "aligned")
    start(small_store, run, more, resume=True)
    assert seeds_by_fold(run) == {0: {0, 1}, 1: {0, 1}, -1: {0, 1}}
    assert RunFolder(run).record()["status"] == "complete"
    start(small_store, run, more, resume=True)  # nothing is left to do
    assert RunFolder(run).record()["status"] == "complete"


@pytest.mark.proves("A4.4")
def test_of_a_run_that_got_a_seed_in_one_fold_only_that_fold_is_aligned(
    small_store: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = RunFolder(tmp_path / "run"), []
    identity = RunIdentity(dump(lean("seeds=[0, 1]")), {small_store.name: small_store.digest}, "0")
    facts = {"recipe": "medform-small", "store": str(small_store.root), "folds_run": [0]}
    folder.begin(identity, status="folds", **facts)
    write_json(folder.path / "final" / "facts.json", {"seeds": [0]})
    monkeypatch.setattr("medform.pipeline.align.run_stages", lambda *given, **_: asked.append(given[3]))
    align(folder.path, tmp_path / "out", overrides=LEAN)
    folder.update(status="complete")
    align(folder.path, tmp_path / "out", overrides=LEAN)
    assert asked == [[0], None]


@pytest.mark.proves("A6.1", "A7")
@pytest.mark.usefixtures("unjudged")
def test_the_first_task_is_the_primary_one_where_none_is_marked(
    small_store: Cohort, tmp_path: Path, untrained: list[Any]
) -> None:
    tasks = [task.model_copy(update={"primary": False}) for task in small_store.tasks]
    cohort = replace(small_store, file=small_store.file.model_copy(update={"tasks": tasks}))
    done = start(cohort, tmp_path / "run", lean(), [0], resume=False)
    assert untrained == ["malignant"]
    assert [task["primary"] for task in RunFolder(done.run).record()["tasks"]] == [True]
    flow = read_flow(done.run)
    assert flow is not None and flow.steps[-1].name == "patients with a label for malignant"


@pytest.mark.proves("G6.3", "A5.2")
@pytest.mark.usefixtures("untrained")
def test_survival_without_any_task_is_judged_in_every_fold(
    gene_store: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = replace(gene_store, file=gene_store.file.model_copy(update={"tasks": []}))
    with pytest.raises(InputError, match="no fold 7"):
        refuse_early(lean(), cohort.file, [7], "cpu")
    done = start(cohort, tmp_path / "run", lean(), resume=False)
    record = RunFolder(done.run).record()
    assert (record["folds"], record["folds_run"], record["status"]) == (2, [0, 1], "complete")
    rows = {row.metric: row for row in read_scores(done.run / "scores.json") if row.model == "image_only"}
    assert rows["c_index"].value is not None and rows["c_index"].protocol == "survival"
    assert done.report.is_file()
    monkeypatch.setattr("medform.pipeline.records.open_store", lambda _: cohort)
    before = (done.run / "scores.json").read_bytes()
    assert evaluate(done.run).path.read_bytes() == before


def with_masks(cohort: Cohort, out: Path, held: dict[int, list[int]], merged: list[int]) -> RunFolder:
    """A run folder whose folds hold masks of seeds 0 and 1, and say that they are done with those of ``held``."""
    folder, recipe = RunFolder(out), lean("seeds=[0, 1]", name="mgi-small")
    folder.begin(RunIdentity(dump(recipe), {cohort.name: cohort.digest}, "0"), status="running")
    series = {str(patient): place for place, patient in enumerate(cohort.series["patient_id"])}
    groups = [group for group in fold_groups(cohort, None) if group.fold is not None]
    for group in groups:
        assert group.fold is not None
        drawn = {}
        for part, patients in (("validation", group.validation), ("test", group.test)):
            for place in (series[patient] for patient in patients):
                truth = cohort.masks(str(cohort.series["series_id"].iloc[place]))
                assert truth is not None
                drawn[f"{part}.{place}"] = np.asarray(truth) > 0
        for seed in (0, 1):
            _write_masks(masks_file(out, group.fold, "mgi", seed), drawn, "stage")
        keep_fold(folder, group, vectors_of(group, held[group.fold]), lean(f"seeds={held[group.fold]}"))
    merge_folds(folder, [group for group in groups if group.fold in merged])
    return folder


@pytest.mark.proves("G5", "A5.2")
@pytest.mark.parametrize(
    ("held", "merged", "judged"),
    [
        ({0: [0, 1], 1: [0]}, [0], {(0, 0), (0, 1)}),  # a seed was added to fold 0 alone
        ({0: [0, 1], 1: [0]}, [0, 1], {(0, 0), (1, 0)}),  # killed after fold 0 had it, then judged
        ({0: [0, 1], 1: [0, 1]}, [0, 1], {(0, 0), (0, 1), (1, 0), (1, 1)}),
    ],
)
def test_masks_are_judged_in_the_folds_and_with_the_seeds_that_the_run_is_of(
    gene_store: Cohort, tmp_path: Path, held: dict[int, list[int]], merged: list[int], judged: set[tuple[int, int]]
) -> None:
    cohort = replace(gene_store, file=gene_store.file.model_copy(update={"survival": None}))
    folder = with_masks(cohort, tmp_path / "run", held, merged)
    recipe = lean("seeds=[0, 1]", name="mgi-small")
    no_task: Any = task_labels(cohort)[[]]
    rows = evaluate_run(folder, cohort, recipe, no_task)
    cases = pd.read_parquet(folder.path / "cases.parquet")
    assert set(zip(cases["fold"], cases["seed"], strict=True)) == judged
    dice = next(row for row in rows if row.metric == "dice_patient" and row.model == "mgi")
    tested = {one for fold in merged for one in cohort.split().folds[fold].test}
    assert dice.value == 1.0 and dice.seeds == len({seed for _, seed in judged}) and dice.n_patients <= len(tested)


def test_slices_are_probed_in_the_folds_that_the_run_is_of_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, probed = RunFolder(tmp_path), []
    for fold in (0, 1):
        write_arrays(tmp_path / "folds" / str(fold) / "slices.safetensors", {"image_only": np.ones((2, 3), np.float32)})

    def probe(features: Any, *_: Any, folds: list[int], **__: Any) -> list[Any]:
        probed.append((folds, sorted(features["image_only"])))
        return []

    monkeypatch.setattr("medform.evaluation.slice_probe.slice_probe", probe)
    cohort: Any = SimpleNamespace(
        name="c",
        slice_tasks=(SimpleNamespace(name="blob"),),
        slice_labels=lambda _: None,
        split=lambda: SimpleNamespace(folds=(None, None)),
        slices=pd.DataFrame({"series_id": ["s", "s"], "index": [0, 1]}),
        open=lambda _: SimpleNamespace(slice=lambda index: np.full((16, 16), float(index))),
    )
    assert _slice_rows(folder, cohort, EvaluationSettings(), None, {}, [1]) == []
    assert probed == [([1], [1])]
