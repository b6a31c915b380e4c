"""A gz CSV of 20,000 genes x 1,000 patients: medform's reader beside pandas, one thread, a fresh process a round.

Read with genes in rows, as portals publish it, and (``_patients``) with patients in rows. medform gives float32
(patient, gene) with its ids, pandas the frame of `read_csv` with its defaults. CPU time of the call; peak memory
beyond what the process held before it, imports and compiled code loaded. Ratio = median of the rounds' ratios (times
faster, times less memory), low and high their extremes.

    python benchmarks/expression.py [--json] [--rounds 5] [--genes 20000] [--patients 1000]

Exit code 1 where a ratio is below its bound.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rows import options, tell

BOUNDS = {"expression_read": 1.0, "expression_memory": 2.0}
ORIENTATIONS = {"": "genes_in_rows", "_patients": "patients_in_rows"}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def write_matrix(path: Path, genes: int, patients: int, orientation: str) -> None:
    """Values of four decimals, like a published log2 matrix."""
    import pyarrow as pa
    from pyarrow import csv

    values = np.random.default_rng(0).gamma(4.0, 1.5, (genes, patients)).round(4)
    names = [f"GENE{number}" for number in range(genes)], [f"TCGA-AA-{number:04d}" for number in range(patients)]
    rows, columns = names if orientation == "genes_in_rows" else names[::-1]
    values = values if orientation == "genes_in_rows" else values.T
    table = pa.Table.from_arrays([pa.array(rows), *map(pa.array, values.T)], ["id", *columns])
    with gzip.open(path, "wb", compresslevel=4) as file:
        csv.write_csv(table, file, csv.WriteOptions(quoting_style="none"))


def kilobytes(field: str) -> int:
    """A line of the kernel's account of this process."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))


def read_once(reader: str, path: Path, orientation: str) -> dict[str, float]:
    """CPU seconds and peak memory in MB of one call, in this process."""
    if reader == "medform":
        from medform.cohort.genes_spec import GenesSpec
        from medform.ingestion import expression_kernel  # noqa: F401  compiled before the clock starts
        from medform.ingestion.expression_formats import read_text_matrix

        spec = GenesSpec.model_validate({"path": path.name, "scale": "log2p1", "orientation": orientation})

        def work() -> Any:
            return read_text_matrix(path, spec, "wide", lambda sample: True)
    else:
        import pandas as pd

        def work() -> Any:
            return pd.read_csv(path, index_col=0)

    CLEAR.write_text("5")  # forgets the peak of the imports
    before, started = kilobytes("VmRSS"), time.process_time()
    kept = work()
    seconds = time.process_time() - started
    assert kept is not None
    return {"seconds": seconds, "megabytes": (kilobytes("VmHWM") - before) / 1024}


def in_fresh_process(reader: str, path: Path, orientation: str) -> dict[str, float]:
    """`read_once` in a process of its own."""
    command = [sys.executable, __file__, "--once", reader, "--file", str(path), "--orientation", orientation]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def measure(suffix: str, path: Path, orientation: str, rounds: int) -> list[dict[str, Any]]:
    """A row for time and one for memory."""
    in_fresh_process("medform", path, orientation)  # compiles, and fills the page cache
    readers = ("medform", "pandas")
    taken = [{reader: in_fresh_process(reader, path, orientation) for reader in readers} for _ in range(rounds)]
    rows = []
    for item, key in (("expression_read", "seconds"), ("expression_memory", "megabytes")):
        ratios = [one["pandas"][key] / one["medform"][key] for one in taken]
        rows.append(
            {
                "item": item + suffix,
                "peer": "pandas",
                "ratio": round(statistics.median(ratios), 2),
                "low": round(min(ratios), 2),
                "high": round(max(ratios), 2),
                "bound": BOUNDS[item],
            }
        )
        means = {reader: statistics.median(one[reader][key] for one in taken) for reader in readers}
        print(f"{item + suffix}: {means['medform']:.2f} {key}, pandas {means['pandas']:.2f}", file=sys.stderr)
    return rows


def main() -> int:
    """Measure, print, and compare with the bounds."""
    parser = options(__doc__)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--patients", type=int, default=1_000)
    parser.add_argument("--once", choices=["medform", "pandas"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--orientation", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        print(json.dumps(read_once(asked.once, asked.file, asked.orientation)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix, orientation in ORIENTATIONS.items():
            path = Path(folder) / f"{orientation}.csv.gz"
            write_matrix(path, asked.genes, asked.patients, orientation)
            rows += measure(suffix, path, orientation, asked.rounds)
    return tell(rows, asked)


if __name__ == "__main__":
    sys.exit(main())
