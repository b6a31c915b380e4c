"""The record of a sitting (`tools/sitting.sh`): what was made, on which machine, and the minutes of the wall clock.

    python tools/sitting.py RUN BEGUN ENDED

BEGUN and ENDED are seconds since 1970.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from medform.runs.folder import RunFolder

PROVES = ["G6.1"]


def record(run: Path, begun: int, ended: int) -> dict[str, Any]:
    """What `docs/results/tcga_lgg/sitting.json` holds; raises `ValueError` for a run that is not whole."""
    kept = RunFolder(run).record()
    if kept["status"] != "complete":
        raise ValueError(f"{run} is not complete")
    device = kept["device"]
    return {
        "command": "bash tools/sitting.sh DATA OUT",
        "run": run.name,
        "commit": kept["commit"],
        "folds": kept["folds_run"],
        "cores": device["cores"],
        "gflops_per_core": device["gflops_per_core"],
        "wall_minutes": round((ended - begun) / 60, 1),
        "proves": PROVES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("begun", type=int)
    parser.add_argument("ended", type=int)
    given = parser.parse_args()
    print(json.dumps(record(given.run, given.begun, given.ended), indent=1))


if __name__ == "__main__":
    main()
