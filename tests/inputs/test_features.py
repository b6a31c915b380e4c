"""Slice features: smoothing by hand, components against scikit-learn, fitted on training slices alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from medform.config import parse
from medform.errors import InputError
from medform.inputs.features import (
    FeatureInputConfig,
    FeatureMap,
    ImageOnly,
    Joined,
    mean_bags,
    smooth_neighbours,
)
from medform.runs.arrays import read_arrays, write_arrays

LENGTHS = (5, 1, 2, 9, 4)
SERIES = np.repeat(np.arange(5), LENGTHS)
TRAINING = SERIES < 4


def raw_vectors() -> np.ndarray:
    random = np.random.default_rng(1)
    scale = random.uniform(0.1, 10, 7)
    return (random.normal(size=(len(SERIES), 7)) @ random.normal(size=(7, 7)) * scale + 5).astype(np.float32)


def config(**settings: object) -> FeatureInputConfig:
    return FeatureInputConfig.model_validate({"of": "pretrain", "pca": 4, **settings})


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_smoothing_is_the_weighted_mean_of_neighbours_within_a_series(lengths: list[int]) -> None:
    series = np.repeat(np.arange(len(lengths)), lengths)
    raw = np.random.default_rng(0).normal(size=(len(series), 3)).astype(np.float32)
    kept = raw.copy()
    expected = []
    for number in range(len(lengths)):
        own = raw[series == number].astype(float)
        for place in range(len(own)):
            near = [(own[at], 2 if at == place else 1) for at in range(place - 1, place + 2) if 0 <= at < len(own)]
            expected.append(sum(v * w for v, w in near) / sum(w for _, w in near))
    assert np.allclose(smooth_neighbours(raw, series), expected, atol=1e-6)
    assert np.array_equal(raw, kept)


def test_the_map_is_scaler_clip_and_components() -> None:
    raw = raw_vectors()
    raw[3] *= 1000  # an outlier among the training slices
    fitted = FeatureMap.fit(raw, SERIES, TRAINING, config(smooth="none"))
    standard = StandardScaler().fit(raw[TRAINING].astype(float)).transform(raw.astype(float)).clip(-6, 6)
    oracle = PCA(4).fit(standard[TRAINING])
    mine = fitted.apply(raw, SERIES)
    theirs = standard @ oracle.components_.T
    assert mine.shape == (len(raw), 4) and mine.dtype == np.float32
    assert np.allclose(abs(mine), abs(theirs), atol=1e-4)
    everything = FeatureMap.fit(raw, SERIES, TRAINING, config(smooth="none", pca=None)).apply(raw, SERIES)
    assert np.allclose(everything, standard, atol=1e-4)


@pytest.mark.proves("R34", "A.tests", "A6.1")
@given(st.lists(st.integers(0, LENGTHS[-1] - 1), min_size=1, unique=True))
def test_poisoned_test_slices_change_nothing_fitted_and_no_other_patient(places: list[int]) -> None:
    raw = raw_vectors()
    clean = FeatureMap.fit(raw, SERIES, TRAINING, config())
    poisoned = raw.copy()
    poisoned[np.flatnonzero(~TRAINING)[places]] += 1e6
    fitted = FeatureMap.fit(poisoned, SERIES, TRAINING, config())
    for name, array in clean.arrays().items():
        assert np.array_equal(fitted.arrays()[name], array)
    before, after = clean.apply(raw, SERIES), fitted.apply(poisoned, SERIES)
    assert np.array_equal(before[TRAINING], after[TRAINING])


def test_mean_bags_are_means_in_the_order_asked_for() -> None:
    raw = raw_vectors()
    bags = mean_bags(raw, SERIES, np.array([3, 0]))
    assert np.allclose(bags, [raw[SERIES == 3].mean(0), raw[SERIES == 0].mean(0)], atol=1e-5)
    with pytest.raises(ValueError, match="number 9 has no slice"):
        mean_bags(raw, SERIES, np.array([9]))


def test_image_only_is_half_whitened() -> None:
    bags = np.random.default_rng(2).normal(size=(40, 6)) @ np.diag([9, 4, 3, 2, 1, 0.5])
    half = ImageOnly.fit(bags, 4).apply(bags)
    plain = ImageOnly.fit(bags, 4, power=0).apply(bags)
    oracle = PCA(4).fit_transform(bags)
    assert np.allclose(abs(plain), abs(oracle), atol=1e-8)
    assert np.allclose(half.std(0), np.sqrt(oracle.std(0))) and np.allclose(half.mean(0), 0, atol=1e-9)
    assert ImageOnly.fit(bags[:3], 32).apply(bags).shape == (40, 2), "three patients span two directions"


def test_joined_parts_weigh_the_same_on_training_patients() -> None:
    random = np.random.default_rng(3)
    parts = [random.normal(3, 5, (30, 8)), random.normal(-1, 0.01, (30, 2))]
    joined = Joined.fit([part[:20] for part in parts])
    whole = joined.apply(parts)
    assert whole.shape == (30, 10)
    for part in (whole[:20, :8], whole[:20, 8:]):
        assert np.allclose(part.mean(0), 0, atol=1e-5) and np.isclose(np.square(part).sum(1).mean(), 1, atol=1e-5)
    assert np.allclose(joined.apply([part[25:] for part in parts]), whole[25:])


@pytest.mark.proves("A5.3")
@pytest.mark.parametrize("patients", [1, 2, 3])
def test_one_two_or_three_training_patients_are_enough(patients: int) -> None:
    raw, training = raw_vectors(), patients > SERIES
    features = FeatureMap.fit(raw, SERIES, training, config(pca=128)).apply(raw, SERIES)
    bags = mean_bags(features, SERIES, np.arange(5))
    image_only = ImageOnly.fit(bags[:patients]).apply(bags)
    joined = Joined.fit([image_only[:patients]]).apply([image_only])
    assert joined.shape == (5, max(patients - 1, 1)) and np.isfinite(joined).all()
    with pytest.raises(ValueError, match="no training slice"):
        FeatureMap.fit(raw, SERIES, SERIES > 9, config())


def test_everything_fitted_comes_back_from_disk(tmp_path: Path) -> None:
    raw = raw_vectors()
    features = FeatureMap.fit(raw, SERIES, TRAINING, config())
    bags = mean_bags(features.apply(raw, SERIES), SERIES, np.arange(5))
    image_only = ImageOnly.fit(bags)
    joined = Joined.fit([image_only.apply(bags), bags])
    for number, (kind, fitted, given_) in enumerate(
        [
            (FeatureMap, features, (raw, SERIES)),
            (ImageOnly, image_only, (bags,)),
            (Joined, joined, ([bags[:, :4], bags],)),
        ]
    ):
        write_arrays(tmp_path / str(number), fitted.arrays())
        again = kind.from_arrays(read_arrays(tmp_path / str(number))[0])
        assert np.array_equal(again.apply(*given_), fitted.apply(*given_))


@pytest.mark.proves("A.input")
def test_layers_are_stages_or_the_head() -> None:
    read = parse(FeatureInputConfig, {"of": "pretrain", "layers": ["2", "head"], "pca": None})
    assert read.layers == [2, "head"] and read.pca is None
    with pytest.raises(InputError, match="layers"):
        parse(FeatureInputConfig, {"of": "pretrain", "layers": []})
