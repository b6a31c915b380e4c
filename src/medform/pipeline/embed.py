"""`medform embed`: one vector a slice and one a series, of a scan, a folder of scans or a cohort store."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.pipeline.predict import Model

__all__ = ["embed"]

logger = logging.getLogger(__name__)

DEFAULT = "medform-small"  # whose ImageNet start, layers and size are used without a model


def embed(
    path: Path | str,
    model: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Embed every usable series of a DICOM, NIfTI or picture scan, of a folder of them, or of a cohort store.

    Columns: patient_id, series_id, slice_id (None for a series), z_mm (NaN where unknown), level (`slice` or
    `series`), vector (float32). The vector of a series is the mean of its slices'. Without ``model``: raw slice vectors
    of the ImageNet start; with it: the features that the model's own fitted inputs make of them. What was set aside,
    and what is not known of the rest, is logged and stands in the frame's ``attrs``: ``left_out`` (lines),
    ``exclusions`` (how many for a fault), ``lines`` (what a person is told). Raises `InputError`.
    """
    from medform.cohort.store import Cohort
    from medform.ingestion.ingest import ingest_scan
    from medform.pipeline.predict import Model
    from medform.pipeline.scans import exclusions, left_out, unsure
    from medform.pipeline.table_result import TableResult
    from medform.runs.folder import write_atomically

    source = Path(path)
    trained = None if model is None else Model.load(model).to(device)
    with tempfile.TemporaryDirectory() as scratch:
        if (source / "cohort.json").is_file():
            cohort = Cohort.read(source)
        elif trained is None:
            cohort = ingest_scan(source, Path(scratch) / "store")
        else:
            cohort = trained.ingest(source, Path(scratch), every_series=True)
        frame = _rows(cohort, _features(cohort, trained, device, progress))
        aside, faults = left_out(cohort), exclusions(cohort)
        said = unsure(cohort, None if trained is None else trained.files.preprocess)
        doubts = [f"patient {one}: {remark}" for one, remarks in said.items() for remark in remarks]
    if out is not None:
        write_atomically(Path(out), lambda target: frame.to_parquet(target, index=False))
    for line in [*doubts, *(f"left out: {one}" for one in aside)]:
        logger.warning("%s", line)
    counted = f"{len(cohort.slices)} slices of {len(cohort.series)} series of {cohort.slices['patient_id'].nunique()}"
    line = f"{counted} patients embedded{'' if out is None else f', written to {out}'}"
    return TableResult(frame, [line], aside, faults).told()  # after the file is written, which would keep this too


def _features(cohort: Cohort, model: Model | None, device: str, progress: Progress | None) -> np.ndarray:
    """(T, d) in the order of ``cohort.slices``."""
    if model is not None:
        return model.embed_cohort(cohort, progress)[1]
    from medform.compute.device import choose_device
    from medform.compute.seed import generator
    from medform.inputs.slices import working_slices
    from medform.models.weights import load_imagenet
    from medform.pipeline.stages import feature_input, image_stage
    from medform.recipes.recipe import read_recipe
    from medform.training.infer import slice_features

    recipe = read_recipe(DEFAULT)
    config = feature_input(recipe)
    tower_config: Any = image_stage(recipe)[1].towers["image"]
    tower = tower_config.build(generator(0, "embed"))
    logger.info("%s", load_imagenet(tower))
    tower.to(choose_device(device).torch)
    told = None if progress is None else lambda done, total: progress(done, total, "embedding slices")
    return slice_features(tower, working_slices(cohort, config.size), config.layers, progress=told)


def _rows(cohort: Cohort, feature: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    slices = cohort.slices.reset_index(drop=True)
    rows = pd.DataFrame(
        {
            "patient_id": slices["patient_id"],
            "series_id": slices["series_id"],
            "slice_id": slices["slice_id"],
            "z_mm": slices["position_mm"].astype("float64"),
            "level": "slice",
            "vector": [row.astype(np.float32) for row in feature],
        }
    )
    series = [
        {
            "patient_id": one["patient_id"].iloc[0],
            "series_id": series_id,
            "slice_id": None,
            "z_mm": float("nan"),
            "level": "series",
            "vector": feature[one.index.to_numpy()].mean(axis=0, dtype=np.float64).astype(np.float32),
        }
        for series_id, one in slices.groupby("series_id", sort=False)
    ]
    return pd.concat([rows, pd.DataFrame(series)], ignore_index=True)
