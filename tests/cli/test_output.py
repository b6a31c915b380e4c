"""Results as JSON and as lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medform.cli.output import exit_code, show, simple


@dataclass
class Facts:
    path: Path
    n: int
    tags: tuple[str, ...] = ("a",)


class Own:
    def as_json(self) -> dict[str, Facts]:
        return {"facts": Facts(Path("x"), 1)}


def test_simple_makes_json_of_what_verbs_return() -> None:
    frame = pd.DataFrame({"id": ["p"], "score": [np.nan]})
    tree = simple({"own": Own(), "frame": frame, "array": np.arange(2), "one": np.float32(0.5), "set": {"b", "a"}})
    assert json.loads(json.dumps(tree, allow_nan=False)) == {
        "own": {"facts": {"path": "x", "n": 1, "tags": ["a"]}},
        "frame": [{"id": "p", "score": None}],
        "array": [0, 1],
        "one": 0.5,
        "set": ["a", "b"],
    }


def test_show_prints_one_object_whatever_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [{"name": "Disk", "status": "OK", "value": "9 GB", "fix": None}]
    for result, expected in (
        (Path("a"), {"path": "a"}),
        (checks, {"checks": checks}),
        ([Facts(Path("y"), 2)], None),
    ):
        show(result, as_json=True)
        tree = json.loads(capsys.readouterr().out)
        assert isinstance(tree, dict) and (expected is None or tree == expected)


def test_checks_are_aligned_lines_with_their_fix(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        [
            {"name": "Disk", "status": "OK", "value": "9 GB", "fix": None},
            {"name": "Decoders", "status": "FAIL", "value": "none", "fix": "pip install x"},
        ],
        as_json=False,
    )
    assert capsys.readouterr().out.splitlines() == [
        "OK    Disk      9 GB", "FAIL  Decoders  none", "                fix: pip install x",
    ]  # fmt: skip


@pytest.mark.proves("A1.4")
def test_a_failed_check_exits_with_2() -> None:
    assert exit_code([{"name": "a", "status": "WARN", "value": "", "fix": None}], strict=True) == 0
    assert exit_code([{"name": "a", "status": "FAIL", "value": "", "fix": None}], strict=False) == 2


@pytest.mark.proves("A1.4")
def test_a_frame_shows_the_lines_it_carries_and_counts_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"patient_id": ["p"]})
    assert exit_code(frame, strict=True) == 0
    frame.attrs |= {"lines": ["patient p: 0.5", "left"], "left_out": ["b.nii"], "exclusions": 1}
    show(frame, as_json=False)
    assert capsys.readouterr().out == "patient p: 0.5\nleft\n"
    show(frame, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"rows": [{"patient_id": "p"}], "left_out": ["b.nii"]}
    assert exit_code(frame, strict=True) == 3 and exit_code(frame, strict=False) == 0
