"""`medform pretrain`: the image encoder alone, on a cohort or on a bare folder without any table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medform.pipeline.run import RunResult, refuse_early, renewal_by_run, run_stages

if TYPE_CHECKING:
    from medform.cohort.cohort_file import CohortFile
    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.recipes.recipe import Recipe

__all__ = ["pretrain"]


def pretrain(
    source: Path,
    out: Path,
    recipe: str = "medform-small",
    root: Path | None = None,
    folds: Sequence[int] | None = None,
    *,
    workers: int = 1,
    device: str = "auto",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Train the recipe's slice stage.

    ``source``: a cohort file or a cohort store, where every fold sees its training patients only and a final encoder
    sees all; or a bare folder of images, where all patients train one encoder, which is then marked transductive for
    them. Raises `MedformError`, before anything is written where ``out`` lies among the images.
    """
    from medform.pipeline.ingest import refuse_output_among_images
    from medform.recipes.recipe import read_recipe
    from medform.recipes.starts import check_starts
    from medform.runs.folder import RunFolder

    chosen = slice_recipe(read_recipe(recipe, overrides, seed))
    source = Path(source)
    file = _cohort_file(source, root)
    if file is not None:
        refuse_output_among_images(file, Path(out))
    folder = RunFolder(Path(out))
    with folder.lock():
        if not (resume and folder.exists()):
            check_starts(chosen)
        refuse_early(chosen, file if _is_cohort_file(source) else None, folds, device)
        cohort, bare = _open(source, file, folder.path / "store", workers, progress, renew=overwrite)
        if bare:
            chosen = chosen.model_copy(update={"transductive": True})
        return run_stages(
            folder, cohort, chosen, folds, device, resume=resume, overwrite=overwrite, progress=progress, judged=False
        )


def slice_recipe(recipe: Recipe) -> Recipe:
    """The recipe with its slice stage only, without variants; slice features are read as the full recipe reads them."""
    from medform.pipeline.stages import image_stage

    name, stage = image_stage(recipe)
    kept = {key: value for key, value in recipe.sources.items() if key.startswith(f"stages.{name}.")}
    return recipe.model_copy(
        update={"stages": {name: stage}, "variants": {}, "embedding": ["image_only"], "sources": kept}
    )


def _cohort_file(source: Path, root: Path | None) -> CohortFile | None:
    """What says where the images lie: the cohort file, or one made up for a bare folder; None for a store."""
    from medform.cohort.cohort_file import CohortFile, Images, read_cohort_file

    if _is_cohort_file(source):
        return read_cohort_file(source, root)
    if (source / "cohort.json").is_file():
        return None
    return CohortFile(name="scan", licence="not stated", images=Images(), root=source)


def _is_cohort_file(source: Path) -> bool:
    return source.suffix.lower() in (".yaml", ".yml")


def _open(
    source: Path, file: CohortFile | None, store: Path, workers: int, progress: Progress | None, *, renew: bool
) -> tuple[Cohort, bool]:
    """The cohort, and whether it is a bare folder; ``file`` as `_cohort_file` gives it, ``renew`` as in `ingest`."""
    from medform.cohort.store import Cohort
    from medform.ingestion.ingest import ingest, ingest_scan

    if file is None:
        return Cohort.read(source), False
    if _is_cohort_file(source):
        renewal = renewal_by_run(store)
        return ingest(file, store, workers=workers, progress=progress, renew=renew, renewal=renewal), False
    renewal = "start anew with --overwrite, or choose another folder with -o."
    return ingest_scan(source, store, workers=workers, progress=progress, renew=renew, renewal=renewal), True
