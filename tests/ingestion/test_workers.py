"""The pool gives what one process gives, and survives an item that kills its process."""

from __future__ import annotations

import os

import pytest

from medform.ingestion.workers import Crashed, run_all


def _square(number: int) -> int:
    return number * number


def _fragile(number: int) -> int:
    if number == 3:
        os._exit(9)
    return number


def _minus_one(number: int) -> int:
    return -1


def _raise(number: int) -> int:
    raise ValueError(str(number))


@pytest.mark.proves("A3.3")
def test_results_keep_their_order_and_progress_reaches_the_end() -> None:
    said: list[tuple[int, int, str]] = []
    found = run_all(
        _square,
        range(9),
        workers=2,
        progress=lambda done, total, what: said.append((done, total, what)),
        what="n",
    )
    assert found == [number * number for number in range(9)]
    assert [one[0] for one in said] == list(range(1, 10)) and said[-1] == (9, 9, "n")


@pytest.mark.proves("R17")
def test_an_item_that_kills_its_process_costs_one_result() -> None:
    assert run_all(_fragile, range(6), workers=2, crashed=_minus_one) == [0, 1, 2, -1, 4, 5]


def test_faults_reach_the_caller() -> None:
    with pytest.raises(ValueError, match=r"^0$"):
        run_all(_raise, range(1), workers=1)
    with pytest.raises(ValueError, match=r"^[0-3]$"):
        run_all(_raise, range(4), workers=2)
    with pytest.raises(Crashed):
        run_all(_fragile, [3, 3], workers=2)
