"""Try on validation patients what could be done to masks after training.

    python tools/mask_trials.py STORE RUN [RUN ...]

RUNs are folders of mgi-small on the cohort of STORE, of the same or of other folds and seeds. Test patients are not
looked at. Writes one row for each way, fold and patient to ``docs/results/mask_trials.csv``, the mean over the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from scipy.ndimage import correlate1d

from medform.cohort.store import Cohort
from medform.inputs.stacks import plain_stacks
from medform.metrics.overlap import dice, remove_small
from medform.pipeline.bench import Bench
from medform.pipeline.companions import GENES, encode_companions, wanted
from medform.pipeline.segmentation import segment_stage, segment_task, segmentation_name
from medform.pipeline.stages import build_encoder
from medform.recipes.recipe import Recipe, read_recipe
from medform.runs.arrays import read_arrays
from medform.runs.folder import RunFolder
from medform.training.infer import segment_slices

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "mask_trials.csv"
CONTROL = "vit_no_genes"
BESIDE = (0.25, 0.5, 0.25)  # weights of a slice and its neighbours
LOWER = 0.3  # a threshold below the recipe's 0.5
Maps = dict[int, np.ndarray]
Way = tuple[str, list[np.ndarray], float]


def probabilities(cohort: Cohort, folder: RunFolder, whole: Recipe, variant: str, seed: int, fold: int) -> list[Maps]:
    """Probability (N, H, W) of every validation scan by its place, in the cohort's window and at its own brightness."""
    recipe = whole.variant(variant) if variant in whole.variants else whole
    found: Any = segment_stage(recipe)
    split = cohort.split().folds[fold]
    companions = encode_companions(cohort, split.train, recipe)
    bench = Bench(cohort, folder, Fabric(accelerator="cpu", devices=1), torch.get_num_threads(), None)
    encoder, _ = build_encoder(recipe, seed, companions)
    objective, loader = segment_task(bench, split.train, recipe, seed, encoder, companions)
    weights = read_arrays(folder.stage(found[0], variant, seed, fold) / "model.safetensors")[0]
    objective.load_state_dict({key: torch.from_numpy(one.copy()) for key, one in weights.items()}, strict=True)
    genes = companions.source(GENES) if GENES in wanted(found[1], companions) else None
    store, maps = loader.store, []
    for intensity in ("cohort", "scan"):
        config = loader.config.model_copy(update={"intensity": intensity})
        rows = store.rows(split.validation)
        seen: Any = segment_slices(
            objective,
            store,
            rows,
            genes,
            images=lambda some, config=config: plain_stacks(store, some, config, bench.threads),
            side=store.size,
            window=config.size,
        )
        series = store.series[rows]
        maps.append({int(one): seen[series == one].astype(np.float32) for one in np.unique(series)})
    return maps


def ways(
    control: list[list[Maps]], genes: list[list[Maps]], scan: int
) -> Iterator[tuple[str, list[np.ndarray], float]]:
    """(what is done, probabilities of every seed, threshold) for one scan."""
    plain = [seed[0][scan] for seed in control]
    bright = [seed[1][scan] for seed in control]
    with_genes = [seed[0][scan] for seed in genes]
    yield "as judged", plain, 0.5
    yield f"threshold {LOWER:g}", plain, LOWER
    yield "smoothed along the stack", [correlate1d(one, BESIDE, axis=0, mode="nearest") for one in plain], 0.5
    yield "own brightness at prediction alone", bright, 0.5
    yield "the brighter of both", [np.maximum(a, b) for a, b in zip(plain, bright, strict=True)], 0.5
    yield "mean with the model with genes", [(a + b) / 2 for a, b in zip(plain, with_genes, strict=True)], 0.5
    yield "mean of the seeds", [np.mean(plain, axis=0)], 0.5
    yield "mean of the seeds of both models", [np.mean(plain + with_genes, axis=0)], 0.5


def tried(cohort: Cohort, runs: list[RunFolder]) -> Iterator[dict[str, Any]]:
    """Rows of every fold that the runs have."""
    held: dict[int, list[tuple[RunFolder, Recipe, int]]] = {}
    for run in runs:
        recipe = read_recipe(str(run.path / "recipe.yaml"))
        for fold in run.record()["folds_run"]:
            held.setdefault(fold, []).extend((run, recipe, seed) for seed in recipe.seeds)
    for fold, theirs in sorted(held.items()):
        control = [probabilities(cohort, run, recipe, CONTROL, seed, fold) for run, recipe, seed in theirs]
        genes = [probabilities(cohort, run, recipe, "main", seed, fold) for run, recipe, seed in theirs]
        smallest: Any = segment_stage(theirs[0][1])
        for scan in sorted(control[0][0]):
            row = cohort.series.iloc[scan]
            truth = np.asarray(cohort.masks(str(row["series_id"]))) > 0
            if truth.any():
                pseudonym = cohort.patients.set_index("patient_id").loc[row["patient_id"], "pseudonym"]
                for way, maps, threshold in ways(control, genes, scan):
                    drawn = [remove_small(one > threshold, smallest[1].objective.smallest) for one in maps]
                    value = float(np.mean([dice(one, truth) or 0.0 for one in drawn]))
                    yield {"way": way, "fold": fold, "patient": pseudonym, "seeds": len(theirs),
                           "dice_patient": value, "lesion_voxels": int(truth.sum())}  # fmt: skip
        print(f"fold {fold}: {len(theirs)} seeds of {segmentation_name(theirs[0][1])} and {CONTROL}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    given = parser.parse_args()
    rows = tried(Cohort.read(given.store), [RunFolder(run) for run in given.runs])
    pd.DataFrame(rows).to_csv(PAGE, index=False, float_format="%.5g", lineterminator="\n")


if __name__ == "__main__":
    main()
