"""What every benchmark shares: its options, its rows, and how they are told."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["options", "tell"]


def options(about: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """The options of a benchmark whose docstring is ``about``: ``--json``, ``--rounds``, ``--out``."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON array of rows")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--out", type=Path, help="also write the rows to this file")
    return parser


def tell(rows: Sequence[dict[str, Any]], asked: argparse.Namespace) -> int:
    """Print the rows (item, peer, ratio, low, high, bound), write them where asked; 1 where one is below its bound."""
    text = json.dumps(list(rows), indent=1)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")
    if asked.json:
        print(text)
    else:
        for row in rows:
            print("{item:26} {peer:12} {ratio:8.2f}x  [{low}, {high}]  bound {bound}".format(**row))
    return int(any(row["ratio"] < row["bound"] for row in rows))
