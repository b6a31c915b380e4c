"""The results page of runs that draw masks: cases as CSV, and what the tables of docs/results.md say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medform.evaluation.segmentation import (
    SMALL_TUMOUR,
    VALIDATION_DICE,
    VALIDATION_VOXELS,
    segmentation_rows,
    select_segmentation,
)
from medform.metrics.bootstrap import resample_counts
from medform.runs.scores import ScoreRow

__all__ = ["collect_cases", "collect_curves", "mask_section", "pooled_cases", "pooled_section", "trials_section"]

FIGURES = ("dice_patient", "iou_patient", "dice_slice", "hd95_mm", "hd95_px", "nsd_mm", "nsd_px", "lesion_voxels")
DRAWS = 2000
VALIDATION = {VALIDATION_DICE: "dice_patient", VALIDATION_VOXELS: "lesion_voxels"}
"""Metrics of validation patients -> what they are called in ``cases.csv``, where a column says whose they are."""
FLAT = 0.1  # share of all that a loss fell, below which its last tenth was flat
COLUMNS = (
    ("dice_patient", "mean Dice"),
    ("dice_patient_median", "median"),
    ("dice_patient_small", f"under {SMALL_TUMOUR:,} voxels"),
    ("dice_patient_large", "above"),
    ("dice_patient_below_half", "below 0.5"),
    ("dice_slice", "by slice"),
    ("nsd", "NSD"),
)
BARS = (
    ("the project's own target", 0.80),
    ("a U-Net with all slices on a GPU (22 folds, median 0.873)", 0.836),
    ("two expert readers agree", 0.84),
    ("what MGI reports, its split unknown", 0.901),
)


def collect_cases(run: Path, target: Path) -> None:
    """Every patient's figures of every model, one row each, patients by pseudonym: ``cases.csv``."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    patients = pd.read_parquet(run / record["store"] / "patients.parquet")
    names = dict(zip(patients["patient_id"], patients["pseudonym"], strict=True))
    cases = pd.read_parquet(run / "cases.parquet")
    cases = cases[cases["protocol"] == "segmentation"]
    if cases.empty:
        return
    cases = cases.assign(
        patient=cases["patient_id"].map(names),
        part=["validation" if metric in VALIDATION else "test" for metric in cases["metric"]],
        metric=cases["metric"].replace(VALIDATION),
    )
    keys = ["part", "fold", "seed", "model", "patient"]
    wide = cases.pivot(index=keys, columns="metric", values="value").sort_index().reset_index()
    wide = wide[[*keys, *(name for name in FIGURES if name in wide)]]
    wide.to_csv(target / "cases.csv", index=False, float_format="%.5g", lineterminator="\n")


def collect_curves(run: Path, target: Path) -> None:
    """Mean training loss of every tenth of a model's steps, over folds and seeds: ``curves.json``."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    log = [one for one in map(json.loads, lines) if one["stage"] == "segment" and "loss" in one]
    if not log:
        return
    frame = pd.DataFrame(log)[["variant", "fold", "seed", "step", "loss"]].dropna(subset=["fold"])
    last = frame.groupby("variant")["step"].transform("max")
    frame["tenth"] = ((frame["step"] - 1) * 10 // last).astype(int)
    curves = frame.groupby(["variant", "tenth"])["loss"].mean().unstack()
    own = json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe"].partition("-")[0]
    curves = curves.rename(index={"main": own})  # as its masks are called
    found = {str(name): [round(float(value), 4) for value in curves.loc[name]] for name in curves.index}
    (target / "curves.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def mask_section(folder: Path, record: dict[str, Any], rows: list[ScoreRow]) -> list[str]:
    """Masks of the run in words and tables; nothing where it drew none."""
    found = {(row.model, row.metric): row for row in rows if row.protocol == "segmentation"}
    if not found:
        return []
    chosen = record["selected"].get("segmentation")
    models = [model for model, metric in found if metric == "dice_patient" and " - " not in model]
    text = [f"### Tumour masks (selected on validation: `{chosen}`)", "", *_figures(found, models, str(chosen))]
    text += ["", *_differences(found), "", *_folds(pd.read_csv(folder / "cases.csv"), models), "", *_curves(folder)]
    return text


def pooled_cases(folders: list[Path]) -> pd.DataFrame:
    """The committed cases of runs of one recipe on one cohort as rows of ``cases.parquet``; patients by pseudonym.

    Raises `ValueError` where two runs hold the same model, fold and seed, or a patient lies in another fold.
    """
    wide = pd.concat([pd.read_csv(folder / "cases.csv") for folder in folders])
    keys = ["part", "fold", "seed", "model", "patient"]
    if wide.duplicated(keys).any():
        raise ValueError(f"{', '.join(one.name for one in folders)}: the same model, fold and seed stands in two runs.")
    if (wide[wide["part"] == "test"].groupby("patient")["fold"].nunique() > 1).any():
        raise ValueError(f"{', '.join(one.name for one in folders)}: the runs split the patients differently.")
    long = wide.melt(id_vars=keys, var_name="metric").dropna(subset="value").rename(columns={"patient": "patient_id"})
    validation = long["part"] == "validation"
    long.loc[validation, "metric"] = long.loc[validation, "metric"].replace({own: of for of, own in VALIDATION.items()})
    return long.assign(cohort="cohort", task="segmentation", protocol="segmentation").drop(columns="part")


def pooled_section(title: str, folders: list[Path]) -> list[str]:
    """Runs that differ in seeds and variants only, judged together: a patient counts once, by the mean over seeds."""
    cases = pooled_cases(folders)
    found = {(row.model, row.metric): row for row in segmentation_rows(cases)}
    seeds = cases.groupby("model")["seed"].unique()
    whole = seeds.map(len).max()
    most = [model for model in seeds.index if len(seeds[model]) == whole]
    chosen = select_segmentation(cases[cases["model"].isin(most)])["segmentation"]
    said = "; ".join(f"`{model}` seeds {', '.join(map(str, sorted(seeds[model])))}" for model in seeds.index)
    names = ", ".join(f"`{folder.name}`" for folder in folders)
    models = [str(model) for model in seeds.index]
    return [
        f"## {title}",
        "",
        f"The cases of {names} together ({said}). A patient counts once, by the mean over seeds; differences are of "
        f"the folds and seeds that both models have. Selected on validation among models of all seeds: `{chosen}`.",
        "",
        *_figures(found, models, chosen),
        "",
        *_differences(found),
        "",
        *_seeds(cases, most),
        "",
    ]


def trials_section(page: Path) -> list[str]:
    """What was tried on validation patients after training (`tools/mask_trials.py`), beside what is judged."""
    cases = pd.read_csv(page)
    first = str(cases["way"].iloc[0])
    by_patient = cases.groupby(["way", "patient"], sort=False).mean(numeric_only=True).unstack("way")
    values = by_patient["dice_patient"]
    sizes = by_patient["lesion_voxels"][first].to_numpy()
    small = (sizes > 0) & (sizes < SMALL_TUMOUR)
    text = [
        "## tcga_lgg: what was tried on masks after training",
        "",
        f"`vit_no_genes` of seeds that were still at hand ({cases['seeds'].max()} a fold), validation patients of "
        f"{cases['fold'].nunique()} folds alone ({len(values)} patients, {small.sum()} of them with "
        f"under {SMALL_TUMOUR:,} voxels), by `tools/mask_trials.py`; the last columns are differences from the first "
        "row, patient by patient. None of it is in the scores above.",
        "",
        f"| way | mean Dice | under {SMALL_TUMOUR:,} voxels | below 0.5 | difference | of the small |",
        "| --- |" + " --- |" * 5,
    ]
    for way in cases["way"].unique():
        mine, gain = values[way], (values[way] - values[first]).to_numpy()
        cells = [f"{mine.mean():.3f}", f"{mine[small].mean():.3f}", f"{(mine < 0.5).sum()}"]
        cells += ["-", "-"] if way == first else [_gain(gain), _gain(gain[small])]
        text.append(f"| {way} | " + " | ".join(cells) + " |")
    return [*text, ""]


def _gain(differences: np.ndarray) -> str:
    """Mean of patients' differences with its interval over patients."""
    drawn = resample_counts(len(differences), DRAWS, np.random.default_rng(0)) @ differences / len(differences)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{differences.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def _figures(found: dict[tuple[str, str], ScoreRow], models: list[str], chosen: str) -> list[str]:
    """The table of all models, and how far the selected one is from the bars."""
    text = [
        "Per patient, over the test patients of all folds; NSD within 2 pixels where the spacing is unknown. Patients "
        "and slices without lesion in truth and prediction are left out.",
        "",
        "| model | " + " | ".join(title for _, title in COLUMNS) + " |",
        "| --- |" + " --- |" * len(COLUMNS),
    ]
    for model in models:
        cells = [_cell(found.get((model, metric)), metric) for metric, _ in COLUMNS]
        text.append(f"| `{model}` | " + " | ".join(cells) + " |")
    text.append("")
    best = found.get((chosen, "dice_patient"))
    if best is not None and best.value is not None:
        for title, bar in BARS:
            text.append(f"- `{chosen}` against {bar:.3f} ({title}): {best.value - bar:+.3f}")
    return text


def _seeds(cases: pd.DataFrame, models: list[str]) -> list[str]:
    """Mean Dice of each seed: how much of a difference is chance of training."""
    tested = cases[cases["metric"] == "dice_patient"]
    means = tested.groupby(["model", "seed"])["value"].mean().unstack()
    seeds = [int(seed) for seed in means.columns]
    text = ["Mean Dice of the test patients by seed:", ""]
    text += ["| model | " + " | ".join(f"seed {seed}" for seed in seeds) + " |", "| --- |" + " --- |" * len(seeds)]
    text += [
        f"| `{model}` | " + " | ".join(f"{means.loc[model, seed]:.3f}" for seed in seeds) + " |" for model in models
    ]
    return text


def _cell(row: ScoreRow | None, metric: str) -> str:
    if row is None or row.value is None:
        return "-"
    if metric.endswith("below_half"):
        return f"{row.value:.0f} of {row.n_patients}"
    counted = f" (n = {row.n_patients})" if metric.endswith(("_small", "_large")) else ""
    interval = f" [{row.ci_low:.3f}, {row.ci_high:.3f}]" if row.ci_low is not None else ""
    return f"{row.value:.3f}{interval}{counted}"


def _differences(found: dict[tuple[str, str], ScoreRow]) -> list[str]:
    wanted = [row for (model, metric), row in found.items() if " - " in model and metric == "dice_patient"]
    text = ["Paired differences of Dice, patient by patient:", ""]
    for row in wanted:
        if row.value is not None and row.ci_low is not None:
            said = [part for part in (row.note or "").split("; ") if part.startswith(("detectable", "higher"))]
            text.append(f"- `{row.model}`: {row.value:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}], {'; '.join(said)}")
    return text


def _folds(cases: pd.DataFrame, models: list[str]) -> list[str]:
    """Mean Dice of each fold, from the cases."""
    means = cases.groupby(["part", "model", "fold"])["dice_patient"].mean()
    folds = sorted(cases["fold"].unique())
    text = ["Mean Dice by fold, of test (validation) patients, from `cases.csv`:", ""]
    text += ["| model | " + " | ".join(f"fold {fold}" for fold in folds) + " |", "| --- |" + " --- |" * len(folds)]
    for model in models:
        cells = [f"{_mean(means, 'test', model, k)} ({_mean(means, 'validation', model, k)})" for k in folds]
        text.append(f"| `{model}` | " + " | ".join(cells) + " |")
    return text


def _mean(means: Any, *key: Any) -> str:
    """A mean as text; a dash where the model drew no such masks, as one split by slices of validation patients."""
    return f"{means[key]:.3f}" if pd.notna(means.get(key)) else "-"


def _curves(folder: Path) -> list[str]:
    """What the training loss still did at the end."""
    curves = json.loads((folder / "curves.json").read_text(encoding="utf-8"))
    text = [
        "Mean training loss (BCE + half of two Dice losses) by tenths of the steps. The learning rate ends near zero, "
        "so that a flat end promises nothing more of this schedule, and does not say what a longer one would bring:",
        "",
    ]
    for model, values in curves.items():
        # beside the half before: the learning rate ends near zero, so that every curve ends flatter than it was
        fall = (values[-2] - values[-1]) / max(values[len(values) // 2] - values[-1], 1e-9)
        said = "still falling at the end" if fall > FLAT else "flat at the end of its schedule"
        text.append(f"- `{model}`: {values[0]:.2f} at first, {values[-2]:.3f}, then {values[-1]:.3f}: {said}")
    return text
