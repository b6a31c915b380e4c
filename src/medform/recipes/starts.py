"""Builds every slice encoder of a recipe once, so that a wrong name or weights file is refused before any work."""

from __future__ import annotations

import logging
from typing import Any

from medform.recipes.recipe import Recipe

__all__ = ["check_starts"]

logger = logging.getLogger(__name__)


def check_starts(recipe: Recipe) -> None:
    """Build and start the slice encoders of ``recipe`` and its variants, and let them go again.

    What was used of their weights is logged, each start once.
    Raises `InputError` for a backbone that timm does not know, a module of it that is not there, weights that are
    missing, unreadable or of another architecture.
    """
    from medform.compute.seed import generator
    from medform.config import digest
    from medform.inputs.slices import SliceInputConfig
    from medform.models.weights import start_from

    seen: set[str] = set()
    for variant in (recipe, *(recipe.variant(name) for name in recipe.variants)):
        for stage in variant.stages.values():
            start = stage.start.image or "random"
            config: Any = stage.towers.get("image")
            of_slices = isinstance(stage.inputs.get("image"), SliceInputConfig)
            key = digest([config.model_dump(mode="json"), start]) if of_slices else ""
            if not of_slices or start in variant.stages or key in seen:
                continue
            seen.add(key)
            if (report := start_from(config.build(generator(0, "check")), start)) is not None:
                logger.info("%s", report)
