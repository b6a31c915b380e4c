"""One fold of a run: every variant trained, every patient embedded, nothing seen that the fold may not see."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medform.cohort.split import inner_folds, stratified_share
from medform.config import digest
from medform.evaluation.segmentation import on_slices_of
from medform.inputs.features import Joined
from medform.objectives.classify import ClassifyConfig
from medform.pipeline.companions import GENES, Companions, encode_companions, wanted
from medform.pipeline.fold_rows import (
    attention_rows,
    gene_rows,
    prediction_rows,
    projection_rows,
    rows_of,
    table_rows,
)
from medform.pipeline.pairing import Pairing, is_alignment, pair
from medform.pipeline.segmentation import (
    NULL_GENES,
    keep_masks,
    keep_unseen,
    segment_stage,
    segmentation_name,
    segments,
    train_segmenter,
)
from medform.pipeline.stages import (
    Encoder,
    ImageSide,
    aligns_slices,
    feature_input,
    image_side,
    pair_stage,
    slice_means,
    train_encoder,
)
from medform.runs.arrays import write_arrays
from medform.runs.folder import write_json
from medform.training.infer import embeddings

if TYPE_CHECKING:
    from medform.pipeline.bench import Bench, Group
    from medform.recipes.recipe import Recipe, Stage

__all__ = ["MAIN", "FoldResult", "run_fold"]

MAIN = "main"
"""The recipe as it is, beside its variants; its rows are `aligned` (`image_only` without a second stage)."""
IMAGE = "image"
SUPPORTS = ("out_of_fold", "unseen")
"""Variants that are not a model of their own: they say what the alignment knew of the few-shot supports."""


@dataclass
class FoldResult:
    """What a fold leaves.

    Rows of embeddings.parquet and attention.parquet, predictions of models that predict themselves (``direct``), both
    sides of the aligned space (``projections``), slice features by encoder (``slices``), and what happened on the way.
    """

    embeddings: list[pd.DataFrame] = field(default_factory=list)
    attention: list[pd.DataFrame] = field(default_factory=list)
    direct: list[pd.DataFrame] = field(default_factory=list)
    projections: list[pd.DataFrame] = field(default_factory=list)
    slices: dict[str, np.ndarray] = field(default_factory=dict)
    collapsed: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run_fold(bench: Bench, group: Group, recipe: Recipe, labels: pd.DataFrame, primary: str | None) -> FoldResult:
    """Train and embed every variant of ``recipe`` for one fold.

    ``labels``: a float column a task, by patient; only supervised variants see them, and only the primary task's.
    """
    result = FoldResult()
    companions = encode_companions(bench.cohort, group.train, recipe)
    result.notes += companions.notes
    if companions.table is not None:
        result.embeddings.append(table_rows(group, companions.table))
    if companions.genes is not None and set(companions.patients(GENES)) & set(group.train):
        result.embeddings.append(gene_rows(group, companions.genes))
    known: Any = labels[primary] if primary is not None else None
    everybody = bench.imaged(group.everybody)
    statistics = bench.intensity(feature_input(recipe).size)
    vectors = np.stack([statistics[patient] for patient in everybody])
    result.embeddings.append(rows_of(group, "intensity_stats", "aligned", recipe.seeds[0], everybody, vectors))
    _keep_encoders(bench, group, recipe.seeds[0], companions)
    names = [MAIN, *_variants(group, recipe, result)]
    for seed in recipe.seeds:
        sides: dict[str, tuple[ImageSide, Encoder]] = {}
        embedded: set[str] = set()
        for name in names:
            variant = recipe if name == MAIN else recipe.variant(name)
            side, encoder = _side(bench, group, variant, name, seed, sides, companions, result)
            if segments(variant):
                _segment(bench, group, recipe, variant, name, seed, encoder, companions, result=result)
            if (settings := _embedding_settings(variant)) in embedded:
                continue  # it differs in its masks only
            embedded.add(settings)
            if bench.cohort.slice_tasks and variant.embedding == ["image_only"] and seed == recipe.seeds[0]:
                result.slices[model_name(name, variant)] = side.feature
            _run_variant(bench, group, recipe, variant, name, seed, side, companions, labels=known, result=result)
            if name == MAIN and aligns_slices(recipe):
                _with_genes(bench, group, seed, side, encoder, companions, result)
    return result


def _variants(group: Group, recipe: Recipe, result: FoldResult) -> list[str]:
    """The variants that are trained in a group, those that are split by slices last: their likes' masks come first."""
    leaky = recipe.slice_splits()
    if not group.test:
        said = "was left out: it learns from slices of test patients, and here are none"
        result.notes += [f"{name} {said}" for name in leaky]
    names = [name for name in recipe.variants if name not in SUPPORTS and (group.test or name not in leaky)]
    return sorted(names, key=lambda name: name in leaky)


def _embedding_settings(recipe: Recipe) -> str:
    """Of all that a variant's vectors are made by."""
    tree = recipe.model_copy(update={"variants": {}}).model_dump(mode="json")
    if (found := segment_stage(recipe)) is not None:
        tree["stages"].pop(found[0])
    return digest(tree)


def _segment(
    bench: Bench, group: Group, recipe: Recipe, variant: Recipe, name: str, seed: int, encoder: Encoder,
    companions: Companions, *, result: FoldResult,
) -> None:  # fmt: skip
    """Train the variant's segmentation and keep its masks; the recipe's own also without the patients' genes.

    Beside one that is split by slices, the masks of its like are kept on the same slices.
    """
    own = segmentation_name(recipe)
    model = own if name == MAIN else name
    segmenter = train_segmenter(bench, group, variant, name, seed, encoder, companions)
    result.steps[f"{name}/{seed}/segment"] = segmenter.result.steps
    keep_masks(bench, group, segmenter, model, seed)
    if segmenter.unseen is not None:
        like = recipe.slice_splits()[name] or own
        keep_unseen(bench, group, segmenter, like, on_slices_of(like, name), seed)
    if name == MAIN and segmenter.objective.reads_genes and segmenter.genes is not None:
        keep_masks(bench, group, segmenter, f"{model}_{NULL_GENES}", seed, with_genes=False)


def _with_genes(
    bench: Bench, group: Group, seed: int, side: ImageSide, encoder: Encoder, companions: Companions, result: FoldResult
) -> None:
    """Rows of the aligned genes, of image and genes together, and both sides of the shared space."""
    if GENES not in encoder.towers:
        return
    having = set(companions.patients(GENES))
    everybody = [patient for patient in group.everybody if patient in having]
    vectors = embeddings(encoder.towers[GENES], companions.source(GENES).block(companions.codes(everybody)))
    of_patient = dict(zip(everybody, vectors, strict=True))

    def genes_of(patients: Sequence[str]) -> np.ndarray:
        return np.stack([of_patient[patient] for patient in patients])

    result.embeddings.append(rows_of(group, "aligned_genes", "aligned", seed, everybody, vectors, modality=GENES))
    both = [patient for patient in everybody if bench.has_image(patient)]
    train = [patient for patient in both if patient in set(group.train)]
    joined = Joined.fit([side.of(train), genes_of(train)]).apply([side.of(both), genes_of(both)])
    result.embeddings.append(rows_of(group, "aligned_both", "aligned", seed, both, joined, modality="both"))
    tested = [patient for patient in both if patient in set(group.test)]
    if len(tested) >= 2:
        image = slice_means(bench, side, encoder, tested)
        for modality, found in ((IMAGE, image), (GENES, genes_of(tested))):
            result.projections.append(rows_of(group, "aligned", "aligned", seed, tested, found, "test", modality))


def _side(
    bench: Bench,
    group: Group,
    variant: Recipe,
    name: str,
    seed: int,
    sides: dict[str, tuple[ImageSide, Encoder]],
    companions: Companions,
    result: FoldResult,
) -> tuple[ImageSide, Encoder]:
    """The variant's encoder and what follows from it; variants with equal settings share one."""
    settings = {key: value.model_dump(mode="json") for key, value in variant.stages.items()}
    second = pair_stage(variant)
    features = None
    if second is not None:
        features = settings.pop(second[0])["inputs"]["image"]
    if (drawn := segment_stage(variant)) is not None:
        settings.pop(drawn[0])
    key = digest([settings, features, variant.image_only.model_dump()])
    if key not in sides:
        encoder = train_encoder(bench, group, variant, name, seed, companions)
        if (trained := encoder.result) is not None:
            result.steps[f"{name}/{seed}"] = trained.steps
            if trained.status == "collapsed":
                result.collapsed.append({"stage": "pretrain", "fold": group.fold, "variant": name, "seed": seed})
        side = image_side(bench, group, variant, encoder.image)
        sides[key] = side, encoder
        fitted = {f"feature_map.{k}": v for k, v in side.feature_map.arrays().items()}
        fitted |= {f"image_only.{k}": v for k, v in side.image_only.arrays().items()}
        folder = bench.folder.stage("features", name, seed, group.fold)
        write_arrays(folder / "inputs.safetensors", fitted, {"weights": side.weights})
    return sides[key]


def model_name(name: str, recipe: Recipe) -> str:
    """The row of the table that a variant gives."""
    if name == MAIN:
        return "image_only" if recipe.embedding == ["image_only"] else "aligned"
    return name


def _run_variant(
    bench: Bench,
    group: Group,
    recipe: Recipe,
    variant: Recipe,
    name: str,
    seed: int,
    side: ImageSide,
    companions: Companions,
    *,
    labels: pd.Series | None,
    result: FoldResult,
) -> None:
    second = pair_stage(variant)
    everybody = bench.imaged(group.everybody)
    model = model_name(name, variant)
    if variant.embedding == ["image_only"] or second is None:
        result.embeddings.append(rows_of(group, _image_model(model, variant), "aligned", seed, everybody, side.vectors))
        return
    beside = wanted(second[1], companions)
    if not _can_learn(second[1], beside, labels):
        result.embeddings += _image_alone(group, second[1], name, seed, side, everybody)
        return
    train = bench.imaged(group.train)
    pairing = pair(bench, group, variant, name, seed, side, companions, train, labels=labels)
    if not is_alignment(pairing):
        assert labels is not None
        result.direct.append(prediction_rows(group, name, seed, side, pairing, labels, everybody))
        return
    result.notes += [f"{model}: {note}" for note in [pairing.objective.start_note] if note]
    vectors, joined = _embed(variant, side, pairing, everybody, train)
    result.embeddings.append(rows_of(group, model, "aligned", seed, everybody, vectors))
    if "aligned" not in variant.embedding and group.fold is not None:
        return
    _keep_join(bench, group, name, seed, joined)
    if "aligned" not in variant.embedding:
        return
    if name == MAIN and group.test:
        result.attention.append(attention_rows(group, model, seed, side, pairing, bench.imaged(group.test)))
    for modality in beside:
        result.projections += projection_rows(group, model, seed, side, companions, modality, pairing)
    names = [] if name == MAIN else [name]
    place = (name, model, seed, side, companions)
    if "out_of_fold" in recipe.variants:
        inner = recipe.variant(*names, "out_of_fold")
        result.embeddings.append(
            _out_of_fold(bench, group, inner, *place, train=train, labels=labels, full=pairing, joined=joined)
        )
    if "unseen" in recipe.variants:
        inner = recipe.variant(*names, "unseen")
        result.embeddings += _unseen(bench, group, inner, *place, train=train, labels=labels)


def _image_model(model: str, variant: Recipe) -> str:
    """The row of vectors that nothing beside the image has shaped: the variant's own where it says what they are."""
    named = pair_stage(variant) is not None or variant.embedding == ["image_only"] or aligns_slices(variant)
    return model if named else "image_only"


def _image_alone(
    group: Group, stage: Stage, name: str, seed: int, side: ImageSide, patients: Sequence[str]
) -> list[pd.DataFrame]:
    """Rows of the final model where its alignment has nothing to align with: the image alone is what is exported then.

    In a fold the variant `image_only` has such rows; on everybody it is not trained.
    """
    if name != MAIN or group.fold is not None or isinstance(stage.objective, ClassifyConfig):
        return []
    return [rows_of(group, "image_only", "aligned", seed, patients, side.vectors)]


def _can_learn(stage: Stage, beside: Collection[str], labels: pd.Series | None) -> bool:
    """Whether the cohort has a label to learn, or something to align with."""
    return labels is not None if isinstance(stage.objective, ClassifyConfig) else bool(beside)


def _keep_encoders(bench: Bench, group: Group, seed: int, companions: Companions) -> None:
    """What was fitted on the table and on the genes, for the model folder."""
    folder = bench.folder.stage("embedding", MAIN, seed, group.fold)
    if companions.table_encoder is not None:
        write_json(folder / "columns.json", companions.table_encoder.to_json())
    if companions.gene_encoder is not None:
        write_json(folder / "genes.json", companions.gene_encoder.to_json())
        write_arrays(folder / "genes.safetensors", companions.gene_encoder.arrays())


def _keep_join(bench: Bench, group: Group, name: str, seed: int, joined: Joined) -> None:
    folder = bench.folder.stage("embedding", name, seed, group.fold)
    write_arrays(folder / "inputs.safetensors", {f"joined.{k}": v for k, v in joined.arrays().items()})


def _parts(variant: Recipe, side: ImageSide, pairing: Pairing, patients: Sequence[str]) -> list[np.ndarray]:
    made = {
        "image_only": lambda: side.of(patients),
        "aligned": lambda: pairing.aligned(side, patients)[0],
        "bag": lambda: pairing.bags(side, patients),
    }
    return [made[part]() for part in variant.embedding]


def _embed(
    variant: Recipe, side: ImageSide, pairing: Pairing, patients: Sequence[str], train: Sequence[str]
) -> tuple[np.ndarray, Joined]:
    """Vectors of ``patients``, their parts joined at the mean squared norms of ``train``."""
    joined = Joined.fit(_parts(variant, side, pairing, train))
    return joined.apply(_parts(variant, side, pairing, patients)), joined


def _out_of_fold(
    bench: Bench, group: Group, inner: Recipe, name: str, model: str, seed: int, side: ImageSide,
    companions: Companions, *, train: Sequence[str], labels: pd.Series | None, full: Pairing, joined: Joined,
) -> pd.DataFrame:  # fmt: skip
    """Training patients embedded by alignments that never saw them, in the space of the full one."""
    second = pair_stage(inner)
    assert second is not None
    count = min(second[1].patients.inner_folds or 5, len(train))
    part_of = inner_folds(train, _of(labels, train), count, seed)
    vectors: dict[str, np.ndarray] = {}
    for number in range(count):
        left_out = [patient for patient in train if part_of[patient] == number]
        others = [patient for patient in train if part_of[patient] != number]
        if not left_out or not others:
            continue
        place = f"{name}.out_of_fold.{number}"
        pairing = pair(bench, group, inner, place, seed, side, companions, others, labels=labels, frozen=full)
        made = joined.apply(_parts(inner, side, pairing, left_out))
        vectors |= dict(zip(left_out, made, strict=True))
    kept = [patient for patient in train if patient in vectors]
    return rows_of(group, model, "out_of_fold", seed, kept, np.stack([vectors[patient] for patient in kept]))


def _unseen(
    bench: Bench, group: Group, inner: Recipe, name: str, model: str, seed: int, side: ImageSide,
    companions: Companions, *, train: Sequence[str], labels: pd.Series | None,
) -> list[pd.DataFrame]:  # fmt: skip
    """Everybody embedded by an alignment that saw a stratified share of the training patients only."""
    second = pair_stage(inner)
    assert second is not None
    seen = stratified_share(train, _of(labels, train), second[1].patients.share or 0.7, seed)
    rest = [patient for patient in train if patient not in set(seen)]
    pairing = pair(bench, group, inner, f"{name}.unseen", seed, side, companions, seen, labels=labels)
    joined = Joined.fit(_parts(inner, side, pairing, seen))
    parts = {"train": seen, "held_out": rest}
    parts |= {"validation": bench.imaged(group.validation), "test": bench.imaged(group.test)}
    return [
        rows_of(group, model, "unseen", seed, patients, joined.apply(_parts(inner, side, pairing, patients)), part)
        for part, patients in parts.items()
        if patients
    ]


def _of(labels: pd.Series | None, patients: Sequence[str]) -> pd.Series | None:
    return None if labels is None else labels.reindex(list(patients))
