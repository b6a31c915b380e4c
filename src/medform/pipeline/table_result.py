"""What a verb that makes a table found: its rows, and what a person is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TableResult"]


@dataclass(frozen=True)
class TableResult:
    """What `medform predict` or `medform embed` found.

    ``frame``: its rows; ``lines``: what a person is told of them; ``left_out``: a line each thing that was set aside;
    ``exclusions``: how many of these for a fault.
    """

    frame: pd.DataFrame
    lines: Sequence[str]
    left_out: Sequence[str]
    exclusions: int

    def told(self) -> pd.DataFrame:
        """The frame, with which users of the verb compute; the rest in its ``attrs``, as `medform.cli.output` asks."""
        self.frame.attrs |= {
            "lines": list(self.lines),
            "left_out": list(self.left_out),
            "exclusions": self.exclusions,
        }
        return self.frame
