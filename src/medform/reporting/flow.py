"""The way from files found to patients used, and its diagram (`flow.json`)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from medform.reporting.documents import read_document, write_document

__all__ = ["Exclusion", "Flow", "FlowStep", "draw_flow", "flow_rows", "read_flow", "write_flow"]


@dataclass(frozen=True)
class FlowStep:
    """What was left at one step, counted in the units that are known there (None: not counted)."""

    name: str
    patients: int | None = None
    series: int | None = None
    slices: int | None = None
    files: int | None = None

    @property
    def counts(self) -> list[str]:
        """Texts such as 1,788 slices, for the units that were counted at this step."""
        units = {"patients": self.patients, "series": self.series, "slices": self.slices, "files": self.files}
        return [counted(number, unit) for unit, number in units.items() if number is not None]


@dataclass(frozen=True)
class Exclusion:
    """``count`` of ``unit`` ("files", "series", "slices", "patients") left out, and why.

    ``after`` names the step from which they were taken; without it they stand below the last step but one.
    """

    reason: str
    count: int
    unit: str
    after: str | None = None


@dataclass(frozen=True)
class Flow:
    """Cohort flow in the order of the work: ``steps`` from what was found to what was used."""

    steps: tuple[FlowStep, ...]
    exclusions: tuple[Exclusion, ...] = ()


def write_flow(run: Path, flow: Flow) -> None:
    """Write ``RUN/flow.json``."""
    write_document(run / "flow.json", flow)


def read_flow(run: Path) -> Flow | None:
    """Read ``RUN/flow.json``; None where it is not there."""
    return read_document(run / "flow.json", Flow)


WIDTH = 400
LEFT, RIGHT = 176, 188  # widths of the boxes of the steps and of the exclusions
LINE, PADDING, GAP = 17, 9, 22


@dataclass(frozen=True)
class _Box:
    lines: list[str]
    heads: int = 0  # so many of the lines are the name

    @property
    def height(self) -> int:
        return len(self.lines) * LINE + 2 * PADDING

    def svg(self, x: int, y: int, width: int, kind: str) -> str:
        texts = "".join(
            f'<text class="{"head" if number < self.heads else "line"}" x="{x + 10}" '
            f'y="{y + PADDING + LINE * number + 13}">{escape(line)}</text>'
            for number, line in enumerate(self.lines)
        )
        return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{self.height}" rx="4"/>{texts}'


def counted(number: int, unit: str) -> str:
    """A count with its unit: 1 patient, 2,041 slices."""
    singular = unit if unit == "series" else unit.removesuffix("s")
    return f"{number:,} {singular if number == 1 else unit}"


def _step_box(step: FlowStep) -> _Box:
    name = textwrap.wrap(step.name, 21)
    return _Box([*name, *step.counts], heads=len(name))


def _exclusion_box(exclusions: Sequence[Exclusion]) -> _Box:
    lines: list[str] = []
    for exclusion in exclusions:
        lines += textwrap.wrap(f"{counted(exclusion.count, exclusion.unit)}: {exclusion.reason}", 25)
    return _Box(lines)


def excluded_after(flow: Flow) -> list[list[Exclusion]]:
    """The exclusions below each step, in the order given."""
    names = [step.name for step in flow.steps]
    last = max(len(names) - 2, 0)
    groups: list[list[Exclusion]] = [[] for _ in names]
    for exclusion in flow.exclusions:
        groups[names.index(exclusion.after) if exclusion.after in names else last].append(exclusion)
    return groups


def draw_flow(flow: Flow) -> str:
    """The flow as an SVG text, 400 px wide: steps downwards on the left, exclusions to the right of their arrow."""
    y, parts = 2, []
    for number, (step, exclusions) in enumerate(zip(flow.steps, excluded_after(flow), strict=True)):
        box = _step_box(step)
        parts.append(box.svg(1, y, LEFT, "step"))
        y += box.height
        middle = 1 + LEFT // 2
        space = GAP
        if exclusions:
            side = _exclusion_box(exclusions)
            top = y + GAP // 2
            space = side.height + GAP
            arrow = top + side.height // 2
            parts.append(side.svg(WIDTH - RIGHT - 1, top, RIGHT, "out"))
            parts.append(f'<path class="arrow" d="M{middle} {arrow}H{WIDTH - RIGHT - 3}"/>')
            parts.append(_head(WIDTH - RIGHT - 2, arrow, "right"))
        if number < len(flow.steps) - 1:
            parts.append(f'<path class="arrow" d="M{middle} {y}V{y + space - 2}"/>')
            parts.append(_head(middle, y + space - 1, "down"))
        y += space
    height = y - GAP + 4
    style = (
        "<style>.flow rect{fill:#fff;stroke:#44515c}.flow .out{fill:#f5f6f7;stroke:#9aa5ad}"
        ".flow text{font:12.5px system-ui,sans-serif;fill:#1b2430}.flow .head{font-weight:600}"
        ".flow .arrow{fill:none;stroke:#44515c}.flow .tip{fill:#44515c}</style>"
    )
    return (
        f'<svg class="flow" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}">{style}{"".join(parts)}</svg>'
    )


def _head(x: int, y: int, direction: str) -> str:
    shape = f"M{x} {y}l-6 -3.5v7z" if direction == "right" else f"M{x} {y}l-3.5 -6h7z"
    return f'<path class="tip" d="{shape}"/>'


def flow_rows(flow: Flow) -> list[dict[str, str | int | None]]:
    """Steps and exclusions as rows of a CSV."""
    steps = [
        {"step": s.name, "patients": s.patients, "series": s.series, "slices": s.slices, "files": s.files}
        for s in flow.steps
    ]
    return steps + [{"excluded_after": e.after, "reason": e.reason, e.unit: e.count} for e in flow.exclusions]
