"""The verb `phantom`."""

from __future__ import annotations

import pytest

from medform.errors import InputError
from medform.pipeline.phantom import phantom


@pytest.mark.proves("A2.1", "A2.2")
def test_phantom_writes_a_hospital_and_returns_its_truth(tmp_path):
    truth = phantom(tmp_path / "h", patients=3, seed=2, options={"size": "32", "signal": "off"})
    assert {path.name for path in (tmp_path / "h").iterdir()} == {
        "images", "masks", "clinical.csv", "clinical.xlsx", "genes.csv", "cohort.yaml", "truth.json",
    }  # fmt: skip
    assert len(truth.usable) == 3 and truth.options["signal"] == "off" and truth.seed == 2


@pytest.mark.proves("A.input")
def test_all_wrong_options_are_named_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        phantom(tmp_path / "h", options={"shortcut": "2", "imagesignal": "1"})
    assert "shortcut" in str(caught.value) and "Did you mean 'image_signal'" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
