"""Every model that a shipped recipe can train has words of its own in the report."""

from __future__ import annotations

import pytest

from medform.evaluation.segmentation import segmentation_pairs
from medform.recipes.recipe import read_recipe, shipped
from medform.reporting.words import COMPARISONS, MODELS, SUPPORTS, model_words, vectors_see


@pytest.mark.parametrize("name", shipped())
def test_every_variant_and_ablation_of_a_shipped_recipe_is_named_and_explained(name: str) -> None:
    recipe = read_recipe(name)
    models = {*recipe.variants, *recipe.ablations} - set(SUPPORTS)  # those two are alignments for few-shot supports
    assert models <= set(MODELS)
    assert len({model_words(model).label for model in models}) == len(models)


def test_the_u_net_is_called_no_more_than_it_is() -> None:
    assert model_words("unet").about == "a plain U-Net from random weights, images alone"


@pytest.mark.proves("G5")
def test_vectors_of_an_ablation_are_of_the_image_alone_its_masks_of_the_genes_too() -> None:
    assert vectors_see("mgi_scratch") == "image" and model_words("mgi_scratch").given == "image + genes"
    assert vectors_see("aligned_both") == "image + genes" and vectors_see("own") == "image"


def test_every_difference_of_masks_that_mgi_can_have_asks_a_question() -> None:
    recipe = read_recipe("mgi-small")
    asked = {" - ".join(pair) for pair in segmentation_pairs(["mgi", *recipe.ablations, "vit_no_genes", "unet"])}
    assert {one for one in asked if "slice_split" not in one} <= set(COMPARISONS)
