"""The segmentation of a model folder: what export puts there, rebuilt strictly, checked by maps of the phantom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.errors import InputError, MedformError

if TYPE_CHECKING:
    from medform.cohort.store import Cohort
    from medform.inputs.genes import EncodedGenes, GeneEncoder
    from medform.inputs.slices import SliceStore
    from medform.inputs.stacks import SegmentationInputConfig
    from medform.objectives.segment import Segment
    from medform.recipes.recipe import Recipe
    from medform.runs.folder import RunFolder
    from medform.runs.model_folder import ModelFiles

__all__ = [
    "FrozenSegmenter",
    "SegmentationParts",
    "lesion_names",
    "load_segmenter",
    "rebuild_segmenter",
    "segmentation_parts",
]

PREFIX, AVERAGE, FITTED = "segment.", "average.module.", "inputs.genes."
PLAIN, WITH_GENES, GENES_ROW = "lesion", "lesion_with_genes", "genes"
"""Names in the self-test: probabilities without and with genes, and the expression of the latter."""
TOLERANCE = 2e-3
"""Of a probability of the self-test: it is kept in 16 bits, and other processors round differently."""
BATCHES = (32, 8, 1)
"""Slices taken at once; fewer where memory does not suffice."""
LOGGED = ("counts", "tpm")
LAYOUT = ("id_kind", "patient_id", "missing", "decimal", "ignore")
"""What of the cohort file's `genes` tells how a later table of expression is read."""


@dataclass(frozen=True)
class SegmentationParts:
    """What a model folder holds of a segmentation: tensors, settings, and the tree of its gene encoder."""

    weights: dict[str, np.ndarray]
    config: dict[str, Any]
    genes: dict[str, Any] | None


def segmentation_parts(
    folder: RunFolder, cohort: Cohort, recipe: Recipe, seed: int, fold: int | None
) -> SegmentationParts | None:
    """The recipe's own segmentation of a fold (the final model's: None), None where none was trained.

    Of weights with a moving average the average alone is taken, since it alone predicts.
    """
    from medform.pipeline.companions import GENES
    from medform.pipeline.fold import MAIN
    from medform.pipeline.segmentation import segment_stage, segmentation_name, segments
    from medform.recipes.catalog import described
    from medform.runs.arrays import read_arrays
    from medform.runs.folder import read_json

    found = segment_stage(recipe)
    if found is None or not segments(recipe):
        return None
    name, stage = found
    path = folder.stage(name, MAIN, seed, fold) / "model.safetensors"
    if not path.is_file():
        return None
    arrays = read_arrays(path)[0]
    start = AVERAGE if any(key.startswith(AVERAGE) for key in arrays) else ""
    kept = {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}
    weights = {f"{PREFIX}{key}": value for key, value in kept.items()}
    fitted = folder.stage("embedding", MAIN, seed, fold)
    genes = None
    if GENES in stage.towers and (fitted / "genes.json").is_file():
        weights |= {f"{FITTED}{key}": value for key, value in read_arrays(fitted / "genes.safetensors")[0].items()}
        spec = cohort.file.genes
        read = None if spec is None else spec.model_dump(mode="json", include=set(LAYOUT))
        genes = {"encoder": read_json(fitted / "genes.json"), "file": read}
    towers = {key: described(tower) for key, tower in stage.towers.items() if key != GENES or genes is not None}
    values = getattr(stage.inputs.get("mask"), "values", None)
    declared = cohort.file.masks.values if cohort.file.masks else None
    config = {
        "model": segmentation_name(recipe),
        "objective": {**described(stage.objective), "ema": None},
        "towers": towers,
        "image": described(stage.inputs["image"]),
        "mask_values": values,
        "mask_names": lesion_names(declared, values),
    }
    return SegmentationParts(weights, config, genes)


def lesion_names(declared: Mapping[str, list[int]] | None, values: list[int] | None) -> list[str] | None:
    """What a cohort file's masks.values, ``declared``, calls the lesion: label numbers ``values``, or (None) any.

    None where labels have no names, or where a name stands for lesion and for something else.
    """
    lesion = {
        name: [one for one in numbers if values is None or one in values] for name, numbers in (declared or {}).items()
    }
    if declared is None or any(some not in ([], declared[name]) for name, some in lesion.items()):
        return None
    return [name for name, some in lesion.items() if some] or None


@dataclass(frozen=True)
class FrozenSegmenter:
    """A trained segmentation apart from the run that it came from.

    ``genes`` encodes expression as in training, None for a model that reads none; ``gene_file`` says how a table of
    expression is read (`medform.cohort.genes_spec.GenesSpec`); ``window`` and ``unit`` are those of its slices.
    """

    name: str
    objective: Segment
    config: SegmentationInputConfig
    genes: GeneEncoder | None
    gene_file: Mapping[str, Any]
    window: tuple[float, float]
    unit: str

    @property
    def reads_genes(self) -> bool:
        """Whether genes change what is drawn."""
        return self.genes is not None and self.objective.reads_genes

    def slices(self, cohort: Cohort) -> SliceStore:
        """The slices of ``cohort`` as the network takes them, in the window of its training."""
        from dataclasses import replace

        from medform.inputs.slices import working_slices

        return working_slices(replace(cohort, window=self.window), self.config.source)

    def draw(
        self, cohort: Cohort, store: SliceStore, series: int, genes: EncodedGenes | None, threads: int = 1
    ) -> np.ndarray:
        """Lesion (N, H, W), boolean, of the ``series``-th series of ``cohort``; ``genes`` of its patients, if any.

        Raises `MedformError` where memory does not suffice for a single slice at a time.
        """
        from medform.compute.device import out_of_memory
        from medform.inputs.genes import GeneSource
        from medform.pipeline.segmentation import draw_lesion

        source = None
        if genes is not None:
            source = GeneSource.of(genes, {one: code for code, one in enumerate(store.patient_ids)})
        for batch in BATCHES:
            try:
                return draw_lesion(
                    self.objective, self.config, cohort, store, series, source, threads=threads, batch=batch
                )
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
        rows = cohort.series.iloc[series]
        raise MedformError(
            f"not enough memory for {rows['n_slices']} slices of {rows['rows']} x {rows['cols']} pixels.",
            where=str(rows["series_id"]),
            consequence="Nothing was written.",
            fix="close other programs, cut the scan to fewer slices, or use --device cpu if it ran on a GPU.",
        )

    def selftest(self, values: np.ndarray, genes: np.ndarray | None) -> dict[str, np.ndarray]:
        """Probabilities (N, size, size) of slices (N, H, W) in ``unit``, by the names in a model's self-test.

        ``genes`` (G,) is expression in the order and scale of training.
        """
        from medform.inputs.genes import GeneSource
        from medform.inputs.stacks import plain_stacks
        from medform.training.infer import segment_slices

        store = _plain_store(values, self.window, self.config.source)
        sources: dict[str, Any] = {PLAIN: None}
        if self.genes is not None and genes is not None:
            row = self.genes.matrix(("selftest",), np.asarray(genes, np.float32)[None])
            sources[WITH_GENES] = GeneSource.of(self.genes.encode(row), {"selftest": 0})
        return {
            name: segment_slices(
                self.objective,
                store,
                np.arange(len(values)),
                source,
                images=lambda rows: plain_stacks(store, rows, self.config),
                side=self.config.size,
                window=self.config.size,
            )
            for name, source in sources.items()
        }

    def selftest_row(self) -> np.ndarray | None:
        """Expression (G,) of nobody, from mean and spread of the training patients; None for a model without genes."""
        if self.genes is None or not self.reads_genes:
            return None
        row = self.genes.mean + self.genes.spread * np.linspace(-1, 1, len(self.genes.gene_ids))
        row = np.exp2(np.maximum(row, 0.0)) - 1 if self.genes.scale in LOGGED else row
        return row.astype(np.float32)


def load_segmenter(folder: Path) -> FrozenSegmenter:
    """The segmentation of a model folder, or of the run that holds one, its self-test passed.

    Raises `InputError` where the model has none, is damaged, or draws something else than when it was exported.
    """
    from medform.runs.model_folder import find_model, read_model

    path = find_model(Path(folder))
    files = read_model(path)
    if files.config.get("segmentation") is None:
        raise InputError(
            "this model draws no masks.",
            where=str(path),
            consequence="Nothing was segmented.",
            fix="export a run of a recipe with a segmentation, such as mgi-small.",
        )
    try:
        segmenter = rebuild_segmenter(files)
        kept = {name: files.selftest[name] for name in (PLAIN, WITH_GENES) if name in files.selftest}
        found = segmenter.selftest(files.selftest["images"], files.selftest.get(GENES_ROW))
        off = max(float(np.abs(found[name] - kept[name].astype(np.float32)).max()) for name in found)
    except InputError as error:
        raise InputError(error.what, f"{path}: {error.where}", "The model was not used.", error.fix) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the segmentation of the model folder is damaged ({type(error).__name__}: {error}).",
            where=str(path),
            consequence="The model was not used.",
            fix="export it again.",
        ) from None
    if not off <= TOLERANCE:
        raise InputError(
            f"the self-test fails: a probability of lesion is off by {off:.2g} (tolerance {TOLERANCE:g}).",
            where=str(path),
            consequence="The model was not used.",
            fix="export it again, or use the versions that its config.json names.",
        )
    return segmenter


def rebuild_segmenter(files: ModelFiles) -> FrozenSegmenter:
    """The networks of a segmentation, weights loaded strictly; raises `InputError` with the keys that do not fit."""
    import torch

    from medform.compute.seed import generator
    from medform.inputs.genes import GeneEncoder
    from medform.recipes.catalog import part

    tree = files.config["segmentation"]
    encoder = None
    if files.genes is not None:
        arrays = {key.removeprefix(FITTED): one for key, one in files.weights.items() if key.startswith(FITTED)}
        encoder = GeneEncoder.from_json(files.genes["encoder"], arrays)
    image: Any = part("tower", tree["towers"]["image"])
    towers = {"image": image.build(generator(0, "rebuild"))}
    if encoder is not None:
        genes: Any = part("tower", tree["towers"]["genes"])
        towers["genes"] = genes.build(len(encoder.names), generator(0, "rebuild"), shared_width=towers["image"].width)
    config: Any = part("objective", tree["objective"])
    objective = config.build(towers, generator(0, "rebuild"))
    given = {key.removeprefix(PREFIX): one for key, one in files.weights.items() if key.startswith(PREFIX)}
    own = objective.state_dict()
    odd = sorted(own.keys() ^ given.keys())
    odd += sorted(key for key in own.keys() & given.keys() if tuple(own[key].shape) != given[key].shape)
    if odd:
        raise InputError(
            f"the weights are of another architecture: {len(odd)} tensors do not fit ({', '.join(odd[:6])}).",
            where="model.safetensors, segment",
            fix="use a model folder as `medform export` wrote it.",
        )
    objective.load_state_dict({key: torch.from_numpy(one.copy()) for key, one in given.items()}, strict=True)
    objective.eval()
    low, high = files.preprocess["window"]
    read = (files.genes or {}).get("file") or {}
    inputs: Any = part("input", tree["image"])
    window = (float(low), float(high))
    return FrozenSegmenter(tree["model"], objective, inputs, encoder, read, window, files.preprocess["unit"])


def _plain_store(values: np.ndarray, window: tuple[float, float], size: int) -> SliceStore:
    """Slices (N, H, W) of one series that stands in no cohort, on 65,536 steps over twice the window's width."""
    from medform.inputs.slices import Scale, SliceStore, shrink

    low, high = window
    scale = Scale(2 * (high - low) / 65535, (low + high) / 2, window)
    small = np.stack([shrink(np.asarray(one, np.float32), size, low) for one in values])
    count = len(values)
    nothing, places = np.zeros(count, np.int64), np.arange(count, dtype=np.int64)
    return SliceStore(
        pixels=scale.stored(small, np.dtype(np.int16)),
        scale=scale,
        slice_ids=tuple(map(str, range(count))),
        patient_ids=("selftest",),
        patient=nothing,
        series=nothing,
        index=places,
        z_mm=np.full(count, np.nan, np.float32),
        key=places,
        digest="selftest",
    )
