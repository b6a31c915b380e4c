"""Survival rows: concordance within folds, intervals that hold the truth, the bar of the table."""

from __future__ import annotations

import numpy as np
import pytest

from medform.evaluation.predictions import case_frame
from medform.evaluation.settings import EvaluationSettings
from medform.evaluation.survival import survival_cases, survival_rows
from medform.metrics.concordance import harrell_c
from medform.runs.scores import FLAT, ScoreRow, detectable_of

SETTINGS = EvaluationSettings(bootstrap=500)


def hospital(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    risk = random.normal(size=n)
    death, leaving = random.exponential(np.exp(-1.5 * risk)), random.exponential(2.0, n)
    return np.minimum(death, leaving), (death <= leaving).astype(float), risk


def cases_of(risks: dict[str, np.ndarray], seeds: int = 1, n: int = 60) -> list[dict]:
    time, event, _ = hospital(n)
    fold = np.arange(n) % 3
    found = []
    for model, risk in risks.items():
        for seed in range(seeds):
            for one in range(3):
                rows = np.flatnonzero(fold == one)
                ids = [f"p{row}" for row in rows]
                # every fold's risks have their own scale
                shown = risk[rows] * (one + 1) + 10 * one
                found += survival_cases(ids, time[rows], event[rows], shown, cohort="c", task="death", model=model,
                                        fold=one, seed=seed)  # fmt: skip
    return found


def rows_of(cases: list[dict]) -> dict[tuple[str, str], ScoreRow]:
    return {(row.model, row.metric): row for row in survival_rows(case_frame(cases), SETTINGS)}


@pytest.mark.proves("G6.3")
def test_only_patients_of_one_fold_are_compared() -> None:
    time, event, risk = hospital()
    fold = np.arange(60) % 3
    row = rows_of(cases_of({"joint_cox": risk}))["joint_cox", "c_index"]
    assert row.value == pytest.approx(harrell_c(time, event, risk, fold))
    assert row.ci_low is not None and row.ci_high is not None and row.value is not None
    assert 0.5 < row.ci_low < row.value < row.ci_high
    assert row.n_patients == 60 and f"{int(event.sum())} events" in (row.note or "") and row.protocol == "survival"


@pytest.mark.proves("G6.3")
def test_both_concordances_stand_beside_chance_and_the_table() -> None:
    _, _, risk = hospital()
    noise = np.random.default_rng(5).normal(size=60)
    found = rows_of(cases_of({"table_cox": risk + noise, "joint_cox": risk, "image_cox": noise}))
    for metric in ("c_index", "c_index_uno"):
        assert found["chance", metric].value == 0.5
        better, worse = found["joint_cox - table_cox", metric], found["image_cox - table_cox", metric]
        assert better.value is not None and better.value > 0 and worse.value is not None and worse.value < 0
        assert worse.ci_high is not None and worse.ci_high < 0 and worse.p_value is not None and worse.p_value < 0.05
        assert (detectable_of(better) or 0) > 0
        single = [found[name, metric].value for name in ("joint_cox", "table_cox")]
        assert better.value == pytest.approx((single[0] or 0) - (single[1] or 0))


def test_seeds_are_averaged_and_few_events_have_no_interval() -> None:
    _, _, risk = hospital()
    found = rows_of(cases_of({"joint_cox": risk}, seeds=2))["joint_cox", "c_index"]
    assert found.seeds == 2 and found.value == rows_of(cases_of({"joint_cox": risk}))["joint_cox", "c_index"].value
    where = {"cohort": "c", "task": "d", "model": "m", "fold": 0, "seed": 0}
    few = survival_cases(["a", "b", "c"], [1, 2, 3], [1, 0, 1], [3, 2, 1], **where)  # pyright: ignore[reportArgumentType]
    row = rows_of(few)["m", "c_index"]
    assert row.value == 1.0 and row.ci_low is None and "fewer than 5 events" in (row.note or "")
    nobody = survival_cases(["a", "b"], [1, 2], [0, 0], [3, 2], **where)  # pyright: ignore[reportArgumentType]
    row = rows_of(nobody)["m", "c_index"]
    assert row.value is None and "undefined" in (row.note or "")


def test_a_perfect_order_has_no_interval_for_no_resample_differs() -> None:
    time, _, _ = hospital()
    found = rows_of(cases_of({"joint_cox": -time}))
    for metric in ("c_index", "c_index_uno"):
        row = found["joint_cox", metric]
        assert row.value == 1 and row.ci_low is None and row.ci_high is None and FLAT in (row.note or "")


def test_patients_without_an_outcome_are_left_out_and_a_risk_is_a_number() -> None:
    where = {"cohort": "c", "task": "d", "model": "m", "fold": 0, "seed": 0}
    found = survival_cases(["a", "b"], [1, np.nan], [1, 0], [0.5, 0.1], **where)  # pyright: ignore[reportArgumentType]
    assert {case["patient_id"] for case in found} == {"a"}
    with pytest.raises(ValueError, match="risk of a patient"):
        survival_cases(["a"], [1], [1], [np.inf], **where)  # pyright: ignore[reportArgumentType]
