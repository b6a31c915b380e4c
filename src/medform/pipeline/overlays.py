"""Which test patients' masks the report shows: those of the best, the median and the worst Dice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medform.cohort.store import Cohort
    from medform.recipes.recipe import Recipe
    from medform.reporting.overlays import OverlayPatient
    from medform.runs.folder import RunFolder

__all__ = ["draw_overlays"]

METRIC = "dice_patient"


def draw_overlays(folder: RunFolder, cohort: Cohort) -> None:
    """Write ``overlays.json`` and its pictures from the kept masks of the selected model; nothing where there are none.

    Only patients whose Dice stands in ``cases.parquet`` are looked at, hence none before a model was selected.
    """
    import pandas as pd

    from medform.config import load
    from medform.pipeline.segmentation import SEGMENTATION
    from medform.recipes.recipe import Recipe
    from medform.reporting.overlays import Overlays, write_overlays

    path = folder.path / "cases.parquet"
    model = folder.record().get("selected", {}).get(SEGMENTATION)
    if model is None or not path.is_file():
        return
    cases: Any = pd.read_parquet(path)
    judged = (cases["protocol"] == "segmentation") & (cases["task"] == SEGMENTATION) & (cases["metric"] == METRIC)
    cases = cases[judged & (cases["model"] == model)]
    if cases.empty:
        return
    cases = cases[cases["seed"] == cases["seed"].min()].sort_values(["value", "patient_id"])
    recipe = load(Recipe, folder.path / "recipe.yaml")
    rows = {"best": len(cases) - 1, "median": len(cases) // 2, "worst": 0}
    shown, taken = [], set()
    for place, row in rows.items():
        if row not in taken:
            taken.add(row)
            shown.append(_patient(folder, cohort, recipe, model, place, cases.iloc[row]))
    write_overlays(folder.path, Overlays(SEGMENTATION, model, tuple(shown)))


def _patient(folder: RunFolder, cohort: Cohort, recipe: Recipe, model: str, place: str, case: Any) -> OverlayPatient:
    """What is shown of the patient of one case: one slice of all the patient's scans.

    That is the slice with the most true lesion, where there is none the most predicted.
    """
    from medform.pipeline.segmentation import kept_masks, masks_file
    from medform.reporting.overlays import OverlayPatient, draw_overlay

    patient = str(case["patient_id"])
    path = masks_file(folder.path, int(case["fold"]), model, int(case["seed"]))
    slices = [
        (int(true.sum()), int(drawn.sum()), series_id, index, true, drawn)
        for _, series_id, scan in kept_masks(path, cohort, recipe, "test", {patient})
        for index, (true, drawn) in enumerate(zip(scan.truth, scan.prediction, strict=True))
    ]
    _, _, series_id, index, true, drawn = max(slices, key=lambda one: one[:2])
    pseudonym = cohort.patient(patient).pseudonym
    pictures = draw_overlay(folder.path, pseudonym, cohort.open(series_id).slice(index), cohort.window, true, drawn)
    return OverlayPatient(pseudonym, place, float(case["value"]), index, *pictures)
