"""A synthetic run folder that holds everything a report reads; no training and no patient is behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medform.reporting.flow import Exclusion, Flow, FlowStep, write_flow
from medform.reporting.montage import Montage, MontagePatient, Tile, entropy_ratio, write_montage
from medform.reporting.report import make_report
from medform.reporting.table_one import summarise, write_table_one
from medform.runs.scores import ScoreRow, write_scores

MakeRun = Callable[..., Path]

PATIENTS, FOLDS = 76, 5
LEVELS = {
    "random_encoder": 0.55,
    "imagenet_encoder": 0.67,
    "image_only": 0.69,
    "intensity_stats": 0.58,
    "attention_unaligned": 0.68,
    "aligned": 0.71,
    "random_start": 0.66,
    "table_logistic": 0.74,
    "fused_unaligned": 0.76,
    "fused": 0.77,
    "shuffled_pairs": 0.68,
    "permuted_labels": 0.5,
}
PAIRS = {"aligned - image_only": 0.02, "fused - table_logistic": 0.03, "fused - fused_unaligned": 0.01,
         "image_only - imagenet_encoder": 0.02}  # fmt: skip
TASKS = {"histology": (76, 31, 0.0), "T stage": (70, 33, -0.12), "EGFR": (62, 14, -0.08)}


def _row(task: str, model: str, metric: str, value: float | None, half: float, **more: Any) -> ScoreRow:
    low, high = (None, None) if value is None else (value - half, value + half)
    fields = {"protocol": "cross_validation", "readout": "logistic", "n_patients": TASKS[task][0]} | more
    return ScoreRow("nsclc_ct", task, model=model, metric=metric, value=value, ci_low=low, ci_high=high, **fields)


def _rows() -> list[ScoreRow]:
    rows = []
    for task, (_, positive, shift) in TASKS.items():
        for model, level in LEVELS.items():
            value = level if model == "permuted_labels" else level + shift
            note = "DeLong interval: fewer than 5 patients in a class" if (task, model) == ("EGFR", "aligned") else None
            half = 0.12 if model != "permuted_labels" else 0.14
            rows.append(_row(task, model, "auroc", value, half, note=note))
            rows.append(_row(task, model, "auprc", value - 0.05, 0.13))
            rows.append(_row(task, model, "balanced_accuracy", value - 0.04, 0.11))
            rows.append(_row(task, model, "brier", 0.3 - value / 8, 0.03))
            if model in ("aligned", "image_only", "shuffled_pairs"):
                rows.append(_row(task, model, "auroc", value - 0.02, 0.12, readout="centroid"))
        share = positive / TASKS[task][0]
        for metric, value in (("auprc", share), ("balanced_accuracy", 0.5), ("brier", share * (1 - share))):
            guess = _row(task, "chance", metric, value, 0.0, readout=None, note="chance")
            rows.append(replace(guess, ci_low=None, ci_high=None))
        for pair, value in PAIRS.items():
            rows.append(_row(task, pair, "auroc", value, 0.08, p_value=0.4))
        for supports, gain in (("aligned", 0.05), ("out_of_fold", 0.02), ("unseen", 0.03)):
            for shots in (1, 2, 3, 5, 10, 25):
                few = {"protocol": "few_shot", "shots": shots, "supports": supports, "n_draws": 200}
                impossible = shots >= positive
                for model, extra in (("image_only", 0.0), ("aligned", gain), ("shuffled_pairs", -0.01)):
                    value = None if impossible else 0.5 + shift + extra + 0.15 * np.log1p(shots) / np.log(26)
                    note = "not_possible" if impossible else "overlapping_draws" if shots > positive / 2 else None
                    rows.append(_row(task, model, "auroc", value, 0.09, note=note, **few))
                if not impossible:
                    rows.append(_row(task, "aligned - image_only", "auroc", gain, 0.06, **few))
    rows.append(
        _row(
            "histology",
            "aligned",
            "recall_at_k",
            0.21,
            0.06,
            protocol="retrieval",
            readout=None,
            note="k = 5",
        )
    )
    return rows


def _log(random: np.random.Generator) -> list[dict[str, Any]]:
    lines = []
    for fold in range(FOLDS):
        for stage, steps, chance in (("pretrain", 400, np.log(127)), ("align", 50, np.log(48))):
            for step in np.linspace(1, steps, 20).astype(int):
                share = 1 - np.exp(-3 * step / steps)
                lines.append(
                    {"stage": stage, "fold": fold, "variant": "main", "seed": 0, "step": int(step),
                     "loss": float(chance - 2.4 * share + 0.05 * random.normal()), "chance": float(chance),
                     "retrieval_at_1": float(0.02 + 0.6 * share), "effective_rank": float(4 + 12 * share),
                     "alignment": float(1 - 0.5 * share), "uniformity": float(-1 - share),
                     "lr": 1e-4, "seconds": float(step)}
                )  # fmt: skip
    return lines


def _curves() -> pd.DataFrame:
    frames = []
    x = np.linspace(0, 1, 30)
    for task, (_, _, shift) in TASKS.items():
        for model in ("aligned", "image_only", "fused", "table_logistic"):
            level = LEVELS[model] + shift
            frames.append(
                pd.DataFrame({"name": f"roc/{task}/{model}", "model": model, "x": x, "y": x ** (1 / level - 1)})
            )
    curves = pd.concat(frames)
    low, high = (curves["y"] - 0.1).clip(lower=0), (curves["y"] + 0.1).clip(upper=1)
    return curves.assign(ci_low=low, ci_high=high)


def _tile(random: np.random.Generator, size: int = 128) -> Image.Image:
    """A drawn phantom slice: a body, two lungs, a spot; noise on top. Not a patient."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    image = np.where((x / 0.92) ** 2 + (y / 0.7) ** 2 < 1, 150.0, 0.0)
    for side in (-0.42, 0.42):
        image[((x - side) / 0.33) ** 2 + (y / 0.48) ** 2 < 1] = 35
    spot = random.uniform(-0.2, 0.2, 2)
    image[(x - 0.42 - spot[0]) ** 2 + (y - spot[1]) ** 2 < 0.012] = 190
    return Image.fromarray(np.clip(image + 8 * random.normal(size=image.shape), 0, 255).astype(np.uint8))


def _montage(run: Path, random: np.random.Generator) -> pd.DataFrame:
    patients, attention = [], []
    for number in range(6):
        weights = random.dirichlet(np.full(14, 60.0))
        pseudonym = f"patient-{number + 1:04d}"
        tiles = []
        for rank, index in enumerate(np.argsort(-weights)[:4]):
            name = f"figures/montage/{pseudonym}-{rank + 1}.png"
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            _tile(random).save(run / name)
            tiles.append(Tile(name, int(index), float(weights[index]), -312.5 + 7.5 * float(index)))
        label = "positive" if number < 3 else "negative"
        patients.append(MontagePatient(pseudonym, tuple(tiles), tuple(weights.tolist()), entropy_ratio(weights), label))
        attention.append(pd.DataFrame({"patient_id": pseudonym, "fold": 0, "model": "aligned", "seed": 0,
                                       "slice_id": [f"{number}-{i}" for i in range(14)],
                                       "weight": weights}))  # fmt: skip
    write_montage(run, Montage("aligned", tuple(patients), fold=0, task="histology"))
    return pd.concat(attention)


def _table_one(run: Path, random: np.random.Generator) -> None:
    ids = [f"p{number}" for number in range(PATIENTS)]
    table = pd.DataFrame(
        {
            "age_years": np.where(random.random(PATIENTS) < 0.05, np.nan, random.normal(68, 9, PATIENTS).round()),
            "sex": random.choice(["male", "female"], PATIENTS),
            "smoking": random.choice(["current", "former", "never"], PATIENTS, p=[0.3, 0.55, 0.15]),
            "pack_years": np.where(random.random(PATIENTS) < 0.3, np.nan, random.gamma(2, 18, PATIENTS).round()),
            "histology": random.choice(["adenocarcinoma", "squamous"], PATIENTS),
        },
        index=ids,
    )
    groups = {"all": ids} | {f"test of fold {fold}": ids[fold::FOLDS] for fold in range(FOLDS)}
    roles = {
        "age_years": "feature",
        "sex": "feature",
        "smoking": "feature",
        "pack_years": "feature",
        "histology": "label",
    }
    write_table_one(run, summarise(table, groups, roles, units={"age_years": "year"}))


def _record(**changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "schema_version": 1,
        "status": "complete",
        "recipe": "medform-small",
        "cohort": {"name": "nsclc_ct", "digest": "9f3c2a71d0b84e55", "licence": "CC BY 3.0",
                   "n_patients": PATIENTS},
        "versions": {"medform": "0.1.0", "python": "3.11.7", "torch": "2.14.1", "timm": "1.0.31"},
        "commit": "3f1c9ab",
        "device": {"name": "cpu", "cores": 2, "gflops_per_core": 66.1},
        "seed": 0,
        "argv": ["medform", "run", "medform-small", "--cohort", "nsclc_ct.yaml", "-o", "RUN"],
        "started": "2026-11-25T09:00:00Z",
        "finished": "2026-11-25T09:34:00Z",
        "planned": {"cpu_minutes": 31.0, "steps": {"pretrain": 400, "align": 50}, "passes": 5.1},
        "spent": {"cpu_minutes": 33.4, "wall_minutes": 18.2, "peak_memory_gb": 2.31,
                  "steps": {"pretrain": 400, "align": 50}},
        "selected": {"histology": "aligned", "T stage": "image_only", "EGFR": "fused"},
        "tasks": [{"name": name, "primary": name == "histology", "n": n, "positive": positive}
                  for name, (n, positive, _) in TASKS.items()],
        "detectable": {"histology": 0.14, "T stage": 0.15, "EGFR": 0.19},
        "notes": [],
        "transductive": False,
        "folds": FOLDS,
        "folds_run": list(range(FOLDS)),
        "collapsed": [],
    }  # fmt: skip
    return record | changes


def write_run(run: Path, scores: bool = True, montage: bool = True, small: bool = False, **changes: Any) -> Path:
    """Write a run folder; ``small`` keeps one task and no few-shot rows, ``changes`` are keys of run.json."""
    run.mkdir()
    random = np.random.default_rng(0)
    record = _record(**changes)
    if small and "tasks" not in changes:
        record["tasks"] = record["tasks"][:1]
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _log(random)))
    steps = (
        FlowStep("Found", files=1106),
        FlowStep("Read as images", patients=78, series=80, slices=1104),
        FlowStep("Accepted series", patients=77, series=77, slices=1090),
        FlowStep("Used", patients=PATIENTS, series=76, slices=1081),
    )
    exclusions = (
        Exclusion("not an image", 2, "files", after="Found"),
        Exclusion("localizer", 1, "series", after="Read as images"),
        Exclusion("missing slice between z = −312.5 and −305.0 mm", 2, "series", after="Read as images"),
        Exclusion("no row in the clinical table", 1, "patients", after="Accepted series"),
    )
    write_flow(run, Flow(steps, exclusions))
    _table_one(run, random)
    if scores:
        kept = [row for row in _rows() if not small or (row.task == "histology" and row.protocol != "few_shot")]
        write_scores(run / "scores.json", kept)
        _curves().to_parquet(run / "curves.parquet")
    if montage:
        _montage(run, random).to_parquet(run / "attention.parquet")
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run(name="run", **options of write_run)`` -> the folder."""
    return lambda name="run", **options: write_run(tmp_path / name, **options)


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with its page, made once; tests only read it."""
    run = write_run(tmp_path_factory.mktemp("reported") / "run")
    make_report(run)
    return run
