"""The segmentation stage of a fold: trained from the slice encoder, its masks of validation and test patients kept.

Masks are kept as predicted, unjudged: the test patients' are scored only after a model was selected on validation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medform.compute.seed import numpy_generator
from medform.config import digest
from medform.errors import InputError
from medform.evaluation.segmentation import PredictedScan, segmentation_cases
from medform.inputs.loader import mismatched
from medform.inputs.masks import MaskInputConfig, lesion_of
from medform.inputs.segmentation_loader import SegmentationLoader
from medform.inputs.slice_split import SliceSplit, split_by_slice
from medform.inputs.stacks import SegmentationInputConfig, plain_stacks
from medform.metrics.overlap import remove_small
from medform.models.weights import start_from
from medform.objectives.segment import Segment, SegmentConfig
from medform.pipeline.companions import GENES, Companions, wanted
from medform.pipeline.stages import Encoder, build_beside
from medform.runs.arrays import read_arrays, write_arrays
from medform.runs.folder import read_json
from medform.training.infer import segment_slices, weights_digest

if TYPE_CHECKING:
    from medform.cohort.store import Cohort
    from medform.inputs.loader import PairedSource, Source
    from medform.inputs.masks import MaskStore
    from medform.inputs.slices import SliceStore
    from medform.pipeline.bench import Bench, Group
    from medform.recipes.recipe import Recipe, Stage
    from medform.training.stage import StageResult

__all__ = [
    "NULL_GENES",
    "SEGMENTATION",
    "Segmenter",
    "check_brightness",
    "check_labels",
    "draw_lesion",
    "judge_masks",
    "keep_masks",
    "keep_unseen",
    "kept_masks",
    "masks_file",
    "segment_stage",
    "segment_task",
    "segmentation_name",
    "segments",
    "train_segmenter",
]

SEGMENTATION = "segmentation"
"""Name of the task in the rows."""
NULL_GENES = "null_genes"
"""Added to a model's name: the same model, its genes withheld from the patients it is judged on."""
Part = Literal["validation", "test"]


def segment_stage(recipe: Recipe) -> tuple[str, Stage] | None:
    """Name and settings of the stage that draws masks, None where the recipe has none."""
    return next(((name, s) for name, s in recipe.stages.items() if isinstance(s.objective, SegmentConfig)), None)


def segmentation_name(recipe: Recipe) -> str:
    """What the recipe's own masks are called in the rows: the first part of its name, `mgi` of `mgi-small`."""
    return recipe.name.partition("-")[0]


def segments(recipe: Recipe) -> bool:
    """Whether the recipe, or this variant of it, trains a segmentation."""
    found = segment_stage(recipe)
    return found is not None and found[1].budget.steps != 0


def check_brightness(recipe: Recipe, unit: str) -> None:
    """Raise `InputError` where the recipe or a variant evens out the brightness of scans in Hounsfield units."""
    for chosen in (recipe, *(recipe.variant(name) for name in recipe.variants)):
        found = segment_stage(chosen)
        if unit == "HU" and found and getattr(found[1].inputs["image"], "intensity", None) == "scan":
            raise InputError(
                "`intensity: scan` would take from CT what is the same in every scan: its Hounsfield units.",
                where=f"stages.{found[0]}.inputs.image.intensity",
                consequence="Nothing was started.",
                fix="leave it at `cohort`; `scan` is for images without a unit, such as MRI.",
            )


def check_labels(recipe: Recipe, declared: Mapping[str, Sequence[int]] | None, found: Sequence[int] = ()) -> None:
    """Raise `InputError` where any label would be learnt as lesion and the masks have several.

    ``declared``: masks.values of the cohort file, each name one label whatever its numbers. Where it names none, every
    number but 0 of those ``found`` in the masks is a label of its own.
    """
    named = {name: numbers for name, numbers in (declared or {}).items() if numbers}
    labels = [*named.values()] or [[one] for one in sorted(found) if one]
    if len(labels) < 2:
        return
    for chosen in (recipe, *(recipe.variant(name) for name in recipe.variants)):
        drawn = segment_stage(chosen)
        if drawn is None or not segments(chosen):
            continue
        mask, place = drawn[1].inputs.get("mask"), f"stages.{drawn[0]}.inputs.mask"
        if isinstance(mask, MaskInputConfig) and mask.values:
            continue
        there = ", ".join(f"{_listed(numbers)} ({name})" for name, numbers in named.items()) or _listed(found)
        one = _listed(labels[-1])
        setting = f"{place}.values=[{one}]" if mask is not None else f"{place}={{kind: masks, values: [{one}]}}"
        raise InputError(
            f"any label would be learnt as lesion, and the masks have several: {there}.",
            where=f"{place}.values",
            consequence="Nothing was trained.",
            fix=f"say which are lesion, as with --set '{setting}'; a list of all takes them together.",
        )


def _listed(numbers: Iterable[int]) -> str:
    """Label numbers as text, without 0."""
    return ", ".join(str(one) for one in sorted(numbers) if one)


@dataclass(frozen=True)
class Segmenter:
    """A trained segmentation: the objective, its settings, and the genes that its patients are given.

    ``unseen``: rows of the slices that it is judged on, where it was split by slices; None where patients were apart.
    """

    objective: Segment
    config: SegmentationInputConfig
    genes: PairedSource | None
    result: StageResult
    unseen: np.ndarray | None = None

    def masks(
        self, bench: Bench, patients: Sequence[str], *, with_genes: bool = True
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(place of the series in the cohort, lesion (N, H, W) boolean) of every series of ``patients``."""
        store = bench.slices(self.config.source)
        genes = self.genes if with_genes else None
        for series in np.unique(store.series[store.rows(patients)]):
            yield (
                int(series),
                draw_lesion(
                    self.objective, self.config, bench.cohort, store, int(series), genes, threads=bench.threads
                ),
            )


def draw_lesion(
    objective: Segment,
    config: SegmentationInputConfig,
    cohort: Cohort,
    store: SliceStore,
    series: int,
    genes: Source | None = None,
    *,
    threads: int = 1,
    batch: int = 32,
) -> np.ndarray:
    """Lesion (N, H, W), boolean, of the ``series``-th series of ``cohort``, whose slices are those of ``store``.

    Probabilities are made at the size of the scan; above the objective's threshold is lesion, and what hangs
    together in fewer than ``smallest`` voxels is taken away. ``genes`` are those of the patients, by code.
    """
    height, width = (int(cohort.series[name].iloc[series]) for name in ("rows", "cols"))
    probability = segment_slices(
        objective,
        store,
        np.flatnonzero(store.series == series),
        genes,
        images=lambda rows: plain_stacks(store, rows, config, threads),
        scan=(height, width),
        window=config.size,
        batch=batch,
    )
    return remove_small(probability > objective.config.threshold, objective.config.smallest)


def segment_task(
    bench: Bench,
    patients: Sequence[str],
    recipe: Recipe,
    seed: int,
    encoder: Encoder,
    companions: Companions,
    split: SliceSplit | None = None,
) -> tuple[Segment, SegmentationLoader]:
    """The objective of the segmentation stage at its start, and the loader of its batches.

    Its slices are those of ``patients``, or the training slices of ``split`` where there is one.
    """
    from medform.compute.seed import generator

    found = segment_stage(recipe)
    assert found is not None
    name, stage = found
    config: Any = stage.inputs["image"]
    store, masks = _stores(bench, stage)
    image: Any = stage.towers["image"]
    tower = image.build(generator(seed, name, "image"))
    _begin(tower, "image", stage, recipe, encoder)
    beside, sources = build_beside(name, stage, seed, companions, tower.width)
    if GENES in beside:
        _begin(beside[GENES], GENES, stage, recipe, encoder)
    objective: Any = stage.objective
    rows = store.rows(bench.imaged(patients)) if split is None else split.train
    genes = sources.get(GENES)
    loader = SegmentationLoader(
        store, masks, rows, config, stage.batch, seed, threads=bench.threads, genes=genes, pairing=stage.pairing
    )
    return objective.build({"image": tower, **beside}, generator(seed, name, "objective")), loader


def train_segmenter(
    bench: Bench, group: Group, recipe: Recipe, variant: str, seed: int, encoder: Encoder, companions: Companions
) -> Segmenter:
    """Train the segmentation stage on the group's training patients, from what ``encoder`` learnt where it says so."""
    found = segment_stage(recipe)
    assert found is not None
    name, stage = found
    split = _slice_split(bench, group, stage, seed)
    objective, loader = segment_task(bench, group.train, recipe, seed, encoder, companions, split)
    made_from = [sorted(group.train), loader.store.digest, loader.masks.digest]
    made_from += [weights_digest(objective), companions.digest(wanted(stage, companions))]
    made_from += [] if split is None else [loader.rows.tolist()]
    result = bench.train(group, variant, seed, (name, stage), objective, loader, made_from)
    genes = companions.source(GENES) if GENES in wanted(stage, companions) else None
    given = _given(genes, stage, group, companions, seed)
    return Segmenter(objective, loader.config, given, result, None if split is None else split.unseen)


def _slice_split(bench: Bench, group: Group, stage: Stage, seed: int) -> SliceSplit | None:
    """Which slices of test patients are learnt from, and which are not; None where patients are kept apart."""
    if stage.patients.split == "patient":
        return None
    store, masks = _stores(bench, stage)
    train, test = (store.rows(bench.imaged(patients)) for patients in (group.train, group.test))
    lesion = masks.lesion_pixels > 0
    return split_by_slice(train[masks.present[train]], test[masks.present[test]], lesion, store.series, seed)


def _stores(bench: Bench, stage: Stage) -> tuple[SliceStore, MaskStore]:
    """Slices and masks at the size that the stage reads them at."""
    config: Any = stage.inputs["image"]
    mask_config = stage.inputs.get("mask", MaskInputConfig())
    assert isinstance(config, SegmentationInputConfig)
    assert isinstance(mask_config, MaskInputConfig)
    values = tuple(mask_config.values) if mask_config.values else None
    return bench.slices(config.source), bench.masks(config.source, values)


def _begin(tower: Any, modality: str, stage: Stage, recipe: Recipe, encoder: Encoder) -> None:
    """Start a tower as the stage says: at an earlier stage's, at ImageNet, at random, at a file."""
    start = (stage.start.image if modality == "image" else stage.start.genes) or "random"
    if start not in recipe.stages:
        if modality == "image":
            start_from(tower, start)
        elif start != "random":
            raise InputError(
                f"'{start}' is no stage of the recipe.",
                where=f"start.{modality}",
                consequence="Nothing was started.",
                fix=f"use random, or one of {', '.join(recipe.stages)}.",
            )
        return
    learnt = encoder.towers.get(modality)
    if learnt is None:
        return
    ours, theirs = tower.state_dict(), learnt.state_dict()
    if {key: value.shape for key, value in ours.items()} != {key: value.shape for key, value in theirs.items()}:
        raise InputError(
            f"the {modality} tower of this stage is not that of stage '{start}'.",
            where=f"start.{modality}",
            consequence="Nothing was started.",
            fix="give both stages the same tower, or start from random.",
        )
    tower.load_state_dict(theirs)


def _given(
    genes: PairedSource | None, stage: Stage, group: Group, companions: Companions, seed: int
) -> PairedSource | None:
    """The genes that patients are judged with: their own; under the shuffled control another's of the same part.

    The only patient of a part who has genes gets those of a training patient.
    """
    if genes is None or stage.pairing == "matched":
        return genes
    trained = genes.block(companions.codes(group.train)).patient.numpy()
    for patients in (group.validation, group.test):
        theirs = genes.block(companions.codes(patients)).patient.numpy()
        lender = numpy_generator(seed, "lender").permutation(trained)[:1] if len(theirs) == 1 else trained[:0]
        genes = mismatched(genes, np.concatenate([theirs, lender]), seed)
    return genes


def keep_masks(
    bench: Bench, group: Group, segmenter: Segmenter, model: str, seed: int, *, with_genes: bool = True
) -> None:
    """Write the masks of validation and test patients, packed to bits: ``masks/MODEL.SEED.safetensors`` of the fold.

    Masks that this very stage drew before are kept. Of a segmentation that is split by slices there are those of the
    slices that it has not seen, and none of validation patients: it may not be selected.
    """
    if group.fold is None:
        return
    path = masks_file(bench.folder.path, group.fold, model, seed)
    made_from = read_json(segmenter.result.folder / "stage.json")["digest"]
    if path.is_file() and read_arrays(path)[1].get("stage") == made_from:
        return
    drawn = {
        f"{part}.{series}": mask
        for part, patients in (("validation", group.validation), ("test", group.test))
        if part == "test" or segmenter.unseen is None
        for series, mask in segmenter.masks(bench, bench.imaged(patients), with_genes=with_genes)
    }
    slices = None if segmenter.unseen is None else _slices(bench, segmenter, drawn)
    _write_masks(path, drawn, made_from, slices)


def keep_unseen(bench: Bench, group: Group, segmenter: Segmenter, model: str, name: str, seed: int) -> None:
    """Write as ``name`` those kept masks of ``model`` that ``segmenter``, split by slices, is judged on, too.

    Both were drawn, and small parts taken away, over whole series before slices were left out.
    """
    if group.fold is None or segmenter.unseen is None:
        return
    arrays, notes = read_arrays(masks_file(bench.folder.path, group.fold, model, seed))
    shapes = {key: shape for key, shape in notes["shapes"].items() if key.startswith("test.")}
    drawn = {key: _unpacked(arrays[key], shape) for key, shape in shapes.items()}
    made_from = digest([notes["stage"], segmenter.unseen.tolist()])
    path = masks_file(bench.folder.path, group.fold, name, seed)
    _write_masks(path, drawn, made_from, _slices(bench, segmenter, drawn))


def _slices(bench: Bench, segmenter: Segmenter, keys: Iterable[str]) -> dict[str, list[int]]:
    """Places, in each series that has a mask, of the slices that the segmentation is judged on."""
    store = bench.slices(segmenter.config.source)
    unseen: Any = segmenter.unseen
    of = {key: store.index[unseen[store.series[unseen] == int(key.partition(".")[2])]] for key in keys}
    return {key: [int(one) for one in places] for key, places in of.items() if len(places)}


def _write_masks(
    path: Path, drawn: Mapping[str, np.ndarray], stage: str, slices: Mapping[str, list[int]] | None = None
) -> None:
    """Write masks (N, H, W) of series, of their ``slices`` alone where those are given; of no series else."""
    kept = dict(drawn) if slices is None else {key: drawn[key][places] for key, places in slices.items()}
    notes: dict[str, Any] = {"shapes": {key: list(mask.shape) for key, mask in kept.items()}, "stage": stage}
    notes |= {} if slices is None else {"slices": slices}
    write_arrays(path, {key: np.packbits(mask) for key, mask in kept.items()}, notes)


def _unpacked(bits: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def masks_file(run: Path, fold: int, model: str, seed: int) -> Path:
    """Where the masks of one model are kept."""
    return run / "folds" / str(fold) / "masks" / f"{model}.{seed}.safetensors"


def kept_masks(
    path: Path, cohort: Cohort, recipe: Recipe, part: Part, patients: Collection[str] | None = None
) -> Iterator[tuple[str, str, PredictedScan]]:
    """(patient, series, mask beside the truth) of the kept masks of one part, or of some of its ``patients``.

    Where masks were kept of some slices only, so is the truth, and nothing is known of the distance between slices.
    """
    found = segment_stage(recipe)
    config = found[1].inputs.get("mask") if found else None
    values = config.values if isinstance(config, MaskInputConfig) else None
    arrays, notes = read_arrays(path)
    for key, shape in notes["shapes"].items():
        where, _, place_ = key.partition(".")
        if where != part:
            continue
        patient, series_id = (str(cohort.series.iloc[int(place_)][name]) for name in ("patient_id", "series_id"))
        if patients is not None and patient not in patients:
            continue
        mask = cohort.masks(series_id)
        if mask is None:
            continue
        drawn, true = _unpacked(arrays[key], shape), lesion_of(np.asarray(mask), values)
        spacing = cohort.open(series_id).spacing_mm
        if (places := notes.get("slices", {}).get(key)) is None:
            yield patient, series_id, PredictedScan(drawn, true, spacing)
        else:
            flat = None if spacing is None else (float("nan"), *spacing[1:])
            yield patient, series_id, PredictedScan(drawn, true[places], flat, lesion_voxels=int(true.sum()))


def judge_masks(
    run: Path, cohort: Cohort, recipe: Recipe, folds: Sequence[int], part: Part, seeds: Collection[int]
) -> list[dict[str, Any]]:
    """Cases of every model's kept masks of one part, of some folds and seeds, beside the masks of the store."""
    cases = []
    for fold in folds:
        for path in sorted((run / "folds" / str(fold) / "masks").glob("*.safetensors")):
            model, _, seed = path.stem.rpartition(".")
            if int(seed) not in seeds:
                continue
            scans: dict[str, list[PredictedScan]] = {}
            for patient, _, scan in kept_masks(path, cohort, recipe, part):
                scans.setdefault(patient, []).append(scan)
            for patient, theirs in scans.items():
                cases += segmentation_cases(
                    theirs,
                    cohort=cohort.name,
                    task=SEGMENTATION,
                    model=model,
                    fold=fold,
                    seed=int(seed),
                    patient_id=patient,
                    part=part,
                )
    return cases
