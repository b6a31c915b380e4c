"""A small cohort store made from the phantom without any file in between, shared by the tests of the verbs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort.cohort_file import parse_cohort_file
from medform.cohort.genes import GenesRecord
from medform.cohort.genes_spec import GenesSpec
from medform.cohort.quarantine import Verdict
from medform.cohort.store import Cohort, CohortWriter, SeriesRecord, SliceRecord
from medform.pipeline.run import run_stages
from medform.recipes.recipe import read_recipe
from medform.runs.folder import RunFolder
from medform.synthetic.hospital import make_stacks
from medform.synthetic.options import HospitalOptions

COHORT: dict[str, Any] = {
    "name": "phantom",
    "licence": "synthetic",
    "images": {"layout": "dicom", "unit": "HU"},
    "tables": {"clinical": {"path": "clinical.csv", "patient_id": "id"}},
    "columns": {
        "age": {"role": "feature", "type": "number", "known_at": "before_scan"},
        "marker": {"role": "feature", "type": "number", "known_at": "before_scan"},
        "sex": {"role": "feature", "type": "category", "known_at": "before_scan"},
        "malignant": {"role": "label", "type": "boolean"},
    },
    "tasks": [{"name": "malignant", "label": "clinical.malignant", "predicted_at": "scan", "primary": True}],
    "splits": {"folds": 2, "validation": 0.2, "seed": 3},
}

WITH_GENES = {
    "genes": {"path": "genes.csv", "scale": "zscore", "upstream_transductive": True},
    "survival": {"time": "months", "event": "died"},
    "columns": COHORT["columns"]
    | {"months": {"role": "time", "type": "number"}, "died": {"role": "outcome", "type": "boolean"}},
}


SEGMENTING = (
    "stages.align.inputs.image={kind: patient_slices, size: 48, source: 48, slices: 2}",
    "stages.align.towers.genes={kind: mamba, width: 16, layers: 1, state: 4, patch: 8}",
    "stages.align.budget={steps: 1}",
    "stages.segment.inputs.image={kind: segmentation, size: 48, source: 48}",
    "stages.segment.towers.genes={kind: mamba, width: 16, layers: 1, state: 4, patch: 8}",
    "stages.segment.objective.smallest=0",
    "stages.segment.batch=4",
    "stages.segment.budget={steps: 1}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
    "variants={}",
)


def make_phantom_store(
    root: Path,
    patients: int = 24,
    seed: int = 1,
    spoilt: frozenset[str] = frozenset(),
    masks: bool = False,
    without_genes: int | None = None,
    tabled: bool = True,
) -> Cohort:
    """A store of phantom patients of 48 x 48 pixels; pixels and numbers of the ``spoilt`` ones are far off.

    With ``without_genes`` all but that many patients have expression of 40 genes, of which four follow the lesion.
    """
    stacks = make_stacks(patients, seed, HospitalOptions(size=48))
    file = COHORT if without_genes is None else COHORT | WITH_GENES
    if not tabled:
        file = {key: file[key] for key in ("name", "licence", "images", "splits")}
    writer = CohortWriter(root, parse_cohort_file(file, "phantom"), inputs="phantom")
    rows = {}
    for number, patient in enumerate(stacks):
        off = patient.patient_id in spoilt
        slices = tuple(
            SliceRecord(float(index) * 3, 1.0, 0.0, f"{number}.{index}", f"{number}-{index}")
            for index in range(len(patient.stack))
        )
        record = SeriesRecord(f"1.2.{number}", patient.patient_id, "CT", "HU", Verdict("accepted"), slices)
        voxels = [np.rint(image + 150 * off).astype(np.int16) for image in patient.stack]
        writer.write_series(record, voxels, masks=list(patient.mask.astype(np.uint8)) if masks else None)
        random = np.random.default_rng(number)
        rows[patient.patient_id] = {
            "age": float(random.integers(40, 80)) + 1e6 * off,
            "marker": float(np.log1p(patient.mask.sum()) + random.normal(0, 0.3)),
            "sex": str(random.choice(["F", "M"])),
            "malignant": bool(patient.malignant),
            "months": float(random.exponential(30 if patient.malignant else 60)),
            "died": bool(random.random() < 0.6),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("patient_id")
    table = table.astype({"sex": "string", "malignant": "boolean", "died": "boolean"})
    table = table if without_genes is not None else table.drop(columns=["months", "died"])
    genes = None
    if without_genes is not None:
        genes = _genes({patient.patient_id: float(patient.mask.sum()) for patient in stacks[without_genes:]})
    writer.finish([f"1.2.{number}" for number in range(len(stacks))], clinical=table if tabled else None, genes=genes)
    return Cohort.read(root)


def _genes(lesion: dict[str, float]) -> GenesRecord:
    """Z-scored expression, patient by patient, so that no row depends on who else is there."""
    values = np.stack([np.random.default_rng(len(one) + int(size)).normal(size=40) for one, size in lesion.items()])
    values[:, :4] += np.log1p(np.array([*lesion.values()]))[:, None] - 4
    names = tuple(f"GENE{number}" for number in range(40))
    return GenesRecord(
        tuple(lesion),
        names,
        values.astype(np.float32),
        GenesSpec(path="genes.csv", scale="zscore", upstream_transductive=True),
    )


@pytest.fixture(scope="session")
def spoil(tmp_path_factory: pytest.TempPathFactory) -> Callable[[frozenset[str]], Cohort]:
    """The same cohort with some patients spoilt."""
    return lambda patients: make_phantom_store(tmp_path_factory.mktemp("spoilt") / "store", spoilt=patients)


@pytest.fixture(scope="session")
def phantom_store(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return make_phantom_store(tmp_path_factory.mktemp("phantom") / "store")


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Four patients, for what is slow by the slice."""
    return make_phantom_store(tmp_path_factory.mktemp("small") / "store", patients=4)


@pytest.fixture(scope="session")
def gene_store(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Patients with masks; all but three have genes."""
    return make_phantom_store(tmp_path_factory.mktemp("genes") / "store", masks=True, without_genes=3)


@pytest.fixture(scope="session")
def segmenting_run(gene_store: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0 of mgi-small on `gene_store`, a step a stage: a segmentation to export."""
    folder = RunFolder(tmp_path_factory.mktemp("segmenting") / "run")
    with folder.lock():
        run_stages(
            folder,
            gene_store,
            read_recipe("mgi-small", SEGMENTING),
            [0],
            "cpu",
            resume=False,
            overwrite=False,
            progress=None,
        )
    return folder.path


@pytest.fixture(scope="session")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Other patients than those of `gene_store`, of the same kind."""
    root = tmp_path_factory.mktemp("other_genes") / "store"
    return make_phantom_store(root, patients=6, seed=5, masks=True, without_genes=1)


@pytest.fixture(scope="session")
def masked_store(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Patients with masks and without genes."""
    return make_phantom_store(tmp_path_factory.mktemp("masked") / "store", patients=12, masks=True)


@pytest.fixture(scope="session")
def bare_store(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Patients with masks and nothing else."""
    return make_phantom_store(tmp_path_factory.mktemp("bare") / "store", patients=12, masks=True, tabled=False)
