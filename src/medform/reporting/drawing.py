"""Turns a matplotlib figure into SVG that is the same bytes each time, on disk and inside the page."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medform.runs.folder import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "Picture", "plain", "publish", "publish_svg", "sheet"]

INK, MUTED, RULE = "#1b2430", "#55616c", "#d5dade"
# Each at least 4.5 : 1 on white, and told apart by marker and dash as well, so that no reading rests on
# colour alone.
COLOURS = {"image": "#0b5c7a", "table": "#8a5a00", "both": "#6a3d8f", "control": "#66717b", "red": "#b3261e"}
# Drawn at the size of a phone's screen (an inch is 96 px), so that text is never scaled down: two or three
# figures stand side by side on a desk.
WIDE_INCH, NARROW_INCH = 4.1, 3.4

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medform",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page: ``svg`` is inlined, ``title`` above, ``caption`` below, ``alt`` for who cannot see it."""

    name: str
    svg: str
    title: str
    caption: str
    alt: str


def plain(text: str) -> str:
    """Text from a user's file, safe from matplotlib's own mark-up."""
    return text.replace("$", r"\$")


@contextmanager
def sheet(height_inch: float, width_inch: float = WIDE_INCH) -> Iterator[tuple[Figure, Axes]]:
    """A figure of one plot in the page's style; nothing of it touches matplotlib's globals."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)  # the browser has it
        figure = Figure(figsize=(width_inch, height_inch), layout="constrained")
        yield figure, figure.add_subplot()


def publish(
    run: Path,
    name: str,
    figure: Figure,
    rows: Sequence[Mapping[str, Any]],
    title: str,
    caption: str,
    alt: str,
) -> Picture:
    """Save a figure as ``figures/NAME.svg`` with its data as ``figures/NAME.csv``; call it inside `sheet`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return publish_svg(run, name, buffer.getvalue(), rows, title, caption, alt)


def publish_svg(
    run: Path, name: str, svg: str, rows: Sequence[Mapping[str, Any]], title: str, caption: str, alt: str
) -> Picture:
    """The same for an SVG text that was not drawn by matplotlib."""
    svg = re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)
    write_atomically(run / "figures" / f"{name}.svg", svg)
    write_atomically(run / "figures" / f"{name}.csv", as_csv(rows))
    return Picture(name, inline(svg, name), title, caption, alt)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV text with the keys of all of them as header; an absent value is an empty cell."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def inline(svg: str, name: str) -> str:
    """The SVG element alone, without prolog, namespaces and metadata.

    Its ids carry ``name``, so that they stay unique in a page of many figures. Nothing in it is announced to a screen
    reader, the figure around it is.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", element)
    element = element.replace("xlink:href", "href")
    element = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', element)
    element = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", element)
    element = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', element)
    element = re.sub(r'(width|height)="([\d.]+)pt"', lambda m: f'{m[1]}="{float(m[2]) * 96 / 72:.0f}"', element)
    element = element.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    return re.sub(r"\n\s*", "\n", element).strip()
