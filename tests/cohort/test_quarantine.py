"""Verdicts have reasons, and the quarantine list reads back whatever order it was found in."""

from __future__ import annotations

from pathlib import Path

import pytest

from medform.cohort.quarantine import Quarantined, Verdict, quarantine_csv, read_quarantine
from medform.errors import InputError


def test_a_verdict_without_a_reason_is_impossible() -> None:
    assert Verdict("accepted").usable and not Verdict("quarantined", ("gap",), ("at 4 mm",)).usable
    with pytest.raises(ValueError, match="reason code"):
        Verdict("repaired")
    with pytest.raises(ValueError, match="details"):
        Verdict("accepted", ("single_slice",))


@pytest.mark.proves("A3.1", "R49")
def test_the_list_is_sorted_and_reads_back(tmp_path: Path) -> None:
    rows = [
        Quarantined(
            "b",
            "2",
            "ct/ä,1",
            "gap",
            "ImagePositionPatient",
            'missing "slice"\nat 4 mm',
            "images.accept: [gap]",
        ),
        Quarantined("a", "", "x.bin", "unreadable", "", "no image"),
    ]
    assert quarantine_csv(rows) == quarantine_csv(reversed(rows))
    path = tmp_path / "quarantine.csv"
    path.write_text(quarantine_csv(rows), encoding="utf-8")
    assert read_quarantine(path) == sorted(rows)
    path.write_text("file,reason\n")
    with pytest.raises(InputError, match="not a quarantine list"):
        read_quarantine(path)
