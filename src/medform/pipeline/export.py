"""`medform export`: a run's model as a folder that predicts on another machine, without the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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

__all__ = ["export", "export_model", "image_settings"]

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


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
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise InputError(
            "the folder is not empty and holds no model.",
            where=str(target),
            consequence="Nothing was written.",
            fix="name a new or empty folder.",
        )
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
    from medform.pipeline.frozen_segmentation import segmentation_parts
    from medform.pipeline.readouts import answers, fit_readouts, image_model, to_files, without_readout
    from medform.pipeline.scans import modalities
    from medform.pipeline.stages import feature_input, image_stage, pair_stage
    from medform.recipes.catalog import described
    from medform.runs.arrays import read_arrays
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
    table = _table(folder.stage("embedding", MAIN, seed, fold) / "columns.json", cohort)
    place = "final" if fold is None else f"folds/{fold}"
    frame = pd.read_parquet(folder.path / place / "embeddings.parquet")
    fitted_readouts = fit_readouts(frame, labels, recipe.evaluation, seed, fold)
    unanswered = without_readout(frame, labels, seed, fitted_readouts)
    probes, readouts = to_files(fitted_readouts)
    config: dict[str, Any] = {
        "medform": medform.__version__,
        "recipe": recipe.name,
        "citation": recipe.citation,
        "cohort": {"name": cohort.name, "digest": cohort.digest},
        "trained_on": "all patients" if fold is None else f"the training patients of fold {fold}",
        "seed": seed,
        "tower": described(stage.towers["image"]),
        "features": feature_input(recipe).model_dump(mode="json"),
        "pair": described(second[1].towers["image"]) if "aligned" in embedding and second else None,
        "embedding": embedding,
        "tasks": list(readouts),
        "unanswered": unanswered,
    }
    preprocess = {
        "unit": cohort.unit,
        "window": list(cohort.window),
        "size": feature_input(recipe).size,
        "modalities": modalities(cohort),
        "images": image_settings(cohort),
    }
    drawn = segmentation_parts(folder, cohort, recipe, seed, fold)
    if drawn is not None:
        weights |= drawn.weights
        config["segmentation"] = drawn.config
    genes = None if drawn is None else drawn.genes
    files = ModelFiles(weights, config, preprocess, table, probes, readouts, genes=genes)
    tasks = [*answers(fitted_readouts, unanswered), *_not_exported(folder, recipe, image_model(frame))]
    return replace(files, selftest=_selftest(files, cohort), texts=_texts(folder, cohort, recipe, config, tasks))


def image_settings(cohort: Cohort) -> dict[str, Any]:
    """How the cohort's image files were read, for new scans: select, accept, assume_hu, and ``pictures`` (any?)."""
    images = cohort.file.images
    suffixes = cohort.slices["source"].map(lambda name: Path(str(name)).suffix.lower())
    return {
        **images.model_dump(mode="json", include={"select", "accept", "assume_hu"}),
        "pictures": images.index is not None or bool(suffixes.isin(PICTURES).any()),
    }


def _table(columns: Path, cohort: Cohort) -> dict[str, Any] | None:
    """How a table row becomes numbers; None where nothing was fitted on a table."""
    from medform.ingestion.raw_table import layout_rows
    from medform.runs.folder import read_json

    if not columns.is_file():
        return None
    clinical = cohort.file.clinical
    names = cohort.features()
    if clinical is not None and clinical.visit is not None:  # without it, rows of several visits cannot be ordered
        names = list(dict.fromkeys([*names, clinical.visit.by]))
    file = None
    if clinical is not None:
        file = clinical.model_dump(mode="json", exclude={"path", "id_map"})
        file["skip_rows"] = layout_rows(clinical.header_row, clinical.skip_rows)
    return {
        "encoder": read_json(columns),
        "specs": {key: cohort.columns[key].model_dump(mode="json") for key in names},
        "file": file,
    }


def _selftest(files: ModelFiles, cohort: Cohort) -> dict[str, np.ndarray]:
    """What the model makes of slices of the phantom, and of expression of nobody where it reads genes."""
    from medform.pipeline.frozen_encoder import FrozenEncoder, selftest_values
    from medform.pipeline.frozen_segmentation import GENES_ROW, rebuild_segmenter

    values = selftest_values(cohort.window)
    made = {"images": values, "vector": FrozenEncoder.rebuild(files).embed_values(values)}
    if "segmentation" not in files.config:
        return made
    segmenter = rebuild_segmenter(files)
    row = segmenter.selftest_row()
    return made | segmenter.selftest(values, row) | ({} if row is None else {GENES_ROW: row})


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


def _own_code(config: Mapping[str, Any]) -> list[str]:
    """A line for the card where parts of the model are of code that is not medform's."""
    drawing = config.get("segmentation") or {"towers": {}}
    parts = [config["tower"], config["pair"], *drawing["towers"].values()]
    kinds = dict.fromkeys(part.get("module", part["kind"]) for part in parts if part is not None)
    own = [kind for kind in kinds if ":" in kind]
    if not own:
        return []
    return [f"Its parts {', '.join(own)} are not medform's: their modules must be importable where the model is used."]


def _drawn(config: Mapping[str, Any]) -> list[str]:
    """A line for the card where the model draws masks."""
    found = config.get("segmentation")
    if found is None:
        return []
    genes = ", with the patient's gene expression or without" if "genes" in found["towers"] else ""
    return [f"It also draws masks of the lesion (`medform segment`), as model {found['model']}{genes}."]


def _not_exported(folder: RunFolder, recipe: Recipe, own: str) -> list[str]:
    """A line for the card for each task of which validation chose another model than the folder holds.

    ``own``: the model whose vectors the image readouts read.
    """
    from medform.pipeline.segmentation import SEGMENTATION, segmentation_name
    from medform.reporting.words import not_exported

    said = []
    for task, selected in folder.record().get("selected", {}).items():
        held = [segmentation_name(recipe)] if task == SEGMENTATION else [own, "table_logistic", "fused"]
        if sentence := not_exported(selected, held):
            said.append(f"- {task}: {sentence}")
    return said


def _texts(
    folder: RunFolder, cohort: Cohort, recipe: Recipe, config: Mapping[str, Any], tasks: Sequence[str]
) -> dict[str, str]:
    """Card, licence and citation, filled from the run; ``tasks``: lines on what the model answers."""
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
        *_own_code(config),
        *_drawn(config),
        "",
        "## Tasks",
        "",
        *([] if config["tasks"] else ["It answers no task; `medform embed` gives its vectors.", ""]),
        *([*tasks, ""] if tasks else []),
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
