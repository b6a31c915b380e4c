"""`medform report`: the page of a run, from its folder alone."""

from __future__ import annotations

from pathlib import Path

__all__ = ["report"]


def report(run: Path | str, *, images: bool = True) -> Path:
    """Write ``RUN/report.html`` and return its path; ``images=False`` leaves out every picture of a patient.

    Raises `InputError` where ``run`` is no run folder, or holds a file that is broken or of a newer version.
    """
    from medform.reporting.report import make_report

    return make_report(Path(run), images=images)
