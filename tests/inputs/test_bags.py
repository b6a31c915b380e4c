"""Bags keep their true length, once each slice, and a patient without slices is not there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medform.inputs.bags import BagSource


@pytest.mark.proves("A5.3", "D18")
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_block_holds_every_slice_of_its_patients_once(lengths: list[int], shuffle: object) -> None:
    patient = np.repeat(np.arange(len(lengths)), lengths)
    feature = np.arange(2 * len(patient), dtype=np.float32).reshape(-1, 2)
    index = np.concatenate([np.arange(length) for length in lengths]).astype(np.int64)
    source = BagSource(feature, patient, index, 2.5 * index.astype(np.float32))
    asked = np.arange(len(lengths))
    shuffle.shuffle(asked)  # pyright: ignore[reportAttributeAccessIssue]
    block = source.block(asked)
    there = [code for code in asked if lengths[code]]
    assert block.patient.tolist() == there and block.offset is not None and block.z is not None
    assert block.offset.tolist() == [0, *np.cumsum([lengths[code] for code in there])]
    for row, code in enumerate(there):
        bag = slice(int(block.offset[row]), int(block.offset[row + 1]))
        assert np.array_equal(block.value["feature"][bag].numpy(), feature[patient == code])
        assert block.z[bag].tolist() == list(range(lengths[code]))


def test_rows_need_not_lie_together() -> None:
    source = BagSource(
        np.arange(4, dtype=np.float32)[:, None], np.array([1, 0, 1, 0]), np.arange(4), np.zeros(4, np.float32)
    )
    block = source.block(np.array([1, 0, 5]))
    assert block.value["feature"][:, 0].tolist() == [0, 2, 1, 3] and block.patient.tolist() == [1, 0]
