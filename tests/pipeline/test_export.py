"""What `medform export` writes: nothing of a patient or of the hospital's folders, and tables read as in training."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.pipeline.embed import embed
from medform.pipeline.export import export
from medform.pipeline.frozen_encoder import FrozenEncoder
from medform.pipeline.phantom import phantom
from medform.pipeline.predict import Model, predict
from medform.pipeline.run import run_stages
from medform.recipes.recipe import read_recipe
from medform.runs.folder import RunFolder
from medform.runs.model_folder import ModelFiles, read_model

TINY = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.batch=24",
    "stages.pretrain.budget={steps: 2}",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [2, head], pca: 16}",
    "stages.align.budget={steps: 2}",
    "variants={}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)


@pytest.fixture(scope="module")
def exported(phantom_store: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of fold 0, exported into a folder of its own."""
    folder = RunFolder(tmp_path_factory.mktemp("export") / "run")
    with folder.lock():
        run_stages(
            folder,
            phantom_store,
            read_recipe("medform-small", TINY),
            [0],
            "cpu",
            resume=False,
            overwrite=False,
            progress=None,
        )
    return export(folder.path, folder.path.parent / "elsewhere", fold=0)


@pytest.fixture(scope="module")
def model(exported: Path) -> Model:
    return Model.load(exported)


@pytest.mark.proves("A8.2", "U12")
def test_one_fold_s_model_stands_alone_and_gives_its_vectors_again(
    exported: Path, model: Model, phantom_store: Cohort
) -> None:
    frame = pd.read_parquet(exported.parent / "run" / "folds" / "0" / "embeddings.parquet")
    rows = frame[(frame["model"] == "aligned") & (frame["supports"] == "aligned")].set_index("patient_id")["vector"]
    vectors, _ = model.embed_cohort(phantom_store)
    assert len(rows) == len(vectors) == len(phantom_store.patient_ids)
    assert all(abs(vectors[str(patient)] - vector).max() < 1e-5 for patient, vector in rows.items())
    assert json.loads((exported / "preprocess.json").read_text(encoding="utf-8"))["modalities"] == ["CT"]
    names = json.dumps(json.loads((exported / "columns.json").read_text(encoding="utf-8")))
    assert "clinical.csv" not in names and str(exported.parent) not in names


@pytest.mark.proves("A8.2", "A.input")
def test_weights_of_another_architecture_are_refused_with_their_keys(exported: Path) -> None:
    files = read_model(exported)
    key = next(name for name in files.weights if name.startswith("tower.") and files.weights[name].ndim > 1)
    other = {**files.weights, key: files.weights[key][..., :0], "tower.blocks.9.weight": files.weights[key]}
    with pytest.raises(InputError, match=r"another architecture.*2 tensors.*blocks\.9\.weight"):
        FrozenEncoder.rebuild(ModelFiles(**{**vars(files), "weights": other}))


@pytest.mark.proves("A8.2", "U13")
def test_a_row_is_read_alike_whatever_the_training_table_s_dialect_was(model: Model) -> None:
    """A stored separator, sheet, header row or decimal comma is of the table, not of a row of numbers."""
    row = {"age": 61, "marker": 4.25, "sex": "F"}
    expected = model.predict(None, row)[0]
    assert expected.probability is not None and expected.degradations == ("no image",)
    columns = dict(model.files.columns or {})
    columns["file"] = {**columns["file"], "separator": ";", "decimal": ",", "header_row": 3, "encoding": "cp1252"}
    german = Model(ModelFiles(**{**vars(model.files), "columns": columns}), model.tower, model.pair)
    assert german.predict(None, row)[0] == expected
    assert german.predict(None, {**row, "marker": "4,25"})[0] == expected


@pytest.mark.proves("A8.2", "U13")
def test_a_table_is_read_in_its_training_layout(model: Model, tmp_path: Path) -> None:
    columns = dict(model.files.columns or {})
    columns["file"] = {**columns["file"], "header_row": 2, "separator": ";"}
    laid_out = Model(ModelFiles(**{**vars(model.files), "columns": columns}), model.tower, model.pair)
    (tmp_path / "new.csv").write_text("exported by the ward;;\nid;age;marker\nnew-1;61;4.25\n", encoding="utf-8")
    frame = laid_out.table.read(tmp_path / "new.csv").frame
    assert list(frame.index) == ["new-1"] and frame["marker"].tolist() == [4.25]
    assert any("sex" in one for one in laid_out.table.encode(frame).said["new-1"])


@pytest.mark.proves("A8.2", "U13")
def test_patients_with_images_and_a_table_get_a_row_for_each_task(exported: Path, tmp_path: Path) -> None:
    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
    phantom(tmp_path / "hospital", patients=3, seed=5, options=options)
    images = tmp_path / "hospital" / "images"
    patients = sorted(set(embed(images, model=exported)["patient_id"]))
    table = pd.DataFrame({"id": patients[:2], "age": [50, 70], "marker": [3.5, ""], "sex": ["F", "other"]})
    table.to_csv(tmp_path / "table.csv", index=False)
    found = predict(images, exported, table=tmp_path / "table.csv", out=tmp_path / "out.csv").set_index("patient_id")
    assert sorted(found.index) == patients and found["probability"].between(0, 1).all()
    assert "too sure" in str(found.loc[patients[0], "degradations"]), "the alignment saw all who calibrate"
    assert ";" not in str(found.loc[patients[0], "degradations"])
    assert "other" in str(found.loc[patients[1], "degradations"])
    assert "no table row" in str(found.loc[patients[2], "degradations"])
    written = pd.read_csv(tmp_path / "out.csv", dtype={"patient_id": str})
    assert list(written["patient_id"]) == list(found.index) and set(written["task"]) == {"malignant"}


@pytest.mark.proves("A8.1", "A.input")
def test_the_window_is_the_model_s_and_another_unit_is_refused(
    model: Model, exported: Path, phantom_store: Cohort
) -> None:
    import dataclasses

    few = phantom_store.select(phantom_store.patient_ids[:2])
    expected, _ = model.embed_cohort(few)
    other, _ = model.embed_cohort(dataclasses.replace(few, window=(-1000.0, 0.0)))
    assert all((other[one] == expected[one]).all() for one in expected)
    with pytest.raises(InputError, match="values of the store are raw"):
        model.embed_cohort(dataclasses.replace(few, unit="raw"))


@pytest.mark.proves("A8.2")
def test_how_images_and_visits_were_chosen_goes_with_the_model(small_store: Cohort, tmp_path: Path) -> None:
    import dataclasses

    from medform.cohort.cohort_file import Images, Select, VisitRule
    from medform.pipeline.export import _table, image_settings

    assert image_settings(small_store) == {
        "select": {"modality": None, "description": None, "kernel": None, "rule": None},
        "assume_hu": False,
        "accept": [],
        "pictures": False,
    }
    images = Images(select=Select(kernel="B30", rule="thinnest"), assume_hu=True, accept=["gap"])
    table = small_store.file.tables["clinical"].model_copy(update={"visit": VisitRule(by="malignant")})
    file = small_store.file.model_copy(update={"images": images, "tables": {"clinical": table}})
    slices = small_store.slices.assign(source="P1/slice_1.PNG")
    changed = dataclasses.replace(small_store, file=file, slices=slices)
    found = image_settings(changed)
    assert found["pictures"] and found["assume_hu"] and found["accept"] == ["gap"]
    assert Select.model_validate(found["select"]) == images.select
    (tmp_path / "columns.json").write_text("{}")
    assert list((_table(tmp_path / "columns.json", changed) or {})["specs"]) == ["age", "marker", "sex", "malignant"]


def test_rows_skipped_in_the_training_table_are_patients_of_a_new_one(small_store: Cohort, tmp_path: Path) -> None:
    """Row 2 held units and row 4 a footnote; only the first is of the layout, also for a model of before."""
    import dataclasses

    from medform.pipeline.export import _table
    from medform.pipeline.new_rows import TrainingTable

    table = small_store.file.tables["clinical"].model_copy(update={"skip_rows": [2, 4], "sheet": "Labor"})
    file = small_store.file.model_copy(update={"tables": {"clinical": table}})
    (tmp_path / "columns.json").write_text('{"columns": []}')
    columns = _table(tmp_path / "columns.json", dataclasses.replace(small_store, file=file))
    assert columns is not None and columns["file"]["skip_rows"] == [2]
    patient = table.patient_id
    (tmp_path / "new.csv").write_text(f"{patient},age\n,years\nnew-1,61\nnew-2,62\nnew-3,63\n")
    for skipped in ([2], [2, 4]):
        read = TrainingTable.of({**columns, "file": {**columns["file"], "skip_rows": skipped}}).read
        assert list(read(tmp_path / "new.csv").frame.index) == ["new-1", "new-2", "new-3"]


def test_a_sheet_of_training_matters_only_where_several_hold_data(tmp_path: Path) -> None:
    import openpyxl

    from medform.pipeline.new_rows import TrainingTable

    number = {"role": "feature", "type": "number", "known_at": "scan"}
    trained = TrainingTable.of(
        {"encoder": {"columns": []}, "specs": {"age": number}, "file": {"patient_id": "id", "sheet": "Labor"}}
    )
    (tmp_path / "t.csv").write_text("id,age\nnew-1,61\n")
    assert trained.read(tmp_path / "t.csv").frame["age"].tolist() == [61.0]
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in (["id", "age"], ["new-1", 62]):
        book.active.append(row)
    book.create_sheet("empty")
    book.save(tmp_path / "t.xlsx")
    assert trained.read(tmp_path / "t.xlsx").frame["age"].tolist() == [62.0]
    for row in (["id", "age"], ["new-1", 63]):
        book["empty"].append(row)
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="no sheet 'Labor'"):
        trained.read(tmp_path / "t.xlsx")
    book["empty"].title = "Labor"
    book.save(tmp_path / "t.xlsx")
    assert trained.read(tmp_path / "t.xlsx").frame["age"].tolist() == [63.0]
    with pytest.raises(InputError, match="no such file"):
        trained.read(tmp_path / "nowhere.csv")
