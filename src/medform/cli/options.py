"""Arguments and options that several verbs share, each described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

__all__ = [
    "CohortFiles",
    "Debug",
    "Device",
    "Folds",
    "HeaderRow",
    "Json",
    "Model",
    "Out",
    "Overwrite",
    "Recipe",
    "Resume",
    "Root",
    "Run",
    "Seed",
    "Set",
    "Sheet",
    "Store",
    "Strict",
    "Table",
    "Workers",
]

Run = Annotated[Path, Argument(help="A run folder.", metavar="RUN")]
Out = Annotated[Path, Option("--out", "-o", help="Where the result goes.", show_default=False)]
Root = Annotated[
    Path | None,
    Option(help="Folder that the cohort file's paths start from.", show_default="its `root` key, else its own folder"),
]
CohortFiles = Annotated[Path, Option("--cohort", help="The cohort file (YAML).", show_default=False)]
Recipe = Annotated[str, Option(help="A shipped recipe's name, or a recipe file.")]
Folds = Annotated[list[int] | None, Option("--fold", help="Only this fold; may be repeated.", show_default="all")]
Store = Annotated[Path | None, Option(help="Folder of the cohort store.", show_default="OUT/store")]
Model = Annotated[Path, Option(help="A model folder, or a run that holds one.", show_default=False)]
Table = Annotated[Path | None, Option(help="Clinical table (CSV, TSV or Excel).", show_default=False)]
Sheet = Annotated[str | None, Option(help="Sheet of the workbook that holds the table.", show_default="the only one")]
HeaderRow = Annotated[int, Option(help="Row of the table's file with the column names, from 1.", min=1)]
Workers = Annotated[int, Option(help="Processes; the result is the same with any number.", min=1)]
Device = Annotated[str, Option(help="auto, cpu or cuda.", metavar="DEVICE")]
Seed = Annotated[int | None, Option(help="The one seed of all randomness.", show_default="the recipe's")]
Set = Annotated[
    list[str] | None,
    Option(
        "--set",
        help="Set a key of the recipe, as stages.pretrain.budget.steps=20; may be repeated.",
        metavar="KEY=VALUE",
    ),
]
Resume = Annotated[
    bool, Option("--resume", help="Go on with what lies in the output folder; further seeds and variants are added.")
]
Overwrite = Annotated[bool, Option("--overwrite", help="Start anew in the output folder.")]
Strict = Annotated[bool, Option("--strict", help="Exit 3 if anything was set aside for a fault.")]
Json = Annotated[bool, Option("--json", help="Print one JSON object; messages go to stderr.")]
Debug = Annotated[bool, Option("--debug", help="Say more, and show the full trace of a fault of ours.")]
