"""Which pairs are positives, negatives or neither."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medform.errors import InputError
from medform.objectives.targets import (
    Ids,
    Negatives,
    Positives,
    across,
    between_views,
    identical_rows,
    kernel,
)


def stack() -> Ids:
    """Two patients of four slices, two views each; patient 0 at 0, 5, 10, 15 mm."""
    patient = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).repeat(2)
    z = torch.arange(4).repeat(4)
    return Ids(patient, torch.arange(8).repeat(2), z, 5.0 * z, z / 3)


@pytest.mark.proves("A4.1")
def test_slices_of_different_scans_of_a_patient_are_not_near() -> None:
    ids = stack()
    apart = replace(ids, series=torch.arange(4).repeat_interleave(2).repeat(2))  # two scans a patient, of two slices
    near = between_views(apart, Positives(same_patient_within=1), Negatives())
    one_scan = between_views(ids, Positives(same_patient_within=1), Negatives())
    assert near.target.sum(1).tolist() == [3] * 16, "the other view, and both of the neighbour in the scan"
    assert (one_scan.target & ~near.target).any() and not (near.target & ~one_scan.target).any()


@pytest.mark.proves("A4.1")
def test_by_default_the_other_view_is_the_positive_and_all_others_are_negatives() -> None:
    pairs = between_views(stack(), Positives(), Negatives())
    assert pairs.target.sum(1).tolist() == [1] * 16
    assert bool(pairs.target[0, 8])
    assert torch.equal(pairs.candidate, ~torch.eye(16, dtype=torch.bool))
    assert not pairs.kept


@pytest.mark.proves("A4.1")
@pytest.mark.parametrize("reach", [1, "5 mm", "7.5mm"])
def test_near_slices_are_positives_or_neither_by_separate_switches(reach: int | str) -> None:
    near = between_views(stack(), Positives(same_patient_within=reach), Negatives())
    assert near.target[0].nonzero().flatten().tolist() == [1, 8, 9]
    assert near.candidate.sum() == 16 * 15
    out = between_views(stack(), Positives(), Negatives(same_patient="neighbours", neighbours=reach))
    assert out.target[0].nonzero().flatten().tolist() == [8]
    assert (~out.candidate[0]).nonzero().flatten().tolist() == [0, 1, 9]


@pytest.mark.proves("A4.1")
def test_the_same_patient_can_be_left_out_of_the_negatives_and_heights_can_be_matched() -> None:
    none = between_views(stack(), Positives(), Negatives(same_patient="none"))
    assert none.candidate[0].nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 12, 13, 14, 15]
    matched = between_views(stack(), Positives(), Negatives(same_patient="none", position="matched"))
    assert matched.candidate[0].nonzero().flatten().tolist() == [4, 8, 12]
    own = between_views(stack(), Positives(), Negatives(position="matched"))
    assert own.candidate[0].nonzero().flatten().tolist() == [4, 8, 12], "height alone tells none of them apart"


@pytest.mark.proves("A4.4")
def test_a_batch_of_one_patient_keeps_its_negatives_and_says_so() -> None:
    ids = stack()
    alone = Ids(torch.zeros_like(ids.patient), ids.item, ids.z)
    pairs = between_views(alone, Positives(), Negatives(same_patient="none"))
    assert pairs.kept
    assert torch.equal(pairs.candidate, ~torch.eye(16, dtype=torch.bool))
    one_slice = Ids(*(torch.zeros(2, dtype=torch.long) for _ in range(3)))
    assert not between_views(one_slice, Positives(), Negatives(same_patient="none")).kept  # nothing to keep


def test_what_a_switch_needs_and_does_not_find_is_an_error() -> None:
    ids = Ids(torch.zeros(2, dtype=torch.long), torch.arange(2))
    with pytest.raises(InputError, match="slice index"):
        between_views(ids, Positives(same_patient_within=1), Negatives())
    with pytest.raises(InputError, match="positions in mm"):
        between_views(ids, Positives(same_patient_within="5 mm"), Negatives())
    with pytest.raises(InputError, match="height"):
        between_views(ids, Positives(), Negatives(position="matched"))
    nowhere = Ids(ids.patient, ids.item, z_mm=torch.full((2,), float("nan")))
    with pytest.raises(InputError, match="positions in mm"):
        between_views(nowhere, Positives(same_patient_within="5 mm"), Negatives())
    unknown = Ids(ids.patient, ids.item, z_mm=torch.tensor([0.0, float("nan")]))
    pairs = between_views(unknown, Positives(same_patient_within="5 mm"), Negatives())
    assert not pairs.target.any()


@pytest.mark.proves("A5.3")
def test_across_modalities_a_patient_without_the_other_has_no_target() -> None:
    image = Ids(torch.tensor([4, 7, 9]), torch.arange(3))
    table = Ids(torch.tensor([9, 4]), torch.arange(2))
    assert across(image, table).target.tolist() == [[0, 1], [0, 0], [1, 0]]


@pytest.mark.proves("A5.3")
def test_identical_table_rows_are_each_others_positives() -> None:
    rows = torch.randn(40, 3)
    rows[7] = rows[3]
    alike = identical_rows(rows)
    assert alike.sum() == 42
    ids = Ids(torch.arange(40), torch.arange(40))
    target = across(ids, ids, alike_b=alike).target
    assert target[3].nonzero().flatten().tolist() == [3, 7]
    assert torch.equal(across(ids, ids, alike_a=alike).target, target.T)


def test_a_kernel_of_table_rows_gives_soft_targets() -> None:
    rows = torch.tensor([[0.0], [1.0], [3.0]])
    soft = kernel(rows, 1.0)
    torch.testing.assert_close(soft[0], torch.tensor([0.0, -0.5, -4.5]).exp())
    ids = Ids(torch.arange(3), torch.arange(3))
    torch.testing.assert_close(across(ids, ids, alike_b=soft).target, soft)
