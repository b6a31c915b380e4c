"""Write docs/recipes.md: every shipped recipe beside its sources ("paper or code says / we do / why")."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from medform.recipes.recipe import Recipe, read_recipe, shipped

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
SETTINGS = (
    "objective", "towers", "inputs", "pairing", "optimizer", "batch", "budget", "start",
)  # fmt: skip


def settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting of a recipe that a reader may ask the source of: dotted key -> value, defaults included."""
    tree = recipe.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name, stage in tree["stages"].items():
        for key in SETTINGS:
            if key in ("towers", "inputs"):
                found |= {f"stages.{name}.{key}.{modality}": value for modality, value in stage[key].items()}
            else:
                found[f"stages.{name}.{key}"] = stage[key]
    return found | {"image_only": tree["image_only"], "embedding": tree["embedding"]}


def brief(value: Any) -> str:
    """A setting in one line, without what is not set."""
    if isinstance(value, dict):
        return (
            ", ".join(f"{key} {brief(item)}" for key, item in value.items() if item not in (None, {}, [])) or "default"
        )
    if isinstance(value, list):
        return "[" + ", ".join(brief(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def page() -> str:
    text = [
        "# Recipes",
        "",
        "Made by `python tools/recipes.py` from the recipe files, which each run stores resolved as `recipe.yaml`.",
        "A setting is changed with `--set key=value`; a mapping replaces the whole part.",
    ]
    for name in shipped():
        recipe = read_recipe(name)
        text += ["", f"## {name}", "", recipe.citation + ".", ""]
        if recipe.sources:
            text += ["| setting | paper or code says | we do | why |", "| --- | --- | --- | --- |"]
            for key, value in settings(recipe).items():
                source = recipe.sources.get(key)
                says, why = (source.says, source.why) if source else ("not published", "")
                text.append(f"| `{key}` | {says} | {brief(value)} | {why} |")
        else:
            text += ["| setting | value |", "| --- | --- |"]
            text += [f"| `{key}` | {brief(value)} |" for key, value in settings(recipe).items()]
        text += ["", "Variants: " + ", ".join(f"`{variant}`" for variant in recipe.variants) + "."]
        if recipe.ablations:
            named = ", ".join(f"`{name}`" for name in recipe.ablations)
            text += ["", f"Ablations, trained where `--set 'ablate=[NAME]'` names them: {named}."]
    return "\n".join(text) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
