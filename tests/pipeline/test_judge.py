"""Vectors of any encoder, judged like ours: rows and controls, the same folds, and files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cli.main import invoke
from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.pipeline.judge import GIVEN, judge_vectors, read_vectors
from medform.pipeline.phantom import phantom
from medform.runs.scores import ScoreRow, read_scores

HOSPITAL = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}


def write(path: Path, **columns: Any) -> Path:
    pd.DataFrame(columns).to_parquet(path, index=False)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital, a cohort file of two folds, vectors that know the label, and the run that judged them."""
    place = tmp_path_factory.mktemp("judge")
    truth = phantom(place / "hospital", patients=20, seed=3, options=HOSPITAL)
    text = (place / "hospital" / "cohort.yaml").read_text(encoding="utf-8")
    text = text.replace("folds: 5", "folds: 2").replace("follow_up_months:", "other_months:")
    kept = [line for line in text.splitlines() if not line.startswith(("genes:", "masks:", "survival:"))]
    (place / "cohort.yaml").write_text("\n".join(kept).replace("other_months:", "follow_up_months:"), encoding="utf-8")
    random = np.random.default_rng(0)
    patients = {one.patient_id: float(one.malignant) for one in truth.patients}
    rows = [
        (patient, level, random.normal(size=5) + 3 * label * np.eye(5)[0])
        for patient, label in patients.items()
        for level in ("slice", "series", "series")
    ]
    write(
        place / "vectors.parquet",
        patient_id=[*(one for one, _, _ in rows), "stranger"],
        level=[*(level for _, level, _ in rows), "series"],
        slice_id=None,
        vector=[*(vector.astype(np.float32) for _, _, vector in rows), np.ones(5, np.float32)],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medform.pipeline.judge.RECIPE", "medform-demo")  # the same parts on slices of 64 pixels
        given = ["--embeddings", str(place / "vectors.parquet"), "--cohort", str(place / "cohort.yaml")]
        where = ["--root", str(place / "hospital"), "-o", str(place / "run")]
        assert invoke(["evaluate", *given, *where]) == 0
        first = (place / "run" / "scores.json").read_bytes()
        assert invoke(["evaluate", *given, *where]) == 0  # judged again in the same folder
        assert (place / "run" / "scores.json").read_bytes() == first
    return place


@pytest.fixture(scope="module")
def rows(place: Path) -> list[ScoreRow]:
    return read_scores(place / "run" / "scores.json")


def area(rows: list[ScoreRow], model: str, **more: Any) -> ScoreRow:
    wanted = {"task": "malignant", "protocol": "cross_validation", "metric": "auroc", "model": model} | more
    found = [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]
    return next(row for row in found if row.readout in ("logistic", None))


def test_a_run_among_the_images_of_the_cohort_is_refused(place: Path) -> None:
    hospital = place / "hospital"
    out = hospital / "images" / "run"
    with pytest.raises(InputError, match="inside the folder of the images"):
        judge_vectors(place / "vectors.parquet", place / "cohort.yaml", out, root=hospital)
    assert not out.exists()


@pytest.mark.proves("A6.1")
def test_given_vectors_stand_beside_the_controls_of_the_design(rows: list[ScoreRow], place: Path) -> None:
    models = {row.model for row in rows if row.protocol == "cross_validation"}
    assert {
        "embeddings", "imagenet_encoder", "intensity_stats", "table_logistic", "table_boosting", "fused_unaligned",
        "permuted_labels", "chance",
    } <= models and not {"aligned", "image_only"} & models  # fmt: skip
    given = area(rows, GIVEN)
    assert given.value is not None and given.value > 0.9 and given.ci_low is not None and given.n_patients == 20
    assert {row.model for row in rows if row.protocol == "few_shot"} >= {GIVEN, "imagenet_encoder", "table_logistic"}
    store = Cohort.read(place / "run" / "store")
    frame = pd.read_parquet(place / "run" / "embeddings.parquet")
    frame = frame[(frame["model"] == GIVEN) & (frame["part"] == "test")]
    tested = {fold: set(part["patient_id"]) for fold, part in frame.groupby("fold")}
    assert tested == {number: set(fold.test) for number, fold in enumerate(store.split().folds)}


@pytest.mark.proves("A6.1", "A7")
def test_the_run_folder_has_its_report_and_says_what_is_not_known(place: Path) -> None:
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["status"] == "complete" and record["recipe"] == GIVEN and record["spent"]["cpu_minutes"] > 0
    assert any("nobody checked" in note for note in record["notes"])
    assert any("1 patients of the given vectors are not in the cohort" in note for note in record["notes"])
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    assert "On malignant, given vectors scores" in page and "vectors of another encoder" in page


@pytest.mark.proves("A6.1")
def test_a_patient_is_the_mean_of_its_series_and_of_its_slices_where_there_is_none(tmp_path: Path) -> None:
    found = read_vectors(
        write(
            tmp_path / "v.parquet",
            patient_id=["a", "a", "a", "b", "b"],
            level=["slice", "series", "series", "slice", "slice"],
            slice_id=["s1", None, None, "s2", "s3"],
            vector=[[9.0, 9.0], [1.0, 2.0], [3.0, 4.0], [5.0, 0.0], [7.0, 0.0]],
        )
    )
    assert {one: vector.tolist() for one, vector in found.patients.items()} == {"a": [2.0, 3.0], "b": [6.0, 0.0]}
    assert {one: vector.tolist() for one, vector in found.slices.items()} == {
        "s1": [9.0, 9.0], "s2": [5.0, 0.0], "s3": [7.0, 0.0],
    }  # fmt: skip


@pytest.mark.proves("A6.1")
def test_vectors_of_all_slices_are_probed_by_slice_and_of_some_are_not(small_store: Cohort, tmp_path: Path) -> None:
    ids = small_store.slices["slice_id"].tolist()
    columns: dict[str, Any] = {
        "patient_id": small_store.slices["patient_id"].tolist(), "level": "slice", "slice_id": ids,
        "vector": [[float(number), 1.0] for number in range(len(ids))],
    }  # fmt: skip
    whole = read_vectors(write(tmp_path / "all.parquet", **columns)).of_slices(small_store)
    assert whole is not None and whole[:, 0].tolist() == list(range(len(ids)))
    columns = {key: value if isinstance(value, str) else value[1:] for key, value in columns.items()}
    assert read_vectors(write(tmp_path / "some.parquet", **columns)).of_slices(small_store) is None


@pytest.mark.proves("A.input")
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"patient_id": ["a"], "vec": [[1.0]]}, ["level", "vector"]),
        ({"patient_id": ["a"], "level": ["case"], "vector": [[1.0]]}, ["'case': unknown level", "slice, series"]),
        (
            {"patient_id": list("abc"), "level": "series", "vector": [[1.0], [1.0, 2.0], [float("nan")]]},
            ["patient 'c' holds a value that is not finite", "different lengths: 1, 2"],
        ),
        ({"patient_id": ["a"], "level": "series", "vector": ["none"]}, ["patient 'a' has no vector"]),
        ({"patient_id": [], "level": [], "vector": []}, ["no row"]),
        (
            {"patient_id": ["a", "a"], "level": "slice", "slice_id": ["s", "s"], "vector": [[1.0], [2.0]]},
            ["'s': 1 slices stand twice"],
        ),
        (
            {"patient_id": ["a", "b"], "level": ["slice", "series"], "slice_id": None, "vector": [[1.0], [1.0, 2.0]]},
            ["vectors of another length"],
        ),
    ],
)
def test_a_file_that_cannot_be_judged_is_refused_with_all_its_faults(
    columns: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        read_vectors(write(tmp_path / "v.parquet", **columns))
    assert all(words in str(refused.value) for words in said), str(refused.value)


@pytest.mark.proves("A.input")
def test_what_is_no_file_of_vectors_or_no_combination_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "v.parquet").write_text("patient_id,vector")
    for path, said in ((tmp_path / "none.parquet", "no such file"), (tmp_path / "v.parquet", "not a readable Parquet")):
        with pytest.raises(InputError, match=said):
            read_vectors(path)
    for arguments, said in (
        (["--embeddings", "v.parquet"], "--embeddings needs --cohort and -o"),
        (["RUN", "--embeddings", "v.parquet", "--cohort", "c.yaml", "-o", "R"], "RUN cannot go with --embeddings"),
        (["RUN", "--cohort", "c.yaml"], "--cohort: a run is judged in its own folder"),
    ):
        assert invoke(["evaluate", *arguments]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.proves("A.input")
def test_vectors_of_other_patients_are_refused_with_suggestions(place: Path, tmp_path: Path) -> None:
    store = Cohort.read(place / "run" / "store")
    ids = [f"case-{one}" for one in store.patient_ids]
    path = write(tmp_path / "v.parquet", patient_id=ids, level="series", vector=[[1.0]] * len(ids))
    with pytest.raises(InputError, match=r"no patient id of the vectors.*\n.*looks like"):
        judge_vectors(path, place / "cohort.yaml", tmp_path / "run", place / "hospital")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.proves("A.input")
def test_other_vectors_in_the_folder_of_a_judged_run_are_refused(place: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(place / "vectors.parquet")
    frame.iloc[::-1].to_parquet(tmp_path / "other.parquet")
    before = (place / "run" / "run.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medform.pipeline.judge.RECIPE", "medform-demo")
        with pytest.raises(InputError, match="another configuration"):
            judge_vectors(tmp_path / "other.parquet", place / "cohort.yaml", place / "run", place / "hospital")
    assert (place / "run" / "run.json").read_bytes() == before
