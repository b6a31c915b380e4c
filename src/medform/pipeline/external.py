"""`medform evaluate --model`: a frozen segmentation, judged on the patients of another cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medform.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.inputs.genes import EncodedGenes
    from medform.pipeline.frozen_segmentation import FrozenSegmenter
    from medform.runs.folder import RunFolder
    from medform.runs.scores import ScoreRow

__all__ = ["judge_frozen"]

SEED, FOLD = 0, 0
"""Of the cases: a frozen model has one set of weights, and everybody is a test patient."""


def judge_frozen(
    model: Path, cohort_file: Path, out: Path, root: Path | None = None, progress: Progress | None = None
) -> Path:
    """Score the masks of a frozen model on a cohort that has masks; writes a run folder with its report, returns it.

    Rows have the protocol `external`: Dice, IoU, HD95 and NSD as in a run, and, of a model that reads genes, those of
    the same model without the patients' genes beside them. Nothing is fitted or selected. Raises `InputError` where the
    cohort is the one that the model was trained on, has no masks, is in another unit or scale than in training, or
    where it cannot be told which labels of its masks the model calls lesion.
    """
    from medform.cohort.cohort_file import read_cohort_file
    from medform.cohort.files import file_sha256
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
        genes, values, notes = _checked(segmenter, cohort, config, str(cohort_file))
        _judge(folder, cohort, segmenter, config, genes, values, notes, progress)
    return folder.path


def _checked(
    segmenter: FrozenSegmenter, cohort: Cohort, config: dict[str, Any], where: str
) -> tuple[EncodedGenes | None, list[int], list[str]]:
    """The patients' genes as the model takes them, the numbers that are lesion in the masks, and what to know.

    Refuses a cohort that cannot be judged.
    """
    from medform.pipeline.segment import far_from_training

    problems = []
    if config.get("cohort", {}).get("digest") == cohort.digest:
        problems.append(Problem("the model was trained on this very cohort.", suggestion="Give other patients."))
    if cohort.unit != segmenter.unit:
        problems.append(Problem(f"images are in {cohort.unit}, the model was trained on {segmenter.unit}."))
    declared = (cohort.file.masks.values if cohort.file.masks else None) or {}
    values, problem = _lesion_numbers(config["segmentation"], declared, _labels_of(cohort))
    problems += [problem] if problem else []
    genes = cohort.genes()
    encoded, notes = None, [f"lesion is label {_named(values, declared)} of the masks"]
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
    return encoded, values, notes


def _labels_of(cohort: Cohort) -> list[int] | None:
    """The label numbers that occur in the masks, ascending, without 0; None where no series has a mask."""
    from medform.runs.mask_labels import numbers_in

    found: set[int] | None = None
    for one in cohort.series["series_id"]:
        mask = cohort.masks(str(one))
        if mask is not None:
            found = (found or set()) | set(numbers_in(mask))
    return None if found is None else sorted(found)


def _lesion_numbers(
    trained: Mapping[str, Any], declared: Mapping[str, list[int]], found: list[int] | None
) -> tuple[list[int], Problem | None]:
    """Which numbers of the cohort's masks are lesion to the model, or the problem where that cannot be told.

    ``trained``: the model's ``mask_values`` (None: any label) and, unless it is older or its labels had no names,
    ``mask_names``. ``declared``: masks.values of the cohort. ``found``: the numbers that occur, None without masks.
    """
    if found is None:
        return [], Problem("no series has a mask.", suggestion="Declare `masks:` or a mask column of the index.")
    names, values = trained.get("mask_names") or [], trained.get("mask_values")
    called = ", ".join(names)
    hint = f"Name {called} in masks.values, with the numbers that stand for it here."
    if names and declared:
        # a number means nothing across cohorts, a name does
        if lacking := ", ".join(one for one in names if one not in declared):
            said = f"the model draws {lacking}, which masks.values does not name: it names {', '.join(declared)}."
            return [], Problem(said, suggestion="Call the same label by the same name as in training.")
        values = sorted(number for name in names for number in declared[name])
    elif values is None:
        # several numbers under one name are declared to be one thing, and so are none of a choice
        if len(several := declared or found) > 1:
            said = f"to the model any label is lesion, and the masks have several: {', '.join(map(str, several))}."
            alone = "Give masks of the lesion alone, or, if all are lesion, one name for all numbers in masks.values."
            return [], Problem(said, suggestion=hint if names else alone)
        values = found
    if not set(values) & set(found):
        lesion = f"label {_named(values, declared)}" if values else called or "any label"
        said = f"to the model {lesion} is lesion, and no mask holds it: there is {_named(found, declared) or 'none'}."
        return [], Problem(said, suggestion=hint if names else "Give masks whose lesion has the number of training.")
    return list(values), None


def _named(numbers: list[int], declared: Mapping[str, list[int]]) -> str:
    """Label numbers, each with its name where the cohort file declares one."""
    names = {number: f"{number} ({name})" for name, some in declared.items() for number in some}
    return ", ".join(names.get(number, str(number)) for number in numbers)


def _judge(
    folder: RunFolder, cohort: Cohort, segmenter: FrozenSegmenter, config: dict[str, Any], genes: EncodedGenes | None,
    values: list[int], notes: list[str], progress: Progress | None,
) -> None:  # fmt: skip
    import pandas as pd

    from medform.compute.device import set_threads
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
    cases = pd.DataFrame(_cases(cohort, segmenter, models, values, set_threads(), progress))
    trained = config.get("cohort", {}).get("name")
    write_atomically(folder.path / "cases.parquet", lambda path: cases.to_parquet(path, index=False))
    write_scores(folder.path / "scores.json", _rows(cases, segmenter, genes, trained))
    missing = len(cohort.patient_ids) - len(set(cases["patient_id"]))
    notes += [f"{missing} patients have no mask and are not judged"] if missing > 0 else []
    notes.append("which patients the model saw is not known here: the cohorts must not share any")
    spending.finish(folder, notes)
    folder.update(status="complete")
    report(folder.path)


def _rows(
    cases: pd.DataFrame, segmenter: FrozenSegmenter, genes: EncodedGenes | None, trained: str | None
) -> list[ScoreRow]:
    """Rows of the cases; those of a model that reads genes say of how many patients it had none.

    Such a patient is drawn alike with genes and without, so their paired difference is 0 and hides that of others.
    """
    from medform.evaluation.segmentation import segmentation_rows

    notes = {}
    judged = set(cases["patient_id"])
    lacking = len(judged - set(genes.patient_ids if genes is not None else ()))
    if segmenter.reads_genes and lacking:
        notes[segmenter.name] = f"{lacking} of {len(judged)} patients have no genes: a stand-in was used"
    pairs = [(segmenter.name, other) for other in dict.fromkeys(cases["model"]) if other != segmenter.name]
    return segmentation_rows(cases, pairs=pairs, train_cohorts=trained, notes=notes)


def _cases(
    cohort: Cohort,
    segmenter: FrozenSegmenter,
    models: dict[str, EncodedGenes | None],
    values: list[int],
    threads: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Cases of every patient with a mask, by every model; ``values`` of a mask are lesion."""
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
