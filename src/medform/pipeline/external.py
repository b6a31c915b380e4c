"""`medform evaluate --model`: a frozen segmentation, judged on the patients of another cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medform.errors import InputError, Problem

if TYPE_CHECKING:
    import numpy as np

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.inputs.genes import EncodedGenes
    from medform.pipeline.frozen_segmentation import FrozenSegmenter
    from medform.runs.folder import RunFolder

__all__ = ["judge_frozen"]

SEED, FOLD = 0, 0
"""Of the cases: a frozen model has one set of weights, and everybody is a test patient."""


def judge_frozen(
    model: Path, cohort_file: Path, out: Path, root: Path | None = None, progress: Progress | None = None
) -> Path:
    """Score the masks of a frozen model on a cohort that has masks; writes a run folder with its report, returns it.

    Rows have the protocol `external`: Dice, IoU, HD95 and NSD as in a run, and, of a model that reads genes, those of
    the same model without the patients' genes beside them. Nothing is fitted or selected. Raises `InputError` where the
    cohort is the one that the model was trained on, has no masks, or is in another unit or scale than in training.
    """
    from medform.cohort.cohort_file import read_cohort_file
    from medform.cohort.files import file_sha256
    from medform.compute.device import set_threads
    from medform.ingestion.ingest import ingest
    from medform.pipeline.frozen_segmentation import load_segmenter
    from medform.runs.folder import RunFolder
    from medform.runs.model_folder import find_model, read_model

    segmenter = load_segmenter(Path(model))
    folder_of_model = find_model(Path(model))
    config = {**read_model(folder_of_model).config, "weights": file_sha256(folder_of_model / "model.safetensors")}
    file = read_cohort_file(Path(cohort_file), root)
    folder = RunFolder(Path(out))
    with folder.lock():
        cohort = ingest(file, folder.path / "store", progress=progress, resume=True)
        genes, notes = _checked(segmenter, cohort, config, str(cohort_file))
        _judge(folder, cohort, segmenter, config, genes, notes, set_threads(), progress)
    return folder.path


def _checked(
    segmenter: FrozenSegmenter, cohort: Cohort, config: dict[str, Any], where: str
) -> tuple[EncodedGenes | None, list[str]]:
    """The patients' genes as the model takes them, and what to know; refuses a cohort that cannot be judged."""
    from medform.pipeline.segment import far_from_training

    problems = []
    if config.get("cohort", {}).get("digest") == cohort.digest:
        problems.append(Problem("the model was trained on this very cohort.", suggestion="Give other patients."))
    if cohort.unit != segmenter.unit:
        problems.append(Problem(f"images are in {cohort.unit}, the model was trained on {segmenter.unit}."))
    if not any(cohort.masks(str(one)) is not None for one in cohort.series["series_id"]):
        problems.append(Problem("no series has a mask.", suggestion="Declare `masks:` or a mask column of the index."))
    genes = cohort.genes()
    encoded, notes = None, []
    if segmenter.genes is not None and segmenter.reads_genes and genes is not None:
        if far := far_from_training(segmenter.genes, genes):
            problems.append(Problem(far, suggestion=f"Give the values as {segmenter.genes.scale}."))
        else:
            try:
                encoded = segmenter.genes.encode(genes)
            except InputError as error:
                problems.append(Problem(error.what, suggestion=error.fix))
            else:
                notes += dict.fromkeys(one.message for one in encoded.degradations)
    elif segmenter.reads_genes:
        notes.append("the cohort has no genes: the model's learnt stand-in was used")
    if problems:
        raise InputError(
            f"this cohort cannot judge the model: {len(problems)} problem{'s' if len(problems) > 1 else ''}.",
            where=where,
            consequence="Nothing was judged.",
            problems=problems,
        )
    return encoded, notes


def _judge(
    folder: RunFolder, cohort: Cohort, segmenter: FrozenSegmenter, config: dict[str, Any], genes: EncodedGenes | None,
    notes: list[str], threads: int, progress: Progress | None,
) -> None:  # fmt: skip
    import pandas as pd

    from medform.evaluation.segmentation import segmentation_rows
    from medform.pipeline.records import Spending, begin_external
    from medform.pipeline.report import report
    from medform.pipeline.segmentation import NULL_GENES
    from medform.runs.folder import write_atomically
    from medform.runs.scores import write_scores

    spending = Spending()
    begin_external(folder, cohort, config)
    models = {segmenter.name: genes}
    if genes is not None:
        models[f"{segmenter.name}_{NULL_GENES}"] = None
    values = config["segmentation"].get("mask_values")
    cases = pd.DataFrame(_cases(cohort, segmenter, models, values, threads, progress))
    pairs = [(segmenter.name, other) for other in models if other != segmenter.name]
    trained = config.get("cohort", {}).get("name")
    write_atomically(folder.path / "cases.parquet", lambda path: cases.to_parquet(path, index=False))
    write_scores(folder.path / "scores.json", segmentation_rows(cases, pairs=pairs, train_cohorts=trained))
    missing = len(cohort.patient_ids) - len(set(cases["patient_id"]))
    notes += [f"{missing} patients have no mask and are not judged"] if missing > 0 else []
    notes.append("which patients the model saw is not known here: the cohorts must not share any")
    spending.finish(folder, notes)
    folder.update(status="complete")
    report(folder.path)


def _cases(
    cohort: Cohort,
    segmenter: FrozenSegmenter,
    models: dict[str, EncodedGenes | None],
    values: list[int] | None,
    threads: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Cases of every patient with a mask, by every model; ``values`` of a mask are lesion, None: all but 0."""
    import numpy as np

    from medform.evaluation.segmentation import PredictedScan, segmentation_cases
    from medform.inputs.masks import lesion_of
    from medform.pipeline.segmentation import SEGMENTATION

    store = segmenter.slices(cohort)
    scans: dict[tuple[str, str], list[PredictedScan]] = {}
    for place in range(len(cohort.series)):
        if progress is not None:
            progress(place + 1, len(cohort.series), "drawing masks")
        patient, series_id = (str(cohort.series.iloc[place][name]) for name in ("patient_id", "series_id"))
        mask = cohort.masks(series_id)
        if mask is None:
            continue
        true: np.ndarray = lesion_of(np.asarray(mask), values)
        for name, genes in models.items():
            drawn = segmenter.draw(cohort, store, place, genes, threads)
            scan = PredictedScan(drawn, true, cohort.open(series_id).spacing_mm)
            scans.setdefault((name, patient), []).append(scan)
    shared: Any = {"cohort": cohort.name, "task": SEGMENTATION, "fold": FOLD, "seed": SEED, "protocol": "external"}
    found = []
    for (name, patient), theirs in scans.items():
        found += segmentation_cases(theirs, model=name, patient_id=patient, **shared)
    return found
