"""The same function over many items, in this process or in a pool of them: same results in the same order.

A decoder that crashes on a hostile file takes its process with it. The items that were under way are then
tried again, each in a process of its own, so that one file costs one result.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol, TypeVar

__all__ = ["Crashed", "Progress", "run_all", "silent"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Progress(Protocol):
    """Called after each finished item: so many of ``total`` done, and what they are."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Take note that ``done`` of ``total`` items are finished; ``what`` names them."""


class Crashed(Exception):
    """The process that worked on an item died."""


def silent(done: int, total: int, what: str) -> None:
    """A `Progress` that says nothing."""


def run_all(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int = 1,
    progress: Progress = silent,
    what: str = "items",
    crashed: Callable[[Item], Result] | None = None,
) -> list[Result]:
    """``[function(item) for item in items]``, over ``workers`` processes where that is more than one.

    ``function`` and items are pickled to the processes. ``crashed`` gives the result of an item whose
    process died (by default `Crashed` is raised). An exception of ``function`` stops everything and is
    raised here.
    """
    if workers <= 1 or len(items) <= 1:
        results = []
        for done, item in enumerate(items, start=1):
            results.append(function(item))
            progress(done, len(items), what)
        return results
    found: dict[int, Result] = {}
    for at, result in _pooled(function, items, min(workers, len(items)), crashed):
        found[at] = result
        progress(len(found), len(items), what)
    return [found[at] for at in range(len(items))]


def _executor(workers: int) -> ProcessPoolExecutor:
    """Fresh processes on every platform: a fork of a process with threads may hang."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@contextmanager
def _main_hidden() -> Iterator[None]:
    """While a process starts, hide ``__main__`` from it: it needs only this package.

    Otherwise it would run the user's script again, which fails without ``if __name__ == "__main__"`` and
    where the program came from a pipe.
    """
    own = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own


def _submit(pool: ProcessPoolExecutor, function: Callable[[Item], Result], item: Item) -> Future[Result]:
    with _main_hidden():  # the pool starts its processes inside of submit
        return pool.submit(function, item)


def _pooled(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    crashed: Callable[[Item], Result] | None,
) -> Iterator[tuple[int, Result]]:
    """(index, result) as they come; after a crash the suspects run alone, the others in a new pool."""
    waiting = list(range(len(items)))[::-1]
    while waiting:
        running: dict[Future[Result], int] = {}
        at = waiting[-1]
        with _executor(workers) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * workers:
                        at = waiting.pop()
                        running[_submit(pool, function, items[at])] = at
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        at = running.pop(future)
                        yield at, future.result()
            except BrokenProcessPool:
                suspects = sorted({*running.values(), at})
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            else:
                return
        for suspect in suspects:
            yield suspect, _alone(function, items[suspect], crashed)


def _alone(function: Callable[[Item], Result], item: Item, crashed: Callable[[Item], Result] | None) -> Result:
    """One item in a process of its own."""
    with _executor(1) as pool:
        try:
            return _submit(pool, function, item).result()
        except BrokenProcessPool:
            if crashed is None:
                raise Crashed(str(item)) from None
            return crashed(item)
