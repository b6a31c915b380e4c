"""What needs training to show of genes: a fusion uses them where they decide, and it can be told which of them did.

Every test notes its figures as properties, which tools/soak.py puts into docs/soak.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medform
from medform.cohort.store import Cohort
from medform.inputs.loader import slice_block
from medform.inputs.stacks import plain_stacks
from medform.metrics.ranking import auroc
from medform.pipeline.companions import GENES, encode_companions
from medform.pipeline.run import fold_groups, make_bench
from medform.pipeline.segmentation import train_segmenter
from medform.pipeline.stages import build_encoder
from medform.recipes.recipe import read_recipe
from medform.runs.folder import RunFolder, read_json
from medform.runs.scores import ScoreRow, read_scores
from medform.synthetic.truth import Truth
from medform.training.attribution import gene_attribution, lesion_logit

Note = Callable[[str, object], None]

SEEDS = (0, 1, 2)
PLAIN = {"defects": False, "localizers": 0, "second_kernels": 0, "follow_ups": 0, "size": 64, "missing": 0}
SETTINGS = (
    "seeds=[0, 1, 2]",
    "stages.align.inputs.image={kind: patient_slices, size: 64, source: 64, slices: 2}",
    "stages.align.budget={steps: 0}",
    "embedding=[image_only]",
    "stages.segment.inputs.image={kind: segmentation, size: 64, source: 64}",
    "stages.segment.objective.smallest=0",
    "stages.align.towers.image={kind: hybrid, trainable: [], batch_norm: frozen}",
    "stages.segment.towers.image={kind: hybrid, trainable: [], batch_norm: frozen}",  # half the time, and it suffices
    "stages.segment.batch=12",
    "stages.segment.budget={steps: 200}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 1000}",
    "variants={vit_no_genes: {stages.segment.objective.gene_dropout: 1.0}, "
    "mgi_shuffled_genes: {stages.segment.pairing: shuffled}}",
)


@dataclass(frozen=True)
class Twins:
    """A run on patients with two spots alike, of which the planted genes alone say which is the lesion."""

    hospital: Path
    run: Path

    @property
    def dice(self) -> dict[str, ScoreRow]:
        """Per-patient mean Dice of each model and of paired differences."""
        rows = read_scores(self.run / "scores.json")
        return {row.model: row for row in rows if row.protocol == "segmentation" and row.metric == "dice_patient"}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """Fold 0 of mgi-small, `vit_no_genes` and `mgi_shuffled_genes` under three seeds, without alignment."""
    root = tmp_path_factory.mktemp("twins")
    hospital, run = root / "hospital", root / "run"
    medform.phantom(hospital, patients=60, seed=31, options={**PLAIN, "twin": True, "genes_missing": 0})
    text = (hospital / "cohort.yaml").read_text(encoding="utf-8")
    (hospital / "cohort.yaml").write_text(text.replace("folds: 5", "folds: 3"), encoding="utf-8")
    medform.run("mgi-small", hospital / "cohort.yaml", out=run, folds=[0], overrides=SETTINGS)
    return Twins(hospital, run)


def interval(row: ScoreRow) -> tuple[float, float, float]:
    """Value and limits of a row that has them."""
    assert row.value is not None and row.ci_low is not None and row.ci_high is not None, row
    return row.value, row.ci_low, row.ci_high


def shown(row: ScoreRow) -> str:
    """Value and interval as text."""
    value, low, high = interval(row)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


@pytest.mark.soak
@pytest.mark.timeout(2400)
@pytest.mark.proves("G6.4", "G4.1")
def test_genes_that_say_which_of_two_equal_spots_is_the_lesion_are_used(twins: Twins, record_property: Note) -> None:
    """The positive control of the fusion, without which a null on real genes says nothing.

    Whether the spot in front or that at the back is the lesion is in the genes alone. Who cannot know draws both (a
    Dice of 2/3 at best) or one of them (1/2 on average). The genes are worth at least 0.15 of Dice over the matched
    model without; another patient's genes, or none at test, are worth nothing.
    """
    dice = twins.dice
    for model, row in dice.items():
        record_property(model, shown(row))
    record_property("test patients", dice["mgi"].n_patients)
    record_property("seeds", dice["mgi"].seeds)
    for other in ("vit_no_genes", "mgi_shuffled_genes", "mgi_null_genes"):
        assert interval(dice[f"mgi - {other}"])[1] > 0.15, other
    assert interval(dice["mgi"])[1] > 2 / 3 > interval(dice["vit_no_genes"])[0]
    for other in ("mgi_shuffled_genes", "mgi_null_genes"):
        assert interval(dice[f"{other} - vit_no_genes"])[1] < 0.02, other


def attributions(twins: Twins, variant: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What each gene of a patient (P, G) adds to the logit of the patient's lesion, and which genes were planted (G,).

    Of patients whom the training did not see, with their own genes, on the slice that shows most of the lesion.
    """
    cohort, folder = Cohort.read(twins.run / "store"), RunFolder(twins.run)
    recipe = read_recipe("mgi-small", SETTINGS)
    recipe = recipe if variant == "main" else recipe.variant(variant)
    (group,) = fold_groups(cohort, [0], segmented=True)
    companions = encode_companions(cohort, group.train, recipe)
    encoder, _ = build_encoder(recipe, seed, companions)
    record = twins.run / "folds" / "0" / variant / str(seed) / "segment" / "stage.json"
    trained = read_json(record)
    with folder.lock():
        bench = make_bench(cohort, folder, "cpu", None)
        segmenter = train_segmenter(bench, group, recipe, variant, seed, encoder, companions)
    assert read_json(record) == trained, "the trained stage was not taken as it is"
    store, masks = bench.slices(64), bench.masks(64, None)
    held = store.codes([*group.validation, *group.test])
    rows = np.array(
        [max(np.flatnonzero(store.patient == one), key=lambda row: masks.lesion_pixels[row]) for one in held]
    )
    image: Any = slice_block(store, rows, {"image": plain_stacks(store, rows, segmenter.config)})
    lesion = torch.from_numpy(np.asarray(masks.share[rows], np.float32)).reshape(len(rows), 1, 64, 64)
    tower, score = lesion_logit(segmenter.objective, image, lesion)
    found = gene_attribution(tower, companions.source(GENES).block(held), score, steps=16, batch=64)
    assert companions.genes is not None
    planted = np.isin(companions.genes.gene_ids, Truth.read(twins.hospital / "truth.json").module)
    return found, planted


@pytest.mark.soak
@pytest.mark.timeout(2400)
@pytest.mark.proves("G6.4")
def test_integrated_gradients_recover_the_planted_genes_and_of_shuffled_pairs_none(
    twins: Twins, record_property: Note
) -> None:
    """Twelve of 120 genes were planted. They are ranked by the mean absolute attribution of held-out patients.

    With matched pairs they come first under every seed. A model trained with other patients' genes still learns some
    of its training patients by heart, so that its attributions are small and not zero; and since planted genes go
    together, all of them come early or late at once, which makes the rank of a single seed jump about 0.5. Chance is
    therefore asked of the mean over seeds, and of the planted genes that they carry a small part of what they carry
    with matched pairs.
    """
    ranks: dict[str, list[float]] = {"main": [], "mgi_shuffled_genes": []}
    carried: dict[str, list[float]] = {"main": [], "mgi_shuffled_genes": []}
    for variant in ("main", "mgi_shuffled_genes"):
        for seed in SEEDS:
            found, planted = attributions(twins, variant, seed)
            ranks[variant].append(float(auroc(planted, np.abs(found).mean(axis=0)) or 0.0))
            carried[variant].append(float(found[:, planted].sum(axis=1).mean()))
    for variant, name in (("main", "mgi"), ("mgi_shuffled_genes", "mgi_shuffled_genes")):
        record_property(f"{name}, AUROC of planted genes", ", ".join(f"{one:.2f}" for one in ranks[variant]))
        record_property(f"{name}, logit from planted genes", ", ".join(f"{one:+.2f}" for one in carried[variant]))
    assert min(ranks["main"]) > 0.95
    assert np.mean(ranks["mgi_shuffled_genes"]) < 0.65
    assert min(carried["main"]) > 5 * np.mean(np.abs(carried["mgi_shuffled_genes"]))
    assert min(carried["main"]) > 2 * np.max(np.abs(carried["mgi_shuffled_genes"]))
