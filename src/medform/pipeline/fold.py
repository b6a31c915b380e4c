"""One fold of a run: every variant trained, every patient embedded, nothing seen that the fold may not see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medform.cohort.split import inner_folds, stratified_share
from medform.inputs.clinical import ClinicalInputConfig, EncodedTable, TableEncoder
from medform.inputs.features import Joined
from medform.inputs.loader import RowSource
from medform.objectives.classify import ClassifyConfig
from medform.pipeline.stages import (
    Bench,
    Group,
    ImageSide,
    Pairing,
    feature_input,
    image_side,
    is_alignment,
    pair,
    pair_stage,
    train_encoder,
)
from medform.runs.arrays import write_arrays
from medform.runs.folder import write_json
from medform.training.infer import embeddings

if TYPE_CHECKING:
    from medform.recipes.recipe import Recipe

__all__ = ["FoldResult", "MAIN", "encode_table", "run_fold"]

MAIN = "main"
"""The recipe as it is, beside its variants; its rows are `aligned` (`image_only` without a second stage)."""
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


def encode_table(bench: Bench, train: Sequence[str], recipe: Recipe) -> tuple[TableEncoder, EncodedTable] | None:
    """The clinical table as numbers, fitted on training patients; None where the cohort has no feature column."""
    found = pair_stage(recipe)
    cohort = bench.cohort
    names = cohort.features() if cohort.clinical is not None else []
    if not names:
        return None
    config = found[1].inputs.get("clinical") if found else None
    specs = {name: cohort.columns[name] for name in names}
    frame: Any = cohort.table()[names]
    clinical = config if isinstance(config, ClinicalInputConfig) else None
    encoder = TableEncoder.fit(frame, specs, train, clinical)
    return encoder, encoder.encode(frame)


def run_fold(bench: Bench, group: Group, recipe: Recipe, labels: pd.DataFrame, primary: str | None) -> FoldResult:
    """Train and embed every variant of ``recipe`` for one fold.

    ``labels``: a float column a task, by patient; only supervised variants see them, and only the primary task's.
    """
    result = FoldResult()
    table = encode_table(bench, group.train, recipe)
    encoded = table[1] if table else None
    if encoded is not None and encoded.values.shape[1] == 0:
        result.notes.append("no feature column varies among the training patients; there is nothing to align with")
        encoded = None
    if encoded is not None:
        result.embeddings.append(_table_rows(group, encoded))
    known: Any = labels[primary] if primary is not None else None
    everybody = bench.imaged(group.everybody)
    statistics = bench.intensity(feature_input(recipe).size)
    vectors = np.stack([statistics[patient] for patient in everybody])
    result.embeddings.append(_rows(group, "intensity_stats", "aligned", recipe.seeds[0], everybody, vectors))
    if table is not None:
        _keep_encoder(bench, group, recipe.seeds[0], table[0])
    for seed in recipe.seeds:
        sides: dict[str, ImageSide] = {}
        for name in [MAIN, *(variant for variant in recipe.variants if variant not in SUPPORTS)]:
            variant = recipe if name == MAIN else recipe.variant(name)
            side = _side(bench, group, variant, name, seed, sides, result)
            if bench.cohort.slice_tasks and variant.embedding == ["image_only"] and seed == recipe.seeds[0]:
                result.slices[model_name(name, variant)] = side.feature
            _run_variant(bench, group, recipe, variant, name, seed, side, encoded, known, result)
    return result


def _side(
    bench: Bench,
    group: Group,
    variant: Recipe,
    name: str,
    seed: int,
    sides: dict[str, ImageSide],
    result: FoldResult,
) -> ImageSide:
    """The variant's encoder and what follows from it; variants with equal settings share one."""
    from medform.config import digest

    settings = {key: value.model_dump(mode="json") for key, value in variant.stages.items()}
    second = pair_stage(variant)
    features = None
    if second is not None:
        features = settings.pop(second[0])["inputs"]["image"]
    key = digest([settings, features, variant.image_only.model_dump()])
    if key not in sides:
        tower, trained = train_encoder(bench, group, variant, name, seed)
        if trained is not None:
            result.steps[f"{name}/{seed}"] = trained.steps
            if trained.status == "collapsed":
                result.collapsed.append({"stage": "pretrain", "fold": group.fold, "variant": name, "seed": seed})
        sides[key] = image_side(bench, group, variant, tower)
        fitted = {f"feature_map.{k}": v for k, v in sides[key].feature_map.arrays().items()}
        fitted |= {f"image_only.{k}": v for k, v in sides[key].image_only.arrays().items()}
        folder = bench.folder.stage("features", name, seed, group.fold)
        write_arrays(folder / "inputs.safetensors", fitted, {"weights": sides[key].weights})
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
    table: EncodedTable | None,
    labels: pd.Series | None,
    result: FoldResult,
) -> None:
    second = pair_stage(variant)
    everybody = bench.imaged(group.everybody)
    model = model_name(name, variant)
    if variant.embedding == ["image_only"] or second is None:
        result.embeddings.append(
            _rows(group, model if second else "image_only", "aligned", seed, everybody, side.vectors)
        )
        return
    supervised = isinstance(second[1].objective, ClassifyConfig)
    if (table is None and not supervised) or (labels is None and supervised):
        return  # the cohort has nothing to align with, or no label to learn
    train = bench.imaged(group.train)
    pairing = pair(bench, group, variant, name, seed, side, table, train, labels)
    if not is_alignment(pairing):
        assert labels is not None
        result.direct.append(_predictions(group, name, seed, side, pairing, labels, everybody))
        return
    note = pairing.objective.start_note
    if note and group.fold is not None:
        result.notes.append(f"fold {group.fold}, {model}: {note}")
    vectors, joined = _embed(variant, side, pairing, everybody, train)
    result.embeddings.append(_rows(group, model, "aligned", seed, everybody, vectors))
    if "aligned" not in variant.embedding and group.fold is not None:
        return
    _keep_join(bench, group, name, seed, joined)
    if "aligned" not in variant.embedding:
        return
    if name == MAIN and group.test:
        result.attention.append(_attention(group, model, seed, side, pairing, bench.imaged(group.test)))
    assert table is not None
    result.projections += _projections(group, model, seed, side, table, pairing)
    names = [] if name == MAIN else [name]
    if "out_of_fold" in recipe.variants:
        inner = recipe.variant(*names, "out_of_fold")
        frame = _out_of_fold(bench, group, inner, name, model, seed, side, table, train, labels, pairing, joined)
        result.embeddings.append(frame)
    if "unseen" in recipe.variants:
        inner = recipe.variant(*names, "unseen")
        result.embeddings += _unseen(bench, group, inner, name, model, seed, side, table, train, labels)


def _keep_encoder(bench: Bench, group: Group, seed: int, encoder: TableEncoder) -> None:
    """What was fitted on the table, for the model folder."""
    write_json(bench.folder.stage("embedding", MAIN, seed, group.fold) / "columns.json", encoder.to_json())


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
    bench: Bench, group: Group, inner: Recipe, name: str, model: str, seed: int, side: ImageSide, table: Any,
    train: Sequence[str], labels: pd.Series | None, full: Pairing, joined: Joined,
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
        pairing = pair(bench, group, inner, place, seed, side, table, others, labels, frozen=full)
        made = joined.apply(_parts(inner, side, pairing, left_out))
        vectors |= dict(zip(left_out, made, strict=True))
    kept = [patient for patient in train if patient in vectors]
    return _rows(group, model, "out_of_fold", seed, kept, np.stack([vectors[patient] for patient in kept]))


def _unseen(
    bench: Bench, group: Group, inner: Recipe, name: str, model: str, seed: int, side: ImageSide, table: Any,
    train: Sequence[str], labels: pd.Series | None,
) -> list[pd.DataFrame]:  # fmt: skip
    """Everybody embedded by an alignment that saw a stratified share of the training patients only."""
    second = pair_stage(inner)
    assert second is not None
    seen = stratified_share(train, _of(labels, train), second[1].patients.share or 0.7, seed)
    rest = [patient for patient in train if patient not in set(seen)]
    pairing = pair(bench, group, inner, f"{name}.unseen", seed, side, table, seen, labels)
    joined = Joined.fit(_parts(inner, side, pairing, seen))
    parts = {"train": seen, "held_out": rest}
    parts |= {"validation": bench.imaged(group.validation), "test": bench.imaged(group.test)}
    return [
        _rows(group, model, "unseen", seed, patients, joined.apply(_parts(inner, side, pairing, patients)), part)
        for part, patients in parts.items()
        if patients
    ]


def _of(labels: pd.Series | None, patients: Sequence[str]) -> pd.Series | None:
    return None if labels is None else labels.reindex(list(patients))


def _part_of(group: Group) -> dict[str, str]:
    parts = (("train", group.train), ("validation", group.validation), ("test", group.test))
    return {patient: part for part, patients in parts for patient in patients}


def _rows(
    group: Group, model: str, supports: str, seed: int, patients: Sequence[str], vectors: np.ndarray,
    part: str | None = None, modality: str = "image",
) -> pd.DataFrame:  # fmt: skip
    """Rows of embeddings.parquet."""
    part_of = _part_of(group)
    return pd.DataFrame(
        {
            "patient_id": list(patients),
            "fold": -1 if group.fold is None else group.fold,
            "part": [part or part_of[patient] for patient in patients],
            "model": model,
            "supports": supports,
            "seed": seed,
            "modality": modality,
            "vector": [row.astype(np.float32) for row in np.asarray(vectors)],
        }
    )


def _table_rows(group: Group, table: EncodedTable) -> pd.DataFrame:
    part_of = _part_of(group)
    kept = [(row, patient) for row, patient in enumerate(table.patient_ids) if patient in part_of]
    values = table.values[[row for row, _ in kept]]
    return _rows(group, "table", "aligned", 0, [patient for _, patient in kept], values, modality="clinical")


def _attention(
    group: Group, model: str, seed: int, side: ImageSide, pairing: Pairing, patients: Sequence[str]
) -> pd.DataFrame:
    """Rows of attention.parquet: the weight of every slice of the test patients."""

    def rows() -> Iterator[pd.DataFrame]:
        for patient in patients:
            _, weight = pairing.aligned(side, [patient])
            slices = side.store.rows([patient])
            if weight is not None:
                yield pd.DataFrame(
                    {"patient_id": patient, "fold": group.fold, "model": model, "seed": seed,
                     "slice_id": [side.store.slice_ids[row] for row in slices], "weight": weight.astype(np.float32)}
                )  # fmt: skip

    frames = list(rows())
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _predictions(
    group: Group,
    name: str,
    seed: int,
    side: ImageSide,
    pairing: Pairing,
    labels: pd.Series,
    patients: Sequence[str],
) -> pd.DataFrame:
    """What a supervised model says of validation and test patients: probability of the positive class."""
    part_of = _part_of(group)
    scored = [patient for patient in patients if part_of[patient] != "train"]
    asked = [patient for patient in scored if not np.isnan(labels[patient])]
    device = next(pairing.objective.parameters()).device
    probability = pairing.objective.predict(side.block(asked).to(device)).cpu().numpy()
    return pd.DataFrame(
        {"patient_id": asked, "task": labels.name, "fold": group.fold, "part": [part_of[patient] for patient in asked],
         "model": name, "seed": seed, "y_prob": probability}
    )  # fmt: skip


def _projections(
    group: Group, model: str, seed: int, side: ImageSide, table: EncodedTable, pairing: Pairing
) -> list[pd.DataFrame]:
    """Image and table of the test patients in the shared space, for retrieval."""
    tested = [patient for patient in side.patients if patient in set(group.test) and patient in set(table.patient_ids)]
    if len(tested) < 2:
        return []
    row = {patient: number for number, patient in enumerate(table.patient_ids)}
    source = RowSource(table.values[[row[patient] for patient in tested]], side.store.codes(tested), "table")
    block = source.block(side.store.codes(tested))
    sides = {
        "image": pairing.aligned(side, tested)[0],
        "clinical": embeddings(pairing.objective.towers["clinical"], block),
    }
    return [_rows(group, model, "aligned", seed, tested, vectors, "test", name) for name, vectors in sides.items()]
