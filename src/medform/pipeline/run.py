"""`medform run`: everything from files to report, in one folder, resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medform.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.cohort_file import CohortFile
    from medform.cohort.store import Cohort
    from medform.compute.device import Device
    from medform.compute.precision import Precision, PrecisionName
    from medform.ingestion.workers import Progress
    from medform.pipeline.bench import Bench, Group
    from medform.pipeline.fold import FoldResult
    from medform.recipes.recipe import Recipe
    from medform.runs.folder import RunFolder

__all__ = [
    "RunResult",
    "fold_groups",
    "has_folds",
    "keep_fold",
    "make_bench",
    "merge_folds",
    "refuse_early",
    "renewal_by_run",
    "run",
    "run_stages",
    "task_labels",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    ``exclusions`` counts what was set aside for a fault, as `medform.pipeline.scans` does, and stages that collapsed.
    """

    run: Path
    report: Path
    model: Path | None
    exclusions: int = 0
    notes: tuple[str, ...] = field(default=())

    def lines(self) -> list[str]:
        """What a person is told: the path of the report comes last."""
        kept = [f"model: {self.model}"] if self.model else []
        return [*kept, "research use only, not a medical device", str(self.report)]


def run(
    recipe: str,
    cohort: Path,
    root: Path | None = None,
    out: Path = Path("run"),
    folds: Sequence[int] | None = None,
    store: Path | None = None,
    *,
    device: str = "auto",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> RunResult:
    """From a cohort file to ``out/report.html``: ingest, train every fold, evaluate, export, report.

    ``folds``: only these (default: all, then a final model on all patients). A killed run goes on with ``resume``,
    which also adds seeds, variants and ablations to a finished one; another configuration in the same folder is refused
    with the difference. A store that was made from other files than are there now is refused; ``overwrite`` makes it
    anew where it lies in ``out``, and leaves a ``store`` elsewhere, which other runs may use. Raises `MedformError`.
    """
    from medform.cohort.cohort_file import read_cohort_file
    from medform.ingestion.ingest import ingest
    from medform.pipeline.ingest import refuse_output_among_images
    from medform.recipes.recipe import read_recipe
    from medform.recipes.starts import check_starts
    from medform.runs.folder import RunFolder

    chosen = read_recipe(recipe, overrides, seed)
    file = read_cohort_file(Path(cohort), root)
    for place in (out, store):
        if place is not None:
            refuse_output_among_images(file, Path(place))
    folder = RunFolder(Path(out))
    with folder.lock():
        if not (resume and folder.exists()):
            check_starts(chosen)
        refuse_early(chosen, file, folds, device)
        where = Path(store) if store is not None else folder.path / "store"
        own = where.resolve().is_relative_to(folder.path.resolve())
        renewal = renewal_by_run(where) if own else None
        found = ingest(file, where, workers=workers, progress=progress, renew=overwrite and own, renewal=renewal)
        return run_stages(folder, found, chosen, folds, device, resume=resume, overwrite=overwrite, progress=progress)


def refuse_early(recipe: Recipe, file: CohortFile | None, folds: Sequence[int] | None, device: str) -> None:
    """Raise now what `run_stages` would refuse without looking at the store, so that none is made anew for nothing.

    ``file`` is None where there is no cohort file.
    """
    from medform.pipeline.segmentation import check_brightness, check_labels, segments

    _machine(device, recipe.precision)
    if file is None:
        return
    check_brightness(recipe, file.images.unit)
    check_labels(recipe, file.masks.values if file.masks else None)
    if has_folds(file, segmented=segments(recipe)) and file.splits.file is None:
        _wanted_folds(folds, file.splits.folds)


def renewal_by_run(store: Path) -> str:
    """What to do about the store in a run's own folder where it is of other files than are there now."""
    from medform.cohort.writer import ingest_anew

    return (
        "start anew with --overwrite, or choose another folder with -o. "
        f"If only medform is newer: {ingest_anew(store)}, then --resume, which goes on where nothing differs."
    )


def run_stages(
    folder: RunFolder,
    cohort: Cohort,
    recipe: Recipe,
    folds: Sequence[int] | None,
    device: str,
    *,
    resume: bool,
    overwrite: bool,
    progress: Progress | None,
    judged: bool = True,
    encoders: RunFolder | None = None,
) -> RunResult:
    """Everything after the cohort store; ``folder`` is locked by the caller.

    Without ``judged`` (pre-training alone) nothing is evaluated and patients need no label. ``encoders``: another run
    whose trained stages are taken over where they fit.
    """
    from medform.pipeline.companions import encode_companions
    from medform.pipeline.evaluate import evaluate_run
    from medform.pipeline.export import export_model
    from medform.pipeline.plan import make_plan
    from medform.pipeline.records import Spending, begin, write_cohort_pages
    from medform.pipeline.report import report
    from medform.pipeline.scans import exclusions
    from medform.pipeline.segmentation import check_brightness, check_labels, segments

    labels = task_labels(cohort)
    check_brightness(recipe, cohort.unit)
    check_labels(recipe, cohort.file.masks.values if cohort.file.masks else None, cohort.mask_numbers())
    notes: list[str] = []
    groups = fold_groups(cohort, folds, segmented=segments(recipe))
    spending = Spending()
    bench = make_bench(cohort, folder, device, progress, recipe.precision)  # refuses what this machine cannot do
    before, recipe = begin(folder, cohort, recipe, labels, resume=resume, overwrite=overwrite)
    if encoders is not None:
        _take_over(encoders, folder)
    left = [group for group in groups if not _is_done(folder, group, recipe)]
    if left:
        folder.update(status="running")  # also a finished run that grows: until `finish` it is none
    companions = encode_companions(cohort, groups[0].train, recipe)
    every = fold_groups(cohort, None, segmented=segments(recipe))
    to_judge = [group for group in every if group in left or _is_done(folder, group, recipe)] if judged else []
    plan = make_plan(bench, recipe, left, labels, companions, to_judge)
    for line in plan.lines():
        logger.info("%s", line)
    # what was there before is judged once more: nothing of that was planned
    was = make_plan(bench, before, left, labels, companions, ()) if before is not None else None
    spending.planned(folder, plan, was)
    primary = cohort.file.primary_name
    for group in left:
        _train(bench, group, recipe, labels, primary, folder)
        spending.note(folder)
    done = [group for group in every if _is_done(folder, group, recipe)]
    merge_folds(folder, done)
    whole = [_place(folder, group) for group in done]
    if judged and has_folds(cohort.file, segmented=segments(recipe)):
        evaluate_run(folder, cohort, recipe, labels)
    model = export_model(folder, cohort, recipe, labels)
    write_cohort_pages(folder, cohort, labels, primary, whole)
    spending.finish(folder, notes, whole)
    page = report(folder.path)
    collapsed = len(folder.record()["collapsed"])  # of all folds, also those of an earlier sitting
    return RunResult(folder.path, page, model, exclusions(cohort) + collapsed, tuple(notes))


def _take_over(source: RunFolder, target: RunFolder) -> None:
    """Copy trained stages of the recipe itself; what lies there already stays, and each stage checks its digest."""
    from medform.runs.folder import copy_whole

    for record in sorted(source.path.glob("*/**/main/*/*/stage.json")):
        place = target.path / record.parent.relative_to(source.path)
        if not place.exists():
            copy_whole(record.parent, place)


def task_labels(cohort: Cohort) -> pd.DataFrame:
    """A float column a task (1, 0, NaN), by patient."""
    import pandas as pd

    columns = {task.name: cohort.labels(task.name) for task in cohort.tasks} if cohort.clinical is not None else {}
    return pd.DataFrame(columns, index=pd.Index(cohort.patient_ids, name="patient_id"))


def make_bench(
    cohort: Cohort,
    folder: RunFolder,
    device: str,
    progress: Progress | None,
    precision: PrecisionName = "fp32",
) -> Bench:
    """The device, its precision and threads, and what all stages share.

    bf16 is the precision of training steps alone; embeddings are always read in fp32. Raises `InputError` for a device
    that is not there and for bf16 where the hardware would emulate it.
    """
    from lightning_fabric import Fabric

    from medform.compute.device import keep_freed_memory, set_threads
    from medform.pipeline.bench import Bench

    chosen, computed = _machine(device, precision)
    for note in (chosen.note, computed.note):
        if note:
            logger.warning("%s", note)
    fabric = Fabric(accelerator=chosen.name, devices=1, precision=computed.fabric)
    keep_freed_memory()
    return Bench(cohort, folder, fabric, set_threads(), progress, computed.name)


def _machine(device: str, precision: PrecisionName) -> tuple[Device, Precision]:
    """The device and its precision; raises `InputError` for what this machine cannot do."""
    from medform.compute.device import choose_device
    from medform.compute.precision import choose_precision

    chosen = choose_device(device)
    return chosen, choose_precision(precision, chosen)


def fold_groups(cohort: Cohort, folds: Sequence[int] | None, *, segmented: bool = False) -> list[Group]:
    """The folds to run, and the final model on everybody where all of them are run."""
    from medform.pipeline.bench import Group

    split = cohort.split() if has_folds(cohort.file, segmented=segmented) else None
    if split is None:
        return [Group(None, cohort.patient_ids)]
    wanted = _wanted_folds(folds, len(split.folds))
    groups = [Group(k, split.folds[k].train, split.folds[k].validation, split.folds[k].test) for k in wanted]
    if len(wanted) == len(split.folds):
        groups.append(Group(None, split.patient_ids))
    return groups


def has_folds(file: CohortFile, *, segmented: bool = False) -> bool:
    """Whether patients are divided: for a task, for survival, or for the masks of a recipe that draws some."""
    return bool(file.tasks) or file.survival is not None or segmented


def _wanted_folds(folds: Sequence[int] | None, count: int) -> list[int]:
    """Numbers of the folds to run of ``count`` that there are; raises `InputError` for one that there is not."""
    wanted = list(range(count)) if folds is None else sorted(set(folds))
    unknown = [fold for fold in wanted if fold not in range(count)]
    if unknown:
        raise InputError(
            f"there is no fold {', '.join(map(str, unknown))}: the split has folds 0 to {count - 1}.",
            where="--fold",
            consequence="Nothing was started.",
        )
    return wanted


def _place(folder: RunFolder, group: Group) -> Path:
    return folder.path / "final" if group.fold is None else folder.path / "folds" / str(group.fold)


def _is_done(folder: RunFolder, group: Group, recipe: Recipe) -> bool:
    """Whether the fold's tables are there, with every variant and seed of the recipe."""
    return (_place(folder, group) / "embeddings.parquet").is_file() and _holds(folder, group, recipe)


def _holds(folder: RunFolder, group: Group, recipe: Recipe) -> bool:
    """Whether every variant and seed of the recipe was trained in the fold; some may have been added since."""
    from medform.runs.folder import read_json

    path = _place(folder, group) / "facts.json"
    facts = read_json(path) if path.is_file() else {}
    wanted = _of_group(recipe, group)
    return set(wanted.variants) <= set(facts.get("variants", ())) and set(wanted.seeds) <= set(facts.get("seeds", ()))


def _of_group(recipe: Recipe, group: Group) -> Recipe:
    """What is trained of a recipe in one group: all of it in a fold.

    On everybody nothing is judged, but readouts are fitted on vectors of alignments that saw other patients.
    """
    if group.fold is not None:
        return recipe
    kept = {name: recipe.variants[name] for name in ("out_of_fold",) if name in recipe.variants}
    return recipe.model_copy(update={"variants": kept})


def _train(
    bench: Bench, group: Group, recipe: Recipe, labels: pd.DataFrame, primary: str | None, folder: RunFolder
) -> None:
    """Train one fold and write its rows."""
    from medform.pipeline.fold import run_fold

    started = time.perf_counter()
    chosen = _of_group(recipe, group)
    result = run_fold(bench, group, chosen, labels, primary)
    keep_fold(folder, group, result, chosen)
    what = "final model" if group.fold is None else f"fold {group.fold}"
    logger.info("%s done in %.0f s", what, time.perf_counter() - started)
    for collapse in result.collapsed:
        logger.warning("%s: training of %s collapsed and was stopped", what, collapse["variant"])


def keep_fold(folder: RunFolder, group: Group, result: FoldResult, recipe: Recipe) -> None:
    """Write what a fold left of ``recipe`` into its place.

    facts.json comes last: a fold that is killed while it grows still has those of before, and is gone through again.
    """
    import pandas as pd

    from medform.runs.arrays import write_arrays
    from medform.runs.folder import write_atomically, write_json

    place = _place(folder, group)
    if result.slices:
        write_arrays(place / "slices.safetensors", result.slices)
    for name, frames in (
        ("direct", result.direct),
        ("projections", result.projections),
        ("attention", result.attention),
        ("embeddings", result.embeddings),
    ):
        if frames:
            frame = pd.concat(frames, ignore_index=True)
            write_atomically(place / f"{name}.parquet", lambda path, frame=frame: frame.to_parquet(path, index=False))
    facts = {
        "variants": list(recipe.variants),
        "seeds": recipe.seeds,
        "collapsed": result.collapsed,
        "steps": result.steps,
        "notes": result.notes,
    }
    write_json(place / "facts.json", facts)


def merge_folds(folder: RunFolder, groups: Sequence[Group]) -> None:
    """The run's own tables from those of its folds."""
    import pandas as pd

    from medform.runs.folder import write_atomically

    for name in ("embeddings", "attention", "direct", "projections"):
        paths = [
            _place(folder, group) / f"{name}.parquet"
            for group in groups
            if group.fold is not None or name == "embeddings"
        ]
        frames = [pd.read_parquet(path) for path in paths if path.is_file()]
        if frames:
            frame = pd.concat(frames, ignore_index=True)
            target = folder.path / f"{name}.parquet"
            write_atomically(target, lambda path, frame=frame: frame.to_parquet(path, index=False))
