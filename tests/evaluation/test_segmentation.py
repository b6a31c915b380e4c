"""Segmentation rows: figures by hand, patients as the unit, matched pairs, and what may be selected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medform.evaluation.predictions import case_frame
from medform.evaluation.segmentation import (
    PredictedScan,
    on_slices_of,
    segmentation_cases,
    segmentation_pairs,
    segmentation_rows,
    select_segmentation,
)
from medform.evaluation.settings import EvaluationSettings
from medform.metrics.overlap import dice
from medform.runs.scores import FALSE_LESIONS, FLAT, ScoreRow, detectable_of

SETTINGS = EvaluationSettings(bootstrap=500)
WHERE = {"cohort": "brains", "task": "tumour", "fold": 0, "seed": 0, "patient_id": "p"}


def volume(*places: tuple[int, int]) -> np.ndarray:
    """One 16 x 16 slice a place: a 4 x 4 lesion at (row, column), none where row is negative."""
    mask = np.zeros((len(places), 16, 16), bool)
    for index, (row, column) in enumerate(places):
        if row >= 0:
            mask[index, row : row + 4, column : column + 4] = True
    return mask


def figures(prediction: np.ndarray, truth: np.ndarray, spacing: Any = None, **more: Any) -> dict[str, float]:
    cases = segmentation_cases([PredictedScan(prediction, truth, spacing)], model="mgi", **{**WHERE, **more})
    return {case["metric"]: case["value"] for case in cases}


@pytest.mark.proves("G4.3")
def test_figures_of_a_patient_by_hand() -> None:
    truth, prediction = volume((4, 4), (4, 4), (-1, 0)), volume((4, 6), (-1, 0), (-1, 0))
    found = figures(prediction, truth)
    assert found["lesion_voxels"] == 32 and found["dice_patient"] == 2 * 8 / 48 and found["iou_patient"] == 8 / 40
    assert found["dice_slice"] == (0.5 + 0) / 2 and found["dice_slice_empty_1"] == (0.5 + 0 + 1) / 3
    assert found["hd95_px"] == pytest.approx(16 * 2**0.5) and 0 < found["nsd_px"] < 1
    in_mm = figures(prediction, truth, (3.0, 0.5, 0.5))
    assert set(in_mm) == {*found} - {"hd95_px", "nsd_px"} | {"hd95_mm", "nsd_mm"}
    flat = figures(prediction, truth, (np.nan, 0.5, 0.5))
    assert flat["hd95_mm"] == pytest.approx(8 * 2**0.5), "z unknown: slice by slice, in mm"
    seen = {"validation_lesion_voxels": 32, "validation_dice": found["dice_patient"]}
    assert figures(prediction, truth, part="validation") == seen


@pytest.mark.proves("G4.3")
def test_several_scans_of_a_patient_are_one_volume() -> None:
    scans = [PredictedScan(volume((4, 4)), volume((4, 4))), PredictedScan(volume((-1, 0)), volume((4, 4)))]
    found = {c["metric"]: c["value"] for c in segmentation_cases(scans, model="mgi", **WHERE)}
    assert found["dice_patient"] == pytest.approx(2 * 16 / 48)


def table(values: dict[str, np.ndarray], sizes: np.ndarray | None = None, seeds: int = 1, folds: int = 3) -> list[dict]:
    """Cases of models: ``dice_patient`` of patients p0, p1, ... and the size of their tumours."""
    rows = []
    for model, figures_of in values.items():
        for number, value in enumerate(figures_of):
            for seed in range(seeds):
                base = {**WHERE, "protocol": "segmentation", "model": model, "fold": number % folds, "seed": seed}
                base["patient_id"] = f"p{number}"
                size = 5000.0 if sizes is None else float(sizes[number])
                rows.append({**base, "metric": "lesion_voxels", "value": size})
                if not np.isnan(value):
                    rows.append({**base, "metric": "dice_patient", "value": float(value) + 0.01 * seed})
    return rows


def rows_of(cases: list[dict], **more: Any) -> dict[tuple[str, str], ScoreRow]:
    return {(row.model, row.metric): row for row in segmentation_rows(case_frame(cases), SETTINGS, **more)}


@pytest.mark.proves("G4.3", "G6.2")
def test_rows_hold_mean_median_size_and_failures_with_their_intervals() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.uniform(0.7, 0.95, 30), random.uniform(0.1, 0.6, 10)])
    sizes = np.where(np.arange(40) < 30, 6000, 900)
    found = rows_of(table({"mgi": values}, sizes))
    mean = found["mgi", "dice_patient"]
    assert mean.value == pytest.approx(values.mean()) and mean.n_patients == 40 and mean.seeds == 1
    assert mean.ci_low is not None and mean.ci_high is not None and mean.ci_low < values.mean() < mean.ci_high
    error = values.std() / np.sqrt(40)
    assert (mean.ci_high - mean.ci_low) / (3.92 * error) == pytest.approx(1, abs=0.15)
    median = found["mgi", "dice_patient_median"]
    assert median.value == pytest.approx(np.median(values)) and "median" in (median.note or "")
    small, large = found["mgi", "dice_patient_small"], found["mgi", "dice_patient_large"]
    assert (small.n_patients, large.n_patients) == (10, 30) and small.value == pytest.approx(values[30:].mean())
    assert small.note == "tumours under 3,000 voxels" and large.note == "tumours of 3,000 voxels or more"
    assert found["mgi", "dice_patient_below_half"].value == (values < 0.5).sum()
    assert {row.protocol for row in found.values()} == {"segmentation"} and mean.train_cohorts == "brains"


@pytest.mark.proves("G4.3")
def test_a_patient_with_nothing_to_find_and_nothing_found_is_left_out_and_counted() -> None:
    values = np.array([0.8, 0.9, np.nan, 0.7, 0.6, 0.85])
    row = rows_of(table({"mgi": values}))["mgi", "dice_patient"]
    assert row.n_patients == 5 and row.value == pytest.approx(np.nanmean(values))
    assert row.note == "patients without lesion in truth and prediction left out; these were 1"
    below = rows_of(table({"mgi": values}))["mgi", "dice_patient_below_half"]
    assert "these were" not in (below.note or ""), "none of these is meant"


@pytest.mark.proves("G4.3", "U7")
def test_patients_whose_distances_are_in_the_rarer_unit_are_left_out_and_counted() -> None:
    cases = []
    for model, shift in {"mgi": 5, "unet": 6}.items():
        for number in range(7):
            scan = PredictedScan(volume((4, shift)), volume((4, 4)), None if number < 2 else (1.0, 1.0, 1.0))
            where = {**WHERE, "patient_id": f"p{number}", "fold": 0}
            cases += segmentation_cases([scan], model=model, **where)
    found = rows_of(cases)
    said = "2 without a known spacing left out"
    for name, metric in (("mgi", "hd95"), ("unet", "hd95_median"), ("mgi", "nsd"), ("mgi - unet", "hd95")):
        row = found[name, metric]
        assert row.n_patients == 5 and said in (row.note or "").split("; ")
    assert found["mgi", "dice_patient"].n_patients == 7


@pytest.mark.proves("G6.2", "G5")
def test_paired_differences_are_of_the_same_patients_with_what_could_have_been_seen() -> None:
    random = np.random.default_rng(1)
    base = random.uniform(0.3, 0.95, 60)
    better = base + 0.03 + random.normal(0, 0.02, 60)
    found = rows_of(table({"mgi": better, "vit_no_genes": base, "mgi_shuffled_genes": base[::-1]}))
    row = found["mgi - vit_no_genes", "dice_patient"]
    assert row.value == pytest.approx((better - base).mean()) and row.n_patients == 60
    assert row.ci_low is not None and row.ci_low > 0 and row.p_value is not None and row.p_value < 0.05
    error = (better - base).std() / np.sqrt(60)
    assert detectable_of(row) == pytest.approx(2.8 * error, rel=0.15)
    assert f"higher in {(better > base).sum()} of 60 patients" in (row.note or "")
    wide = found["mgi - mgi_shuffled_genes", "dice_patient"]
    assert wide.ci_low is not None and row.ci_low is not None and wide.ci_low < 0, "pairs, not groups, are compared"
    assert ("mgi_shuffled_genes - vit_no_genes", "dice_patient") in found


@pytest.mark.proves("G4.3")
def test_a_figure_that_no_resample_changes_has_no_interval() -> None:
    found = rows_of(table({"mgi": np.full(20, 0.8)}))
    for metric in ("dice_patient", "dice_patient_below_half", "dice_patient_median"):
        row = found["mgi", metric]
        assert row.value is not None and row.ci_low is None and FLAT in (row.note or "")


@pytest.mark.proves("G6.2", "G4.3")
def test_a_difference_says_how_many_false_lesions_it_does_not_see() -> None:
    ill = np.linspace(0.6, 0.9, 10)
    values = {"mgi": np.append(ill + 0.01, np.zeros(4)), "vit_no_genes": np.append(ill, np.full(4, np.nan))}
    sizes = np.append(np.full(10, 5000), np.zeros(4))
    found = rows_of(table(values, sizes))
    assert found["mgi", "dice_patient"].n_patients == 14
    row = found["mgi - vit_no_genes", "dice_patient"]
    assert row.n_patients == 10 and f"4 {FALSE_LESIONS}" in (row.note or "")
    clean = rows_of(table({name: one[:10] for name, one in values.items()}, sizes[:10]))
    assert FALSE_LESIONS not in (clean["mgi - vit_no_genes", "dice_patient"].note or "")


@pytest.mark.proves("G6.2", "G4.3")
def test_a_patient_without_lesion_has_no_tumour_of_any_size() -> None:
    ill = np.linspace(0.6, 0.9, 12)
    sizes = np.concatenate([np.full(6, 800), np.full(6, 5000), np.zeros(3)])
    false_lesion, none = np.append(ill, np.zeros(3)), np.append(ill - 0.01, np.full(3, np.nan))
    found = rows_of(table({"mgi": false_lesion, "vit_no_genes": none}, sizes))
    assert found["mgi", "dice_patient"].n_patients == 15 and found["mgi", "dice_patient_below_half"].value == 3
    for metric, mine in (("dice_patient_small", ill[:6]), ("dice_patient_large", ill[6:])):
        row, difference = found["mgi", metric], found["mgi - vit_no_genes", metric]
        assert row.n_patients == 6 and row.value == pytest.approx(mine.mean())
        assert difference.n_patients == 6 and FALSE_LESIONS not in (difference.note or "")
    assert f"3 {FALSE_LESIONS}" in (found["mgi - vit_no_genes", "dice_patient"].note or "")


@pytest.mark.proves("G6.2")
def test_seeds_are_matched_and_a_patient_counts_once() -> None:
    base = np.linspace(0.4, 0.9, 12)
    cases = table({"mgi": base + 0.05}, seeds=3) + table({"vit_no_genes": base}, seeds=1)
    found = rows_of(cases)
    assert found["mgi", "dice_patient"].value == pytest.approx((base + 0.06).mean())
    assert found["mgi", "dice_patient"].seeds == 3 and found["mgi", "dice_patient"].n_patients == 12
    row = found["mgi - vit_no_genes", "dice_patient"]
    assert row.value == pytest.approx(0.05) and row.seeds == 1, "only seed 0 is in both"
    assert row.ci_low is None or row.ci_low == pytest.approx(0.05)


def test_rows_do_not_depend_on_the_order_of_the_cases() -> None:
    random = np.random.default_rng(2)
    cases = table({"mgi": random.uniform(0, 1, 20), "unet": random.uniform(0, 1, 20)})
    forward = segmentation_rows(case_frame(cases), SETTINGS)
    order = [*random.permutation(len(cases) // 2), *(len(cases) // 2 + random.permutation(len(cases) // 2))]
    shuffled = segmentation_rows(case_frame([cases[i] for i in order]), SETTINGS)
    assert forward == shuffled


def test_few_patients_have_no_interval_and_say_so() -> None:
    found = rows_of(table({"mgi": np.array([0.8, 0.7, 0.9]), "unet": np.array([0.7, 0.7, 0.7])}))
    for name in ("mgi", "mgi - unet"):
        row = found[name, "dice_patient"]
        assert row.ci_low is None and "fewer than 5 patients" in (row.note or "")
    empty = found["mgi", "dice_patient_small"]
    assert empty.value is None and empty.n_patients == 0 and "no such patients" in (empty.note or "")


@pytest.mark.proves("G4.3")
def test_distances_are_called_what_they_are() -> None:
    cases = [
        {**case, "patient_id": f"p{number}"}
        for number in range(6)
        for case in segmentation_cases(
            [PredictedScan(volume((4, 4 + number % 3)), volume((4, 4)))], model="mgi", **WHERE
        )
    ]
    found = rows_of(cases)
    assert "in pixels: the spacing is unknown" in (found["mgi", "hd95"].note or "")
    assert "within 2 pixels" in (found["mgi", "nsd"].note or "") and found["mgi", "nsd"].value == 1.0
    assert found["mgi", "hd95"].value == pytest.approx(np.mean([0, 1, 2, 0, 1, 2]))
    external = rows_of([{**case, "protocol": "external"} for case in cases], notes={"mgi": "upstream_transductive"})
    row = external["mgi", "hd95"]
    assert row.protocol == "external" and "upstream_transductive" in (row.note or "")
    assert dice(volume((4, 5)), volume((4, 4))) == pytest.approx(0.75)


def validation(values: dict[str, list[float]], folds: list[int] | None = None) -> list[dict]:
    return [
        {**WHERE, "protocol": "segmentation", "model": model, "fold": (folds or [0, 1, 2])[number % 3],
         "patient_id": f"v{number}", "metric": "validation_dice", "value": value}
        for model, figures_of in values.items()
        for number, value in enumerate(figures_of)
    ]  # fmt: skip


@pytest.mark.proves("G6.2")
def test_the_selected_model_has_the_best_validation_score_and_is_no_control() -> None:
    cases = validation(
        {
            "mgi": [0.8, 0.8, 0.8],
            "mgi_shuffled_genes": [0.9, 0.9, 0.9],
            "mgi_null_genes": [0.95, 0.9, 0.9],
            "vit_no_genes": [0.8, 0.8, 0.8],
            "unet": [0.7, 0.7, 0.9],
        }
    )
    assert select_segmentation(case_frame(cases)) == {"tumour": "vit_no_genes"}, "a tie goes to the simpler"
    cases += validation({"ablation": [0.99, 0.99]})
    assert select_segmentation(case_frame(cases)) == {"tumour": "vit_no_genes"}, "two folds of three prove nothing"
    tested = [{**case, "metric": "dice_patient", "value": 1.0} for case in validation({"unet": [1.0, 1.0, 1.0]})]
    assert select_segmentation(case_frame(cases + tested)) == {"tumour": "vit_no_genes"}
    assert select_segmentation(case_frame(tested)) == {}


HIT, NOTHING = volume((4, 4)), volume((-1, 0))


def seen_in_validation(model: str, fold: int, prediction: np.ndarray, truth: np.ndarray) -> list[dict]:
    """Cases of one validation patient, another in each fold."""
    where = {**WHERE, "fold": fold, "patient_id": f"v{fold}"}
    return segmentation_cases([PredictedScan(prediction, truth)], model=model, part="validation", **where)


@pytest.mark.proves("G6.2")
def test_a_model_that_rightly_drew_nothing_in_a_fold_was_trained_there() -> None:
    near = volume((4, 6))
    ill = seen_in_validation("mgi", 0, HIT, HIT) + seen_in_validation("unet", 0, near, HIT)
    healthy = seen_in_validation("mgi", 1, NOTHING, NOTHING) + seen_in_validation("unet", 1, HIT, NOTHING)
    assert select_segmentation(case_frame(ill + healthy)) == {"tumour": "mgi"}
    both = ill + healthy
    both += seen_in_validation("mgi", 2, HIT, NOTHING) + seen_in_validation("unet", 2, NOTHING, NOTHING)
    assert select_segmentation(case_frame(both)) == {"tumour": "mgi"}, "a false lesion of each in another fold"
    other = seen_in_validation("vit_no_genes", 0, HIT, HIT)
    assert select_segmentation(case_frame(both + other)) == {"tumour": "mgi"}, "it was trained in one fold of three"
    empty = [case for fold in range(2) for case in seen_in_validation("mgi", fold, NOTHING, NOTHING)]
    assert select_segmentation(case_frame(empty)) == {}


@pytest.mark.proves("G4.3")
def test_sizes_of_validation_patients_stay_out_of_the_rows() -> None:
    tested = table({"mgi": np.linspace(0.5, 0.9, 8)})
    seen = [case for fold in range(3) for case in seen_in_validation("mgi", fold, NOTHING, NOTHING)]
    assert rows_of(tested + seen) == rows_of(tested)


def test_pairs_follow_the_models_that_are_there() -> None:
    assert segmentation_pairs(["unet", "vit_no_genes"]) == [("vit_no_genes", "unet")]
    assert segmentation_pairs(["unet", "mgi", "mgi_mlp"]) == [("mgi", "unet"), ("mgi", "mgi_mlp")]
    beside = [pair for pair in segmentation_pairs(["mgi", "mgi_scratch", "mgi_pure_vit"]) if pair[0] != "mgi"]
    assert beside == [("mgi_scratch", "mgi_pure_vit")], "what convolutions are worth where neither starts from ImageNet"


@pytest.mark.proves("G5")
def test_a_split_by_slices_is_compared_with_its_like_on_the_same_slices_alone_and_never_selected() -> None:
    like = on_slices_of("mgi", "mgi_slice_split")
    assert like == "mgi_on_slice_split" and on_slices_of("unet", "leaky") == "unet_on_leaky"
    pairs = segmentation_pairs(["mgi", like, "mgi_slice_split", "unet"])
    assert pairs == [("mgi", "unet"), ("mgi_slice_split", like)]
    cases = validation({"unet": [0.7] * 3, "mgi_slice_split": [0.9] * 3, like: [0.9] * 3})
    assert select_segmentation(case_frame(cases)) == {"tumour": "unet"}


@pytest.mark.proves("G5")
def test_a_tumour_is_as_large_as_in_all_slices_where_some_are_judged() -> None:
    part = PredictedScan(volume((4, 4)), volume((4, 4)), lesion_voxels=4000)
    whole = PredictedScan(volume((4, 4)), volume((4, 4)))
    for scans, size in (([part], 4000), ([part, whole], 4000)):
        found = {c["metric"]: c["value"] for c in segmentation_cases(scans, model="mgi_slice_split", **WHERE)}
        assert found["lesion_voxels"] == size and found["dice_patient"] == 1


@pytest.mark.proves("G4.3")
@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_tumour_in_four_sequences_is_as_large_as_in_the_one_that_shows_most(part: Any) -> None:
    less = volume((4, 4), (-1, 0))
    scans = [PredictedScan(less, less), *[PredictedScan(both := volume((4, 4), (4, 4)), both)] * 3]
    found = {c["metric"]: c["value"] for c in segmentation_cases(scans, model="mgi", part=part, **WHERE)}
    assert found["lesion_voxels" if part == "test" else "validation_lesion_voxels"] == 32
    assert found["dice_patient" if part == "test" else "validation_dice"] == 1
