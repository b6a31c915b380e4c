"""`medform evaluate --model`: a frozen segmentation, judged on the patients of another cohort."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medform.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.inputs.genes import EncodedGenes
    from medform.pipeline.frozen_segmentation import FrozenSegmenter
    from medform.runs.folder import RunFolder
    from medform.runs.scores import ScoreRow

__all__ = ["judge_frozen"]

logger = logging.getLogger(__name__)

SEED, FOLD = 0, 0
"""Of the cases: a frozen model has one set of weights, and everybody is a test patient."""
MOST_LESION = 0.5
"""Share of the voxels of all masks above which what is called lesion may be what lies around it."""


@dataclass(frozen=True)
class _Judgeable:
    """What a cohort gives to judge a model by.

    ``genes``: the patients' genes as the model takes them; ``values``: the numbers that are lesion in the masks;
    ``notes``: what to know of the whole run; ``unchecked``: what nobody could check of the numbers, for every row;
    ``upstream_transductive``: the publisher of the genes standardised them over all patients.
    """

    genes: EncodedGenes | None
    values: list[int]
    notes: list[str]
    unchecked: str | None = None
    upstream_transductive: bool = False


def judge_frozen(
    model: Path, cohort_file: Path, out: Path, root: Path | None = None, progress: Progress | None = None
) -> Path:
    """Score the masks of a frozen model on a cohort that has masks; writes a run folder with its report, returns it.

    Rows have the protocol `external`: Dice, IoU, HD95 and NSD as in a run, and, of a model that reads genes, those of
    the same model without the patients' genes beside them. Nothing is fitted or selected. Raises `InputError` where the
    cohort is the one that the model was trained on, has no masks, is in another unit or scale than in training, where
    it cannot be told which labels of its masks the model calls lesion, or where ``out`` lies among its images. Which
    labels were taken, and that nobody could check it where they have no names, is logged and stands in the run.
    """
    from medform.cohort.cohort_file import read_cohort_file
    from medform.cohort.files import file_sha256
    from medform.ingestion.ingest import ingest
    from medform.pipeline.frozen_segmentation import load_segmenter
    from medform.pipeline.ingest import refuse_output_among_images
    from medform.runs.folder import RunFolder
    from medform.runs.model_folder import find_model, read_model

    file = read_cohort_file(Path(cohort_file), root)
    refuse_output_among_images(file, Path(out))
    segmenter = load_segmenter(Path(model))
    folder_of_model = find_model(Path(model))
    files = read_model(folder_of_model)
    config = {**files.config, "weights": file_sha256(folder_of_model / "model.safetensors")}
    folder = RunFolder(Path(out))
    with folder.lock():
        elsewhere = "choose another folder with -o."
        cohort = ingest(file, folder.path / "store", progress=progress, resume=True, renewal=elsewhere)
        found = _checked(segmenter, cohort, config, files.preprocess, str(cohort_file))
        _judge(folder, cohort, segmenter, config, found, progress)
    return folder.path


def _checked(
    segmenter: FrozenSegmenter, cohort: Cohort, config: dict[str, Any], preprocess: Mapping[str, Any], where: str
) -> _Judgeable:
    """What the cohort gives to judge the model by; refuses a cohort that cannot be judged.

    ``config`` and ``preprocess`` are the model's ``config.json`` and ``preprocess.json``.
    """
    from medform.pipeline.scans import ct_problem, unsure

    problems = []
    if config.get("cohort", {}).get("digest") == cohort.digest:
        problems.append(Problem("the model was trained on this very cohort.", suggestion="Give other patients."))
    if cohort.unit != segmenter.unit:
        problems.append(Problem(f"images are in {cohort.unit}, the model was trained on {segmenter.unit}."))
    declared = (cohort.file.masks.values if cohort.file.masks else None) or {}
    voxels = _label_voxels(cohort)
    occurring = None if voxels is None else [number for number in voxels.nonzero()[0].tolist() if number]
    values, problem = _lesion_numbers(config["segmentation"], declared, occurring)
    encoded, of_genes, no_genes = _genes(segmenter, cohort)
    problems += [one for one in (ct_problem(cohort, preprocess), problem, no_genes) if one]
    if problems:
        raise InputError(
            f"this cohort cannot judge the model: {len(problems)} problem{'s' if len(problems) > 1 else ''}.",
            where=where,
            consequence="Nothing was judged.",
            problems=problems,
        )
    unchecked = _unchecked(config["segmentation"], declared, values, voxels)
    notes = [unchecked or f"lesion is label {_named(values, declared)} of the masks"]
    if doubtful := unsure(cohort, preprocess):
        notes.append(f"of {len(doubtful)} patients it is not known whether their images have the unit of the training")
    logger.log(logging.WARNING if unchecked else logging.INFO, "%s", notes[0])
    genes = cohort.genes() if encoded is not None else None
    transductive = genes is not None and genes.upstream_transductive
    return _Judgeable(encoded, values, [*notes, *of_genes], unchecked, transductive)


def _genes(segmenter: FrozenSegmenter, cohort: Cohort) -> tuple[EncodedGenes | None, list[str], Problem | None]:
    """The patients' genes as the model takes them, what to know of them, and why they cannot be the model's."""
    from medform.pipeline.segment import far_from_training

    genes = cohort.genes()
    if not segmenter.reads_genes:
        return None, [], None
    if segmenter.genes is None or genes is None:
        return None, ["the cohort has no genes: the model's learnt stand-in was used"], None
    try:
        encoded = segmenter.genes.encode(genes)
    except InputError as error:
        return None, [], Problem(error.what, suggestion=error.fix)
    if far := far_from_training(segmenter.genes, genes, encoded.patient_ids):
        return None, [], Problem(far, suggestion=f"Give the values as {segmenter.genes.scale}.")
    return encoded, list(dict.fromkeys(one.message for one in encoded.degradations)), None


def _label_voxels(cohort: Cohort) -> NDArray[np.int64] | None:
    """How many voxels (256,) of all masks have each label number, 0 included; None where no series has a mask."""
    import numpy as np

    counts, any_mask = np.zeros(256, np.int64), False
    for series in cohort.series["series_id"]:
        mask = cohort.masks(str(series))
        if mask is not None:
            any_mask = True
            for one in mask:  # a slice at a time, in little memory
                counts += np.bincount(one.ravel(), minlength=256)
    return counts if any_mask else None


def _unchecked(
    trained: Mapping[str, Any], declared: Mapping[str, list[int]], values: list[int], voxels: NDArray[np.int64] | None
) -> str | None:
    """Why the numbers ``values`` may mean something else here than to the model; None where a name says that they do.

    ``trained`` and ``declared`` as for `_lesion_numbers`, ``voxels`` (256,) as `_label_voxels` counts them.
    """
    said = []
    names, number = trained.get("mask_names"), trained.get("mask_values") is not None
    if bool(names) != bool(declared) or (number and not names):
        why = "masks.values names no label" if names else "the model's labels have no names"
        taken = "that number is the lesion of the training" if number else "it is the only label"
        said.append(f"{taken}; {why}, so nobody checked that it means the same")
    if voxels is not None and values and (share := voxels[values].sum() / voxels.sum()) > MOST_LESION:
        said.append(f"it covers {share:.0%} of the masks' voxels, as what lies around a lesion would")
    return f"label {_named(values, declared)} was taken for lesion: {'; '.join(said)}" if said else None


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
    elif names and len(found) > 1:
        # numbers of training say nothing where a name could, and which one is lesion is easily written down
        said = f"to the model {called} is lesion, and masks.values does not say which label is: there are "
        return [], Problem(f"{said}{', '.join(map(str, found))}.", suggestion=hint)
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
    folder: RunFolder,
    cohort: Cohort,
    segmenter: FrozenSegmenter,
    config: dict[str, Any],
    given: _Judgeable,
    progress: Progress | None,
) -> None:
    import pandas as pd

    from medform.compute.device import set_threads
    from medform.pipeline.records import Spending, begin_external
    from medform.pipeline.report import report
    from medform.pipeline.segmentation import NULL_GENES
    from medform.runs.folder import write_atomically
    from medform.runs.scores import write_scores

    spending = Spending()
    begin_external(folder, cohort, config)
    models = {segmenter.name: given.genes}
    if given.genes is not None:
        models[f"{segmenter.name}_{NULL_GENES}"] = None
    cases = pd.DataFrame(_cases(cohort, segmenter, models, given.values, set_threads(), progress))
    trained = config.get("cohort", {}).get("name")
    write_atomically(folder.path / "cases.parquet", lambda path: cases.to_parquet(path, index=False))
    rows = _rows(
        cases, segmenter, given.genes, trained, given.unchecked, upstream_transductive=given.upstream_transductive
    )
    write_scores(folder.path / "scores.json", rows)
    missing = len(cohort.patient_ids) - len(set(cases["patient_id"]))
    notes = [*given.notes]
    notes += [f"{missing} patients have no mask and are not judged"] if missing > 0 else []
    notes.append("which patients the model saw is not known here: the cohorts must not share any")
    spending.finish(folder, notes)
    folder.update(status="complete")
    report(folder.path)


def _rows(
    cases: pd.DataFrame,
    segmenter: FrozenSegmenter,
    genes: EncodedGenes | None,
    trained: str | None,
    unchecked: str | None = None,
    *,
    upstream_transductive: bool = False,
) -> list[ScoreRow]:
    """Rows of the cases; all say what is ``unchecked``.

    Those with genes say of how many patients there were none, and whether their publisher standardised them over all
    patients (``upstream_transductive``). A patient without genes is drawn alike with them and without, so that the
    paired difference is 0 and hides that of others.
    """
    from medform.evaluation.segmentation import segmentation_rows

    notes = {str(model): [unchecked] if unchecked else [] for model in dict.fromkeys(cases["model"])}
    judged = set(cases["patient_id"])
    lacking = len(judged - set(genes.patient_ids if genes is not None else ()))
    if segmenter.reads_genes and lacking:
        notes[segmenter.name].append(f"{lacking} of {len(judged)} patients have no genes: a stand-in was used")
    if upstream_transductive and genes is not None:
        notes[segmenter.name].append("upstream_transductive")
    pairs = [(segmenter.name, other) for other in dict.fromkeys(cases["model"]) if other != segmenter.name]
    said = {model: "; ".join(some) for model, some in notes.items() if some}
    return segmentation_rows(cases, pairs=pairs, train_cohorts=trained, notes=said)


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
