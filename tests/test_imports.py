"""What importing costs: nothing for `import medform`, no training side for what reads, counts and shows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LIGHT = ("cohort", "ingestion", "curation", "synthetic", "metrics", "evaluation", "reporting", "config")
HEAVY = {"torch", "timm", "torchvision", "lightning_fabric"}

PROGRAM = """
import importlib, json, pkgutil, sys
import medform
bare = sorted({name.partition(".")[0] for name in sys.modules})
for part in sys.argv[1:]:
    package = importlib.import_module(f"medform.{part}")
    for found in pkgutil.walk_packages(getattr(package, "__path__", []), f"medform.{part}."):
        importlib.import_module(found.name)
print(json.dumps([bare, sorted(sys.modules)]))
"""


@pytest.mark.proves("A1.5")
def test_medform_alone_loads_nothing_and_the_light_parts_load_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bare, everything = json.loads(done.stdout)
    assert not (HEAVY | {"numpy", "pandas", "pydantic"}) & set(bare)
    assert not HEAVY & {name.partition(".")[0] for name in everything}
    assert {f"medform.{part}" for part in LIGHT} <= set(everything)
