"""What all stages of a run share: the cohort at working sizes, the run folder, the device; and how a stage is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.compute.device import out_of_memory
from medform.compute.precision import PrecisionName
from medform.config import digest
from medform.errors import MedformError
from medform.evaluation.shortcuts import intensity_statistics
from medform.inputs.masks import MaskStore, working_masks
from medform.inputs.slices import SliceStore, working_slices
from medform.runs.log import StageLog
from medform.training.stage import StageResult, run_stage

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.recipes.recipe import Stage
    from medform.runs.folder import RunFolder
    from medform.training.fit import Monitor

__all__ = ["Bench", "Group", "enough_memory"]


@contextmanager
def enough_memory(stage: str, batch: int) -> Iterator[None]:
    """Turn a lack of memory while ``stage`` steps into a `MedformError` that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        smaller = max(1, batch // 2)
        raise MedformError(
            f"not enough memory for a step of {batch}.",
            where=f"stage {stage}",
            consequence="What was trained before is kept.",
            fix=f"close other programs and go on with --resume; or start in a new folder with smaller batches "
            f"(--set stages.{stage}.batch={smaller}).",
        ) from error


@dataclass(frozen=True)
class Group:
    """The patients of one fold, or, with ``fold`` None, all of them for the final model."""

    fold: int | None
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    @property
    def everybody(self) -> tuple[str, ...]:
        """Training, validation and test patients, in that order."""
        return (*self.train, *self.validation, *self.test)

    @property
    def place(self) -> str:
        """The group in words."""
        return "final model" if self.fold is None else f"fold {self.fold}"


@dataclass(frozen=True)
class Bench:
    """What all stages of a run share. ``progress(done, total, what)`` is told how far the longer ones are."""

    cohort: Cohort
    folder: RunFolder
    fabric: Fabric
    threads: int = 1
    progress: Progress | None = None
    precision: PrecisionName = "fp32"
    _slices: dict[int, SliceStore] = field(default_factory=dict, repr=False)
    _masks: dict[tuple[int, tuple[int, ...] | None], MaskStore] = field(default_factory=dict, repr=False)
    _intensity: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def slices(self, size: int) -> SliceStore:
        """The cohort's slices at a working size, made once."""
        if size not in self._slices:
            self._slices[size] = working_slices(self.cohort, size, self.folder.cache, self.telling("preparing slices"))
        return self._slices[size]

    def masks(self, size: int, values: tuple[int, ...] | None) -> MaskStore:
        """The masks of `slices`, made once."""
        if (size, values) not in self._masks:
            told = self.telling("preparing masks")
            self._masks[size, values] = working_masks(self.cohort, size, values, self.folder.cache, told)
        return self._masks[size, values]

    def imaged(self, patients: Sequence[str]) -> list[str]:
        """Those of ``patients`` that have slices."""
        return [patient for patient in patients if self.has_image(patient)]

    def has_image(self, patient: str) -> bool:
        """Whether the patient has slices."""
        return patient in self._with_images

    @cached_property
    def _with_images(self) -> frozenset[str]:
        return frozenset(self.cohort.slices["patient_id"])

    def intensity(self, size: int) -> dict[str, np.ndarray]:
        """Intensity statistics and bag size (11,) of every patient with images, made once."""
        if not self._intensity:
            store = self.slices(size)
            for patient in self.imaged(store.patient_ids):
                rows = store.rows([patient])
                self._intensity[patient] = intensity_statistics(image[0] for image in store.images(rows))
        return self._intensity

    @cached_property
    def _pseudonyms(self) -> list[str]:
        return list(self.cohort.patients["pseudonym"])

    def names(self, codes: Sequence[int]) -> list[str]:
        """Pseudonyms of patient numbers, for messages."""
        return [self._pseudonyms[code] for code in codes]

    def digest(self, made_from: Sequence[Any]) -> str:
        """Of what a stage is made from, the precision included where it is not plain fp32."""
        return digest([*made_from] if self.precision == "fp32" else [*made_from, self.precision])

    def train(
        self,
        group: Group,
        variant: str,
        seed: int,
        stage: tuple[str, Stage],
        objective: Any,
        loader: Any,
        made_from: Sequence[Any],
        monitor: Monitor | None = None,
        *,
        told: bool = True,
    ) -> StageResult:
        """Run one stage of a variant in its place of the run folder, or take it from there.

        ``stage``: its name and settings. ``made_from``: all that it depends on beside its settings, its seed and the
        precision. ``told``: progress is told (not for stages of a second).
        """
        name, settings = stage
        where = {"stage": name, "fold": group.fold, "variant": variant, "seed": seed}
        with enough_memory(name, settings.batch):
            return run_stage(
                objective,
                loader,
                folder=self.folder.stage(name, variant, seed, group.fold),
                digest=self.digest([settings.model_dump(mode="json"), seed, *made_from]),
                optimizer=settings.optimizer,
                budget=settings.budget,
                seed=seed,
                fabric=self.fabric,
                log=StageLog(self.folder.metrics, where),
                log_every=settings.log_every,
                checkpoint_every=settings.checkpoint_every,
                monitor=monitor,
                names=self.names,
                progress=self.telling(f"{group.place} {variant}: {name}") if told else None,
            )

    def telling(self, what: str) -> Callable[[int, int], None] | None:
        """``progress`` for one piece of work."""
        if self.progress is None:
            return None
        progress = self.progress
        return lambda done, total: progress(done, total, what)
