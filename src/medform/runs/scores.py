"""Rows of ``scores.json``: one flat row a figure, and what the row of a paired difference says in words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from medform.errors import InputError, Problem, nearest
from medform.runs.folder import write_atomically

__all__ = [
    "FALSE_LESIONS",
    "FLAT",
    "Protocol",
    "ScoreRow",
    "detectable_of",
    "difference_in_words",
    "read_scores",
    "write_scores",
]

Protocol = Literal["cross_validation", "few_shot", "slice_probe", "retrieval", "segmentation", "survival", "external"]
FLAT = "no interval: no resample differs"
"""In the note of a figure that is the same whichever patients are drawn."""
FALSE_LESIONS = "patients without lesion, in whom only one of the two drew one, are not compared"
"""In the note of a paired difference of Dice, after their number: it says nothing of false lesions."""


@dataclass(frozen=True)
class ScoreRow:
    """One figure with its interval, n and conditions.

    ``train_cohorts`` joins names by "+". ``supports`` is null outside few-shot; ``readout`` null where the
    model itself predicts. ``value``, ``ci_low``, ``ci_high`` are null where the figure is undefined, and
    ``note`` then says why. ``p_value`` is given for paired differences. ``n_draws`` counts few-shot draws
    or permutations, ``seeds`` the seeds that the value is a mean over. Several notes are joined by "; ".
    """

    cohort: str
    task: str | None
    protocol: Protocol
    model: str
    metric: str
    value: float | None
    n_patients: int
    train_cohorts: str | None = None
    shots: int | None = None
    supports: str | None = None
    readout: str | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    n_draws: int | None = None
    seeds: int | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            close = nearest(str(self.protocol), get_args(Protocol))
            raise ValueError(f"unknown protocol '{self.protocol}'; did you mean {' or '.join(close) or 'another'}?")
        for name in ("value", "ci_low", "ci_high", "p_value"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} is {number}: an undefined figure is null with a note.")


ORDER = (
    "cohort", "train_cohorts", "task", "protocol", "shots", "supports", "model", "readout", "metric", "value",
    "ci_low", "ci_high", "p_value", "n_patients", "n_draws", "seeds", "note",
)  # fmt: skip
"""Keys of a row as they are written."""


def write_scores(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Write rows as a JSON array, one row a line, whole or not at all; equal rows give equal bytes."""
    lines = []
    for row in rows:
        values = asdict(row)
        lines.append(json.dumps({key: values[key] for key in ORDER}, ensure_ascii=False, allow_nan=False))
    write_atomically(path, "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


def read_scores(path: Path) -> list[ScoreRow]:
    """Read `write_scores`'s file. Raises `InputError` naming every row that is none."""
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file.", where=str(path), fix="run `medform evaluate` on this run first.") from None
    except ValueError as error:
        raise InputError(f"not JSON ({error}).", where=str(path), fix="run `medform evaluate` again.") from None
    if not isinstance(tree, list):
        raise InputError("not an array of rows.", where=str(path), fix="run `medform evaluate` again.")
    known = {field.name for field in fields(ScoreRow)}
    rows, problems = [], []
    for number, values in enumerate(tree, start=1):
        try:
            if set(values) != known:
                odd = sorted(set(values) ^ known)
                raise ValueError(f"keys missing or unknown: {', '.join(odd)}.")
            rows.append(ScoreRow(**values))
        except (TypeError, ValueError) as error:
            problems.append(Problem(str(error), file=str(path), row=number))
    if problems:
        raise InputError(
            f"{len(problems)} rows are not scores.",
            where=str(path),
            fix="run `medform evaluate` again, or use the version of medform that wrote the run.",
            problems=problems,
        )
    return rows


QUESTIONS = {
    "aligned - image_only": "alignment",
    "fused - table_logistic": "adding the image to the table",
    "fused - fused_unaligned": "alignment in the fused model",
    "image_only - imagenet_encoder": "pre-training on these slices",
    "aligned - shuffled_pairs": "pairing with the patients' own rows",
}
"""What a paired difference is about; another one is named by its first model."""


def detectable_of(row: ScoreRow) -> float | None:
    """The smallest difference that this row could have shown, from its note; None where it says none."""
    found = re.search(r"detectable ([0-9.]+)", row.note or "")
    return float(found.group(1)) if found else None


def difference_in_words(row: ScoreRow, detectable: float | None = None) -> str:
    """What the row of a paired difference says, with its interval; every null says what could not have been seen.

    ``detectable`` is the smallest difference with 80 % power at this n; by default the row's own note is
    asked.
    """
    if row.value is None or row.ci_low is None or row.ci_high is None:
        reason = f" ({row.note})" if row.note else ""
        return f"{row.model}: no paired difference can be given{reason}."
    about = QUESTIONS.get(row.model, row.model.split(" - ")[0].replace("_", " "))
    digits = 2
    value, *ends = (f"{one:+z.{digits}f}" for one in (row.value, row.ci_low, row.ci_high))  # z: no minus before zero
    figure = f"Paired difference {value} (95% CI {' to '.join(ends)}, {row.n_patients} patients)"
    sign = -1 if row.metric in ("brier", "median_rank") else 1
    low, high = sorted((sign * row.ci_low, sign * row.ci_high))
    if low > 0:
        return f"{figure}: this cohort shows a benefit of {about}."
    if high < 0:
        return f"{figure}: {about} makes it worse on this cohort."
    limit = detectable if detectable is not None else detectable_of(row)
    unseen = f"; a difference below {limit:.{digits}f} could not have been seen" if limit is not None else ""
    return f"{figure}: this cohort does not show a benefit of {about}{unseen}."
