"""Judges predicted masks: figures of each patient, then rows with intervals, by tumour size, and paired differences.

The unit is the patient: a Dice is that of all the patient's voxels together, and intervals resample patients. A
patient in whom there is no lesion and none was found has no figure and is left out; the note says how many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medform.cohort.split import patient_order
from medform.evaluation.settings import EvaluationSettings
from medform.metrics.bootstrap import SMALL_CLASS, percentile_interval, resample, sign_p_value, weighted_medians
from medform.metrics.overlap import Overlap, overlap, pooled, surface_distances
from medform.metrics.power import detectable_from_error
from medform.runs.scores import FALSE_LESIONS, FLAT, ScoreRow

__all__ = [
    "SMALL_TUMOUR",
    "TOLERANCE",
    "VALIDATION_DICE",
    "VALIDATION_VOXELS",
    "PredictedScan",
    "on_slices_of",
    "segmentation_cases",
    "segmentation_pairs",
    "segmentation_rows",
    "select_segmentation",
]

Array = NDArray[np.float64]
Protocol = Literal["segmentation", "external"]

SMALL_TUMOUR = 3000
"""Voxels of the true lesion, over the slices that are in the store, below which a tumour is a small one.

Of several scans of a patient the one with most counts: four sequences show one tumour, not one four times as large.
"""
TOLERANCE = 2.0
"""Distance within which surfaces agree for NSD, in mm, or in pixels where the spacing is unknown."""
HALF = 0.5
VALIDATION_DICE = "validation_dice"
"""Metric of the cases that hold a validation patient's Dice."""
VOXELS = "lesion_voxels"
"""Metric of the cases that hold the size of a test patient's true lesion."""
VALIDATION_VOXELS = "validation_lesion_voxels"
"""The same of a validation patient, whose masks were drawn even where the Dice is undefined."""

SIMPLEST_FIRST = ("unet", "vit_no_genes", "mgi")
"""Models in the order in which ties of validation scores are broken; those not named come after them."""
NEVER_SELECTED = ("random", "shuffled", "null", "permuted", "slice_split", "slice_level")
"""Parts of the names of controls that a run may not select; a split by slices knows its validation patients."""
UNITS = {"mm": "in mm", "px": "in pixels: the spacing is unknown"}
EMPTY_PATIENTS = "patients without lesion in truth and prediction left out"
EMPTY_SLICES = "slices without lesion in truth and prediction left out"
MISSED = "a missed lesion counts as the image's diagonal"


@dataclass(frozen=True)
class PredictedScan:
    """One series on the pixels of the scan.

    ``prediction`` and ``truth`` are (N, H, W), boolean. ``spacing_mm`` is (z, y, x), z NaN where only the slices' own
    spacing is known; None where nothing is. ``lesion_voxels``: of the true lesion of the whole series, where the N
    slices are only some of it; None where they are all.
    """

    prediction: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    spacing_mm: tuple[float, float, float] | None = None
    lesion_voxels: int | None = None

    @property
    def step(self) -> tuple[float, ...] | None:
        """Spacing as `metrics.overlap` takes it."""
        if self.spacing_mm is None or not np.isfinite(self.spacing_mm[1:]).all():
            return None
        return self.spacing_mm if np.isfinite(self.spacing_mm[0]) else self.spacing_mm[1:]


def segmentation_cases(
    scans: Sequence[PredictedScan],
    *,
    cohort: str,
    task: str,
    model: str,
    fold: int,
    seed: int,
    patient_id: str,
    part: Literal["test", "validation"] = "test",
    protocol: Protocol = "segmentation",
    tolerance: float = TOLERANCE,
) -> list[dict[str, Any]]:
    """Cases of one patient: rows of ``cases.parquet``; figures that are undefined have none.

    A test patient has ``dice_patient`` and ``iou_patient`` over all voxels of all scans; ``dice_slice``, the mean
    over slices with lesion in truth or prediction, and ``dice_slice_empty_1``, over all slices with 1 for those
    that are empty in both (as some papers count, which flatters); ``hd95`` and ``nsd`` with the suffix ``_mm`` or
    ``_px``; and ``lesion_voxels``, the largest of the scans, whole also where only some of its slices are judged. A
    validation patient has ``validation_dice`` and ``validation_lesion_voxels``.
    """
    shared = {"cohort": cohort, "task": task, "protocol": protocol, "model": model, "fold": fold, "seed": seed}
    shared |= {"patient_id": patient_id}
    whole = sum((overlap(scan.prediction, scan.truth) for scan in scans), Overlap(0, 0, 0))
    sizes = (int(scan.truth.sum()) if scan.lesion_voxels is None else scan.lesion_voxels for scan in scans)
    size = float(max(sizes, default=0))
    figures: dict[str, float | None]
    if part == "validation":
        figures = {VALIDATION_VOXELS: size, VALIDATION_DICE: whole.dice}
    else:
        figures = {VOXELS: size, "dice_patient": whole.dice, "iou_patient": whole.iou}
        figures |= _slice_figures(scans) | _surface_figures(scans, tolerance)
    return [shared | {"metric": name, "value": value} for name, value in figures.items() if value is not None]


def _slice_figures(scans: Sequence[PredictedScan]) -> dict[str, float | None]:
    pairs = [pair for scan in scans for pair in zip(scan.prediction, scan.truth, strict=True)]
    found = [overlap(prediction, truth).dice for prediction, truth in pairs]
    known = [value for value in found if value is not None]
    return {
        "dice_slice": float(np.mean(known)) if known else None,
        "dice_slice_empty_1": float(np.mean([1.0 if one is None else one for one in found])) if found else None,
    }


def _surface_figures(scans: Sequence[PredictedScan], tolerance: float) -> dict[str, float | None]:
    """In mm where every scan's spacing is known, else in pixels."""
    unit = "mm" if scans and all(scan.step is not None for scan in scans) else "px"
    distances = pooled(
        surface_distances(scan.prediction, scan.truth, scan.step if unit == "mm" else None) for scan in scans
    )
    return {f"hd95_{unit}": distances.hd95, f"nsd_{unit}": distances.nsd(tolerance)}


@dataclass
class _Model:
    """What one model got: case metric -> (patient, fold, seed) -> value."""

    values: dict[str, dict[tuple[str, int, int], float]] = field(default_factory=dict)

    @property
    def seeds(self) -> set[int]:
        return {seed for found in self.values.values() for _, _, seed in found}

    def patients(self, metric: str, keys: set[tuple[str, int, int]] | None = None) -> dict[str, float]:
        """Patient -> mean over folds and seeds, of ``keys`` only where they are given."""
        found: dict[str, list[float]] = {}
        for key, value in self.values.get(metric, {}).items():
            if keys is None or key in keys:
                found.setdefault(key[0], []).append(value)
        return {patient: float(np.mean(values)) for patient, values in found.items()}


@dataclass(frozen=True)
class _Figure:
    """A metric of the rows: which case it is made of, how, of which tumours, and what its note says.

    ``other``: the case of the patients whose distances are in the other unit, who are left out.
    """

    metric: str
    case: str
    statistic: Callable[[Array, Array], Array]
    small: bool | None = None
    note: str | None = None
    paired: bool = False
    other: str | None = None

    def aside(self, models: Sequence[_Model]) -> str | None:
        """How many patients of all ``models`` are left out for their unit; None where there are none."""
        if self.other is None:
            return None
        ids = set.intersection(*({*model.patients(self.case), *model.patients(self.other)} for model in models))
        left = ids - set.intersection(*(set(model.patients(self.case)) for model in models))
        known = "without" if self.other.endswith("px") else "with"
        return f"{len(left)} {known} a known spacing left out" if left else None


def _mean(values: Array, counts: Array) -> Array:
    return counts @ values / counts.sum(axis=1)


def _below_half(values: Array, counts: Array) -> Array:
    return counts @ (values < HALF)


def _figures(unit: str, tolerance: float, small_below: int) -> tuple[_Figure, ...]:
    said = UNITS[unit]
    within = f"within {tolerance:g} {'mm' if unit == 'mm' else 'pixels: the spacing is unknown'}"
    other = "px" if unit == "mm" else "mm"
    size = f"{small_below:,} voxels"
    small, large = f"tumours under {size}", f"tumours of {size} or more"
    return (
        _Figure("dice_patient", "dice_patient", _mean, note=EMPTY_PATIENTS, paired=True),
        _Figure("dice_patient_median", "dice_patient", weighted_medians, note=f"median; {EMPTY_PATIENTS}"),
        _Figure("dice_patient_small", "dice_patient", _mean, small=True, note=small, paired=True),
        _Figure("dice_patient_large", "dice_patient", _mean, small=False, note=large, paired=True),
        _Figure("dice_patient_below_half", "dice_patient", _below_half, note="number of patients below 0.5"),
        _Figure("iou_patient", "iou_patient", _mean, note=EMPTY_PATIENTS),
        _Figure("dice_slice", "dice_slice", _mean, note=EMPTY_SLICES, paired=True),
        _Figure("dice_slice_empty_1", "dice_slice_empty_1", _mean, note="slices empty in both count as 1"),
        _Figure("hd95", f"hd95_{unit}", _mean, note=f"{said}; {MISSED}", paired=True, other=f"hd95_{other}"),
        _Figure(
            "hd95_median", f"hd95_{unit}", weighted_medians, note=f"median; {said}; {MISSED}", other=f"hd95_{other}"
        ),
        _Figure("nsd", f"nsd_{unit}", _mean, note=within, paired=True, other=f"nsd_{other}"),
    )


# Pairs without `mgi` that answer a question of their own, because they differ in one thing alone.
_BESIDE = (
    ("mgi_shuffled_genes", "vit_no_genes"),
    ("mgi_null_genes", "vit_no_genes"),
    ("vit_no_genes", "unet"),
    ("mgi_scratch", "mgi_pure_vit"),
)


def segmentation_pairs(models: Iterable[str]) -> list[tuple[str, str]]:
    """Which models are compared: `mgi` with every other one, and those that differ in one thing alone.

    A model that is split by slices is compared with its like on the same slices (`on_slices_of`), and neither of them
    with any other: those are judged on more slices.
    """
    names = list(dict.fromkeys(models))
    leaks = [(leaky, on) for leaky in names for model in names if (on := on_slices_of(model, leaky)) in names]
    apart = {name for pair in leaks for name in pair}
    pairs = [("mgi", other) for other in names if other != "mgi" and other not in apart] if "mgi" in names else []
    return pairs + [pair for pair in _BESIDE if set(pair) <= set(names)] + leaks


def on_slices_of(model: str, leaky: str) -> str:
    """Name of ``model`` judged only on the slices that ``leaky``, split by slices, has not seen.

    `mgi_on_slice_split` for `mgi` and `mgi_slice_split`.
    """
    return f"{model}_on_{leaky.removeprefix(f'{model}_')}"


def segmentation_rows(
    cases: pd.DataFrame,
    settings: EvaluationSettings | None = None,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    train_cohorts: str | None = None,
    notes: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
    small_below: int = SMALL_TUMOUR,
) -> list[ScoreRow]:
    """Every row of the segmentation (and external) cases: each model's figures, then the paired differences.

    ``pairs`` of models default to `segmentation_pairs`; ``notes`` maps a model to a remark that all its rows carry.
    A patient who was tested under several seeds counts once, by the mean. Differences are of the patients, folds
    and seeds that both models have; their note holds the smallest difference that could have been seen.
    """
    settings = settings or EvaluationSettings()
    rows: list[ScoreRow] = []
    for (cohort, task, protocol), models in _gathered(cases).items():
        unit = _unit(models)
        base = ScoreRow(cohort, task, protocol, "", "", None, 0, train_cohorts=train_cohorts or cohort)  # pyright: ignore[reportArgumentType]
        judge = _Judge(base, models, settings, notes or {}, small_below)
        figures = _figures(unit, tolerance, small_below)
        for model in models:
            rows.extend(judge.row(model, figure) for figure in figures if figure.case in models[model].values)
        for first, second in pairs if pairs is not None else segmentation_pairs(models):
            if first in models and second in models:
                found = (judge.difference(first, second, figure) for figure in figures if figure.paired)
                rows.extend(row for row in found if row is not None)
    return rows


def _gathered(cases: pd.DataFrame) -> dict[tuple[str, str, str], dict[str, _Model]]:
    found: dict[tuple[str, str, str], dict[str, _Model]] = {}
    names = ("cohort", "task", "protocol", "model", "fold", "seed", "patient_id", "metric", "value")
    # the order of the cases is that of the runs that made them: models keep it, values do not depend on it
    for cohort, task, protocol, model, fold, seed, patient, metric, value in zip(
        *(cases[name].tolist() for name in names), strict=True
    ):
        if protocol in ("segmentation", "external") and metric in _CASES:
            key = (str(patient), int(fold) if pd.notna(fold) else -1, int(seed) if pd.notna(seed) else 0)
            models = found.setdefault((str(cohort), str(task), str(protocol)), {})
            models.setdefault(str(model), _Model()).values.setdefault(str(metric), {})[key] = float(value)
    return found


_CASES = {VOXELS, *(figure.case for unit in UNITS for figure in _figures(unit, TOLERANCE, SMALL_TUMOUR))}


def _unit(models: Mapping[str, _Model]) -> str:
    """The unit in which most patients' distances are known."""
    known = {unit: {p for m in models.values() for p in m.patients(f"hd95_{unit}")} for unit in UNITS}
    return "mm" if len(known["mm"]) >= max(len(known["px"]), 1) else "px"


@dataclass(frozen=True)
class _Judge:
    """Makes the rows of one cohort, task and protocol."""

    base: ScoreRow
    models: Mapping[str, _Model]
    settings: EvaluationSettings
    notes: Mapping[str, str]
    small_below: int

    def _chosen(self, ids: Iterable[str], models: Sequence[str], *, small: bool | None) -> list[str]:
        sizes = {one: size for name in models for one, size in self.models[name].patients(VOXELS).items()}
        # a patient without lesion has no tumour of any size
        kept = [one for one in ids if small is None or (sizes.get(one) and (sizes[one] < self.small_below) == small)]
        return patient_order(kept, self.settings.seed)

    def _counts(self, n: int) -> Array:
        return resample(n, 0, self.settings.bootstrap, self.settings.seed).positive

    def _row(self, models: Sequence[str], figure: _Figure, n: int, seeds: int, **values: Any) -> ScoreRow:
        few = f"no interval: fewer than {SMALL_CLASS} patients" if 0 < n < SMALL_CLASS else None
        none = "undefined: no such patients" if n == 0 else None
        remarks = [self.notes.get(name) for name in models]
        said = [values.pop("said", None), figure.note, values.pop("more", None), none, few, *remarks]
        parts = [part for one in said if one for part in one.split("; ")]  # remarks of two models share some
        note = "; ".join(dict.fromkeys(parts)) or None
        fields = {"model": " - ".join(models), "metric": figure.metric, "n_patients": n, "seeds": seeds, "note": note}
        return ScoreRow(**{**vars(self.base), **fields, **values})

    def row(self, model: str, figure: _Figure) -> ScoreRow:
        """One figure of one model."""
        found = self.models[model]
        values = found.patients(figure.case)
        ids = self._chosen(values, [model], small=figure.small)
        if not ids:
            return self._row([model], figure, 0, len(found.seeds))
        array = np.array([values[one] for one in ids])
        interval = None
        if len(ids) >= SMALL_CLASS:
            interval = percentile_interval(figure.statistic(array, self._counts(len(ids))))
        said = None
        if interval is not None and interval.flat:
            interval, said = None, FLAT
        counted = (figure.note or "").endswith(EMPTY_PATIENTS)  # what "these" of the remark below are
        empty = len(set(found.patients(VOXELS)) - set(values)) if counted else 0
        return self._row(
            [model],
            figure,
            len(ids),
            len(found.seeds),
            value=float(figure.statistic(array, np.ones((1, len(ids))))[0]),
            ci_low=interval.low if interval else None,
            ci_high=interval.high if interval else None,
            said=said,
            more=f"these were {empty}" if empty else figure.aside([found]),
        )

    def difference(self, first: str, second: str, figure: _Figure) -> ScoreRow | None:
        """First minus second on the same patients; None where they have none in common."""
        sides = [self.models[name] for name in (first, second)]
        tested = [set(side.values.get(figure.case, {})) for side in sides]
        keys = tested[0] & tested[1] or None  # without a common fold and seed the patients' means are compared
        one, other = (side.patients(figure.case, keys) for side in sides)
        ids = self._chosen(set(one) & set(other), (first, second), small=figure.small)
        if not ids:
            return None
        odd = set(sides[0].patients(VOXELS)) & set(sides[1].patients(VOXELS))
        odd &= set(sides[0].patients(figure.case)) ^ set(sides[1].patients(figure.case))
        more = figure.aside(sides)
        # an empty mask that is right has no Dice, a false lesion has 0; among tumours of a size there is neither
        if odd and figure.case == "dice_patient" and figure.small is None:
            more = f"{len(odd)} {FALSE_LESIONS}"
        array = np.array([one[patient] - other[patient] for patient in ids])
        seeds = len({seed for _, _, seed in keys}) if keys else min(len(side.seeds) for side in sides)
        value = float(array.mean())
        if len(ids) < SMALL_CLASS:
            return self._row([first, second], figure, len(ids), seeds, value=value, more=more)
        drawn = _mean(array, self._counts(len(ids)))
        interval, error = percentile_interval(drawn), float(drawn.std())
        if error == 0 or interval is None:
            said = "no interval: no resample tells the two apart"
            return self._row([first, second], figure, len(ids), seeds, value=value, said=said, more=more)
        better = int(np.count_nonzero(array > 0))
        return self._row(
            [first, second],
            figure,
            len(ids),
            seeds,
            value=value,
            ci_low=interval.low,
            ci_high=interval.high,
            p_value=sign_p_value(drawn),
            said=f"detectable {detectable_from_error(error):.3f}; higher in {better} of {len(ids)} patients",
            more=more,
        )


def select_segmentation(cases: pd.DataFrame) -> dict[str, str]:
    """Task -> model with the best mean validation Dice, pooled over all folds and seeds; ties go to the simpler.

    Random, shuffled, null, permuted and slice-split models are never selected, nor are those that were not trained
    in a fold in which another candidate was: the folds are not equally hard. A model that drew nothing in a fold where
    there is nothing has no Dice there, and was trained all the same. Test patients play no part.
    """
    found: dict[str, dict[str, dict[tuple[str, int], list[float]]]] = {}
    trained: dict[str, dict[str, set[int]]] = {}
    names = ("task", "protocol", "model", "fold", "patient_id", "metric", "value")
    for task, protocol, model, fold, patient, metric, value in zip(*(cases[n].tolist() for n in names), strict=True):
        control = any(part in str(model) for part in NEVER_SELECTED)
        if protocol != "segmentation" or metric not in (VALIDATION_DICE, VALIDATION_VOXELS) or control:
            continue
        # cases of earlier runs have the Dice alone
        trained.setdefault(str(task), {}).setdefault(str(model), set()).add(int(fold))
        if metric == VALIDATION_DICE:
            patients = found.setdefault(str(task), {}).setdefault(str(model), {})
            patients.setdefault((str(patient), int(fold)), []).append(float(value))
    selected = {}
    for task, models in found.items():
        folds = set.union(*trained[task].values())
        scores = {
            model: float(np.mean([np.mean(values) for _, values in sorted(patients.items())]))
            for model, patients in models.items()
            if trained[task][model] == folds
        }
        known = [*(name for name in SIMPLEST_FIRST if name in scores), *sorted(set(scores) - set(SIMPLEST_FIRST))]
        if known:
            selected[task] = next(name for name in known if scores[name] >= max(scores.values()) - 1e-12)
    return selected
