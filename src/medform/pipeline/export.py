"""`medform export`: a run's model as a folder that predicts on another machine, without the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort
    from medform.recipes.recipe import Recipe
    from medform.runs.folder import RunFolder
    from medform.runs.model_folder import ModelFiles

__all__ = ["export", "export_model"]

FEWEST = 5  # labelled patients of the rarer class below which no probe is exported


def export(run: Path, out: Path, fold: int | None = None) -> Path:
    """Write the model folder of ``run`` to ``out``: the final model, or that of ``fold``. Raises `MedformError`."""
    from medform.config import load
    from medform.pipeline.records import open_store
    from medform.pipeline.run import task_labels
    from medform.recipes.recipe import Recipe
    from medform.runs.folder import RunFolder

    folder = RunFolder(Path(run))
    cohort = open_store(folder)
    made = export_model(folder, cohort, load(Recipe, folder.path / "recipe.yaml"), task_labels(cohort), Path(out), fold)
    if made is None:
        wanted = "no fold of this run is finished" if fold is None else f"fold {fold} of this run is not finished"
        raise InputError(f"{wanted}.", where=str(run), fix="go on with the run: --resume.")
    return made


def export_model(
    folder: RunFolder,
    cohort: Cohort,
    recipe: Recipe,
    labels: pd.DataFrame,
    out: Path | None = None,
    fold: int | None = None,
) -> Path | None:
    """Write ``out`` (default ``RUN/model``) from the final model, else from ``fold`` or the first fold that was run.

    None where nothing is finished. The folder holds no patient's data and no id.
    """
    from medform.runs.model_folder import write_model

    chosen = _chosen(folder, fold)
    if chosen is None:
        return None
    target = out or folder.path / "model"
    write_model(target, _collect(folder, cohort, recipe, labels, None if chosen == "final" else int(chosen)))
    return target


def _chosen(folder: RunFolder, fold: int | None) -> str | None:
    """`final`, or the number of a finished fold."""
    if fold is None and (folder.path / "final" / "embeddings.parquet").is_file():
        return "final"
    finished = sorted(int(path.parent.name) for path in folder.path.glob("folds/*/embeddings.parquet"))
    wanted = [number for number in finished if fold is None or number == fold]
    return str(wanted[0]) if wanted else None


def _collect(folder: RunFolder, cohort: Cohort, recipe: Recipe, labels: pd.DataFrame, fold: int | None) -> ModelFiles:
    import pandas as pd

    import medform
    from medform.pipeline.fold import MAIN
    from medform.pipeline.predict import rebuild, selftest_images
    from medform.pipeline.stages import feature_input, image_stage, pair_stage
    from medform.runs.arrays import read_arrays
    from medform.runs.folder import read_json
    from medform.runs.model_folder import ModelFiles

    seed = recipe.seeds[0]
    name, stage = image_stage(recipe)
    weights = _encoder_weights(folder.stage(name, MAIN, seed, fold), recipe, seed)
    fitted = read_arrays(folder.stage("features", MAIN, seed, fold) / "inputs.safetensors")[0]
    second = pair_stage(recipe)
    embedding = list(recipe.embedding)
    joined = folder.stage("embedding", MAIN, seed, fold) / "inputs.safetensors"
    if second is not None and joined.is_file():
        fitted |= read_arrays(joined)[0]
        paired = read_arrays(folder.stage(second[0], MAIN, seed, fold) / "model.safetensors")[0]
        weights |= {
            f"pair.{key.removeprefix('towers.image.')}": value
            for key, value in paired.items()
            if key.startswith("towers.image.")
        }
    else:
        embedding = ["image_only"]
    weights |= {f"inputs.{key}": np.asarray(value) for key, value in fitted.items()}
    columns = folder.stage("embedding", MAIN, seed, fold) / "columns.json"
    table = None
    if columns.is_file():
        table = {
            "encoder": read_json(columns),
            "specs": {key: cohort.columns[key].model_dump(mode="json") for key in cohort.features()},
            "file": cohort.file.clinical.model_dump(mode="json", exclude={"path", "id_map"})
            if cohort.file.clinical
            else None,
        }
    place = "final" if fold is None else f"folds/{fold}"
    frame = pd.read_parquet(folder.path / place / "embeddings.parquet")
    probes, readouts = _probes(frame, labels, recipe)
    config: dict[str, Any] = {
        "medform": medform.__version__,
        "recipe": recipe.name,
        "citation": recipe.citation,
        "trained_on": "all patients" if fold is None else f"the training patients of fold {fold}",
        "seed": seed,
        "tower": stage.towers["image"].model_dump(mode="json"),
        "features": feature_input(recipe).model_dump(mode="json"),
        "pair": second[1].towers["image"].model_dump(mode="json") if "aligned" in embedding and second else None,
        "embedding": embedding,
        "tasks": list(readouts),
    }
    preprocess = {"unit": cohort.unit, "window": list(cohort.window), "size": feature_input(recipe).size}
    files = ModelFiles(weights, config, preprocess, table, probes, readouts)
    images = selftest_images(preprocess["size"])
    vector = rebuild(files).embed_images(images)
    texts = _texts(folder, cohort, recipe, config)
    return ModelFiles(weights, config, preprocess, table, probes, readouts, {"images": images, "vector": vector}, texts)


def _encoder_weights(place: Path, recipe: Recipe, seed: int) -> dict[str, np.ndarray]:
    """The slice encoder's tensors: of the trained stage, or of its start where it took no step."""
    from medform.compute.seed import generator
    from medform.models.weights import start_from
    from medform.pipeline.stages import image_stage
    from medform.runs.arrays import read_arrays

    name, stage = image_stage(recipe)
    if (place / "model.safetensors").is_file():
        arrays = read_arrays(place / "model.safetensors")[0]
        prefix = "towers.image."
        return {f"tower.{key.removeprefix(prefix)}": value for key, value in arrays.items() if key.startswith(prefix)}
    config: Any = stage.towers["image"]
    tower = config.build(generator(seed, name, "tower"))
    start_from(tower, stage.start.image or "random")
    return {f"tower.{key}": value.contiguous().numpy() for key, value in tower.state_dict().items()}


@dataclass(frozen=True)
class _Fit:
    """One probe: its arrays, and the numbers beside them."""

    arrays: dict[str, np.ndarray]
    numbers: dict[str, Any]


def _probes(frame: pd.DataFrame, labels: pd.DataFrame, recipe: Recipe) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A probe a task for each set of inputs (image, table, both), fitted on every patient who is not a test patient."""
    settings = recipe.evaluation
    rows: Any = frame[(frame["supports"] == "aligned") & (frame["part"] != "test")]
    rows = rows[rows["seed"] == recipe.seeds[0]] if len(recipe.seeds) > 1 else rows
    models = set(rows["model"])
    image_model = "aligned" if "aligned" in models else "image_only"
    image = _matrix(rows, image_model)
    table = _matrix(rows, "table")
    arrays: dict[str, np.ndarray] = {}
    readouts: dict[str, Any] = {}
    for task in labels.columns:
        column: Any = labels[task].dropna()
        known = {str(one): float(value) for one, value in column.items()}
        sets: dict[str, _Fit] = {}
        image_ids = [one for one in image if one in known]
        if _enough(known, image_ids):
            fit, scores = _fit(np.stack([image[one] for one in image_ids]), known, image_ids, "norm", settings.image_c)
            sets["image"] = fit
            both = [one for one in image_ids if one in table]
            if _enough(known, both):
                score = dict(zip(image_ids, scores, strict=True))
                columns = np.stack([np.append(table[one], score[one]) for one in both])
                sets["both"] = _fit(columns, known, both, "columns", settings.table_c)[0]
        table_ids = [one for one in table if one in known]
        if _enough(known, table_ids):
            sets["table"] = _fit(
                np.stack([table[one] for one in table_ids]), known, table_ids, "columns", settings.table_c
            )[0]
        for name, fit in sets.items():
            arrays |= {f"{task}/{name}/{key}": value for key, value in fit.arrays.items()}
        if sets:
            readouts[str(task)] = {name: fit.numbers for name, fit in sets.items()}
    return arrays, readouts


def _matrix(rows: pd.DataFrame, model: str) -> dict[str, np.ndarray]:
    chosen = rows[rows["model"] == model]
    return {
        str(one): np.asarray(vector, dtype=np.float64)
        for one, vector in zip(chosen["patient_id"], chosen["vector"], strict=True)
    }


def _enough(known: Mapping[str, float], ids: Sequence[str]) -> bool:
    positive = sum(known[one] == 1 for one in ids)
    return min(positive, len(ids) - positive) >= FEWEST


def _fit(
    rows: np.ndarray, known: Mapping[str, float], ids: Sequence[str], kind: Any, c: float
) -> tuple[_Fit, np.ndarray]:
    """A probe on all rows; threshold and calibrator from out-of-fold log odds (n,), which come back too."""
    from medform.cohort.split import inner_folds
    from medform.metrics.calibration import best_threshold, fit_calibrator
    from medform.metrics.linear_probe import fit_logistic, fit_scaler

    y = np.array([known[one] for one in ids])
    part = inner_folds(ids, {one: known[one] for one in ids}, 5, 0)
    number = np.array([part[one] for one in ids])
    scores = np.zeros(len(ids))
    for fold in range(5):
        inside, outside = number != fold, number == fold
        scaler = fit_scaler(rows[inside], kind)
        scores[outside] = fit_logistic(scaler.transform(rows[inside]), y[inside], c).decision(
            scaler.transform(rows[outside])
        )
    calibrator = fit_calibrator(y, scores)
    assert calibrator is not None  # both classes are there, see _enough
    scaler = fit_scaler(rows, kind)
    probe = fit_logistic(scaler.transform(rows), y, c)
    arrays = {"mean": scaler.mean, "scale": scaler.scale, "weight": probe.weight}
    numbers = {
        "bias": probe.bias,
        "slope": calibrator.slope,
        "offset": calibrator.offset,
        "threshold": best_threshold(y, calibrator.probability(scores)),
        "n": len(ids),
        "positive": int(y.sum()),
    }
    return _Fit(arrays, numbers), scores


def _texts(folder: RunFolder, cohort: Cohort, recipe: Recipe, config: Mapping[str, Any]) -> dict[str, str]:
    """Card, licence and citation, filled from the run."""
    from medform.runs.scores import read_scores

    record = folder.record()
    scores = folder.path / "scores.json"
    lines = []
    for row in read_scores(scores) if scores.is_file() else []:
        wanted = row.protocol == "cross_validation" and row.metric == "auroc" and row.readout in ("logistic", None)
        if wanted and row.value is not None and " - " not in row.model:
            interval = (
                f"[{row.ci_low:.2f}, {row.ci_high:.2f}]" if row.ci_low is not None and row.ci_high is not None else ""
            )
            lines.append(f"| {row.task} | {row.model} | {row.value:.2f} {interval} | {row.n_patients} |")
    table = (
        ["| task | model | AUROC [95 % interval] | patients |", "| --- | --- | --- | --- |", *lines]
        if lines
        else ["No task was judged."]
    )
    card = [
        "---",
        "library_name: medform",
        "license: other",
        f"license_name: {cohort.licence!r}",
        "pipeline_tag: feature-extraction",
        "tags: [medical-imaging, multimodal]",
        "---",
        "",
        f"# {recipe.name} on {cohort.name}",
        "",
        "**Research use only. Not a medical device.**",
        "",
        f"Recipe: {recipe.citation}. Trained on {config['trained_on']} of cohort {cohort.name} "
        f"({record['cohort']['n_patients']} patients), medform {config['medform']}, seed {config['seed']}.",
        f"Input: slices in {cohort.unit}, window {cohort.window[0]:g} to {cohort.window[1]:g}.",
        "",
        "## Scores of the cross-validation, beside their controls",
        "",
        *table,
        "",
        "The scores are of models that never saw the patients they are judged on; this model itself was not judged.",
        "",
        "## Limits",
        "",
        "A few hundred patients of one source at most: expect other figures elsewhere. Vectors may be personal data.",
        f"Weights carry the licence of their data: {cohort.licence}.",
        "",
    ]
    citation = "\n".join(
        [
            "cff-version: 1.2.0",
            "message: Please cite the method.",
            f"title: {recipe.citation!r}",
            "type: software",
            "authors: [{name: medform}]",
            "",
        ]
    )
    licence = f"These weights were made from the cohort '{cohort.name}' and carry its licence:\n\n{cohort.licence}\n"
    return {"README.md": "\n".join(card), "LICENSE": licence, "CITATION.cff": citation}
