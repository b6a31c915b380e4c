"""Where a report's figures come from: banners, versions and digests, planned beside spent."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medform.reporting.controls import in_order
from medform.reporting.run_files import FINISHED, RunFacts
from medform.reporting.words import model_words
from medform.runs.scores import ScoreRow

__all__ = ["Banner", "PlanRow", "banners", "command", "plan_rows", "provenance_rows"]


@dataclass(frozen=True)
class Banner:
    """A statement that the reader meets before any figure; ``tone`` is "red" or "amber"."""

    tone: str
    text: str


@dataclass(frozen=True)
class PlanRow:
    """One line of the plan: what was planned, what was spent, and by how much they differ."""

    name: str
    planned: str
    spent: str
    difference: str


NAMES = {
    "cpu_minutes": "CPU-minutes",
    "wall_minutes": "Minutes on the clock",
    "peak_memory_gb": "Peak memory (GB)",
    "steps": "Steps",
    "passes": "Passes over the slices",
    "disk_gb": "Disk (GB)",
    "folds": "Folds",
}
# The folders of a path in an argument (`a/b/c`, `key=/a/b/c`, `C:\a\b`), up to its last component.
FOLDERS = re.compile(r"(?:\b[A-Za-z]:(?=[/\\]))?[^=,:;\[\]{}'\"]*[/\\](?=[^/\\])")


def banners(facts: RunFacts, rows: Sequence[ScoreRow]) -> list[Banner]:
    """What limits every figure below: test patients seen, one fold, collapse, too little training."""
    found = []
    if facts.transductive:
        found.append(
            Banner(
                "red",
                "Transductive: test patients were seen in training (their images, not their labels). "
                "The figures do not say what new patients would get.",
            )
        )
    if facts.folds and facts.folds_run and len(facts.folds_run) < facts.folds:
        which = ", ".join(str(fold) for fold in facts.folds_run)
        found.append(
            Banner(
                "amber",
                f"Only fold {which} of {facts.folds} was run: the figures rest on its test patients alone"
                + (", and the model folder holds that fold's model." if len(facts.folds_run) == 1 else "."),
            )
        )
    for collapse in facts.collapsed:
        found.append(
            Banner("amber", f"Collapsed and stopped: {_collapse(collapse)}. Its features say little or nothing.")
        )
    noted = [*facts.notes, *(row.note for row in rows if row.note)]
    if any("encoder_untrained" in note for note in noted):
        found.append(
            Banner(
                "amber",
                "The image encoder is practically untrained (encoder_untrained): it was run for a few "
                "steps only. The figures show that the method runs, not how well it works.",
            )
        )
    noted_models = {row.model for row in rows if "upstream_transductive" in (row.note or "") and " - " not in row.model}
    if noted_models:
        labels = ", ".join(f"“{model_words(one).label}”" for one in in_order(list(noted_models)))
        found.append(
            Banner(
                "amber",
                "Genes were standardised by their publisher over all patients, those who are tested included "
                f"(upstream_transductive): the figures of {labels} and differences to them may be better than new "
                "patients would get; where the genes can be had as counts, use those.",
            )
        )
    if facts.warnings:
        found.append(
            Banner("amber", f"The plan warned before the run: {', '.join(f'“{one}”' for one in facts.warnings)}.")
        )
    if facts.status not in (*FINISHED, "unknown"):
        found.append(Banner("amber", f"The run's status is “{facts.status}”: parts of this page may be missing."))
    return found


def _collapse(collapse: Any) -> str:
    if isinstance(collapse, Mapping):
        return ", ".join(f"{key} {value}" for key, value in collapse.items() if value is not None)
    return str(collapse)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined: {"steps": {"pretrain": 4}} -> {"Steps, pretrain": 4}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}, {key}" if prefix else NAMES.get(key, key.replace("_", " "))
        if isinstance(value, Mapping):
            flat |= _flat(value, name)
        else:
            flat[name] = value
    return flat


def plan_rows(facts: RunFacts) -> list[PlanRow]:
    """Planned beside spent, with the difference in per cent where both are numbers."""
    planned, spent = _flat(facts.planned), _flat(facts.spent)
    rows = []
    for name in [*planned, *(key for key in spent if key not in planned)]:
        before, after = planned.get(name), spent.get(name)
        difference = ""
        if isinstance(before, int | float) and isinstance(after, int | float) and before:
            difference = f"{100 * (after - before) / before:+.0f} %".replace("-", "−")
        rows.append(PlanRow(name, _number(before), _number(after), difference))
    return rows


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.2f}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def command(argv: Sequence[str]) -> str:
    """The command to be typed again, without the folders of the machine it ran on: they name people and hospitals.

    Of every path the last component is left, and ``medform`` stands for the program, however it was started.
    """
    if not argv:
        return ""
    return shlex.join(["medform", *(FOLDERS.sub("", argument.rstrip("/\\")) or argument for argument in argv[1:])])


def provenance_rows(facts: RunFacts) -> list[tuple[str, str]]:
    """Name and value of what is needed to make the run again."""
    cohort = facts.cohort
    device = facts.device
    if isinstance(device, Mapping):
        device = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in device.items())
    rows = [
        ("Cohort", cohort.get("name")),
        ("Cohort digest", cohort.get("digest")),
        ("Patients", cohort.get("n_patients")),
        ("Recipe", facts.recipe),
        ("Folds run", ", ".join(map(str, facts.folds_run)) + (f" of {facts.folds}" if facts.folds else "")),
        ("Seed", facts.seed),
        ("Device", device),
        ("Commit", facts.commit),
        ("Judged at commit", facts.judged_commit if facts.judged_commit != facts.commit else None),
        ("Versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
        ("Command", command(facts.argv)),
        ("Started", facts.started),
        ("Finished", facts.finished),
        ("Status", facts.status),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]
