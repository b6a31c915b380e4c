"""What was set aside, and why: verdicts on series, and the quarantine list that a store carries."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

from medform.errors import InputError

__all__ = ["Quarantined", "Status", "Verdict", "quarantine_csv", "read_quarantine"]

Status = Literal["accepted", "repaired", "quarantined"]


@dataclass(frozen=True)
class Verdict:
    """The one end of a series.

    ``codes`` are short and stable (``gap``, ``single_slice``); ``details`` say which slices. A repaired or
    quarantined series has at least one code; each code has its detail at the same place.
    """

    status: Status
    codes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.status != "accepted" and not self.codes:
            raise ValueError(f"a {self.status} series needs a reason code")
        if len(self.details) != len(self.codes):
            raise ValueError(f"{len(self.codes)} codes need as many details, not {len(self.details)}")

    @property
    def usable(self) -> bool:
        """Whether the series enters the store."""
        return self.status != "quarantined"


@dataclass(frozen=True, order=True)
class Quarantined:
    """One thing set aside: a file (path relative to the source), a series or a patient's whole image.

    ``tag`` is the header field or column at fault, ``override`` the key that lets it through ('' where there
    is none).
    """

    patient_id: str
    series_id: str
    file: str
    code: str
    tag: str
    reason: str
    override: str = ""


HEADER = tuple(part.name for part in fields(Quarantined))


def quarantine_csv(rows: Iterable[Quarantined]) -> str:
    """The list as CSV text, sorted, so that the order of discovery leaves no trace."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(astuple(row) for row in sorted(rows))
    return text.getvalue()


def read_quarantine(path: Path) -> list[Quarantined]:
    """Read a store's ``quarantine.csv``; `InputError` where it is not one."""
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.reader(lines)
        header = tuple(next(reader, ()))
        if header != HEADER:
            raise InputError("not a quarantine list of this version.", where=str(path))
        return [Quarantined(*row) for row in reader]
