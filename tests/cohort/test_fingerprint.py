"""The difference hash: equal for copies, far for others, and found without comparing every pair."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from medform.cohort.fingerprint import BITS, FEWEST_BITS, NEAR_BITS, fingerprint, near_pairs


def _distance(left: str, right: str) -> int:
    return bin(int(left, 16) ^ int(right, 16)).count("1")


@pytest.mark.proves("A3.4", "R33")
def test_a_rescaled_noisy_copy_is_near_and_another_picture_is_not(random: np.random.Generator) -> None:
    image = random.normal(0, 100, (16, 17)).repeat(8, 0).repeat(8, 1)
    copy = 0.3 * image[::2, ::2] + 40 + random.normal(0, 1, (64, 68))
    assert _distance(fingerprint(image), fingerprint(copy)) <= NEAR_BITS
    assert _distance(fingerprint(image), fingerprint(image[:, ::-1])) > 50
    assert fingerprint(np.full((5, 7), 3)) == "0" * (BITS // 4)
    assert len(fingerprint(random.normal(size=(3, 2)))) == BITS // 4


@pytest.mark.proves("A3.4")
def test_near_pairs_equal_a_comparison_of_all_pairs(random: np.random.Generator) -> None:
    bits = random.random((40, BITS)) < 0.3
    for number in range(20, 40):  # copies with 0 to 5 flipped bits
        bits[number] = bits[number - 20]
        bits[number, random.choice(BITS, number % 6, replace=False)] ^= True
    bits[7] = False  # two empty slices are never near
    bits[27] = False
    prints = [np.packbits(row).tobytes().hex() for row in bits]
    slow = [
        (i, j)
        for i, j in combinations(range(40), 2)
        if bits[[i, j]].sum(axis=1).min() >= FEWEST_BITS and (bits[i] != bits[j]).sum() <= NEAR_BITS
    ]
    assert list(near_pairs(prints)) == slow and len(slow) >= 10
    assert list(near_pairs([])) == []
