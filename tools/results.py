"""Collect finished real runs into docs/results/ and write docs/results.md from what lies there.

``python tools/results.py RUNS`` copies from each run folder below RUNS what may be published (scores, plan, spending,
versions); ``python tools/results.py`` only writes the page again. No pixel, weight, id or prediction is copied.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from mask_results import collect_cases, collect_curves, mask_section, pooled_section, trials_section

from medform.reporting.controls import shuffled_in_words, tone_of
from medform.reporting.words import MODELS as MODEL_WORDS
from medform.runs.scores import difference_in_words, read_scores, write_scores

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
KEPT = (
    "schema_version", "status", "recipe", "citation", "cohort", "versions", "commit", "judged_commit", "seed", "tasks",
    "planned", "spent", "selected", "detectable", "warnings", "folds_run", "collapsed", "notes", "transductive",
    "device",
)  # fmt: skip
PROVES = {"mgi-small": ["G5", "G6.1", "G6.2", "G6.3"], "trimodal": ["G3.2", "G6.3"]}
"""Recipe -> lines that its finished runs show; the others show A9."""
MODELS = (
    "aligned", "aligned_genes", "aligned_both", "image_only", "imagenet_encoder", "random_encoder", "intensity_stats",
    "attention_unaligned", "random_start", "shuffled_pairs", "supervised_mil", "genes_logistic", "table_logistic",
    "table_boosting", "fused_unaligned", "fused", "permuted_labels",
)  # fmt: skip
DIFFERENCES = (
    "aligned - image_only",
    "fused - table_logistic",
    "fused - fused_unaligned",
    "image_only - imagenet_encoder",
    "aligned - shuffled_pairs",
)
REMARKS = {
    "upstream_transductive": "genes standardised by their publisher over all patients, those who are tested included",
    "encoder_untrained": "the encoder behind it had too few steps to be called trained",
    "a leak on purpose": "split by slices: other slices of the tested patients were learnt from",
}
"""Notes of rows without which a figure would be taken for more than it is -> what they mean."""


def collect(run: Path) -> None:
    """Copy what may be published of one run."""
    target = RESULTS / run.name
    target.mkdir(parents=True, exist_ok=True)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    kept = {name: record[name] for name in KEPT if name in record}
    argv = record.get("argv", [])
    kept["sets"] = [value for flag, value in pairwise(argv) if flag == "--set"]
    kept["proves"] = PROVES.get(record["recipe"], ["A9"]) if record["status"] == "complete" else []
    (target / "run.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    write_scores(target / "scores.json", read_scores(run / "scores.json"))
    if (run / "cases.parquet").is_file():
        collect_cases(run, target)
    collect_curves(run, target)


def collect_scans(runs: Path) -> None:
    """What `check` said of the DICOM series, and what `embed` made of those that it vouches for; no id of any."""
    import pandas as pd

    check = json.loads((runs / "dicom_ct.check.json").read_text(encoding="utf-8"))
    vectors = pd.read_parquet(runs / "dicom_ct.embeddings.parquet")
    verdicts = [
        {key: series[key] for key in ("modality", "n_slices", "verdict", "codes")} for series in check["series"]
    ]
    found = {
        "schema_version": 1,
        "proves": ["A9", "A8.1"],
        "files": check["files"],
        "series": sorted(verdicts, key=lambda one: (one["verdict"], one["n_slices"], one["codes"])),
        "embedded": {level: int(count) for level, count in vectors["level"].value_counts().sort_index().items()},
        "width": len(vectors["vector"].iloc[0]),
    }
    target = RESULTS / "dicom_ct"
    target.mkdir(parents=True, exist_ok=True)
    (target / "scans.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def scan_section(path: Path) -> list[str]:
    """The DICOM series in words."""
    found = json.loads(path.read_text(encoding="utf-8"))
    files, embedded = found["files"], found["embedded"]
    text = [
        "## dicom_ct: whole DICOM series through check, ingest and embed",
        "",
        f"{files['found']} files: {files['image']} images, {files['other']} others, {files['unreadable']} unreadable. "
        f"`embed` made {embedded['slice']} slice vectors and {embedded['series']} series vectors of {found['width']} "
        "numbers from what was accepted or repaired.",
        "",
        "| slices | verdict | why |",
        "| --- | --- | --- |",
    ]
    for series in found["series"]:
        why = ", ".join(code.replace("_", " ") for code in series["codes"]) or "-"
        text.append(f"| {series['n_slices']} | {series['verdict']} | {why} |")
    return [*text, ""]


def remarks(rows: list[Any]) -> list[str]:
    """Which models' rows carry one of `REMARKS`, a line each."""
    text = []
    for remark, meaning in REMARKS.items():
        if models := dict.fromkeys(r.model for r in rows if remark in (r.note or "") and " - " not in r.model):
            text.append(f"- {remark} ({meaning}): " + ", ".join(f"`{model}`" for model in models))
    return text


def paired(row: Any, found: dict[Any, Any]) -> str:
    """A paired difference in words; a gain of alignment beside what shuffled pairs say of it."""
    text = difference_in_words(row)
    if row.model != "aligned - image_only" or tone_of(row) != "gain":
        return text
    own = found.get(("aligned - shuffled_pairs", row.protocol, row.shots, row.supports))
    shuffled = shuffled_in_words(own, "pairs", "the pairing")
    return f"{text} But {shuffled}." if shuffled else text


def figure(row: Any) -> str:
    """Value with its interval."""
    if row is None or row.value is None:
        return "-"
    interval = f" [{row.ci_low:.2f}, {row.ci_high:.2f}]" if row.ci_low is not None else ""
    return f"{row.value:.2f}{interval}"


def commits(record: dict[str, Any]) -> str:
    """The commit that a run was begun with, and that of the code which judged it where it is another one."""
    begun, judged = record.get("commit"), record.get("judged_commit")
    return f"{begun}, judged at {judged}" if judged and judged != begun else str(begun)


def section(folder: Path) -> list[str]:
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    rows = read_scores(folder / "scores.json")
    cohort, planned, spent = record["cohort"], record.get("planned", {}), record.get("spent", {})
    device = record.get("device", {})
    folds = ", ".join(map(str, record.get("folds_run", [])))
    text = [
        f"## {folder.name}: {record['recipe']} on {cohort['name']}",
        "",
        f"{cohort['n_patients']} patients, folds {folds}; licence of the data: {cohort['licence']}. "
        f"Planned {planned['cpu_minutes']:.0f} CPU-minutes, spent {spent['cpu_minutes']:.0f} "
        f"(peak memory {spent['peak_memory_gb']:.1f} GB) at {device.get('gflops_per_core', '?')} GFLOP/s a core; "
        f"medform {record['versions']['medform']}, commit {commits(record)}.",
        "",
    ]
    if (folder / "sitting.json").is_file():
        sitting = json.loads((folder / "sitting.json").read_text(encoding="utf-8"))
        text += [f"In one sitting of {sitting['wall_minutes']:.0f} minutes on {sitting['cores']} cores.", ""]
    if record.get("sets"):
        text += ["Changed from the recipe: " + ", ".join(f"`{one}`" for one in record["sets"]) + ".", ""]
    text += [f"- {note}" for note in [*record.get("warnings", []), *record.get("notes", [])]] + remarks(rows)
    for task in record["tasks"]:
        name = task["name"]
        found = {
            (row.model, row.protocol, row.shots, row.supports): row
            for row in rows
            if row.task == name and row.metric == "auroc" and row.readout in ("logistic", None)
        }
        text += [
            "",
            f"### {name}{' (primary)' if task['primary'] else ''}: {task['positive']} of {task['n']} positive",
            "",
        ]
        text += [
            "| model | AUROC, 5 folds | k = 5, aligned | k = 5, out of fold | k = 5, unseen |",
            "| --- | --- | --- | --- | --- |",
        ]
        for model in MODELS:
            whole = found.get((model, "cross_validation", None, None))
            few = [found.get((model, "few_shot", 5, supports)) for supports in ("aligned", "out_of_fold", "unseen")]
            if whole is not None:
                text.append(f"| `{model}` | {figure(whole)} | " + " | ".join(figure(row) for row in few) + " |")
        text.append("")
        for model in DIFFERENCES:
            row = found.get((model, "cross_validation", None, None))
            if row is not None and row.value is not None:
                text.append(f"- {paired(row, found)}")
            for supports in ("aligned", "out_of_fold", "unseen"):
                few = found.get((model, "few_shot", 5, supports))
                if few is not None and few.value is not None and model == "aligned - image_only":
                    text.append(f"- k = 5, supports {supports}: {paired(few, found)}")
    text += ["", *beside_sections(rows, record.get("judged_commit")), *mask_section(folder, record, rows)]
    return [*text, ""]


def beside_sections(rows: list[Any], judged: str | None) -> list[str]:
    """Retrieval between modalities, and survival; ``judged``: the commit of the code that judged the run, if kept."""
    text: list[str] = []
    met = [row for row in rows if row.protocol == "retrieval" and row.value is not None]
    if met:
        text += [
            "### Retrieval of held-out patients",
            "",
            "| from, to | model | figure | value |",
            "| --- | --- | --- | --- |",
        ]
        for row in met:
            name = row.metric.replace("_", " ").replace("at k", f"at {_k(row)}")
            text.append(f"| {(row.task or '').replace('_', ' ')} | `{row.model}` | {name} | {figure(row)} |")
        text.append("")
    survival = [row for row in rows if row.protocol == "survival" and row.value is not None]
    if survival:
        found = {(row.model, row.metric): row for row in survival}
        text += ["### Survival (pairs of one fold; Cox on the table is the bar)", ""]
        if not judged:  # runs of before that commit was kept, and before the change
            text += ["Judged while the columns of table, genes and statistics had one scale in common.", ""]
        text += ["| model | Harrell's C | Uno's C |", "| --- | --- | --- |"]
        for model in dict.fromkeys(row.model for row in survival):
            cells = [figure(found.get((model, metric))) for metric in ("c_index", "c_index_uno")]
            text.append(f"| `{model}` | {' | '.join(cells)} |")
        text.append("")
    return text


def _k(row: Any) -> str:
    """The k of a recall, which its note says."""
    said = [part for part in (row.note or "").split("; ") if part.startswith("k = ")]
    return said[0].removeprefix("k = ") if said else "k"


def beside() -> dict[tuple[str, str], list[Path]]:
    """(cohort, recipe) -> folders of the runs that drew masks, where there are several."""
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(RESULTS.glob("*/cases.csv")):
        record = json.loads(path.with_name("run.json").read_text(encoding="utf-8"))
        found.setdefault((record["cohort"]["name"], record["recipe"]), []).append(path.parent)
    return {key: folders for key, folders in found.items() if len(folders) > 1}


def benchmarks() -> list[str]:
    """Ratios beside peers, as `benchmarks/NAME.py --json` printed them."""
    text = [
        "## Benchmarks",
        "",
        "CPU time of the peer over ours, one thread, interleaved; `bound` is what is promised.",
        "",
    ]
    text += ["| item | peer | times better [lowest, highest] | bound |", "| --- | --- | --- | --- |"]
    for path in sorted((RESULTS / "benchmarks").glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            ratio = f"{row['ratio']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
            text.append(f"| {row['item']} | {row['peer']} | {ratio} | {row['bound']:g} |")
    return text


def legend() -> list[str]:
    """What the rows of the tables are, as the report says it."""
    text = ["## Rows", "", "| row | in the report | it sees | what it is |", "| --- | --- | --- | --- |"]
    for name, words in MODEL_WORDS.items():
        text.append(f"| `{name}` | {words.label} | {words.given} | {words.about} |")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=Path, help="folder that holds run folders")
    runs = parser.parse_args().runs
    if runs is not None:
        for run in sorted(runs.iterdir()):
            if (run / "scores.json").is_file() and (run / "run.json").is_file():
                collect(run)
        if (runs / "dicom_ct.embeddings.parquet").is_file():
            collect_scans(runs)
    text = [
        "# Results",
        "",
        "Real runs, written down as measured; made by `tools/real_runs.sh` and `tools/results.py` from the files in",
        "`docs/results/`. AUROC is fold-stratified; the rows are explained at the end. Where alignment does not help,",
        "the table says so. Intervals are 95 % over patients: they leave out what another training would change, and",
        "in simulations without a signal they held the truth in 87 % (docs/soak.md). Nothing is corrected for how many",
        "differences there are: of a hundred that are none, about five leave out zero.",
        "",
    ]
    for folder in sorted(RESULTS.iterdir()):
        if (folder / "scores.json").is_file():
            text += section(folder)
        elif (folder / "scans.json").is_file():
            text += scan_section(folder / "scans.json")
    for (cohort, recipe), folders in beside().items():
        text += pooled_section(f"{cohort}: all runs of {recipe} together", folders)
    if (RESULTS / "mask_trials.csv").is_file():
        text += trials_section(RESULTS / "mask_trials.csv")
    text += [*benchmarks(), "", *legend()]
    PAGE.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
