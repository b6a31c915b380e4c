"""The log of training: whole lines, cut back on resume, one file for several stages."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from medform.runs.log import StageLog, read_log

FIRST = {"fold": 0, "variant": "main", "seed": 0, "stage": "pretrain"}


def test_lines_carry_their_stage_and_are_there_at_once(tmp_path: Path) -> None:
    log = StageLog(tmp_path / "metrics.jsonl", FIRST)
    log.append(1, {"loss": 2.5, "effective_rank": math.nan})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {**FIRST, "step": 1, "loss": 2.5, "effective_rank": None}
    assert log.read() == read_log(tmp_path / "metrics.jsonl", fold=0) == [json.loads(line)]
    assert read_log(tmp_path / "metrics.jsonl", fold=1) == read_log(tmp_path / "nothing") == []


@pytest.mark.proves("U7")
def test_cutting_drops_only_what_the_resumed_stage_writes_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    other, log = StageLog(path, {**FIRST, "stage": "align"}), StageLog(path, FIRST)
    other.append(30, {"loss": 1.0})
    for step in (10, 20, 30):
        log.append(step, {"loss": 1.0 / step})
    with path.open("a") as file:
        file.write('{"fold": 0, "torn')
    log.cut_after(20)
    assert [row["step"] for row in log.read()] == [10, 20]
    assert [row["step"] for row in other.read()] == [30]
    assert path.read_bytes().endswith(b"}\n")
    before = path.read_bytes()
    log.cut_after(20)
    assert path.read_bytes() == before


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    assert read_log(path) == [{"step": 1}]
