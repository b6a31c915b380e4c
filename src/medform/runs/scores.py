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
    "missed_in_words",
    "outcome_in_words",
    "read_scores",
    "unseen_in_words",
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


LESS_IS_BETTER = ("brier", "median_rank")


def detectable_of(row: ScoreRow) -> float | None:
    """The difference that a cohort like this shows with 80 % power, from the row's note; None where it says none."""
    found = re.search(r"detectable ([0-9.]+)", row.note or "")
    return float(found.group(1)) if found else None


def missed_in_words(detectable: float, digits: int = 2) -> str:
    """What a power of 80 % (`metrics.power`) means: a cohort can show a smaller difference, and miss this one."""
    figure = f"{detectable:.{digits}f}"
    return f"a true difference of {figure} would be missed in one of five such cohorts, smaller ones more often"


def unseen_in_words(detectable: float | None, digits: int = 2) -> str:
    """The half sentence that every null carries; empty where the figure is unknown or rounds to zero."""
    if detectable is None or round(detectable, digits) == 0:
        return ""
    return f"; {missed_in_words(detectable, digits)}"


def outcome_in_words(row: ScoreRow, names: tuple[str, str], detectable: float | None = None, digits: int = 2) -> str:
    """What the interval of a paired difference says of its two models, and nothing of the reason.

    Whether a gain is one of alignment or of genes is not in the pair: another row, that of the control, tells.
    ``detectable`` is the difference with 80 % power at this n; by default the row's own note is asked. The row
    needs an interval.
    """
    first, second = names
    if row.ci_low is None or row.ci_high is None:
        raise ValueError(f"{row.model} has no interval to put in words.")
    sign = -1 if row.metric in LESS_IS_BETTER else 1
    low, high = sorted((sign * row.ci_low, sign * row.ci_high))
    if low > 0 or high < 0:
        return f"{first} scores {'better' if low > 0 else 'worse'} than {second} in this cohort"
    unseen = unseen_in_words(detectable_of(row) if detectable is None else detectable, digits)
    return f"this cohort does not show a difference between {first} and {second}{unseen}"


def difference_in_words(row: ScoreRow, detectable: float | None = None, names: tuple[str, str] | None = None) -> str:
    """What the row of a paired difference says, with its interval; ``names`` (by default those of the row) as printed.

    See `outcome_in_words` for what it does not say, and for ``detectable``.
    """
    if row.value is None or row.ci_low is None or row.ci_high is None:
        reason = f" ({row.note})" if row.note else ""
        return f"{row.model}: no paired difference can be given{reason}."
    if names is None:
        first, second = row.model.replace("_", " ").split(" - ", 1)
        names = first, second
    value, *ends = (f"{one:+z.2f}" for one in (row.value, row.ci_low, row.ci_high))  # z: no minus before zero
    figure = f"Paired difference {value} (95% CI {' to '.join(ends)}, {row.n_patients} patients)"
    return f"{figure}: {outcome_in_words(row, names, detectable)}."
