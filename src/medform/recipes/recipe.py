"""A published method as data: stages of parts, the embedding they give, and the variants that are its controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from medform.compute.precision import PrecisionName
from medform.config import Config, merge, parse, read_text, read_yaml, set_key
from medform.errors import InputError, Problem, nearest
from medform.evaluation.settings import EvaluationSettings
from medform.recipes.catalog import described, part
from medform.training.optimizer import OptimizerConfig
from medform.training.stage import Budget

__all__ = ["ImageOnly", "Patients", "Recipe", "Source", "Stage", "Start", "read_recipe", "shipped"]

ObjectivePart = Annotated[Config, BeforeValidator(lambda value: part("objective", value)), PlainSerializer(described)]
TowerPart = Annotated[Config, BeforeValidator(lambda value: part("tower", value)), PlainSerializer(described)]
InputPart = Annotated[Config, BeforeValidator(lambda value: part("input", value)), PlainSerializer(described)]
EmbeddingPart = Literal["image_only", "aligned", "bag"]


class Patients(Config):
    """Which of the fold's training patients a stage sees: all of them, a stratified share, or inner folds in turn.

    ``split: slice`` is a leak on purpose, the control of a variant of a segmentation: half of each test patient's
    slices are learnt from, in place of as many of training patients (`medform.inputs.slice_split`).
    """

    share: float | None = Field(default=None, gt=0, lt=1)
    inner_folds: int | None = Field(default=None, ge=2)
    split: Literal["patient", "slice"] = "patient"

    @model_validator(mode="after")
    def _one_rule(self) -> Patients:
        if self.share is not None and self.inner_folds is not None:
            raise ValueError("give `share` or `inner_folds`, not both.")
        if self.split == "slice" and (self.share, self.inner_folds) != (None, None):
            raise ValueError("`split: slice` has no `share` and no `inner_folds`: they are of patients.")
        return self

    @model_serializer(mode="wrap")
    def _by_patient_is_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Stages of before there was a choice stay the same stages."""
        tree = write(self)
        if self.split == "patient":
            tree.pop("split", None)
        return tree


class Start(Config):
    """Where a stage's weights come from.

    ``image``: imagenet, random, the name of an earlier stage, or a weights file. ``genes``: random, or the name of
    an earlier stage. ``heads``: cca (closed form on the training patients) or random. ``pool``: uniform or random
    attention.
    """

    image: str | None = None
    genes: str | None = None
    heads: Literal["cca", "random"] | None = None
    pool: Literal["uniform", "random"] | None = None


class Stage(Config):
    """One thing that is learnt, over towers, from inputs."""

    objective: ObjectivePart
    towers: dict[str, TowerPart]
    inputs: dict[str, InputPart]
    pairing: Literal["matched", "shuffled"] = "matched"
    optimizer: OptimizerConfig
    batch: int = Field(ge=1)
    budget: Budget
    start: Start = Start()
    patients: Patients = Patients()
    checkpoint_every: int = Field(default=50, ge=1)
    log_every: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _only_masks_are_split_by_slice(self) -> Stage:
        if self.patients.split == "slice" and getattr(self.objective, "kind", None) != "segment":
            raise ValueError("`patients: {split: slice}` is a control of a segmentation; this stage learns no masks.")
        return self


class Source(Config):
    """Where one setting comes from: what the paper or its code ``says``, and ``why`` we do what we do."""

    says: str
    why: str = "as published"


class ImageOnly(Config):
    """The image-only vector: mean of a patient's slice vectors, PCA of training patients, each component / sd^power."""

    pca: int | None = Field(default=32, ge=1)
    power: float = Field(default=0.5, ge=0, le=1)


class Recipe(Config):
    """A method. ``variants`` are names with overrides: a control or an ablation is never a second code path.

    ``ablations`` are variants that are trained only where ``ablate`` names them; a run's own recipe.yaml holds neither,
    since those that were named are its variants.
    ``precision``: of the arithmetic of training steps; weights, optimizer and all reading of vectors stay fp32.
    """

    schema_version: int = Field(default=1, ge=1, le=1)
    name: str
    citation: str
    transductive: bool = False
    precision: PrecisionName = "fp32"
    seeds: list[int] = Field(default=[0], min_length=1)
    stages: dict[str, Stage] = Field(min_length=1)
    image_only: ImageOnly = ImageOnly()
    embedding: list[EmbeddingPart] = Field(default=["aligned"], min_length=1)
    variants: dict[str, dict[str, Any]] = {}
    ablations: dict[str, dict[str, Any]] = {}
    ablate: list[str] = []
    evaluation: EvaluationSettings = EvaluationSettings()
    sources: dict[str, Source] = {}

    @model_serializer(mode="wrap")
    def _what_is_not_run_is_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A run's recipe.yaml is its identity: runs of before there was a choice stay runs of the same recipe."""
        tree = write(self)
        for key in ("ablations", "ablate"):
            tree.pop(key, None)
        if self.precision == "fp32":
            tree.pop("precision", None)
        return tree

    @field_validator("variants", "ablations")
    @classmethod
    def _variants_are_mappings(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, overrides in variants.items():
            for key in ("variants", "ablations", "ablate", "precision", "seeds"):
                if key in overrides:
                    raise ValueError(f"variant '{name}' may not change `{key}`: it is the run's.")
        return variants

    @model_validator(mode="after")
    def _stages_follow(self) -> Recipe:
        names = list(self.stages)
        for index, (name, stage) in enumerate(self.stages.items()):
            if getattr(stage.objective, "kind", None) == "cox":
                raise ValueError(f"stages.{name}.objective: no stage learns survival; it is judged from the vectors.")
            for modality, config in stage.inputs.items():
                source = getattr(config, "of", None)
                if source is not None and source not in names[:index]:
                    raise ValueError(f"stages.{name}.inputs.{modality}: `of: {source}` names no earlier stage.")
        return self

    def with_ablations(self, names: Sequence[str]) -> Recipe:
        """The recipe with some of its ablations among its variants. Raises `InputError` for names that it lacks."""
        unknown = [name for name in names if name not in self.ablations]
        if unknown:
            raise InputError(
                f"recipe '{self.name}' has no ablation {', '.join(unknown)}.",
                where="ablate",
                consequence="Nothing was started.",
                fix=f"use one of {', '.join(self.ablations)}." if self.ablations else "leave the key out.",
            )
        added = {name: self.ablations[name] for name in names}
        return self.model_copy(update={"variants": self.variants | added, "ablate": []})

    def joined(self, other: Recipe) -> Recipe | None:
        """This recipe with the variants and seeds that ``other`` has beside; None where they differ in more."""
        shared = {"variants": {}, "seeds": [0]}
        mine, theirs = (one.model_copy(update=shared).model_dump(mode="json") for one in (self, other))
        both = set(self.variants) & set(other.variants)
        if mine != theirs or any(self.variants[name] != other.variants[name] for name in both):
            return None
        seeds = [*self.seeds, *(seed for seed in other.seeds if seed not in self.seeds)]
        return self.model_copy(update={"variants": self.variants | other.variants, "seeds": seeds})

    def variant(self, *names: str) -> Recipe:
        """The recipe with the overrides of one or more variants applied in order, and without variants of its own."""
        tree = self.model_dump(mode="json")
        for name in names:
            if name not in self.variants:
                close = nearest(name, list(self.variants))
                hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(self.variants)}."
                raise InputError(f"recipe '{self.name}' has no variant '{name}'. {hint}")
            tree = merge(tree, self.variants[name])
        tree["variants"] = {}
        return parse(Recipe, tree, where=f"variant {' + '.join(names)} of {self.name}")

    def slice_splits(self) -> dict[str, str | None]:
        """Variant that is split by slices -> the variant that differs in that alone, None: the recipe itself.

        Raises `InputError` where the recipe itself is split by slices, and where a variant has no such other: there
        would be nothing to measure the leak against.
        """
        whole = {"": self, **{name: self.variant(name) for name in self.variants}}
        leaky = [name for name, one in whole.items() if "slice" in {s.patients.split for s in one.stages.values()}]
        if "" in leaky:
            raise InputError(
                "`split: slice` would train on patients that are tested what is selected and exported.",
                where="stages",
                consequence="Nothing was started.",
                fix="set it in a variant, beside the recipe that is split by patients.",
            )
        trees = {name: one._split_by_patient() for name, one in whole.items()} if leaky else {}
        found: dict[str, str | None] = {}
        for name in leaky:
            others = [other for other in trees if other not in leaky and trees[other] == trees[name]]
            if not others:
                raise InputError(
                    f"variant '{name}' is split by slices, and none differs from it in that alone.",
                    where=f"variants.{name}",
                    consequence="Nothing was started.",
                    fix="add the same variant without `split: slice`: the leak is measured against it.",
                )
            found[name] = others[0] or None
        return found

    def _split_by_patient(self) -> dict[str, Any]:
        """All settings but the variants, no stage of it split by slices."""
        stages = {
            name: one.model_copy(update={"patients": Patients()}) if one.patients.split == "slice" else one
            for name, one in self.stages.items()
        }
        return self.model_copy(update={"stages": stages, "variants": {}}).model_dump(mode="json")


def shipped() -> list[str]:
    """Names of the recipes inside the package."""
    folder = resources.files("medform.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name: str, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """A shipped recipe by name, or a YAML file by path, with ``--set key=value`` overrides.

    The value is YAML and a mapping replaces the whole part. Raises `InputError` with every fault at once.
    """
    if name in shipped():
        where = f"recipe {name}"
        text = resources.files("medform.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    elif (path := Path(name)).is_file():
        where, text = str(path), read_text(path, "a recipe file")
    else:
        close = nearest(name, shipped())
        hint = f"Did you mean '{close[0]}'?" if close else f"Shipped: {', '.join(shipped())}."
        raise InputError(f"there is no recipe and no file '{name}'. {hint}")
    tree = read_yaml(text, where)
    for override in overrides:
        dotted, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"--set {override}: write key=value.", fix="for example --set stages.pretrain.batch=16")
        set_key(tree, dotted.strip(), read_yaml(value, f"--set {dotted}"))
    if seed is not None:
        tree["seeds"] = [str(seed)]
    recipe = parse(Recipe, tree, where=where, text=None if overrides else text)
    if recipe.transductive:
        raise InputError(
            "`transductive: true` would train on the patients that are tested, which no verb does.",
            where=where,
            consequence="Nothing was started.",
            fix="leave the key out; `medform pretrain FOLDER` trains one encoder on all patients, and marks it.",
        )
    chosen = recipe.with_ablations(recipe.ablate)
    chosen.slice_splits()  # refuses a leak that nobody asked for
    _refuse_ignored(chosen, where)
    return chosen


# kind of a stage's image input -> what the stage is called, and the objectives that learn from it
_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "slices": ("slices", ("simclr",)),
    "patient_slices": ("slices", ("align",)),
    "features": ("patients", ("align", "classify")),
    "segmentation": ("masks", ("segment",)),
}
# setting of `patients` -> the variant whose stage of patients reads it
_PATIENTS = {"share": "unseen", "inner_folds": "out_of_fold"}


def _refuse_ignored(recipe: Recipe, where: str) -> None:
    """Refuse settings that would be written into recipe.yaml and that nothing would read: their rows would mislead."""
    whole = {"": recipe, **{name: recipe.variant(name) for name in recipe.variants}}
    problems = [
        problem if not name else replace(problem, column=f"variants.{name}: {problem.column}")
        for name, one in whole.items()
        for problem in _ignored(name, one, recipe)
    ]
    if problems:
        raise InputError(
            f"{len(problems)} setting{'s' if len(problems) > 1 else ''} would not be used.",
            where=where,
            consequence="Nothing was started.",
            problems=problems,
        )


def _ignored(name: str, recipe: Recipe, main: Recipe) -> Iterator[Problem]:
    """Settings of the recipe, or of its variant ``name``, that no stage reads."""
    first: dict[str, str] = {}
    for stage_name, stage in recipe.stages.items():
        at = f"stages.{stage_name}"
        kind = getattr(stage.inputs.get("image"), "kind", "")
        of, objectives = _KINDS.get(kind, ("", ()))
        learnt = getattr(stage.objective, "kind", "")
        if not of:
            known = ", ".join(_KINDS)
            yield Problem("no stage learns from this image input.", column=f"{at}.inputs.image", suggestion=known)
        elif of in first:
            text = f"a recipe has one stage of {of}; '{first[of]}' is it, and this one would never be trained."
            yield Problem(text, column=at, suggestion="Leave one of them out, or train it in a recipe of its own.")
        elif learnt not in objectives:
            hint = f"Use {' or '.join(objectives)}."
            yield Problem(f"{learnt} cannot be learnt from {kind}.", column=f"{at}.objective", suggestion=hint)
        first.setdefault(of, stage_name)
        yield from _ignored_starts(at, stage, recipe, first.get("slices"))
        for key, variant in _PATIENTS.items():
            if getattr(stage.patients, key) is not None and (name != variant or of != "patients"):
                text = f"it is read in the stage of patients of the variant '{variant}' alone."
                yield Problem(text, column=f"{at}.patients.{key}", suggestion="Leave it out here.")
        for modality in ("genes", "clinical"):
            config, whole = stage.inputs.get(modality), _companion(main, modality)
            if config is not None and (whole is None or config != whole[1]):
                text = f"{modality} are encoded once, for all stages and variants"
                text += f": as in stage '{whole[0]}'." if whole else ", and the recipe itself reads none."
                yield Problem(text, column=f"{at}.inputs.{modality}", suggestion="Set it there, in a run of its own.")


def _ignored_starts(at: str, stage: Stage, recipe: Recipe, slices: str | None) -> Iterator[Problem]:
    """Stages that this one names to start or to read from, other than the one of slices, whose weights these are."""
    named = {"start.image": stage.start.image, "start.genes": stage.start.genes}
    named |= {f"inputs.{modality}.of": getattr(config, "of", None) for modality, config in stage.inputs.items()}
    for key, source in named.items():
        if source in recipe.stages and source != slices:
            text = f"'{source}' is not the stage of slices" + (f"; that is '{slices}'." if slices else ".")
            yield Problem(text, column=f"{at}.{key}", suggestion="Name the stage of slices.")


def _companion(recipe: Recipe, modality: str) -> tuple[str, Config] | None:
    """The stage whose settings of a modality count, and these; None where no stage reads it."""
    found = ((name, stage.inputs[modality]) for name, stage in recipe.stages.items() if modality in stage.inputs)
    return next(found, None)
