"""Join runs of different folds, trained side by side.

    python tools/join_folds.py OUT RUN RUN ...

The runs must be of one recipe, cohort and version and share no fold. Afterwards `medform run ... -o OUT --resume` finds
every fold trained, makes the final model and judges them together. Plans and spending are added up.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from medform.errors import InputError
from medform.runs.folder import RunFolder, write_atomically, write_json

ADDED = {"planned": ("cpu_minutes", "disk_gb"), "spent": ("cpu_minutes", "wall_minutes")}


def add(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The first run's record with what all of them planned and spent; memory is the largest of them."""
    whole = dict(records[0])
    for part, keys in ADDED.items():
        whole[part] = dict(whole[part]) | {key: round(sum(one[part][key] for one in records), 3) for key in keys}
    whole["planned_folds"] = [name for one in records for name in one["planned_folds"]]
    whole["spent"]["peak_memory_gb"] = max(one["spent"]["peak_memory_gb"] for one in records)
    whole["status"] = "running"
    return whole


def join(out: Path, runs: list[Path]) -> None:
    """Write ``out``; raises `InputError` where two runs differ, share a fold, or something lies there already."""
    folders = [RunFolder(run) for run in runs]
    for folder in folders[1:]:
        if changed := folders[0].identity().difference(folder.identity()):
            raise InputError("the runs are not of one configuration:\n" + "\n".join(changed), where=str(folder.path))
    folds = [path for run in runs for path in sorted((run / "folds").glob("*"))]
    folds += [run / "final" for run in runs if (run / "final").is_dir()]
    twice = sorted({path.name for path in folds if [other.name for other in folds].count(path.name) > 1})
    if twice or out.exists():
        said = f"more than one run holds {', '.join(twice)}." if twice else "something lies here already."
        raise InputError(said, where=str(out), consequence="Nothing was joined.")
    for path in folds:
        shutil.copytree(path, out / ("final" if path.name == "final" else f"folds/{path.name}"))
    shutil.copytree(folders[0].cache, out / "cache")
    shutil.copy(runs[0] / "recipe.yaml", out / "recipe.yaml")
    write_atomically(out / "metrics.jsonl", "".join((run / "metrics.jsonl").read_text("utf-8") for run in runs))
    write_json(out / "run.json", add([folder.record() for folder in folders]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    given = parser.parse_args()
    join(given.out, given.runs)


if __name__ == "__main__":
    main()
