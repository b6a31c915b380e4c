"""What a person is told when something is wrong: what, where, the consequence and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["ExtraMissing", "InputError", "Interrupted", "MedformError", "Problem", "nearest"]


def nearest(word: str, known: Sequence[str], count: int = 3) -> list[str]:
    """The known words most like ``word``, best first (difflib, cut-off 0.5)."""
    import difflib

    return difflib.get_close_matches(word, known, n=count, cutoff=0.5)


@dataclass(frozen=True)
class Problem:
    """One fault of an input, addressed to the cell or key where it stands (``row`` 1 is the header line)."""

    problem: str
    file: str | None = None
    sheet: str | None = None
    row: int | None = None
    column: str | None = None
    value: str | None = None
    suggestion: str | None = None

    def __str__(self) -> str:
        place = [self.file] if self.file else []
        if self.sheet:
            place.append(f"sheet '{self.sheet}'")
        if self.row is not None:
            place.append(f"row {self.row}")
        if self.column:
            place.append(f"column '{self.column}'")
        text = ", ".join(place)
        shown = f"'{self.value}': " if self.value is not None else ""
        line = f"{text}: {shown}{self.problem}" if text else f"{shown}{self.problem}"
        return f"{line} {self.suggestion}" if self.suggestion else line


@dataclass(eq=False)
class MedformError(Exception):
    """A fault that is not a bug of ours. ``str()`` gives one line a problem and the next step."""

    what: str
    where: str | None = None
    consequence: str | None = None
    fix: str | None = None
    problems: Sequence[Problem] = field(default_factory=tuple)

    exit_code = 2

    def __post_init__(self) -> None:
        super().__init__(self.what)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        if self.consequence:
            head = f"{head} {self.consequence}"
        lines = [head, *(f"  {problem}" for problem in self.problems)]
        if self.fix:
            lines.append(f"Fix: {self.fix}")
        return "\n".join(lines)


class InputError(MedformError):
    """The input, the configuration or the call is at fault; nothing was half-written (exit code 2)."""


class ExtraMissing(MedformError):
    """An optional package or a device is missing (exit code 4); ``fix`` holds the pip line."""

    exit_code = 4


class Interrupted(MedformError):
    """Stopped by the user; what is done is kept and ``--resume`` goes on from there (exit code 130)."""

    exit_code = 130
