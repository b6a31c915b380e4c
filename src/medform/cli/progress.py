"""Progress on stderr: a bar with the time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Reporter", "time_left"]

EVERY_SECONDS = 15.0  # between two plain lines of one piece of work


class Reporter:
    """``reporter(done, total, label)`` from anywhere in a verb; a context manager that leaves the terminal clean.

    One piece of work has one label; its first call starts it, the call with ``done == total`` ends it.
    """

    def __init__(self, stream: TextIO | None = None, bar: bool | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar = self._stream.isatty() if bar is None else bar
        self._rich: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def __call__(self, done: int, total: int, label: str = "working") -> None:
        """``done`` of ``total`` items of the work named ``label`` are finished."""
        if self._bar:
            self._show_bar(done, total, label)
        else:
            self._show_line(done, total, label)

    def _show_bar(self, done: int, total: int, label: str) -> None:
        if self._rich is None:
            self._rich = _bar(self._stream)
            self._rich.start()
        if label not in self._tasks:
            self._tasks[label] = self._rich.add_task(label, total=total)
        self._rich.update(self._tasks[label], completed=done, total=total)

    def _show_line(self, done: int, total: int, label: str) -> None:
        now = time.monotonic()
        began = self._began.setdefault(label, now)
        last = self._said.get(label)
        if done < total and last is not None and now - last < EVERY_SECONDS:
            return
        self._said[label] = now
        left = "" if done >= total else time_left(now - began, done, total)
        print(f"{label}: {done}/{total}{left}", file=self._stream, flush=True)
        if done >= total:
            self._began.pop(label, None)
            self._said.pop(label, None)


def time_left(elapsed: float, done: int, total: int) -> str:
    """The text ", about 3 min left", from the pace so far; nothing before the first item is done."""
    if done < 1 or elapsed <= 0:
        return ""
    seconds = elapsed / done * (total - done)
    if seconds < 90:
        return f", about {seconds:.0f} s left"
    return f", about {seconds / 60:.0f} min left" if seconds < 5400 else f", about {seconds / 3600:.1f} h left"


def _bar(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(file=stream))
