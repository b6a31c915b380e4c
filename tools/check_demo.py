"""Asserts what `make demo` promises of a finished demo: time, memory, the planted signal found, the null a null.

    python tools/check_demo.py demo/run --seconds 63

``--seconds`` is the wall time of the whole command, which the run folder cannot know. The seeds of the demo are fixed,
so its figures are the same on every machine but for rounding; each bound leaves a margin for that. The 20 test
patients of its one fold cannot show what alignment adds, and `shuffled_pairs` holds the same image vectors: what is
asserted is that the image carries the planted lesion, with and beside an alignment, and an untrained encoder does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_SECONDS = 120.0
MOST_MEMORY_GB = 2.5
LEAST_AUROC = 0.75  # measured: 0.91 aligned, 0.88 image_only, 0.89 imagenet_encoder
LEAST_GAIN = 0.15  # over the untrained encoder; measured: 0.36
FOUND = ("aligned", "image_only", "imagenet_encoder")
UNTRAINED = "random_encoder"
NULL = "permuted_labels"
NULL_RANGE = (0.40, 0.60)  # of the null's median; measured: 0.52


def primary_aurocs(scores: Sequence[Mapping[str, Any]], task: str) -> dict[str, Mapping[str, Any]]:
    """Cross-validated AUROC rows of a task by model, of the default readout."""
    return {
        row["model"]: row
        for row in scores
        if row["task"] == task
        and row["protocol"] == "cross_validation"
        and row["metric"] == "auroc"
        and row["readout"] == "logistic"
    }


def faults(record: Mapping[str, Any], scores: Sequence[Mapping[str, Any]], seconds: float | None) -> list[str]:
    """What a demo with this run.json and scores.json does not keep, a line each; nothing where all is well."""
    found = []
    if seconds is not None and seconds > MOST_SECONDS:
        found.append(f"took {seconds:.0f} s; at most {MOST_SECONDS:.0f} s are promised")
    memory = record["spent"]["peak_memory_gb"]
    if not 0 < memory <= MOST_MEMORY_GB:
        found.append(f"peak memory {memory} GB; at most {MOST_MEMORY_GB} GB are promised")
    if record["collapsed"]:
        found.append(f"collapsed: {record['collapsed']}")
    task = next(one["name"] for one in record["tasks"] if one["primary"])
    rows = primary_aurocs(scores, task)
    missing = [model for model in (*FOUND, UNTRAINED, "shuffled_pairs", NULL) if model not in rows]
    if missing:
        return [*found, f"task {task}: no AUROC of {', '.join(missing)}"]
    found += _signal_faults(rows)
    null = rows[NULL]
    low, high = NULL_RANGE
    if null["value"] is None or not low <= null["value"] <= high or not null["ci_low"] < 0.5 < null["ci_high"]:
        found.append(f"{NULL}: {_shown(null)}; chance should lie in the middle of it")
    return found


def _signal_faults(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = []
    untrained = rows[UNTRAINED]["value"] or 0.0
    for model in FOUND:
        row = rows[model]
        if row["value"] is None or row["value"] < LEAST_AUROC or row["ci_low"] <= 0.5:
            found.append(f"{model}: {_shown(row)}; the planted lesion should be found ({LEAST_AUROC} or more)")
        elif row["value"] < untrained + LEAST_GAIN:
            found.append(f"{model}: {_shown(row)}; not {LEAST_GAIN} above {UNTRAINED}'s {untrained:.2f}")
    return found


def _shown(row: Mapping[str, Any]) -> str:
    figures = (row["value"], row["ci_low"], row["ci_high"])
    value, low, high = ("none" if figure is None else f"{figure:.2f}" for figure in figures)
    return f"AUROC {value} [{low}, {high}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures, or what is wrong with them; 0 or 1."""
    parser = argparse.ArgumentParser(description="Assert what `make demo` promises.")
    parser.add_argument("run", type=Path, help="the demo's run folder")
    parser.add_argument("--seconds", type=float, help="wall time of the whole command")
    given = parser.parse_args(arguments)
    record = json.loads((given.run / "run.json").read_text(encoding="utf-8"))
    scores = json.loads((given.run / "scores.json").read_text(encoding="utf-8"))
    wrong = faults(record, scores, given.seconds)
    for line in wrong:
        print(f"demo: {line}", file=sys.stderr)
    if not wrong:
        task = next(one["name"] for one in record["tasks"] if one["primary"])
        rows = primary_aurocs(scores, task)
        said = "; ".join(f"{model} {_shown(rows[model])}" for model in (*FOUND, UNTRAINED, NULL))
        print(f"demo: {given.seconds or 0:.0f} s, {record['spent']['peak_memory_gb']} GB; {task}: {said}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
