"""The clinical table: nothing silently zero, nothing from a test row, everything unusual named."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medform.cohort.cohort_file import ColumnSpec
from medform.errors import InputError
from medform.inputs.clinical import ClinicalInputConfig, TableEncoder

SPECS = {
    "age": ColumnSpec(role="feature", type="number"),
    "sex": ColumnSpec(role="feature", type="category"),
    "grade": ColumnSpec(role="feature", type="ordinal", levels=["G1", "G2", "G3"]),
    "smoker": ColumnSpec(role="feature", type="boolean"),
    "lobes": ColumnSpec(role="feature", type="set", separator=";"),
}
IDS = [f"P{number:02d}" for number in range(12)]
TRAINING = IDS[:8]


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [50.0, 60, 70, 80, 55, 65, 75, np.nan, 52, 62, 72, 82],
            "sex": ["F", "M", "F", "M", "F", "M", "F", None, "M", "F", "F", "M"],
            "grade": ["G1", "G2", "G3", "G1", "G2", "G3", "G1", "G2", None, "G3", "G1", "G2"],
            "smoker": [True, False, True, True, None, False, True, False, True, False, True, True],
            "lobes": ["A;B", "A", "B", "A", "B", "A;B", "C", "B", "A", "A", "B", None],
        },
        index=pd.Index(IDS, name="patient_id"),
    ).astype({"sex": "string", "grade": "string", "smoker": "boolean", "lobes": "string"})


def fitted() -> TableEncoder:
    return TableEncoder.fit(table(), SPECS, TRAINING)


def column(encoder: TableEncoder, frame: pd.DataFrame, name: str) -> np.ndarray:
    return encoder.encode(frame).values[:, encoder.names.index(name)]


@pytest.mark.proves("D8")
def test_numbers_are_filled_scaled_clipped_and_flagged() -> None:
    encoder = fitted()
    age = np.array([50.0, 60, 70, 80, 55, 65, 75, 65])  # the median of the training patients stands in
    expected = (age - age.mean()) / age.std()
    assert np.allclose(column(encoder, table(), "age")[:8], expected, atol=1e-6)
    assert column(encoder, table(), "age missing").tolist() == [0.0] * 7 + [1.0] + [0.0] * 4
    far = table()
    far.loc["P00", "age"] = 1e6
    assert column(encoder, far, "age")[0] == 3.5
    grade = column(encoder, table(), "grade")
    assert np.isclose(grade[1] - grade[0], grade[2] - grade[1]) and grade[0] < grade[1] == grade[4]


@pytest.mark.proves("D8")
def test_categories_are_one_hot_of_unit_variance_together_and_a_missing_one_is_their_mean() -> None:
    encoder = fitted()
    pair = np.stack([column(encoder, table(), f"sex={level}") for level in "FM"], axis=1)
    assert np.allclose(pair[0], [1 / math.sqrt(2), 0]) and np.allclose(pair[1], [0, 1 / math.sqrt(2)])
    assert np.allclose(pair[7], np.array([4 / 7, 3 / 7]) / math.sqrt(2))
    lobes = np.stack([column(encoder, table(), f"lobes={level}") for level in "ABC"], axis=1)
    assert np.allclose(lobes[0] * math.sqrt(3), [1, 1, 0]) and np.allclose(lobes[6] * math.sqrt(3), [0, 0, 1])


@pytest.mark.proves("D8")
@pytest.mark.parametrize("name", list(SPECS))
def test_every_column_reaches_the_encoding_with_like_weight(name: str) -> None:
    encoder, frame = fitted(), table()
    before = encoder.encode(frame).values
    frame[name] = frame[name].to_numpy()[np.roll(np.arange(len(frame)), 1)]
    frame[name] = frame[name].astype(table()[name].dtype)
    moved = np.abs(encoder.encode(frame).values - before).max()
    assert 0.3 < moved < 5


@pytest.mark.proves("R34", "A.tests", "A6.1")
@given(
    st.lists(st.sampled_from(IDS[8:]), min_size=1, unique=True),
    st.sampled_from(list(SPECS)),
    st.sampled_from([1e6, -1e6]),
)
def test_a_poisoned_test_row_changes_nothing_fitted_and_no_other_row(
    poisoned: list[str], name: str, value: float
) -> None:
    clean = fitted()
    frame = table()
    if name in ("age",):
        frame.loc[poisoned, name] = value
    else:
        frame[name] = frame[name].astype("string")
        frame.loc[poisoned, name] = str(value)
        if name == "smoker":
            frame[name] = frame[name].map({"True": 1.0, "False": 0.0, str(value): value}).astype("Float64")
    encoder = TableEncoder.fit(frame, SPECS, TRAINING)
    assert encoder == clean
    others = [row for row, patient in enumerate(IDS) if patient not in poisoned]
    assert np.array_equal(encoder.encode(frame).values[others], clean.encode(table()).values[others])


def test_a_patient_without_any_value_has_no_row() -> None:
    frame = table()
    frame.loc["P09"] = pd.NA
    encoded = fitted().encode(frame)
    assert encoded.patient_ids == tuple(name for name in IDS if name != "P09") and len(encoded.values) == 11
    frame.loc[TRAINING] = pd.NA
    with pytest.raises(InputError, match="no training patient has a value"):
        TableEncoder.fit(frame, SPECS, TRAINING)


def test_nobody_has_a_row_where_no_column_of_the_encoder_is_there() -> None:
    encoded = fitted().encode(pd.DataFrame({"colour": ["red"]}, index=pd.Index(["new"])))
    assert encoded.patient_ids == () and encoded.values.shape == (0, len(fitted().names))


@pytest.mark.proves("U13", "D10")
def test_what_is_not_as_in_training_is_named_and_still_encoded() -> None:
    encoder = fitted()
    row = pd.DataFrame(
        {"lobes": ["A;Z"], "sex": ["X"], "age": [99.0], "grade": ["G9"], "bmi": [30.0]},
        index=pd.Index(["new"]),
    )
    encoded = encoder.encode(row)
    kinds = {(found.column, found.kind) for found in encoded.degradations}
    assert kinds == {
        ("", "column_order"),
        ("age", "out_of_range"),
        ("sex", "unseen_category"),
        ("grade", "unseen_category"),
        ("lobes", "unseen_category"),
        ("smoker", "missing_column"),
    }
    assert np.isfinite(encoded.values).all() and encoded.values.shape == (1, len(encoder.names))
    sex = [encoder.names.index(f"sex={level}") for level in "FM"]
    assert np.allclose(encoded.values[0, sex], np.array([4 / 7, 3 / 7]) / math.sqrt(2)), "unseen is not zero"
    lobes = [encoder.names.index(f"lobes={level}") for level in "ABC"]
    assert np.allclose(encoded.values[0, lobes] * math.sqrt(3), [1, 0, 0])
    as_trained = encoder.encode(table().loc[["P00"]])
    assert as_trained.degradations == ()


def test_columns_are_matched_by_name() -> None:
    encoder = fitted()
    assert np.array_equal(encoder.encode(table()[list(SPECS)[::-1]]).values, encoder.encode(table()).values)


@pytest.mark.proves("D8", "A.input")
def test_text_among_numbers_raises_and_is_never_zero() -> None:
    frame = table()
    frame["age"] = frame["age"].astype("string").fillna("60 kg")
    with pytest.raises(InputError, match=r"(?s)'age' holds text.*'60 kg': not a number"):
        TableEncoder.fit(frame, SPECS, TRAINING)


def test_columns_that_cannot_be_features_are_refused_together() -> None:
    specs = {
        **SPECS,
        "seen": ColumnSpec(role="feature", type="date"),
        "bmi": ColumnSpec(role="feature", type="number"),
    }
    frame = table().assign(seen="2020-01-02")
    with pytest.raises(InputError) as caught:
        TableEncoder.fit(frame, specs, TRAINING)
    assert len(caught.value.problems) == 2


def test_a_constant_column_gives_no_number_but_still_knows_what_it_saw() -> None:
    frame = table()
    frame["sex"] = "F"
    frame["age"] = 60.0
    encoder = TableEncoder.fit(frame, SPECS, TRAINING)
    assert encoder.constant == ("age", "sex") and not any(name.startswith(("age", "sex")) for name in encoder.names)
    frame.loc["P01", "sex"], frame.loc["P01", "age"] = "M", 70.0
    found = {(d.patient_id, d.column, d.kind) for d in encoder.encode(frame.loc[["P01"]]).degradations}
    assert found == {("P01", "sex", "unseen_category"), ("P01", "age", "out_of_range")}


def test_one_patient_and_one_column_can_be_fitted() -> None:
    encoder = TableEncoder.fit(table(), {"age": SPECS["age"]}, ["P00"])
    assert encoder.encode(table()).values.shape == (11, 0)


def test_the_encoder_comes_back_from_json() -> None:
    encoder = TableEncoder.fit(table(), SPECS, TRAINING, ClinicalInputConfig(clip=2, flag_above=0.5))
    again = TableEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder and not any("missing" in name for name in again.names)
    assert np.array_equal(again.encode(table()).values, encoder.encode(table()).values)
