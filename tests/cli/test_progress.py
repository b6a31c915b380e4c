"""Progress: plain lines where there is no terminal, a bar with the time left where there is one."""

from __future__ import annotations

import io

import pytest

from medform.cli import progress
from medform.cli.progress import Reporter, time_left


@pytest.mark.proves("A3.3")
def test_plain_lines_come_at_the_start_the_end_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Reporter(stream) as reporter:
        for done in (0, 1, 2, 3, 4):
            reporter(done, 4, "series")
    assert stream.getvalue().splitlines() == ["series: 0/4", "series: 2/4, about 20 s left", "series: 4/4"]


@pytest.mark.proves("A3.3")
def test_terminal_gets_a_bar_with_the_time_left_and_stays_clean() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Reporter(stream, bar=True) as reporter:
        reporter(1, 4, "series")
        reporter(4, 4, "series")
        reporter(1, 2, "folds")
        raise RuntimeError
    text = stream.getvalue()
    assert "series" in text and "4/4" in text and "folds" in text and text.endswith("\n")


@pytest.mark.parametrize(
    ("elapsed", "done", "total", "words"),
    [
        (0.0, 0, 9, ""),
        (10, 1, 3, ", about 20 s left"),
        (60, 1, 11, ", about 10 min left"),
        (3600, 1, 3, ", about 2.0 h left"),
    ],
)
def test_time_left_follows_the_pace(elapsed: float, done: int, total: int, words: str) -> None:
    assert time_left(elapsed, done, total) == words
