"""`medform align`: the second stage on a run that was pre-trained, with everything that judges it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medform.errors import InputError
from medform.pipeline.run import RunResult, run_stages

if TYPE_CHECKING:
    from medform.ingestion.workers import Progress
    from medform.recipes.recipe import Recipe

__all__ = ["align"]


def align(
    run: Path,
    out: Path,
    recipe: str | None = None,
    device: str = "auto",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Align the encoders of ``run`` with the clinical table, evaluate and report into ``out``.

    ``recipe``: default the one that the run was pre-trained with; its slice stage must be the run's own, so that the
    encoders fit. Encoders are copied, never trained again, so the seeds are those of ``run`` or some of them. Raises
    `MedformError`, also for a run that has not finished.
    """
    from medform.config import load
    from medform.pipeline.records import open_store
    from medform.recipes.recipe import Recipe, read_recipe
    from medform.runs.folder import RunFolder

    before, folder = RunFolder(Path(run)), RunFolder(Path(out))
    record = before.record()
    pretrained = load(Recipe, before.path / "recipe.yaml")
    if record["status"] == "running":
        raise InputError(
            "this run has not finished its pre-training.",
            where=str(before.path),
            consequence="Nothing was started; encoders that are missing would have to be trained here.",
            fix="finish it with pretrain --resume.",
        )
    chosen = read_recipe(
        recipe or str(record["recipe"]),
        (f"seeds={pretrained.seeds}", f"precision={pretrained.precision}", *overrides),
        seed,
    )
    _refuse_other_encoders(chosen, pretrained, before.path / "recipe.yaml")
    cohort = open_store(before)
    if cohort.clinical is None or not cohort.features():
        raise InputError(
            "the cohort has no feature column to align with.",
            where=cohort.name,
            consequence="Nothing was started.",
            fix="declare tables.clinical and columns with role: feature, and pre-train from that cohort file.",
        )
    with folder.lock():
        # of a run that grew in some folds only, the others and the final model lack encoders
        folds = None if record["status"] == "complete" else record.get("folds_run")
        return run_stages(
            folder,
            cohort,
            chosen,
            folds,
            device,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            encoders=before,
        )


def _refuse_other_encoders(chosen: Recipe, pretrained: Recipe, where: Path) -> None:
    """Raise `InputError` where the encoders of a run of ``pretrained`` are not those that ``chosen`` would train."""
    from medform.pipeline.pretrain import slice_recipe

    if missing := sorted(set(chosen.seeds) - set(pretrained.seeds)):
        raise InputError(
            f"this run has no encoder of seed {', '.join(map(str, missing))}.",
            where=str(where),
            consequence="Nothing was started.",
            fix=f"use of its seeds {', '.join(map(str, pretrained.seeds))}, or pre-train with the seed first.",
        )
    same = slice_recipe(chosen).stages == slice_recipe(pretrained).stages
    if not same or chosen.precision != pretrained.precision:
        what = "slice stage" if not same else f"precision ({chosen.precision})"
        raise InputError(
            f"the {what} of recipe '{chosen.name}' is not the one that this run was pre-trained with.",
            where=str(where),
            consequence="Nothing was started.",
            fix="give the same --set values and the same recipe as in pretrain.",
        )
