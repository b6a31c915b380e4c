"""Reading files never loads the training side."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.proves("A1.5")
def test_ingestion_imports_neither_torch_nor_timm() -> None:
    program = (
        "import importlib, pkgutil, sys, medform.ingestion as package\n"
        "for found in pkgutil.walk_packages(package.__path__, 'medform.ingestion.'):\n"
        "    importlib.import_module(found.name)\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "sys.exit(', '.join(sorted(loaded & {'torch', 'timm', 'lightning_fabric', 'torchvision'})) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
