"""`medform phantom`: writes a synthetic hospital, with what was planted beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medform.synthetic.options import HospitalOptions
    from medform.synthetic.truth import Truth

__all__ = ["phantom"]


def phantom(
    out: Path | str,
    *,
    patients: int = 40,
    seed: int = 0,
    options: HospitalOptions | Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Truth:
    """Write a synthetic hospital to ``out``: DICOM, clinical table, genes, masks, cohort file, truth.

    ``patients`` (at least 2) can be used; with the default options three more people cannot, on purpose.
    ``options`` is a `HospitalOptions` or a mapping of its keys, e.g. ``{"signal": "off"}``. The same
    arguments give the same bytes. Raises `InputError` for an unknown key, a value out of range, or a folder
    that is in use.
    """
    from medform.config import parse
    from medform.synthetic.hospital import write_hospital
    from medform.synthetic.options import HospitalOptions

    if not isinstance(options, HospitalOptions):
        options = parse(HospitalOptions, dict(options or {}), where="phantom options")
    return write_hospital(Path(out), patients=patients, seed=seed, options=options, overwrite=overwrite)
