"""MGI as a recipe: slices aligned with genes, a segmentation from there, its masks judged beside its controls."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from medform.cohort.cohort_file import parse_cohort_file
from medform.cohort.quarantine import Verdict
from medform.cohort.store import Cohort, CohortWriter, SeriesRecord, SliceRecord
from medform.errors import InputError
from medform.inputs.genes import GeneSource
from medform.inputs.stacks import SegmentationInputConfig
from medform.pipeline import evaluate as evaluating
from medform.pipeline.bench import Bench
from medform.pipeline.companions import encode_companions
from medform.pipeline.frozen_segmentation import _plain_store
from medform.pipeline.run import RunResult, refuse_early, run_stages
from medform.pipeline.segmentation import _given, check_labels, draw_lesion, segment_task
from medform.pipeline.stages import build_encoder
from medform.recipes.recipe import Recipe, read_recipe
from medform.reporting.table_one import read_table_one
from medform.runs.arrays import read_arrays
from medform.runs.folder import RunFolder
from medform.runs.scores import read_scores

TINY = (
    "stages.align.inputs.image={kind: patient_slices, size: 48, source: 48, slices: 2}",
    "stages.align.towers.genes={kind: mamba, width: 16, layers: 1, state: 4, patch: 8}",
    "stages.align.budget={steps: 2}",
    "stages.segment.inputs.image={kind: segmentation, size: 48, source: 48}",
    "stages.segment.towers.genes={kind: mamba, width: 16, layers: 1, state: 4, patch: 8}",
    "stages.segment.objective.smallest=0",
    "stages.segment.batch=6",
    "stages.segment.budget={steps: 2}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)
MODELS = {"mgi", "mgi_null_genes", "mgi_shuffled_genes", "vit_no_genes", "unet"}


def tiny(*overrides: str) -> Recipe:
    return read_recipe("mgi-small", (*TINY, *overrides))


def start(cohort: Cohort, out: Path, recipe: Recipe, **options: Any) -> RunResult:
    folder = RunFolder(out)
    with folder.lock():
        return run_stages(
            folder, cohort, recipe, [0], "cpu", resume=options.get("resume", False), overwrite=False, progress=None
        )


@pytest.fixture(scope="module")
def mgi_run(gene_store: Cohort, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return start(gene_store, tmp_path_factory.mktemp("mgi") / "run", tiny())


@pytest.mark.proves("G5", "G4.3", "G.done")
def test_every_model_of_the_segmentation_has_rows_with_interval_and_paired_differences(mgi_run: RunResult) -> None:
    rows = [row for row in read_scores(mgi_run.run / "scores.json") if row.protocol == "segmentation"]
    dice = {row.model: row for row in rows if row.metric == "dice_patient"}
    assert set(dice) >= MODELS
    assert {"mgi - vit_no_genes", "mgi - mgi_shuffled_genes", "mgi - unet"} <= set(dice)
    tested = len({row.n_patients for row in rows if row.model in MODELS and row.metric == "dice_patient"})
    assert tested >= 1 and all(row.n_patients for row in rows if row.value is not None)


@pytest.mark.proves("G3.1", "G6.3")
def test_image_genes_and_both_are_embedded_and_probed_and_met_in_retrieval(
    mgi_run: RunResult, gene_store: Cohort
) -> None:
    found = pd.read_parquet(mgi_run.run / "embeddings.parquet")
    assert {"aligned", "aligned_genes", "aligned_both", "imagenet_encoder", "random_encoder"} <= set(found["model"])
    genes = gene_store.genes()
    assert genes is not None
    with_genes = set(genes.patient_ids)
    assert set(found.loc[found["model"] == "aligned_genes", "patient_id"]) == with_genes
    assert set(found.loc[found["model"] == "aligned", "patient_id"]) == set(gene_store.patient_ids)
    rows = read_scores(mgi_run.run / "scores.json")
    probed = {row.model for row in rows if row.protocol == "cross_validation" and row.metric == "auroc"}
    assert {"aligned", "aligned_genes", "aligned_both", "genes_logistic", "table_logistic"} <= probed
    assert any(row.protocol == "retrieval" for row in rows)


@pytest.mark.proves("G6.3")
def test_figures_of_genes_that_their_publisher_standardised_over_everybody_say_so(mgi_run: RunResult) -> None:
    rows = [row for row in read_scores(mgi_run.run / "scores.json") if row.value is not None]
    marked = {row.model for row in rows if "upstream_transductive" in (row.note or "")}
    assert {"mgi", "mgi_shuffled_genes", "vit_no_genes", "aligned", "aligned_genes", "aligned_both"} <= marked
    assert "shuffled_pairs" in marked and not marked & {"unet", "table_cox", "table_logistic", "imagenet_encoder"}
    lacking = {row.model for row in rows if "3 patients of the cohort have no genes" in (row.note or "")}
    assert {"mgi", "mgi_shuffled_genes"} <= lacking and not lacking & {"vit_no_genes", "unet", "mgi_null_genes"}


@pytest.mark.proves("G6.3")
def test_vectors_of_a_variant_carry_only_what_is_true_of_them_and_not_of_its_masks(gene_store: Cohort) -> None:
    recipe = read_recipe("mgi-small", ["ablate=[mgi_unaligned, mgi_scratch]"])
    vectors = evaluating._vector_notes(recipe, gene_store.genes())
    masks = evaluating._mask_notes(recipe, gene_store, gene_store.genes())
    assert "mgi_unaligned" not in vectors and vectors["mgi_scratch"] == "upstream_transductive"
    for model in ("mgi_unaligned", "mgi_scratch"):
        assert masks[model].endswith("a stand-in was used; upstream_transductive")
    said = evaluating._vector_notes(read_recipe("trimodal"), gene_store.genes())
    marked = {name for name, note in said.items() if "upstream_transductive" in note}
    assert marked >= {"aligned", "fused", "shuffled_pairs"}
    assert not marked & {"image_only", "imagenet_encoder", "random_encoder", "attention_unaligned", "mgi_scratch"}


@pytest.mark.proves("A7")
def test_table_one_and_the_flow_are_of_the_fold_that_was_run(mgi_run: RunResult, gene_store: Cohort) -> None:
    table = read_table_one(mgi_run.run)
    assert table is not None
    fold = gene_store.split().folds[0]
    assert table.groups == {
        "all": 24,
        "train of fold 0": len(fold.train),
        "validation of fold 0": len(fold.validation),
        "test of fold 0": len(fold.test),
    }
    assert RunFolder(mgi_run.run).record()["folds"] == len(gene_store.split().folds)


@pytest.mark.proves("G6.3")
def test_survival_is_judged_from_table_image_and_genes_beside_the_table_s_cox_model(
    mgi_run: RunResult, gene_store: Cohort
) -> None:
    rows = [row for row in read_scores(mgi_run.run / "scores.json") if row.protocol == "survival"]
    harrell = {row.model: row for row in rows if row.metric == "c_index"}
    assert {"table_cox", "aligned", "aligned_genes", "aligned_both", "aligned - table_cox"} <= set(harrell)
    tested = set(gene_store.split().folds[0].test)
    assert harrell["table_cox"].n_patients == len(tested & set(gene_store.survival().index))
    assert {row.metric for row in rows} >= {"c_index", "c_index_uno"}


@pytest.mark.proves("A1.2", "G6.3")
def test_without_the_extra_survival_is_a_row_that_says_so_and_the_rest_is_judged(
    mgi_run: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {row.protocol for row in read_scores(mgi_run.run / "scores.json")}
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchsurv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchsurv", None)
    evaluating.evaluate(mgi_run.run)
    rows = read_scores(mgi_run.run / "scores.json")
    assert {row.protocol for row in rows} == before
    survival = [row for row in rows if row.protocol == "survival"]
    assert len(survival) == 1 and survival[0].value is None and "medform[survival]" in (survival[0].note or "")
    monkeypatch.undo()
    evaluating.evaluate(mgi_run.run)


@pytest.mark.proves("G6.2", "G5")
def test_test_masks_are_opened_only_after_a_model_was_selected_on_validation(
    mgi_run: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    import medform.pipeline.segmentation as masks

    opened: list[tuple[str, str]] = []
    judge = masks.judge_masks

    def noted(run: Path, cohort: Cohort, recipe: Recipe, folds: Any, part: Any, seeds: Any) -> Any:
        selected = json.loads((run / "run.json").read_text())["selected"].get(masks.SEGMENTATION, "")
        opened.append((part, selected))
        return judge(run, cohort, recipe, folds, part, seeds)

    monkeypatch.setattr(masks, "judge_masks", noted)
    record = json.loads((mgi_run.run / "run.json").read_text())
    assert record["selected"][masks.SEGMENTATION] in {"mgi", "vit_no_genes", "unet"}
    folder = RunFolder(mgi_run.run)
    folder.update(selected={})
    evaluating.evaluate(mgi_run.run)
    assert [part for part, _ in opened] == ["validation", "test"]
    assert opened[0][1] == "" and opened[1][1] == record["selected"][masks.SEGMENTATION]


@pytest.mark.proves("G5", "G4.1")
def test_the_control_without_genes_draws_the_same_masks_with_and_without_them(mgi_run: RunResult) -> None:
    place = mgi_run.run / "folds" / "0" / "masks"
    arrays = {path.stem: read_arrays(path)[0] for path in place.glob("*.safetensors")}
    assert {name.rpartition(".")[0] for name in arrays} == MODELS
    shapes = read_arrays(place / "mgi.0.safetensors")[1]["shapes"]
    assert all(len(shape) == 3 and shape[1:] == [48, 48] for shape in shapes.values())
    bits = {key: int(np.unpackbits(value).sum()) for key, value in arrays["mgi.0"].items()}
    assert set(bits) == set(shapes)


@pytest.mark.proves("G.input", "G5")
def test_a_finished_segmentation_is_not_trained_again_and_scores_the_same(
    mgi_run: RunResult, gene_store: Cohort
) -> None:
    before = (mgi_run.run / "scores.json").read_bytes()
    start(gene_store, mgi_run.run, tiny(), resume=True)
    assert (mgi_run.run / "scores.json").read_bytes() == before


@pytest.mark.proves("G.tests")
def test_the_recipe_runs_on_a_cohort_without_genes_and_says_so(masked_store: Cohort, tmp_path: Path) -> None:
    lean = "variants={vit_no_genes: {stages.segment.objective.gene_dropout: 1.0}}"
    done = start(masked_store, tmp_path / "run", tiny(lean))
    record = json.loads((done.run / "run.json").read_text())
    assert any("genes" in note for note in record["notes"])
    models = {row.model for row in read_scores(done.run / "scores.json") if row.protocol == "segmentation"}
    assert {"mgi", "vit_no_genes"} <= models


@pytest.mark.proves("G.done")
def test_images_and_masks_alone_are_enough_for_a_segmentation(bare_store: Cohort, tmp_path: Path) -> None:
    done = start(bare_store, tmp_path / "run", tiny("variants={}"))
    rows = read_scores(done.run / "scores.json")
    assert {row.model for row in rows if row.metric == "dice_patient"} == {"mgi"}
    RunFolder(done.run).update(judged_commit="of before")
    assert evaluating.evaluate(done.run).path == done.run / "scores.json"
    assert RunFolder(done.run).record()["judged_commit"] != "of before"


@pytest.mark.proves("G5", "G6.1")
def test_ablations_and_seeds_are_added_to_a_finished_run_and_what_is_there_is_kept(
    mgi_run: RunResult, gene_store: Cohort, tmp_path: Path
) -> None:
    shutil.copytree(mgi_run.run, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    RunFolder(tmp_path / "run").update(store=str(gene_store.root))
    masks = tmp_path / "run" / "folds" / "0" / "masks"
    kept = {path: path.stat().st_mtime_ns for path in masks.iterdir()}
    planned = RunFolder(tmp_path / "run").record()["planned"]["cpu_minutes"]
    before = {row.model: row.value for row in read_scores(mgi_run.run / "scores.json") if row.metric == "dice_patient"}
    start(gene_store, tmp_path / "run", tiny("seeds=[0, 1]", "ablate=[mgi_film]"), resume=True)
    found = {row.model: row for row in read_scores(tmp_path / "run" / "scores.json") if row.metric == "dice_patient"}
    assert {"mgi_film", "mgi - mgi_film"} <= set(found)
    assert {row.seeds for row in found.values() if row.value is not None} == {2}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(masks.iterdir())) == 2 * len(kept) + 2
    assert RunFolder(tmp_path / "run").record()["planned"]["cpu_minutes"] > planned
    assert set(before) < set(found)
    whole = (tmp_path / "run" / "recipe.yaml").read_text()
    start(gene_store, tmp_path / "run", tiny(), resume=True)  # asked for less: what is there stays
    assert (tmp_path / "run" / "recipe.yaml").read_text() == whole
    with pytest.raises(InputError, match="another configuration"):
        start(gene_store, tmp_path / "run", tiny("stages.segment.batch=5"), resume=True)


@pytest.mark.proves("G5")
def test_every_shipped_ablation_trains_and_an_unknown_one_is_refused_with_the_known(gene_store: Cohort) -> None:
    recipe = tiny()
    assert {"mgi_scratch", "mgi_pure_vit", "mgi_gene_mlp", "mgi_gene_transformer", "mgi_film"} < set(recipe.ablations)
    whole = recipe.with_ablations(list(recipe.ablations))
    train = gene_store.split().folds[0].train
    companions = encode_companions(gene_store, train, recipe)
    folder, fabric = RunFolder(gene_store.root.parent / "ablations"), Fabric(accelerator="cpu")
    bench = Bench(replace(gene_store, unit="raw"), folder, fabric, 1, None)
    for name in recipe.ablations:
        variant = whole.variant(name)
        encoder, _ = build_encoder(variant, 0, companions)
        objective, loader = segment_task(bench, train, variant, 0, encoder, companions)
        loss, _ = objective(loader.batch(0), 0, torch.Generator().manual_seed(0))
        loss.backward()
        assert loss.isfinite() and all(
            value.grad is not None for name, value in objective.decoder.named_parameters() if "null" not in name
        )
    with pytest.raises(InputError, match="mgi_fi1m") as caught:
        tiny("ablate=[mgi_fi1m]")
    assert "mgi_film" in (caught.value.fix or "")


@pytest.mark.proves("G.input")
def test_scans_in_hounsfield_units_are_not_given_a_brightness_of_their_own(gene_store: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Hounsfield") as caught:
        start(gene_store, tmp_path / "run", tiny("ablate=[mgi_scan_intensity]"))
    assert caught.value.consequence == "Nothing was started." and not (tmp_path / "run" / "folds").exists()


@pytest.mark.proves("G5", "U7")
def test_the_only_patient_of_a_part_with_genes_gets_those_of_a_training_patient() -> None:
    codes = np.arange(6)
    genes = GeneSource(np.arange(6, dtype=np.float32)[:, None], np.ones((6, 1), bool), codes)
    group: Any = SimpleNamespace(train=["0", "1", "2"], validation=["3", "4"], test=["5"])
    companions: Any = SimpleNamespace(codes=lambda patients: np.array([int(one) for one in patients]))
    for seed in range(5):
        given: Any = _given(genes, SimpleNamespace(pairing="shuffled"), group, companions, seed)  # type: ignore[arg-type]
        rows = given.block(codes).value["expression"][:, 0].tolist()
        assert sorted(rows) == codes.tolist() and (rows[3], rows[4]) == (4, 3) and rows[5] in (0, 1, 2)


NAMED = {"liver": [1], "tumour": [2]}
VALUES = "stages.segment.inputs.mask.values"


@pytest.mark.proves("G.input")
def test_several_labels_are_not_learnt_as_one_lesion_unless_somebody_says_so() -> None:
    for declared, found, said in ((NAMED, [], "1 (liver), 2 (tumour)"), (None, [0, 1, 2, 4], "1, 2, 4")):
        with pytest.raises(InputError, match="several") as caught:
            check_labels(tiny(), declared, found)
        assert said in caught.value.what and caught.value.where == VALUES
        assert f"--set '{VALUES}=[" in (caught.value.fix or "")
        for chosen in ("[2]", "[1, 2, 4]"):
            check_labels(tiny(f"{VALUES}={chosen}"), declared, found)
        check_labels(tiny("variants={}", "ablate=[]", "stages.segment.budget={steps: 0}"), declared, found)
    check_labels(tiny(), {"lesion": [1, 2, 4]}, [0, 1, 2, 4])  # one name: declared to be one thing
    check_labels(tiny(), {"lesion": [1], "none of it": []}, [0, 1])
    for found in ([], [0], [0, 1], [0, 255]):
        check_labels(tiny(), None, found)


@pytest.mark.proves("G.input")
def test_the_setting_that_a_recipe_without_a_mask_input_is_told_to_make_can_be_made() -> None:
    image = "{kind: segmentation, size: 48, source: 48}"
    bare = tiny("variants={}", f"stages.segment.inputs={{image: {image}, genes: {{kind: genes}}}}",
                "stages.align.inputs.genes={kind: genes}")  # fmt: skip
    with pytest.raises(InputError) as caught:
        check_labels(bare, NAMED)
    setting = str(caught.value.fix).split("'")[1]
    assert setting == "stages.segment.inputs.mask={kind: masks, values: [2]}"
    check_labels(tiny(setting), NAMED)


@pytest.mark.proves("G.input")
def test_several_declared_labels_are_refused_before_a_file_is_read() -> None:
    tree = {"name": "livers", "licence": "CC0", "images": {"unit": "HU"}, "masks": {"path": "m", "values": NAMED}}
    file = parse_cohort_file(tree, "cohort.yaml")
    with pytest.raises(InputError, match="liver"):
        refuse_early(tiny(), file, None, "cpu")
    refuse_early(tiny(f"{VALUES}=[2]"), file, None, "cpu")


@pytest.mark.proves("G.input")
def test_several_numbers_in_the_masks_of_a_store_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    tree = {"name": "livers", "licence": "CC0", "images": {"unit": "HU"}, "splits": {"folds": 2}}
    writer = CohortWriter(tmp_path / "store", parse_cohort_file(tree, "cohort.yaml"))
    for number in range(6):
        record = SeriesRecord(f"s{number}", f"p{number}", "CT", "HU", Verdict("accepted"), (SliceRecord(0.0),))
        mask = np.zeros((32, 32), np.uint8)
        mask[:4], mask[4:6] = 1, 2
        writer.write_series(record, [np.full((32, 32), number, np.int16)], masks=[mask])
    writer.finish([f"s{number}" for number in range(6)])
    with pytest.raises(InputError, match="several: 1, 2") as caught:
        start(Cohort.read(tmp_path / "store"), tmp_path / "run", tiny())
    assert caught.value.consequence == "Nothing was trained." and not (tmp_path / "run" / "folds").exists()


class Seen(nn.Module):
    """Draws what is bright."""

    config = SimpleNamespace(threshold=0.5, smallest=0)

    def logits(self, image: Any, genes: Any = None, *, use_ema: bool = True, flip: bool = True) -> torch.Tensor:
        return 20 * (image.value["image"] - 0.5)


@pytest.mark.proves("G4.2")
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(180, 217, 128), (217, 180, 128), (128, 101, 96), (204, 256, 128), (60, 91, 128), (91, 60, 80), (64, 64, 96)],
)
def test_the_mask_of_an_oblong_scan_lies_where_its_image_lies(height: int, width: int, size: int) -> None:
    y, x = np.mgrid[:height, :width]
    radius, middle = min(height, width) / 4, (0.45 * height, 0.55 * width)
    image = np.clip((radius - np.hypot(y - middle[0], x - middle[1])) / 2 + 0.5, 0, 1).astype(np.float32)
    cohort: Any = SimpleNamespace(series=pd.DataFrame({"rows": [height], "cols": [width]}))
    config, objective = SegmentationInputConfig(size=size, source=size), Seen()
    drawn = draw_lesion(objective, config, cohort, _plain_store(image[None], (0.0, 1.0), size), 0)  # type: ignore[arg-type]
    assert drawn.shape == (1, height, width)
    away = np.argwhere(drawn[0]).mean(0) - np.argwhere(image > 0.5).mean(0)
    assert np.abs(away).max() < 0.1
