"""A run's model as a folder: rebuilt strictly, equal to the run, honest about what is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.ingestion.ingest import ingest_scan
from medform.pipeline.embed import embed
from medform.pipeline.phantom import phantom
from medform.pipeline.predict import Model, predict
from medform.pipeline.run import run_stages
from medform.pipeline.scans import left_out, modalities, unsure
from medform.recipes.recipe import read_recipe
from medform.runs.folder import RunFolder

TINY = (
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.batch=24",
    "stages.pretrain.budget={steps: 2}",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [2, head], pca: 16}",
    "stages.align.budget={steps: 3}",
    "variants={}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)


@pytest.fixture(scope="module")
def run(phantom_store: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = RunFolder(tmp_path_factory.mktemp("predict") / "run")
    with folder.lock():
        run_stages(
            folder,
            phantom_store,
            read_recipe("medform-small", TINY),
            None,
            "cpu",
            resume=False,
            overwrite=False,
            progress=None,
        )
    return folder.path


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return Model.load(run)


@pytest.mark.proves("A8.2", "U12", "D12")
def test_the_exported_model_gives_the_run_s_own_vectors(run: Path, model: Model, phantom_store: Cohort) -> None:
    vectors, _ = model.embed_cohort(phantom_store)
    frame = pd.read_parquet(run / "final" / "embeddings.parquet")
    rows = frame[(frame["model"] == "aligned")].set_index("patient_id")["vector"]
    assert set(rows.index) == set(vectors)
    for patient, vector in rows.items():
        np.testing.assert_allclose(vectors[str(patient)], vector, atol=1e-5)


@pytest.mark.proves("A8.2")
def test_the_folder_holds_no_pickle_and_no_patient(run: Path, phantom_store: Cohort) -> None:
    names = {path.name for path in (run / "model").iterdir()}
    assert names == {
        "model.safetensors", "config.json", "preprocess.json", "columns.json", "probes.safetensors", "README.md",
        "LICENSE", "CITATION.cff", "selftest.safetensors",
    }  # fmt: skip
    for path in (run / "model").iterdir():
        content = path.read_bytes()
        assert not [one for one in phantom_store.patient_ids if f'"{one}"'.encode() in content], path.name
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "Not a medical device" in card and "synthetic" in card


@pytest.mark.proves("A8.2", "U12", "A.input")
def test_a_changed_model_folder_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    changed = tmp_path / "model"
    shutil.copytree(run / "model", changed)
    test = load_file(changed / "selftest.safetensors")
    save_file({**test, "vector": test["vector"] + 1}, changed / "selftest.safetensors")
    with pytest.raises(InputError, match="self-test fails"):
        Model.load(changed)
    weights = load_file(changed / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "conv_head" not in k}, changed / "model.safetensors")
    with pytest.raises(InputError, match="conv_head"):
        Model.load(changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "schema_version": 9}))
    with pytest.raises(InputError, match="another format"):
        Model.load(changed)
    with pytest.raises(InputError, match="no model folder"):
        Model.load(tmp_path / "nothing")


@pytest.mark.proves("A8.2", "U13")
def test_what_is_missing_is_said_and_never_a_zero_in_silence(model: Model) -> None:
    row = {"age": "61", "marker": "4.2", "sex": "F"}
    whole = model.predict(None, row)[0]
    assert whole.inputs == "table" and whole.probability is not None and "no image" in whole.degradations
    fewer = model.predict(None, {"marker": "4.2"})[0]
    assert any("age" in said for said in fewer.degradations) and any("sex" in said for said in fewer.degradations)
    odd = model.predict(None, {**row, "sex": "X"})[0]
    assert any("'X' was not seen" in said for said in odd.degradations)
    nothing = model.decide("p", None, None)[0]
    assert nothing.probability is None and nothing.inputs is None
    assert "not a medical device" in whole.note


@pytest.mark.proves("A8.2", "A8.1", "U5")
def test_new_patients_are_predicted_from_their_files(run: Path, tmp_path: Path) -> None:
    hospital = tmp_path / "hospital"
    phantom(hospital, patients=3, seed=5, options={"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0})
    found = predict(hospital / "images", run, out=tmp_path / "p.csv")
    assert found["patient_id"].nunique() == 3 and found["probability"].between(0, 1).all()
    assert set(found["inputs"]) == {"image"}
    assert found["degradations"].str.contains("no table row").all()
    written = pd.read_csv(tmp_path / "p.csv", dtype=str)
    assert list(written["patient_id"]) == list(found["patient_id"])
    vectors = embed(hospital / "images", model=run, out=tmp_path / "e.parquet")
    assert set(vectors["level"]) == {"slice", "series"}
    assert len(pd.read_parquet(tmp_path / "e.parquet")) == len(vectors)


@pytest.mark.proves("A8.1", "U5")
def test_a_scan_and_its_nifti_copies_embed_alike(tmp_path: Path) -> None:
    """DICOM against NIfTI stored LPS and RAS, by the ImageNet start."""
    import nibabel as nib

    from medform.ingestion.ingest import ingest_scan

    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
    phantom(tmp_path / "hospital", patients=2, seed=3, options=options)
    source = sorted(path for path in (tmp_path / "hospital" / "images").iterdir() if path.is_dir())[0]
    cohort = ingest_scan(source, tmp_path / "store")
    series = cohort.open(str(cohort.series["series_id"].iloc[0]))
    assert series.affine_lps is not None
    volume = np.stack([series.slice(index) for index in range(len(series))])
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine = to_ras @ series.affine_lps  # columns of affine_lps belong to (column, row, slice)
    image = nib.Nifti1Image(volume.transpose(2, 1, 0).astype(np.int16), affine)
    nib.save(image, tmp_path / "lps.nii.gz")
    nib.save(nib.as_closest_canonical(image), tmp_path / "ras.nii.gz")
    vectors = [
        embed(path).query("level == 'series'")["vector"].iloc[0]
        for path in (source, tmp_path / "lps.nii.gz", tmp_path / "ras.nii.gz")
    ]
    for other in vectors[1:]:
        cosine = float(vectors[0] @ other / np.linalg.norm(vectors[0]) / np.linalg.norm(other))
        assert cosine > 0.999


@pytest.mark.proves("A8.2", "U13")
def test_nobody_is_given_another_ones_row_and_nobody_vanishes(run: Path, tmp_path: Path) -> None:
    """One row for several patients and a table of other people are refused; a scan set aside keeps its patient."""
    options = {"size": 48, "follow_ups": 0, "second_kernels": 0}
    truth = phantom(tmp_path / "hospital", patients=3, seed=5, options=options)
    images = tmp_path / "hospital" / "images"
    (tmp_path / "row.json").write_text(json.dumps({"age": 60, "marker": 3.5, "sex": "F"}))
    with pytest.raises(InputError, match="one row was given for"):
        predict(images, run, row=tmp_path / "row.json")
    (tmp_path / "others.csv").write_text("id,age,marker,sex\nX1,60,3.5,F\nX2,61,3.6,M\n")
    with pytest.raises(InputError, match="no patient id of the table is one of the images"):
        predict(images, run, table=tmp_path / "others.csv")
    found = predict(images, run).set_index("patient_id")
    gap = next(one for one, reason in truth.exclusions.items() if "slice" in reason or "gap" in reason)
    assert pd.isna(found.loc[gap, "inputs"]) and "image set aside (gap)" in str(found.loc[gap, "degradations"])


@pytest.mark.proves("A8.2", "D10")
def test_the_self_test_sees_the_preprocessing(run: Path, tmp_path: Path) -> None:
    changed = tmp_path / "model"
    shutil.copytree(run / "model", changed)
    preprocess = json.loads((changed / "preprocess.json").read_text())
    low, high = preprocess["window"]
    (changed / "preprocess.json").write_text(json.dumps({**preprocess, "window": [low - 100, high + 100]}))
    with pytest.raises(InputError, match="self-test fails"):
        Model.load(changed)
    del preprocess["window"]
    (changed / "preprocess.json").write_text(json.dumps(preprocess))
    with pytest.raises(InputError, match="damaged"):
        Model.load(changed)


@pytest.mark.proves("A8.2")
def test_an_export_over_somebody_s_folder_is_refused(run: Path, tmp_path: Path) -> None:
    from medform.pipeline.export import export

    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and holds no model"):
        export(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


MODEL_V1 = Path(__file__).parents[1] / "fixtures" / "model_v1"
ROW = {
    "age (years)": 61,
    "sex": "F",
    "weight (kg)": 70,
    "smoking": "never",
    "marker": 30.5,
    "ldh (U/L)": 250,
    "room": 120,
}


def nifti(path: Path, low: int = -1000, high: int = 1500, shape: tuple[int, ...] = (32, 32, 3)) -> Path:
    """A NIfTI file of random values: CT-like ones, or what lies between ``low`` and ``high``."""
    import nibabel

    values = np.random.default_rng(0).integers(low, high, shape).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


def frozen(folder: Path, **images: object) -> Path:
    """The committed model, its preprocessing knowing ``images``."""
    shutil.copytree(MODEL_V1, folder)
    preprocess = json.loads((folder / "preprocess.json").read_text())
    (folder / "preprocess.json").write_text(json.dumps({**preprocess, "images": images}))
    return folder


def of_raw(folder: Path, modalities: list[str] | None) -> Path:
    """The committed model as if it were trained on arbitrary numbers of these modalities (None: not known)."""
    frozen(folder)
    preprocess = json.loads((folder / "preprocess.json").read_text()) | {"unit": "raw"}
    known = {} if modalities is None else {"modalities": modalities}
    (folder / "preprocess.json").write_text(json.dumps(preprocess | known))
    return folder


@pytest.mark.proves("A8.2", "U13")
def test_several_series_are_pooled_with_a_word_or_left_to_the_training_s_choice(tmp_path: Path) -> None:
    for name in ("A/one.nii.gz", "A/two.nii.gz", "B/one.nii.gz"):
        nifti(tmp_path / "scans" / name)
    old = predict(tmp_path / "scans", MODEL_V1).set_index("patient_id")
    assert old.loc["A", "degradations"].str.contains("2 series pooled: A/one.nii.gz, A/two.nii.gz").all()
    assert not old.loc["B", "degradations"].str.contains("pooled").any()
    model = frozen(tmp_path / "model", select={"rule": None})
    new = predict(tmp_path / "scans", model).set_index("patient_id")
    assert new.loc["A", "probability"].isna().all() and new.loc["B", "probability"].notna().all()
    assert new.loc["A", "degradations"].str.contains("several_series").all() and new.attrs["exclusions"] == 2
    assert set(embed(tmp_path / "scans", model=model).query("level == 'series'")["series_id"]) == {
        "A/one.nii.gz", "A/two.nii.gz", "B/one.nii.gz",
    }  # fmt: skip


@pytest.mark.proves("A8.2", "A.input")
def test_a_scan_that_is_not_known_to_be_hu_says_so(tmp_path: Path) -> None:
    found = predict(nifti(tmp_path / "mr.nii.gz", low=0), MODEL_V1)
    assert found["degradations"].str.contains("unit_assumed: .*mr.nii.gz").all()
    assert not predict(nifti(tmp_path / "ct.nii.gz"), MODEL_V1)["degradations"].str.contains("unit").any()


def test_ct_is_refused_by_a_model_of_arbitrary_numbers_that_saw_none(tmp_path: Path) -> None:
    """The other way round than a model of HU, which refuses what is no HU; DICOM says what its numbers are."""
    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
    phantom(tmp_path / "hospital", patients=2, seed=3, options=options)
    images = tmp_path / "hospital" / "images"
    model = of_raw(tmp_path / "mr", ["MR"])
    refused = r"none of the 2 series can be used.(.|\n)*unit_differs: .* HU \(modality CT\).* trained on MR"
    for asked in (lambda: predict(images, model), lambda: embed(images, model=model)):
        with pytest.raises(InputError) as caught:
            asked()
        assert re.search(refused, str(caught.value)) and caught.value.exit_code == 2
    assert predict(nifti(tmp_path / "mr.nii.gz"), model)["probability"].notna().all()
    store = ingest_scan(images, tmp_path / "store", unit="raw").root
    with pytest.raises(InputError, match=r"the values of 2 series are HU (.|\n)*images\.select\.modality"):
        embed(store, model=model)
    trained = of_raw(tmp_path / "ct", ["CT", "MR"])  # on CT of which the cohort file said that its numbers be raw
    assert not predict(images, trained)["degradations"].str.contains("unit").any()


def test_a_stray_ct_among_scans_for_a_model_that_saw_none_is_set_aside_alone(tmp_path: Path) -> None:
    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
    phantom(tmp_path / "hospital", patients=2, seed=3, options=options)
    strays = sorted(path for path in (tmp_path / "hospital" / "images").iterdir() if path.is_dir())
    shutil.copytree(strays[0], tmp_path / "scans" / "stray")
    for name in ("A", "B"):
        nifti(tmp_path / "scans" / f"{name}.nii.gz", low=0)
    model = of_raw(tmp_path / "model", ["MR"])
    found = predict(tmp_path / "scans", model).set_index("patient_id")
    (stray,) = set(found.index) - {"A", "B"}
    assert found.loc[["A", "B"], "probability"].notna().all() and found.loc[stray, "probability"].isna().all()
    assert found.loc[stray, "degradations"].str.contains(r"image set aside \(unit_differs\)").all()
    assert found.attrs["exclusions"] == 1
    embedded = embed(tmp_path / "scans", model=model)
    assert set(embedded["patient_id"]) == {"A", "B"} and embedded.attrs["exclusions"] == 1
    (aside,) = embedded.attrs["left_out"]
    assert "(unit_differs): its values are HU (modality CT), and the model was trained on MR." in aside


def test_what_a_layout_calls_its_images_is_no_modality_that_dicom_states(tmp_path: Path) -> None:
    """A model trained on CT of a BIDS or nnU-Net folder, read as raw, is not known to have seen no CT."""
    nifti(tmp_path / "bids" / "sub-1" / "ct" / "sub-1_ct.nii.gz")
    nifti(tmp_path / "nnunet" / "imagesTr" / "a_0000.nii.gz")
    for layout, named in (("bids", "ct"), ("nnunet", "channel 0")):
        cohort = ingest_scan(tmp_path / layout, tmp_path / f"{layout}_store", unit="raw", layout=layout)
        assert list(cohort.series["modality"]) == [named] and modalities(cohort) == [""]
    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
    phantom(tmp_path / "hospital", patients=2, seed=3, options=options)
    assert modalities(ingest_scan(tmp_path / "hospital" / "images", tmp_path / "ct_store")) == ["CT"]
    said = predict(tmp_path / "hospital" / "images", of_raw(tmp_path / "model", ["ct"]))["degradations"]
    assert not said.str.contains("unit").any()


@pytest.mark.parametrize("modalities", [None, [""], ["", "MR"]])
def test_ct_carries_a_remark_where_it_is_not_known_what_a_model_of_arbitrary_numbers_saw(
    modalities: list[str] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Model folders of before do not say what they were trained on, and NIfTI files never do."""
    options = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
    phantom(tmp_path / "hospital", patients=2, seed=3, options=options)
    images = tmp_path / "hospital" / "images"
    model = of_raw(tmp_path / "model", modalities)
    found = predict(images, model)
    assert found["degradations"].str.contains(r"unit_assumed: .*its values are HU \(modality CT\)").all()
    assert found["probability"].notna().all()
    embed(images, model=model)
    assert any("its values are HU" in record.message for record in caplog.records if record.levelname == "WARNING")


def test_values_beyond_grey_ones_are_no_display_images(tmp_path: Path) -> None:
    nifti(tmp_path / "scans" / "wide.nii.gz", low=0)
    nifti(tmp_path / "scans" / "grey.nii.gz", low=0, high=256)
    cohort = ingest_scan(tmp_path / "scans", tmp_path / "store", unit="display")
    assert cohort.patient_ids == ("grey",) and not unsure(cohort)
    assert [line.split(":")[0] for line in left_out(cohort)] == ["patient wide, wide.nii.gz (beyond_display)"]


@pytest.mark.proves("A8.1", "A8.2", "A1.4")
def test_nothing_that_was_left_out_goes_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file cut short names no patient, and a usable patient's other file is set aside: both are told."""
    from medform.cli.main import invoke

    nifti(tmp_path / "scans" / "A" / "a.nii.gz")
    nifti(tmp_path / "scans" / "A" / "odd.nii.gz", shape=(8, 8, 3, 2))
    nifti(tmp_path / "scans" / "C" / "c.nii.gz")
    cut = nifti(tmp_path / "scans" / "B" / "b.nii.gz")
    cut.write_bytes(cut.read_bytes()[:40])
    found = predict(tmp_path / "scans", MODEL_V1)
    assert found.attrs["exclusions"] == 2 and any(line.startswith("B/b.nii.gz (") for line in found.attrs["left_out"])
    odd = found.set_index("patient_id")["degradations"].str.contains(r"image set aside \(not_3d\): A/odd.nii.gz")
    assert odd["A"].all() and not odd["C"].any()
    asked = [str(tmp_path / "scans"), "--model", str(MODEL_V1)]
    assert invoke(["predict", *asked, "--strict"]) == 3
    told = capsys.readouterr()
    assert "left out: B/b.nii.gz" in told.err
    lines = told.out.splitlines()
    assert len(lines) == len(found) + 1 and lines[-1] == "research use only, not a medical device"
    for line, one in zip(lines, found.to_dict("records"), strict=False):
        assert line.startswith(f"patient {one['patient_id']}, {one['task']}: {one['probability']:.3f} (")
        assert "from image; " in line and line.endswith(one["degradations"])
    assert invoke(["predict", *asked, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["left_out"]) == 2
    assert invoke(["embed", *asked, "-o", str(tmp_path / "e.parquet"), "--strict"]) == 3
    told = capsys.readouterr()
    assert "left out: B/b.nii.gz" in told.err and "6 slices of 2 series of 2 patients embedded" in told.out


@pytest.mark.proves("A8.2", "U13")
def test_a_number_of_a_row_file_is_a_number_and_text_is_read_as_in_training(tmp_path: Path) -> None:
    from medform.pipeline.new_rows import read_row

    (tmp_path / "row.yaml").write_text("ldh: 1.234\nmarker: '1.234'\nid: 0123\nsmall: 1e3\nsex: NO\nnone: ~\n")
    assert read_row(tmp_path / "row.yaml") == {
        "ldh": 1.234, "marker": "1.234", "id": "0123", "small": 1000.0, "sex": "NO", "none": None,
    }  # fmt: skip
    for text in ("- 1\n", "", "age: [1, 2]\n"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match=r"bad\.yaml"):
            read_row(tmp_path / "bad.yaml")
    with pytest.raises(InputError, match="no such file"):
        predict(tmp_path, MODEL_V1, row=tmp_path / "no.yaml")
    columns = json.loads((MODEL_V1 / "columns.json").read_text())
    columns["table"]["specs"]["ldh (U/L)"] |= {"decimal": ",", "thousands": "."}
    model = frozen(tmp_path / "model")
    (model / "columns.json").write_text(json.dumps(columns))
    (tmp_path / "row.json").write_text(json.dumps({**ROW, "ldh (U/L)": 1.234}))
    scan = nifti(tmp_path / "ct.nii.gz")
    found = predict(scan, model, row=tmp_path / "row.json")
    assert set(found["inputs"]) == {"both"} and found["degradations"].str.contains(r"1\.234 lies outside").all()
    whole = Model.load(model).predict(scan, {**ROW, "ldh (U/L)": 1.234})
    assert [one.probability for one in whole] == pytest.approx(found["probability"].tolist())


@pytest.mark.proves("A8.2", "U13")
def test_a_row_goes_to_nobody_where_another_patient_s_images_were_set_aside(tmp_path: Path) -> None:
    nifti(tmp_path / "scans" / "A.nii.gz")
    nifti(tmp_path / "scans" / "B.nii.gz", shape=(8, 8, 3, 2))
    (tmp_path / "row.json").write_text(json.dumps(ROW))
    with pytest.raises(InputError, match="one row was given for 2 patients"):
        predict(tmp_path / "scans", MODEL_V1, row=tmp_path / "row.json")
    with pytest.raises(InputError, match="2 patients in one scan"):
        Model.load(MODEL_V1).predict(tmp_path / "scans", ROW)


@pytest.mark.proves("A8.2", "U13")
def test_columns_that_the_model_does_not_know_are_no_row_and_are_named(tmp_path: Path) -> None:
    model = Model.load(MODEL_V1)
    nothing = model.predict(None, {"Weight (KG)": 70, "colour": "red"})[0]
    assert nothing.probability is None and nothing.inputs is None
    assert nothing.degradations == (
        "column 'Weight (KG)' is not known to the model; did you mean 'weight (kg)'?",
        "column 'colour' is not known to the model",
        "no image",
        "no table row",
    )
    (tmp_path / "t.csv").write_text("patient_id,colour,malignant,smokings\nA,red,1,never\n")
    nifti(tmp_path / "A.nii.gz")
    found = predict(tmp_path / "A.nii.gz", MODEL_V1, table=tmp_path / "t.csv")
    assert set(found["inputs"]) == {"image"}
    said = "column 'smokings' is not known to the model; did you mean 'smoking'?; no table row"
    assert all(one.startswith(said) for one in found["degradations"])


@pytest.mark.proves("A8.2", "U13")
def test_a_table_is_joined_ordered_and_read_by_the_rules_of_training(tmp_path: Path) -> None:
    """Ids by `id_rules`, visits by `visit`; 77 beside 31 is an age and no code that nobody here could declare."""
    columns = json.loads((MODEL_V1 / "columns.json").read_text())
    columns["table"]["file"] |= {"id_rules": ["case"], "visit": {"by": "seen", "keep": "first"}}
    columns["table"]["specs"]["seen"] = {"role": "time", "type": "date"}
    model = frozen(tmp_path / "model")
    (model / "columns.json").write_text(json.dumps(columns))
    for name in ("A", "B"):
        nifti(tmp_path / "scans" / f"{name}.nii.gz")
    (tmp_path / "t.csv").write_text("patient_id,age (years),seen\na,77,2020-02-01\na,60,2021-02-01\nb,31,2020-02-01\n")
    found = predict(tmp_path / "scans", model, table=tmp_path / "t.csv").set_index("patient_id")
    assert set(found.index) == {"A", "B"} and set(found["inputs"]) == {"both"}
    assert found.loc["A", "degradations"].str.contains("77 lies outside").all()
    assert found.loc["B", "degradations"].str.contains("31 lies outside").all()
