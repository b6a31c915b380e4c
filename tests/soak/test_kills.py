"""Ingest and training are killed (SIGKILL) again and again and gone on with: the bytes are those of a calm run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import medform
from medform.runs.log import TIME_FIELDS

KILLS = 10
PLAIN = {"defects": False, "localizers": 0, "second_kernels": 0, "follow_ups": 0, "size": 48}
DRIVER = """
import json, os, signal, sys
from pathlib import Path
import medform

left, verb, arguments = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

def event(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(handle, fsync=os.fsync):
    event()  # before the file is safe
    fsync(handle)
    event()  # before it has its name

os.fsync = counted
getattr(medform, verb)(**arguments, progress=event)
"""
TINY = (
    "stages.pretrain.towers.image={kind: module, module: 'timm.models.vision_transformer:VisionTransformer', "
    "img_size: 32, patch_size: 8, in_chans: 1, num_classes: 0, embed_dim: 12, depth: 1, num_heads: 2}",
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.objective.projection={kind: projection, hidden: 8, width: 4}",
    "stages.pretrain.start={image: random}",
    "stages.pretrain.batch=8",
    "stages.pretrain.budget={steps: 40}",
    "stages.pretrain.checkpoint_every=3",
    "stages.pretrain.log_every=2",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [head], pca: 4}",
    "stages.align.checkpoint_every=3",
    "stages.align.budget={steps: 20}",
    "image_only={pca: 4}",
    "variants={out_of_fold: {stages.align.patients: {inner_folds: 3}}}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital of sixteen patients; its cohort file asks for two folds."""
    root = tmp_path_factory.mktemp("kills") / "hospital"
    medform.phantom(root, patients=16, seed=4, options=PLAIN)
    text = (root / "cohort.yaml").read_text(encoding="utf-8")
    (root / "cohort.yaml").write_text(text.replace("folds: 5", "folds: 2"), encoding="utf-8")
    return root


def drive(verb: str, arguments: dict[str, object], after: int = 0) -> int:
    """Run a verb in a process of its own that kills itself at event ``after`` (a step or a file; 0: never)."""
    command = [sys.executable, "-c", DRIVER, str(after), verb, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def kill_loop(go_on: Callable[[int], int], latest: int) -> tuple[int, int]:
    """Kill at up to ten random events, each time going on, then let it end; kills and events drawn last."""
    draw = random.Random(7)
    kills = 0
    for _ in range(KILLS):
        if go_on(draw.randint(1, latest)) == 0:
            break
        kills += 1
    assert go_on(0) == 0
    return kills, latest


def content(root: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Bytes of the files that match, by their path; log lines without their times."""
    found = {}
    for pattern in names:
        for path in sorted(root.glob(pattern)):
            if path.is_file():
                found[str(path.relative_to(root))] = _timeless(path) if path.suffix == ".jsonl" else path.read_bytes()
    return found


def _timeless(path: Path) -> bytes:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [{key: value for key, value in row.items() if key not in TIME_FIELDS} for row in rows]
    return json.dumps(kept).encode()


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.proves("A.tests", "A3.3", "U7")
def test_an_ingest_killed_again_and_again_ends_with_the_bytes_of_a_calm_one(
    hospital: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    arguments = {"cohort_file": str(hospital / "cohort.yaml"), "resume": True}
    assert drive("ingest", {**arguments, "out": str(tmp_path / "calm")}) == 0
    kills, _ = kill_loop(lambda after: drive("ingest", {**arguments, "out": str(tmp_path / "killed")}, after), 60)
    calm, killed = content(tmp_path / "calm", ["**/*"]), content(tmp_path / "killed", ["**/*"])
    record_property("kills", kills)
    record_property("files with equal bytes", len(calm))
    assert kills == KILLS and calm == killed


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.proves("A.tests", "A4.2", "U7", "R43")
def test_a_run_killed_again_and_again_ends_with_the_bytes_of_a_calm_one(
    hospital: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    medform.ingest(hospital / "cohort.yaml", out=tmp_path / "store")
    arguments = {
        "recipe": "medform-demo", "cohort": str(hospital / "cohort.yaml"), "store": str(tmp_path / "store"),
        "folds": [0], "overrides": TINY, "resume": True,
    }  # fmt: skip
    assert drive("run", {**arguments, "out": str(tmp_path / "calm")}) == 0
    kills, _ = kill_loop(lambda after: drive("run", {**arguments, "out": str(tmp_path / "killed")}, after), 60)
    names = ["*.parquet", "scores.json", "metrics.jsonl", "folds/**/*.safetensors", "folds/**/*.parquet", "model/*"]
    calm, killed = content(tmp_path / "calm", names), content(tmp_path / "killed", names)
    record_property("kills", kills)
    record_property("files with equal bytes", len(calm))
    assert kills == KILLS and calm.keys() == killed.keys()
    assert [name for name in calm if calm[name] != killed[name]] == []
