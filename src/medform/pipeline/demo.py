"""`medform demo`: a synthetic hospital, from its files to a report, in about a minute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medform.pipeline.phantom import phantom
from medform.pipeline.run import RunResult, run

if TYPE_CHECKING:
    from medform.ingestion.workers import Progress

__all__ = ["demo"]

PATIENTS = 40
FOLDS = 2


def demo(out: Path, progress: Progress | None = None) -> RunResult:
    """Write a hospital with a planted signal to ``out/hospital`` and run the recipe `medform-demo` on its first fold.

    A demo that lies in ``out`` already is made anew. Raises `InputError` where ``out`` holds anything else.
    """
    hospital = Path(out) / "hospital"
    phantom(hospital, patients=PATIENTS, seed=1, overwrite=hospital.exists())
    file = hospital / "demo.yaml"
    text = (hospital / "cohort.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("folds: 5", f"folds: {FOLDS}"), encoding="utf-8")
    return run("medform-demo", file, out=Path(out) / "run", folds=[0], overwrite=True, progress=progress)
