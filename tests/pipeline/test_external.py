"""`medform evaluate --model`: a frozen segmentation on the patients of another cohort."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort.genes_spec import GenesSpec
from medform.cohort.masks_spec import Masks
from medform.cohort.store import Cohort
from medform.config import load
from medform.errors import InputError
from medform.pipeline.evaluate import evaluate
from medform.pipeline.export import export
from medform.pipeline.frozen_segmentation import load_segmenter
from medform.pipeline.phantom import phantom
from medform.recipes.recipe import Recipe
from medform.runs.folder import RunFolder, read_json
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
    scores = evaluate(model=model, cohort=hospital, out=tmp_path / "run").path
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
    assert "1 of 6 patients have no genes" in (found["mgi - mgi_null_genes", "dice_patient"].note or "")
    marked = {row.model for row in rows if "upstream_transductive" in (row.note or "")}
    assert marked == {"mgi", "mgi - mgi_null_genes"}
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


def test_lesion_is_what_both_cohorts_call_by_one_name_and_what_cannot_be_told_is_refused() -> None:
    from medform.pipeline.external import _lesion_numbers
    from medform.pipeline.frozen_segmentation import lesion_names

    def told(
        values: list[int] | None, trained: dict[str, list[int]] | None, found: list[int], **declared: list[int]
    ) -> Any:
        model = {"mask_values": values, "mask_names": lesion_names(trained, values)}
        numbers, problem = _lesion_numbers(model, declared, found)
        assert (problem is None) == bool(numbers)
        return numbers or str(problem)

    both = {"organ": [1], "tumour": [2]}
    assert told([2], both, [1, 2], organ=[2], tumour=[1]) == [1]
    assert told(None, {"tumour": [1]}, [1, 2], **both) == [2]
    assert told([2], None, [1, 2]) == [2]
    assert told(None, None, [7]) == [7]
    assert told(None, None, [1, 2, 4], lesion=[1, 2, 4]) == [1, 2, 4]
    assert "label 2 is lesion, and no mask holds it: there is 1. Name tumour" in told([2], both, [1])
    assert "label 2 is lesion, and no mask holds it: there is 1 (lesion)." in told([2], None, [1], lesion=[1])
    assert "any label is lesion, and no mask holds it: there is none." in told(None, None, [])
    assert "any label is lesion, and the masks have several: organ, tumour." in told(None, None, [1, 2], **both)
    assert "any label is lesion, and the masks have several: 1, 2." in told(None, None, [1, 2])
    assert "draws tumour, which masks.values does not name: it names cyst." in told([2], both, [2], cyst=[2])
    assert "to the model tumour is lesion, and no mask holds it" in told([2], both, [1], organ=[1], tumour=[])
    said = told([2], both, [1, 2])
    assert "to the model tumour is lesion, and masks.values does not say which label is: there are 1, 2." in said
    assert "Name tumour in masks.values" in said
    # half of what `part` stands for is lesion: its name says nothing, its number still does
    assert told([2], {"part": [1, 2]}, [1, 2], part=[1], other=[2]) == [2]


def test_a_cohort_whose_masks_hold_no_label_of_the_model_is_refused_before_anything_is_drawn(
    other_store: Cohort,
) -> None:
    from medform.pipeline.external import _checked

    segmenter: Any = SimpleNamespace(unit=other_store.unit, genes=None, reads_genes=False)
    config = {"segmentation": {"mask_values": [2]}}
    with pytest.raises(InputError, match="label 2 is lesion, and no mask holds it: there is 1") as caught:
        _checked(segmenter, other_store, config, {}, "cohort.yaml")
    assert caught.value.exit_code == 2 and caught.value.where == "cohort.yaml"
    config = {"segmentation": {"mask_values": None}}
    found = _checked(segmenter, other_store, config, {}, "cohort.yaml")
    assert (found.genes, found.values, found.unchecked) == (None, [1], None)
    assert found.notes == ["lesion is label 1 of the masks"]


def test_labels_taken_by_number_alone_are_told_in_log_run_and_every_row(
    other_store: Cohort, caplog: pytest.LogCaptureFixture
) -> None:
    """A model without names for its labels cannot know that the cohort calls the same number something else."""
    from medform.pipeline.external import _checked, _rows, _unchecked

    named = replace(other_store, file=other_store.file.model_copy(update={"masks": Masks(values={"organ": [1]})}))
    segmenter: Any = SimpleNamespace(name="mgi", unit=other_store.unit, genes=None, reads_genes=False)
    found = _checked(segmenter, named, {"segmentation": {"mask_values": [1]}}, {}, "cohort.yaml")
    said = "label 1 (organ) was taken for lesion: that number is the lesion of the training; the model's labels have no"
    assert found.values == [1] and str(found.unchecked).startswith(said) and found.notes == [found.unchecked]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [found.unchecked]
    case = {"cohort": "h", "task": "segmentation", "protocol": "external", "fold": 0, "seed": 0, "model": "mgi"}
    cases = pd.DataFrame(
        case | {"patient_id": one, "metric": metric, "value": 0.5}
        for one in "abcde"
        for metric in ("lesion_voxels", "dice_patient")
    )
    rows = _rows(cases, segmenter, None, "g", found.unchecked)
    assert rows and all("label 1 (organ) was taken for lesion" in (row.note or "") for row in rows)
    tumour, few = {"tumour": [1]}, np.array([90, 10])
    assert _unchecked({"mask_values": [1], "mask_names": ["tumour"]}, tumour, [1], few) is None
    assert "masks.values names no label" in str(
        _unchecked({"mask_values": [1], "mask_names": ["tumour"]}, {}, [1], few)
    )
    assert "it is the only label" in str(_unchecked({"mask_values": None}, {"organ": [1]}, [1], few))
    assert _unchecked({"mask_values": None}, {}, [1], few) is None


def test_a_mask_that_shows_what_lies_around_the_lesion_is_told() -> None:
    from medform.pipeline.external import _unchecked

    said = _unchecked({"mask_values": None}, {}, [1], np.array([4, 96]))
    assert (
        said == "label 1 was taken for lesion: it covers 96% of the masks' voxels, as what lies around a lesion would"
    )


def test_ct_read_as_arbitrary_numbers_does_not_judge_a_model_that_saw_none(other_store: Cohort) -> None:
    from medform.pipeline.external import _checked

    segmenter: Any = SimpleNamespace(name="mgi", unit="raw", genes=None, reads_genes=False)
    raw, config = replace(other_store, unit="raw"), {"segmentation": {"mask_values": None}}
    with pytest.raises(InputError) as caught:
        _checked(segmenter, raw, config, {"unit": "raw", "modalities": ["MR"]}, "cohort.yaml")
    (problem,) = caught.value.problems
    said = "the values of 6 series are HU (modality CT), and the model was trained on MR: "
    assert problem.problem.startswith(said) and "images.select.modality" in str(problem.suggestion)
    found = _checked(segmenter, raw, config, {"unit": "raw"}, "cohort.yaml")
    assert "of 6 patients it is not known whether their images have the unit of the training" in found.notes
    found = _checked(segmenter, raw, config, {"unit": "raw", "modalities": ["CT"]}, "cohort.yaml")
    assert found.notes == ["lesion is label 1 of the masks"]


def test_a_run_among_the_images_of_the_other_cohort_is_refused(model: Path, hospital: Path) -> None:
    out = hospital.parent / "images" / "run"
    with pytest.raises(InputError, match="inside the folder of the images"):
        evaluate(model=model, cohort=hospital, out=out)
    assert not out.exists()


def test_rows_of_a_model_that_reads_genes_say_how_many_patients_had_none() -> None:
    from medform.pipeline.external import _rows

    common = {"cohort": "h", "task": "segmentation", "protocol": "external", "fold": 0, "seed": 0}
    metrics = ("lesion_voxels", "dice_patient")
    cases = pd.DataFrame(
        common | {"model": model, "patient_id": patient, "metric": metric, "value": 0.5}
        for model in ("mgi", "mgi_null_genes")
        for patient in "abcde"
        for metric in metrics
    )
    segmenter: Any = SimpleNamespace(name="mgi", reads_genes=True)
    genes: Any = SimpleNamespace(patient_ids=("a", "b", "not judged"))
    notes = {row.model: row.note or "" for row in _rows(cases, segmenter, genes, "g") if row.metric == "dice_patient"}
    said = "3 of 5 patients have no genes: a stand-in was used"
    assert said in notes["mgi"] and said in notes["mgi - mgi_null_genes"] and said not in notes["mgi_null_genes"]
    everybody: Any = SimpleNamespace(patient_ids=tuple("abcde"))
    assert not any("no genes" in (row.note or "") for row in _rows(cases, segmenter, everybody, "g"))


@pytest.mark.proves("G4.3", "G6.3")
def test_rows_say_that_the_publisher_standardised_the_genes_over_all_patients(
    other_store: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medform.inputs.genes import GeneEncoder
    from medform.pipeline.external import _checked, _rows

    genes = other_store.genes()
    assert genes is not None and genes.upstream_transductive
    encoder = GeneEncoder.fit(genes, genes.patient_ids)
    segmenter: Any = SimpleNamespace(name="mgi", unit=other_store.unit, genes=encoder, reads_genes=True)
    config = {"segmentation": {"mask_values": None}}
    given = _checked(segmenter, other_store, config, {}, "cohort.yaml")
    assert given.genes is not None and given.upstream_transductive
    common = {"cohort": "h", "task": "segmentation", "protocol": "external", "fold": 0, "seed": 0, "value": 0.5}
    cases = pd.DataFrame(
        common | {"model": model, "patient_id": patient, "metric": metric}
        for model in ("mgi", "mgi_null_genes")
        for patient in genes.patient_ids
        for metric in ("lesion_voxels", "dice_patient")
    )
    for said in (True, False):
        rows = _rows(cases, segmenter, given.genes, "g", upstream_transductive=said)
        marked = {row.model for row in rows if "upstream_transductive" in (row.note or "")}
        assert marked == ({"mgi", "mgi - mgi_null_genes"} if said else set())
    without: Any = SimpleNamespace(name="unet", unit=other_store.unit, genes=None, reads_genes=False)
    assert not _checked(without, other_store, config, {}, "cohort.yaml").upstream_transductive
    monkeypatch.setattr(Cohort, "genes", lambda _: replace(genes, upstream_transductive=False))
    assert not _checked(segmenter, other_store, config, {}, "cohort.yaml").upstream_transductive


def test_a_model_folder_keeps_which_column_of_the_gene_file_holds_the_ids(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from medform.pipeline.frozen_segmentation import segmentation_parts
    from medform.recipes.recipe import read_recipe

    for name in ("model", "genes"):
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "genes.json").write_text("{}")
    spec = GenesSpec(path="genes.csv", scale="zscore", patient_id="case", ignore=["centre"])
    cohort: Any = SimpleNamespace(file=SimpleNamespace(genes=spec, masks=None))
    folder: Any = SimpleNamespace(stage=lambda *_: tmp_path)
    parts = segmentation_parts(folder, cohort, read_recipe("mgi-small"), 0, 0)
    assert parts is not None and parts.genes is not None
    assert parts.genes["file"]["patient_id"] == "case" and parts.genes["file"]["ignore"] == ["centre"]


def test_a_model_folder_keeps_what_the_training_cohort_calls_the_lesion(
    segmenting_run: Path, gene_store: Cohort
) -> None:
    from medform.pipeline.frozen_segmentation import segmentation_parts

    folder = RunFolder(segmenting_run)
    recipe = load(Recipe, folder.path / "recipe.yaml")
    file = gene_store.file.model_copy(update={"masks": Masks(values={"tumour": [1]})})
    parts = segmentation_parts(folder, replace(gene_store, file=file), recipe, recipe.seeds[0], 0)
    assert parts is not None and parts.config["mask_names"] == ["tumour"]
