"""One small hospital with every kind of series, written once for all read-back tests."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileDataset

from medform.synthetic.hospital import write_hospital
from medform.synthetic.options import HospitalOptions
from medform.synthetic.truth import Truth

PATIENTS, SEED = 12, 5
OPTIONS = HospitalOptions(missing=0.15, sentinel=0.3, size=48)


@dataclass(frozen=True)
class Written:
    root: Path
    truth: Truth
    series: dict[str, list[FileDataset]]  # by SeriesInstanceUID, files in the order of their names


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("phantom") / "hospital"
    truth = write_hospital(root, patients=PATIENTS, seed=SEED, options=OPTIONS)
    series = defaultdict(list)
    for path in sorted((root / "images").rglob("*")):
        if path.is_file() and path.suffix != ".txt":
            dataset = pydicom.dcmread(path)
            series[str(dataset.SeriesInstanceUID)].append(dataset)
    return Written(root, truth, dict(series))
