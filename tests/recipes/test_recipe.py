"""Recipes as data: shipped ones hold, variants resolve, overrides and faults are judged."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from medform.config import dump, parse, read_yaml
from medform.errors import InputError
from medform.recipes.recipe import Recipe, read_recipe, shipped


def recipes_page() -> ModuleType:
    """The generator of docs/recipes.md."""
    path = Path(__file__).resolve().parents[2] / "tools" / "recipes.py"
    spec = importlib.util.spec_from_file_location("recipes_page", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_reads_back_and_each_variant_resolves(name: str) -> None:
    recipe = read_recipe(name)
    assert parse(Recipe, read_yaml(dump(recipe)), name) == recipe.model_copy(update={"ablations": {}})
    for variant in recipe.variants:
        assert recipe.variant(variant).variants == {}


@pytest.mark.proves("A5.1", "G.done")
@pytest.mark.parametrize("name", ["medform-paper", "mgi-paper"])
def test_every_setting_of_a_paper_s_recipe_has_a_source(name: str) -> None:
    recipe = read_recipe(name)
    assert set(recipes_page().settings(recipe)) - set(recipe.sources) <= {"stages.pretrain.pairing"}  # has no pairs


@pytest.mark.proves("A1.1", "A5.1")
def test_the_recipes_page_is_up_to_date() -> None:
    page = recipes_page()
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


@pytest.mark.proves("A.input")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("transductive=true", "which no verb does"),
        ("stages.pretrain.optimiser=1", "Did you mean 'optimizer'?"),
        ("stages.pretrian.batch=2", "Did you mean 'pretrain'?"),
        ("stages.pretrain.batch=0", "greater than or equal to 1"),
        ("stages.pretrain.objective={kind: simclrr}", "Did you mean 'simclr'?"),
        ("stages.pretrain.objective={kind: simclr, temprature: 1}", "did you mean 'temperature'?"),
        ("stages.pretrain.budget={steps: 4, epochs: 2}", "exactly one of"),
        ("stages.pretrain.batch", "write key=value"),
        ("stages.align.objective={kind: cox}", "no stage learns survival"),
    ],
)
def test_a_wrong_override_names_key_and_remedy(override: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe("medform-small", [override])
    assert said in str(caught.value)


@pytest.mark.proves("A.input")
def test_an_unknown_recipe_shows_the_nearest_name() -> None:
    with pytest.raises(InputError, match="Did you mean 'medform-small'"):
        read_recipe("medform-smal")


@pytest.mark.proves("A5.2")
def test_the_laptop_recipe_stays_within_its_parameters() -> None:
    from medform.compute.seed import generator
    from medform.pipeline.stages import image_stage

    _, stage = image_stage(read_recipe("medform-small"))
    tower = stage.towers["image"].build(generator(0, "t"))  # type: ignore[attr-defined]
    objective = stage.objective.build({"image": tower}, generator(0, "o"))  # type: ignore[attr-defined]
    assert sum(parameter.numel() for parameter in objective.parameters()) <= 5_000_000


@pytest.mark.proves("G5")
def test_a_split_by_slices_is_a_variant_of_a_segmentation_with_its_like_beside_it() -> None:
    recipe = read_recipe("mgi-small", ["ablate=[mgi_slice_split]"])
    assert recipe.slice_splits() == {"mgi_slice_split": None} and recipe.variant("mgi_slice_split").name == recipe.name
    without = "stages.segment.objective.gene_dropout: 1.0"
    both = f"variants={{a: {{{without}, stages.segment.patients: {{split: slice}}}}, b: {{{without}}}}}"
    assert read_recipe("mgi-small", [both]).slice_splits() == {"a": "b"}
    assert "split" not in dump(read_recipe("mgi-small")), "a recipe of before stays the same recipe"


@pytest.mark.proves("G5", "G.input")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.segment.patients={split: slice}", "train on patients that are tested"),
        ("stages.align.patients={split: slice}", "learns no masks"),
        ("stages.segment.patients={split: slice, share: 0.5}", "they are of patients"),
        ("stages.segment.patients={split: series}", "'patient' or 'slice'"),
        (
            "variants={leaky: {stages.segment.patients: {split: slice}, stages.segment.batch: 3}}",
            "none differs from it in that alone",
        ),
    ],
)
def test_a_leak_that_measures_nothing_is_refused(override: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe("mgi-small", [override])
    assert said in str(caught.value)


SIMCLR = (
    "stages.pretrain={objective: {kind: simclr}, towers: {image: {kind: hybrid}}, batch: 8, budget: {steps: 2}, "
    "inputs: {image: {kind: slices, size: 64, source: 64}}, optimizer: {kind: adamw, lr: 1.0e-3}}"
)


@pytest.mark.proves("A4.4", "U7")
@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("mgi-small", [SIMCLR], "stages.pretrain"),
        ("medform-small", ["stages.pretrain.objective={kind: classify}"], "classify cannot be learnt from slices"),
        ("medform-small", ["stages.align.patients={share: 0.5}"], "stages.align.patients.share"),
        ("medform-small", ["variants.half={stages.align.patients: {inner_folds: 3}}"], "variants.half: stages.align"),
        ("mgi-small", ["stages.segment.inputs.genes.select.top_variance=64"], "genes are encoded once"),
        (
            "mgi-small",
            ["variants.few={stages.align.inputs.genes.select.top_variance: 64}"],
            "variants.few: stages.align",
        ),
        ("mgi-small", ["stages.segment.start.image=segment"], "'segment' is not the stage of slices; that is 'align'"),
    ],
)
def test_a_setting_that_nothing_would_read_is_refused(name: str, overrides: list[str], said: str) -> None:
    with pytest.raises(InputError, match="would not be used") as caught:
        read_recipe(name, overrides)
    assert said in "; ".join(map(str, caught.value.problems))
