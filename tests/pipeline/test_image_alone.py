"""A cohort with images and a label but nothing to align with: its model predicts, and says what it cannot answer."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cli.main import invoke
from medform.cohort.quarantine import Quarantined
from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.pipeline import fold
from medform.pipeline.bench import Group
from medform.pipeline.evaluate import evaluate
from medform.pipeline.fold import FoldResult
from medform.pipeline.plan import Plan
from medform.pipeline.predict import Model, predict
from medform.pipeline.run import RunResult, run_stages
from medform.recipes.recipe import read_recipe
from medform.runs.folder import RunFolder
from medform.runs.model_folder import find_model, read_model, write_model

TINY = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.budget={steps: 0}",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [2, head], pca: 16}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)
ASIDE = [
    Quarantined("p", "s", f"{code}.dcm", code, "", "why")
    for code in ("not_selected", "not_selected", "skipped", "gap", "localizer")
]
FAULTS = 2
"""Of these; what was skipped or not asked for is none."""
MODEL_V1 = Path(__file__).parents[1] / "fixtures" / "model_v1"


@dataclass(frozen=True)
class Made:
    """The run, and its cohort."""

    result: RunResult
    cohort: Cohort


@pytest.fixture(scope="module")
def made(phantom_store: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run without any feature column, its final model as it is made; folds are left empty, nothing is judged."""
    columns = {
        name: column if column.role == "label" else column.model_copy(update={"role": "ignore"})
        for name, column in phantom_store.file.columns.items()
    }
    rare = phantom_store.file.tasks[0].model_copy(update={"name": "rare", "primary": False})
    tasks = [*phantom_store.file.tasks, rare]
    file = phantom_store.file.model_copy(update={"columns": columns, "tasks": tasks})
    cohort = replace(phantom_store, file=file)
    assert not cohort.features()
    whole, labels_of = fold.run_fold, Cohort.labels

    def of_everybody(bench: Any, group: Group, *rest: Any) -> FoldResult:
        return whole(bench, group, *rest) if group.fold is None else FoldResult()

    def labels(self: Cohort, task: str) -> pd.Series:
        found = labels_of(self, task)
        keep = found.index[found == 1][:3].union(found.index[found == 0])
        return found if task != "rare" else found.where(found.index.isin(keep))

    folder = RunFolder(tmp_path_factory.mktemp("alone") / "run")
    with pytest.MonkeyPatch.context() as patch, folder.lock():
        patch.setattr(fold, "run_fold", of_everybody)
        patch.setattr(Cohort, "labels", labels)
        patch.setattr(Cohort, "quarantine", lambda _: ASIDE)
        patch.setattr("medform.pipeline.plan.make_plan", lambda *_: Plan((), False, (), {}, 0.0, 0.0, {}))
        patch.setattr("medform.pipeline.evaluate.evaluate_run", lambda *_: [])
        patch.setattr("medform.pipeline.records.write_cohort_pages", lambda *_: None)
        patch.setattr("medform.pipeline.report.report", lambda path: path / "report.html")
        recipe = read_recipe("medform-small", TINY)
        result = run_stages(folder, cohort, recipe, None, "cpu", resume=False, overwrite=False, progress=None)
    return Made(result, cohort)


def test_the_final_model_predicts_from_the_image_alone(made: Made, tmp_path: Path) -> None:
    import nibabel as nib

    frame = pd.read_parquet(made.result.run / "final" / "embeddings.parquet")
    rows = frame[frame["model"] == "image_only"].set_index("patient_id")["vector"]
    model = Model.load(made.result.run)
    vectors, _ = model.embed_cohort(made.cohort)
    assert set(rows.index) == set(vectors) == set(made.cohort.patient_ids)
    assert max(abs(vectors[str(one)] - vector).max() for one, vector in rows.items()) < 1e-5
    series = made.cohort.open(str(made.cohort.series["series_id"].iloc[0]))
    volume = np.stack([series.slice(index) for index in range(len(series))]).transpose(2, 1, 0).astype(np.int16)
    image = nib.Nifti1Image(volume, np.diag([-1.0, -1.0, 3.0, 1.0]))
    nib.save(image, tmp_path / "one.nii.gz")
    found = predict(tmp_path / "one.nii.gz", made.result.run, out=tmp_path / "p.csv").set_index("task")
    assert 0 < found.loc["malignant", "probability"] < 1 and found.loc["malignant", "inputs"] == "image"
    assert "too sure" not in found.loc["malignant", "degradations"], "no alignment saw these patients"


def test_a_task_of_too_few_patients_is_named_with_the_reason_in_card_rows_and_lines(made: Made) -> None:
    model = Model.load(made.result.run)
    assert list(model.readouts) == ["malignant"] and set(model.unanswered) == {"rare"}
    why = model.unanswered["rare"]
    assert why.endswith("labelled patients 3 have the rarer answer, 5 are needed")
    card = (made.result.run / "model" / "README.md").read_text(encoding="utf-8")
    assert "- malignant: from image (24 patients" in card and f"- rare: not answered ({why})." in card
    frame = pd.read_parquet(made.result.run / "final" / "embeddings.parquet")
    vector = frame.loc[frame["model"] == "image_only", "vector"].iloc[0]
    said = {one.task: one for one in model.decide("new", vector, None)}
    assert said["malignant"].probability is not None
    assert (said["rare"].probability, said["rare"].positive, said["rare"].inputs) == (None, None, None)
    assert said["rare"].degradations == (f"not answered by this model: {why}",)


def test_strict_counts_faults_alone_in_a_run_and_where_it_is_judged_again(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made.result.exclusions == FAULTS
    monkeypatch.setattr("medform.pipeline.evaluate.evaluate_run", lambda *_: [])
    monkeypatch.setattr("medform.pipeline.records.open_store", lambda _: made.cohort)
    monkeypatch.setattr(Cohort, "quarantine", lambda _: ASIDE)
    again = evaluate(made.result.run)
    assert again.exclusions == FAULTS and Path(again) == again.path == made.result.run / "scores.json"
    assert invoke(["evaluate", str(made.result.run), "--strict"]) == 3
    assert capsys.readouterr().out.splitlines()[-1] == str(made.result.run / "scores.json")
    monkeypatch.setattr(Cohort, "quarantine", lambda _: ASIDE[:3])
    assert invoke(["evaluate", str(made.result.run), "--strict"]) == 0


def test_a_model_that_answers_no_task_refuses_to_predict_and_says_what_it_can_do(tmp_path: Path) -> None:
    files = read_model(MODEL_V1)
    config = {**files.config, "tasks": [], "unanswered": {"rare": "of 9 labelled patients 1 has it"}}
    write_model(tmp_path / "model", replace(files, probes={}, readouts={}, config=config))
    for asked in (lambda: predict(tmp_path, tmp_path / "model"), lambda: Model.load(tmp_path / "model").predict(None)):
        with pytest.raises(InputError, match="this model answers no task") as raised:
            asked()
        assert raised.value.exit_code == 2 and "medform embed" in str(raised.value)
        assert "task rare: of 9 labelled patients" in str(raised.value)
    out = tmp_path / "p.csv"
    assert invoke(["predict", str(tmp_path), "--model", str(tmp_path / "model"), "-o", str(out)]) == 2
    assert not out.exists()


def test_the_card_says_where_validation_chose_another_model_than_the_folder_holds(made: Made, tmp_path: Path) -> None:
    from medform.pipeline.export import export_model

    folder = RunFolder(Path(shutil.copytree(made.result.run, tmp_path / "run")))
    recipe = read_recipe("medform-small", TINY)
    labels = pd.DataFrame({"malignant": made.cohort.labels("malignant")})
    folder.update(selected={"malignant": "table_logistic"})
    assert export_model(folder, made.cohort, recipe, labels) == find_model(folder.path)
    assert "validation chose" not in (folder.path / "model" / "README.md").read_text(encoding="utf-8")
    folder.update(selected={"malignant": "supervised_mil", "segmentation": "unet"})
    export_model(folder, made.cohort, recipe, labels)
    card = (folder.path / "model" / "README.md").read_text(encoding="utf-8")
    held = "The model folder holds the recipe's own model"
    assert f"- malignant: {held} (image_only); validation chose supervised_mil." in card
    assert f"- segmentation: {held} (medform); validation chose unet." in card
