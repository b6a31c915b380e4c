"""`medform evaluate`: the vectors of a run, or anybody's, judged on every task with every control."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medform.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.genes import Genes
    from medform.cohort.store import Cohort
    from medform.evaluation.evaluate import Evaluation
    from medform.evaluation.settings import EvaluationSettings
    from medform.ingestion.workers import Progress
    from medform.recipes.recipe import Recipe
    from medform.runs.folder import RunFolder
    from medform.runs.scores import ScoreRow

__all__ = ["EvaluateResult", "evaluate", "evaluate_run"]

logger = logging.getLogger(__name__)
UNTRAINED = (
    "aligned", "image_only", "random_start", "shuffled_pairs", "attention_unaligned", "supervised_mil",
)  # fmt: skip
"""Models of a stage-1 encoder."""
SEES_GENES = ("aligned", "aligned_genes", "aligned_both", "genes_logistic", "fused")
"""Models whose vectors are genes or were aligned with them, beside the variants that are aligned themselves."""
LEAKY = "a leak on purpose: split by slices, half of each test patient's were learnt from"
LIKE_LEAKY = "split by patients"
UNSEEN = "judged on the slices that {} has not seen, HD95 and NSD slice by slice; tumour size is of all slices"
FEWEST_STEPS = 200  # of an encoder from a random start, below which its rows say `encoder_untrained`


@dataclass(frozen=True)
class EvaluateResult:
    """What was judged: ``path`` of its scores.json, and how much of the cohort was set aside for a fault.

    It can be given wherever a path is taken (`os.PathLike`).
    """

    path: Path
    exclusions: int = 0

    def __fspath__(self) -> str:
        return str(self.path)

    def lines(self) -> list[str]:
        """What a person is told."""
        return [str(self.path)]


def evaluate(
    run: Path | None = None,
    out: Path | None = None,
    model: Path | None = None,
    cohort: Path | None = None,
    root: Path | None = None,
    embeddings: Path | None = None,
    progress: Progress | None = None,
) -> EvaluateResult:
    """Write ``scores.json`` and the tables it is made from; returns its path, with what of the cohort was set aside.

    ``run``: a run folder, judged in place by the split it was trained with. ``embeddings``: vectors of any encoder,
    judged on the tasks of the cohort file ``cohort`` (its paths below ``root``) in the new run folder ``out``; see
    `medform.pipeline.judge`. ``model``: a frozen segmentation, judged on the masks of that cohort; see
    `medform.pipeline.external`. Raises `InputError` for a combination that is none of these.
    """
    if model is not None:
        from medform.pipeline.external import judge_frozen

        file, target = _needed("--model", cohort, out, {"RUN": run, "--embeddings": embeddings})
        return _judged(judge_frozen(Path(model), file, target, root, progress))
    if embeddings is not None:
        from medform.pipeline.judge import judge_vectors

        file, target = _needed("--embeddings", cohort, out, {"RUN": run})
        return _judged(judge_vectors(Path(embeddings), file, target, root, progress))
    from medform.config import load
    from medform.pipeline.records import open_store
    from medform.pipeline.run import has_folds, task_labels
    from medform.pipeline.scans import exclusions
    from medform.pipeline.segmentation import segments
    from medform.recipes.recipe import Recipe
    from medform.runs.folder import RunFolder

    later = {"-o": out, "--cohort": cohort, "--root": root}
    if given := [name for name, value in later.items() if value is not None]:
        raise InputError(
            f"{', '.join(given)}: a run is judged in its own folder, by the split it was trained with.",
            consequence="Nothing was judged.",
            fix="`medform evaluate RUN`; or --model (a frozen segmentation) or --embeddings, with --cohort and -o.",
        )
    if run is None:
        raise InputError(
            "give a run folder: `medform evaluate RUN`.",
            fix="or, with --cohort FILE -o RUN, vectors of another encoder (--embeddings) or a frozen model (--model).",
        )
    folder = RunFolder(Path(run))
    with folder.lock():
        found = open_store(folder)
        labels = task_labels(found)
        recipe = load(Recipe, folder.path / "recipe.yaml")
        if not has_folds(found.file, segmented=segments(recipe)):
            what = "the cohort has neither a task nor survival to be judged on."
            raise InputError(what, where=found.name, fix="declare `tasks` or `survival`.")
        evaluate_run(folder, found, recipe, labels)
    return EvaluateResult(folder.path / "scores.json", exclusions(found))


def _judged(run: Path) -> EvaluateResult:
    """The scores of a run folder that was just written, whose store lies in it."""
    from medform.pipeline.records import open_store
    from medform.pipeline.scans import exclusions
    from medform.runs.folder import RunFolder

    return EvaluateResult(run / "scores.json", exclusions(open_store(RunFolder(run))))


def _needed(option: str, cohort: Path | None, out: Path | None, beside: dict[str, Path | None]) -> tuple[Path, Path]:
    """Cohort file and run folder, which ``option`` needs; none of ``beside`` can go with it."""
    odd = [name for name, value in beside.items() if value is not None]
    missing = [name for name, value in (("--cohort", cohort), ("-o", out)) if value is None]
    if odd or cohort is None or out is None:
        said = [f"{', '.join(odd)} cannot go with {option}"] if odd else []
        said += [f"{option} needs {' and '.join(missing)}"] if missing else []
        raise InputError(
            f"{'; '.join(said)}.",
            consequence="Nothing was judged.",
            fix=f"medform evaluate {option} {option.removeprefix('--').upper()} --cohort FILE -o RUN.",
        )
    return Path(cohort), Path(out)


def evaluate_run(folder: RunFolder, cohort: Cohort, recipe: Recipe, labels: pd.DataFrame) -> list[ScoreRow]:
    """Judge a run: its vectors on every task, its masks, its survival.

    Writes predictions, cases, curves and scores, and in run.json `selected` and the commit that judged, which may be
    later than the one that trained. A cohort without a task has its masks and survival judged. Judged are the folds
    that embeddings.parquet is of, whatever else lies in the folder.
    """
    import pandas as pd

    from medform.pipeline.companions import GENES
    from medform.pipeline.records import code_commit
    from medform.pipeline.survival import judge_survival
    from medform.runs.folder import write_atomically
    from medform.runs.scores import write_scores

    frame: Any = pd.read_parquet(folder.path / "embeddings.parquet")
    frame = frame[frame["fold"] >= 0]
    if frame.empty:
        return []
    folds = sorted(int(fold) for fold in frame["fold"].unique())
    settings = recipe.evaluation.model_copy(update={"primary": cohort.file.primary_name})
    genes = cohort.genes() if any(GENES in one.inputs for one in recipe.stages.values()) else None
    notes = _vector_notes(recipe, genes)
    rows: list[ScoreRow] = []
    cases: list[pd.DataFrame] = []
    folder.update(selected={}, detectable={})
    if len(labels.columns):
        found, slices = _probes(folder, cohort, recipe, labels, frame, settings, notes)
        rows += [*found.rows, *slices]
        cases.append(found.cases)
        write_atomically(folder.path / "curves.parquet", lambda path: found.curves.to_parquet(path, index=False))
        folder.update(selected=found.selected, detectable=found.detectable)
    drawn, masks = _segmentation(folder, cohort, recipe, settings, genes, folds)
    survival, risks = judge_survival(frame, cohort, settings, notes)
    rows += [*drawn, *survival]
    cases = [one for one in (*cases, masks, pd.DataFrame(risks)) if len(one)]
    if cases:
        judged = pd.concat(cases, ignore_index=True)
        write_atomically(folder.path / "cases.parquet", lambda path: judged.to_parquet(path, index=False))
    write_scores(folder.path / "scores.json", rows)
    folder.update(judged_commit=code_commit())
    return rows


def _probes(
    folder: RunFolder, cohort: Cohort, recipe: Recipe, labels: pd.DataFrame, frame: pd.DataFrame,
    settings: EvaluationSettings, notes: dict[str, str],
) -> tuple[Evaluation, list[ScoreRow]]:  # fmt: skip
    """Every model's vectors on every task, and the slice probes; writes the predictions."""
    import pandas as pd

    from medform.evaluation.evaluate import evaluate as judge
    from medform.evaluation.predictions import PredictionWriter

    optional = {name: folder.path / f"{name}.parquet" for name in ("direct", "projections", "attention")}
    frames = {name: pd.read_parquet(path) if path.is_file() else None for name, path in optional.items()}
    with PredictionWriter(folder.path / "predictions.parquet") as writer:
        found = judge(
            frame,
            labels,
            cohort.split(),
            settings,
            frames["direct"],
            cohort.name,
            projections=frames["projections"],
            similarity=_similarity(recipe),
            attention=frames["attention"],
            notes=notes,
            sink=writer,
            progress=lambda line: logger.debug("%s", line),
        )
        folds = sorted(int(fold) for fold in frame["fold"].unique())
        return found, _slice_rows(folder, cohort, settings, writer, notes, folds)


def _segmentation(
    folder: RunFolder, cohort: Cohort, recipe: Recipe, settings: EvaluationSettings, genes: Genes | None,
    folds: Sequence[int],
) -> tuple[list[ScoreRow], pd.DataFrame]:  # fmt: skip
    """Rows and cases of the kept masks. Test masks are opened only after `selected` stands in run.json."""
    import pandas as pd

    from medform.evaluation.segmentation import segmentation_rows, select_segmentation
    from medform.pipeline.segmentation import judge_masks, segment_stage

    if segment_stage(recipe) is None:
        return [], pd.DataFrame()
    seeds = _seeds(folder, recipe, folds)
    validation = pd.DataFrame(judge_masks(folder.path, cohort, recipe, folds, "validation", seeds))
    if len(validation):
        folder.update(selected={**folder.record().get("selected", {}), **select_segmentation(validation)})
    tested = pd.DataFrame(judge_masks(folder.path, cohort, recipe, folds, "test", seeds))
    cases = pd.concat([validation, tested], ignore_index=True)
    notes = _mask_notes(recipe, cohort, genes)
    return (segmentation_rows(cases, settings, notes=notes) if len(cases) else []), cases


def _seeds(folder: RunFolder, recipe: Recipe, folds: Sequence[int]) -> set[int]:
    """The seeds that all of ``folds`` hold: of a run that was killed while it grew, those that were there before.

    The vectors do not tell: there are recipes that leave some of one seed only. Folds of before say no seeds.
    """
    from medform.runs.folder import read_json

    paths = [folder.path / "folds" / str(fold) / "facts.json" for fold in folds]
    facts = [read_json(path) for path in paths if path.is_file()]
    return set(recipe.seeds).intersection(*(fact["seeds"] for fact in facts if "seeds" in fact))


def _similarity(recipe: Recipe) -> Any:
    """How the recipe compares image and table."""
    from medform.pipeline.stages import image_stage, pair_stage

    _, stage = pair_stage(recipe) or image_stage(recipe)
    return getattr(stage.objective, "similarity", "distance")


def _vector_notes(recipe: Recipe, genes: Genes | None) -> dict[str, str]:
    """Remarks on whole models, which the rows of their vectors carry.

    ``encoder_untrained``: an encoder that took next to no step from a random start is not a trained one.
    ``upstream_transductive``: the publisher of the genes standardised them over all patients, test patients included,
    and the vectors are genes or were aligned with them.
    """
    from medform.pipeline.companions import GENES
    from medform.pipeline.stages import image_stage

    said: dict[str, list[str]] = {}
    _, stage = image_stage(recipe)
    steps = stage.budget.steps
    if stage.start.image in (None, "random") and steps is not None and steps < FEWEST_STEPS:
        said |= {model: ["encoder_untrained"] for model in UNTRAINED}
    if genes is not None and genes.upstream_transductive:
        aligned = [name for name in recipe.variants if _aligned_with(recipe.variant(name), GENES)]
        for model in (*SEES_GENES, *aligned):
            said.setdefault(model, []).append("upstream_transductive")
    return {model: "; ".join(notes) for model, notes in said.items()}


def _aligned_with(recipe: Recipe, modality: str) -> bool:
    """Whether the vectors of a variant come from a step towards ``modality``; drawing masks is none."""
    from medform.pipeline.stages import aligns_slices, image_stage, pair_stage

    if not aligns_slices(recipe) and recipe.embedding == ["image_only"]:
        return False  # the slice encoder alone, of which a bag is aligned in another stage
    found = image_stage(recipe) if aligns_slices(recipe) else pair_stage(recipe)
    return found is not None and modality in found[1].inputs and found[1].budget.steps != 0


def _mask_notes(recipe: Recipe, cohort: Cohort, genes: Genes | None) -> dict[str, str]:
    """Remarks on whole models, which the rows of their masks carry.

    ``upstream_transductive`` as of vectors (`vit_no_genes` starts from an alignment with genes). Models that are split
    by slices, and their likes on the same slices, say so.
    """
    from medform.evaluation.segmentation import on_slices_of
    from medform.pipeline.companions import GENES
    from medform.pipeline.segmentation import NULL_GENES, segment_stage, segmentation_name, segments

    said: dict[str, list[str]] = {}
    own = segmentation_name(recipe)
    leaks = {name: on_slices_of(like or own, name) for name, like in recipe.slice_splits().items()}
    drawing = {name: segment_stage(one) for name in recipe.variants if segments(one := recipe.variant(name))}
    with_genes = [name for name, stage in drawing.items() if stage is not None and GENES in stage[1].towers]
    sees_genes = [own, f"{own}_{NULL_GENES}", *with_genes]
    for leaky, like in leaks.items():
        said[leaky] = [LEAKY, UNSEEN.format(leaky)]
        said[like] = [LIKE_LEAKY, UNSEEN.format(leaky)]
        sees_genes += [like] if leaky in with_genes else []
    stages = {own: segment_stage(recipe), **{name: drawing[name] for name in with_genes}}
    drawn = [name for name, found in stages.items() if found and getattr(found[1].objective, "gene_dropout", 1) < 1]
    if genes is not None and (lacking := len(set(cohort.patient_ids) - set(genes.patient_ids))):
        for model in drawn:
            said.setdefault(model, []).append(f"{lacking} patients of the cohort have no genes: a stand-in was used")
    if genes is not None and genes.upstream_transductive:
        for model in sees_genes:
            said.setdefault(model, []).append("upstream_transductive")
    return {model: "; ".join(notes) for model, notes in said.items()}


def _slice_rows(
    folder: RunFolder, cohort: Cohort, settings: Any, writer: Any, notes: dict[str, str], folds: Sequence[int]
) -> list[ScoreRow]:
    """Slice probes of the encoders of ``folds`` beside position, thumbnail and intensity, where slices have labels."""
    import numpy as np

    from medform.evaluation.rows import score_rows
    from medform.evaluation.shortcuts import position_vectors, slice_statistics, thumbnail
    from medform.evaluation.slice_probe import slice_probe
    from medform.runs.arrays import read_arrays

    if not cohort.slice_tasks:
        return []
    split, slices = cohort.split(), cohort.slices
    features: dict[str, Any] = {"position_only": position_vectors(list(slices["series_id"]), list(slices["index"]))}
    statistics, thumbnails = [], []
    for series_id, rows in slices.groupby("series_id", sort=False):
        series = cohort.open(str(series_id))
        for index in rows["index"]:
            image = series.slice(int(index))
            statistics.append(slice_statistics(image))
            thumbnails.append(thumbnail(image))
    features["intensity_stats"], features["thumbnail_16"] = np.stack(statistics), np.stack(thumbnails)
    probed = []
    for fold in folds:
        path = folder.path / "folds" / str(fold) / "slices.safetensors"
        if path.is_file():
            probed.append(fold)
            for model, array in read_arrays(path)[0].items():
                features.setdefault(model, {})[fold] = array.astype(np.float64)
    frames = []
    for task in cohort.slice_tasks:
        labels = cohort.slice_labels(task.name)
        frames += slice_probe(
            features, slices, labels, split, settings, cohort_name=cohort.name, task=task.name, folds=probed
        )
    for frame in frames:
        writer(frame)
    return score_rows(frames, None, settings, notes=notes) if frames else []
