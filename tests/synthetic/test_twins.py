"""Two spots that look alike, one of them the lesion: the genes say which, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from medform.synthetic.anatomy import hounsfield
from medform.synthetic.genes import GENES, draw_expression, planted_module
from medform.synthetic.hospital import PhantomPatient, make_stacks, write_hospital
from medform.synthetic.options import HospitalOptions
from medform.synthetic.planting import plant
from medform.synthetic.scans import plan_scans, render
from medform.synthetic.truth import Truth

TWINS = HospitalOptions(defects=False, size=64, twin=True, lesion_slices=3)  # an odd number: one slice holds the centre


def spots(patient: PhantomPatient) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the lesion and of its twin."""
    scan = plan_scans(patient.planted, 4, TWINS)[0]
    assert scan.lesion is not None and scan.twin is not None
    swapped = type(scan)(**{**vars(scan), "lesion": scan.twin, "twin": scan.lesion})
    return render(scan, 4)[1] > 0, render(swapped, 4)[1] > 0


@pytest.mark.proves("G6.4")
def test_the_twin_is_the_lesion_elsewhere_in_the_slice() -> None:
    """Of equal shape in the same slices, equally bright, apart from each other; one in front, one at the back."""
    for patient in make_stacks(24, 4, TWINS):
        lesion, twin = spots(patient)
        assert (lesion == (patient.mask > 0)).all() and not (lesion & twin).any()
        assert (lesion.sum(axis=(1, 2)) == twin.sum(axis=(1, 2))).all()
        front, back = (lesion, twin) if patient.planted.lesion_in_front else (twin, lesion)
        assert np.nonzero(front)[1].max() < np.nonzero(back)[1].min()  # rows run to the back
        scan = plan_scans(patient.planted, 4, TWINS)[0]
        clean = hounsfield(scan.anatomy, scan.spots, scan.grid)
        for spot in scan.spots:
            z, y, x = (
                int(np.abs(axis.ravel() - at).argmin())
                for axis, at in zip(scan.grid.axes(), spot.centre[::-1], strict=True)
            )
            assert clean[z, y, x] == pytest.approx(spot.hu) == pytest.approx(scan.spots[0].hu)


@pytest.mark.proves("G6.4")
def test_which_spot_it_is_changes_no_pixel() -> None:
    for patient in make_stacks(4, 4, TWINS):
        planted = patient.planted
        other = type(planted)(**{**vars(planted), "lesion_in_front": not planted.lesion_in_front})
        stack, mask = render(plan_scans(other, 4, TWINS)[0], 4)
        np.testing.assert_array_equal(stack, patient.stack)
        assert not (mask & patient.mask).any()


def tie(values: np.ndarray, hidden: np.ndarray) -> float:
    return float(np.corrcoef(values, hidden)[0, 1])


@pytest.mark.proves("G6.4")
def test_the_module_of_genes_follows_the_choice_as_strongly_as_asked_and_nothing_else_does() -> None:
    options = HospitalOptions(defects=False, twin=True, gene_signal=0.6)
    people = plant(2000, 4, options)
    front = np.array([1.0 if one.lesion_in_front else -1.0 for one in people])
    assert front.sum() == 0
    genes, module = draw_expression(people, 4, options), np.isin(GENES, planted_module(4))
    found = np.array([tie(column, front) for column in genes.T])
    assert np.abs(found[module] - 0.6).max() < 0.06 and np.abs(found[~module]).max() < 0.09
    severity = np.array([one.severity for one in people])
    assert abs(tie(genes[:, module].mean(axis=1), severity)) < 0.07
    rest = {
        "size": [one.lesion_mm3 for one in people],
        "marker": [one.marker for one in people],
        "label": [one.malignant for one in people],
        "scanner": [one.scanner == "beta" for one in people],
        "months": [one.survival_months for one in people],
    }
    assert all(abs(tie(np.array(values, float), front)) < 0.07 for values in rest.values())


@pytest.mark.proves("G6.4")
def test_off_unties_the_genes_and_leaves_the_spots() -> None:
    options = HospitalOptions(defects=False, twin=True, signal="off")
    people = plant(2000, 4, options)
    front = np.array([1.0 if one.lesion_in_front else -1.0 for one in people])
    module = np.isin(GENES, planted_module(4))
    assert abs(tie(draw_expression(people, 4, options)[:, module].mean(axis=1), front)) < 0.07


@pytest.mark.proves("A2.1", "G6.4")
def test_the_truth_says_where_both_spots_lie_and_a_hospital_without_twins_is_as_it_was(tmp_path) -> None:
    options = {"defects": False, "size": 48}
    with_twins = write_hospital(tmp_path / "a", patients=6, seed=4, options=HospitalOptions(**options, twin=True))
    assert Truth.read(tmp_path / "a" / "truth.json") == with_twins
    for one in with_twins.patients:
        assert one.lesion_centre_lps_mm is not None and one.twin_centre_lps_mm is not None
        assert one.lesion_centre_lps_mm[2] == one.twin_centre_lps_mm[2]
        assert (one.lesion_centre_lps_mm[1] < -20) != (one.twin_centre_lps_mm[1] < -20)
    assert {one.lesion_centre_lps_mm[1] < 0 for one in with_twins.patients if one.lesion_centre_lps_mm} == {True, False}
    alone = write_hospital(tmp_path / "b", patients=6, seed=4, options=HospitalOptions(**options))
    assert all(one.twin_centre_lps_mm is None for one in alone.patients)
    table = "clinical.csv"  # twins change scans, masks and genes, and no other fact of a patient
    assert (tmp_path / "a" / table).read_bytes() == (tmp_path / "b" / table).read_bytes()


def test_a_follow_up_shows_the_twin_alone() -> None:
    """The lesion was taken out, what only looked like it stayed."""
    options = HospitalOptions(defects=False, twin=True, follow_ups=1)
    for one in plant(3, 4, options):
        first, *others = plan_scans(one, 4, options)
        later = next(scan for scan in others if scan.kind == "follow_up")
        assert first.spots == (first.lesion, first.twin) and later.spots == (first.twin,)
