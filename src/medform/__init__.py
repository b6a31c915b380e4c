"""medform: from a hospital's folders and spreadsheet to one aligned, evaluated and explained multimodal model.

Research use only, not a medical device. Importing it has no effect: the public names below are loaded when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "align": "medform.pipeline.align",
    "check": "medform.pipeline.check",
    "demo": "medform.pipeline.demo",
    "doctor": "medform.pipeline.doctor",
    "embed": "medform.pipeline.embed",
    "evaluate": "medform.pipeline.evaluate",
    "export": "medform.pipeline.export",
    "ingest": "medform.pipeline.ingest",
    "init": "medform.pipeline.init",
    "Model": "medform.pipeline.predict",
    "phantom": "medform.pipeline.phantom",
    "predict": "medform.pipeline.predict",
    "pretrain": "medform.pipeline.pretrain",
    "report": "medform.pipeline.report",
    "run": "medform.pipeline.run",
    "segment": "medform.pipeline.segment",
    "Cohort": "medform.cohort.store",
    "MedformError": "medform.errors",
}
__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - names of _HOME are text


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'medform' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from medform.cohort.store import Cohort as Cohort
    from medform.errors import MedformError as MedformError
