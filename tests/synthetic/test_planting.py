"""What is planted can be found, as strongly as asked; what is switched off cannot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medform.synthetic.genes import GENES, draw_expression, planted_module
from medform.synthetic.hospital import PhantomPatient, make_stacks
from medform.synthetic.options import HospitalOptions
from medform.synthetic.planting import plant

CLEAN = HospitalOptions(defects=False, size=32)


def image_auroc(patients: list[PhantomPatient]) -> float:
    """Cross-validated AUROC of the label from eleven plain statistics of the HU values."""
    statistics = [
        [
            *(one.stack.mean(), one.stack.std(), (one.stack > 100).mean(), len(one.stack)),
            *np.quantile(one.stack, [0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99]),
        ]
        for one in patients
    ]
    label = [one.malignant for one in patients]
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    score = cross_val_predict(model, np.array(statistics), label, cv=folds, method="decision_function")
    return float(roc_auc_score(label, score))


@pytest.mark.proves("A2.2")
def test_the_image_tells_the_label_and_not_when_off():
    assert 0.75 < image_auroc(make_stacks(80, 0)) < 0.93
    off = image_auroc(make_stacks(200, 0, HospitalOptions(signal="off", size=32)))
    assert 0.4 < off < 0.6


@pytest.mark.proves("A2.2")
def test_a_shortcut_alone_gives_the_label_away_through_the_scanner():
    options = HospitalOptions(signal="off", shortcut=0.9, size=32)
    assert image_auroc(make_stacks(100, 1, options)) > 0.8
    for shortcut, low, high in ((0.0, -0.15, 0.15), (0.8, 0.7, 0.9), (1.0, 1.0, 1.0)):
        people = plant(400, 2, HospitalOptions(defects=False, shortcut=shortcut))
        tie = np.corrcoef([one.malignant for one in people], [one.scanner == "beta" for one in people])[0, 1]
        assert low - 1e-9 <= tie <= high + 1e-9


def correlations(options: HospitalOptions, patients: int = 2000) -> dict[str, float]:
    people = plant(patients, 1, options)
    size = np.log([one.lesion_mm3 for one in people])
    module = np.isin(GENES, planted_module(1))
    genes = draw_expression(people, 1, options)
    hazard = [-one.survival_months for one in people]
    return {
        "marker": float(spearmanr(size, [one.marker for one in people])[0]),
        "module": float(spearmanr(size, genes[:, module].mean(axis=1))[0]),
        "other genes": float(spearmanr(size, genes[:, ~module].mean(axis=1))[0]),
        "label": float(spearmanr(size, [one.malignant for one in people])[0]),
        "stage": float(spearmanr(size, [["I", "II", "III", "IV"].index(one.stage) for one in people])[0]),
        "survival": float(spearmanr(size, hazard)[0]),
        "age": float(spearmanr(size, [one.age_years for one in people])[0]),
    }


@pytest.mark.proves("A2.2")
def test_lesion_size_goes_with_marker_genes_label_and_survival():
    found = correlations(HospitalOptions(defects=False))
    assert found["marker"] == pytest.approx(0.95 * 0.75, abs=0.05)
    assert found["module"] > 0.8 and found["label"] > 0.6 and found["stage"] > 0.6 and found["survival"] > 0.3
    assert abs(found["age"]) < 0.06 and abs(found["other genes"]) < 0.06


@pytest.mark.proves("A2.2")
def test_off_unties_everything_and_each_strength_its_own():
    off = correlations(HospitalOptions(defects=False, signal="off"))
    assert all(abs(value) < 0.07 for value in off.values())
    no_genes = correlations(HospitalOptions(defects=False, gene_signal=0))
    assert abs(no_genes["module"]) < 0.07 and no_genes["marker"] > 0.6


@pytest.mark.proves("A2.2")
@pytest.mark.parametrize("slices", [1, 2, 5, 8])
def test_as_many_slices_carry_the_lesion_as_asked(slices):
    options = HospitalOptions(defects=False, size=32, lesion_slices=slices)
    for one in make_stacks(12, 3, options):
        assert one.mask.any(axis=(1, 2)).sum() == slices


@pytest.mark.proves("A2.2")
def test_mask_volume_follows_the_planted_volume():
    people = make_stacks(40, 0)
    in_mask = [one.mask.sum() * np.prod(one.spacing_mm) for one in people]
    planted = [one.planted.lesion_mm3 for one in people]
    assert np.corrcoef(in_mask, planted)[0, 1] > 0.98
    assert np.median(np.array(in_mask) / planted) == pytest.approx(1.0, abs=0.1)
    assert min(in_mask) > 0


@pytest.mark.proves("A2.2")
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_missing_share_is_as_asked(missing):
    people = make_stacks(200, 0, CLEAN.model_copy(update={"missing": missing, "sentinel": 0.0}))
    lost = [one.row[column] in (None, "NA", "n/a") for one in people for column in ("age (years)", "sex", "marker")]
    assert np.mean(lost) == pytest.approx(missing, abs=0.06)


@settings(max_examples=40, deadline=None)
@given(
    patients=st.integers(2, 60),
    seed=st.integers(0, 10_000),
    prevalence=st.floats(0.05, 0.95),
    defects=st.booleans(),
)
def test_a_planted_cohort_is_whole(patients, seed, prevalence, defects):
    people = plant(patients, seed, HospitalOptions(prevalence=prevalence, defects=defects))
    usable = [one for one in people if one.flaw == "none"]
    assert len(usable) == patients and len(people) == patients + 3 * defects
    assert len({one.patient_id for one in people}) == len(people)
    positives = sum(one.malignant for one in usable)
    assert positives == min(max(round(prevalence * patients), 1), patients - 1)
