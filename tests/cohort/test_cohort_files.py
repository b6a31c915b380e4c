"""The cohort files that are shipped: they read, their features and tasks are those that the issue names."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from medform.cohort.cohort_file import read_cohort_file
from medform.cohort.columns import feature_columns
from medform.cohort.labels import binary_label, check_classes
from medform.ingestion.leaks import find_leaks, refuse_leaks
from medform.ingestion.tables import read_clinical, type_table

COHORTS = Path(__file__).resolve().parents[2] / "cohorts"
NSCLC = ["age", "sex", "weight_lbs", "smoking", "pack_years", "ethnicity"]


@pytest.mark.shared
@pytest.mark.proves("A9")
@pytest.mark.parametrize(
    ("name", "folder", "features", "tasks"),
    [
        ("nsclc_ct", "nsclc_ct", NSCLC, {"histology": (17, 59), "t_stage": (41, 35), "egfr": (11, 47)}),
        (
            "nsclc_ct_readings",
            "nsclc_ct",
            [*NSCLC, "ground_glass", "tumour_lobes"],
            {"histology": (17, 59), "t_stage": (41, 35), "egfr": (11, 47)},
        ),
        ("ct_ich", "ct_ich", ["age_years", "sex"], {"haemorrhage": (26, 33), "fracture": (16, 43)}),
    ],
)
def test_shipped_cohort_files_type_their_tables_and_have_no_refused_leak(
    shared_data: Path, name: str, folder: str, features: list[str], tasks: dict[str, tuple[int, int]]
) -> None:
    file = read_cohort_file(COHORTS / f"{name}.yaml", shared_data / folder)
    raw = read_clinical(file)
    assert file.clinical is not None
    table, problems = type_table(raw, file.clinical, file.columns)
    assert problems == []
    assert feature_columns(file) == features
    assert all(file.columns[column].known_at in ("before_scan", "scan") for column in features)
    for task in file.tasks:
        labels = binary_label(task, table[task.column], file.columns[task.column])
        assert (int((labels == 1).sum()), int((labels == 0).sum())) == tasks[task.name]
        assert check_classes(task.name, labels, 5) is None
    leaks = find_leaks(file, table)
    refuse_leaks(leaks, name)
    if name == "ct_ich":  # patient numbers are sorted by diagnosis
        assert {(leak.task, leak.how) for leak in leaks} >= {
            ("haemorrhage", "id_number"),
            ("haemorrhage", "row_order"),
        }
    assert pd.api.types.is_float_dtype(table[features[0]].dtype)


def test_the_dicom_cohort_file_needs_no_table() -> None:
    file = read_cohort_file(COHORTS / "dicom_ct.yaml")
    assert file.images.select.rule == "all" and file.tasks == [] and file.clinical is None
