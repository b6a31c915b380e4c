"""Schema of the cohort file's ``masks``: where the label maps of the scans are and what their numbers mean."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from medform.config import Config

__all__ = ["DEFAULT_PATTERN", "PATIENT", "Masks"]

PATIENT = "{patient}"
DEFAULT_PATTERN = "{patient}*.nii*"
Label = Annotated[int, Field(ge=1, le=255)]


class Masks(Config):
    """Label maps of the scans.

    ``path`` is the folder that holds them as NIfTI files, and ``pattern`` names one file of a patient below it:
    ``{patient}`` stands for the patient's id, ``*`` for any text without ``/``, ``?`` for one character, ``**/`` for
    any folders; by default it is ``{patient}*.nii*``. Without ``path`` the masks are those of the folder layout
    (``labelsTr``, BIDS derivatives, folders called ``masks``) or of the column ``index.mask``. ``values`` names the
    labels and the numbers that stand for them; any other number but 0 is then a fault.
    """

    path: str | None = None
    pattern: str | None = None
    values: dict[str, list[Label]] | None = None

    @field_validator("pattern")
    @classmethod
    def _names_a_patient(cls, pattern: str | None) -> str | None:
        if pattern is not None and pattern.count(PATIENT) != 1:
            raise ValueError(f"the pattern says once where the patient's id stands, as in '{DEFAULT_PATTERN}'.")
        return pattern

    @field_validator("values", mode="before")
    @classmethod
    def _lists(cls, values: Any) -> Any:
        """One number stands for a list of one."""
        if not isinstance(values, dict):
            return values
        return {name: some if isinstance(some, list) else [some] for name, some in values.items()}

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: dict[str, list[int]] | None) -> dict[str, list[int]] | None:
        numbers = [number for some in (values or {}).values() for number in some]
        if values is not None and not numbers:
            raise ValueError("masks.values names no number; leave it out to take all.")
        if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
            raise ValueError(f"the number {twice[0]} stands for two labels.")
        return values

    @model_validator(mode="after")
    def _pattern_below_path(self) -> Self:
        if self.path is None and self.pattern is not None:
            raise ValueError("masks.pattern is below masks.path: set it too.")
        return self

    @property
    def file_pattern(self) -> str:
        """The pattern, the default one where none is set."""
        return self.pattern or DEFAULT_PATTERN

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The declared numbers in ascending order, without 0; None where any may occur."""
        return None if self.values is None else tuple(sorted(one for some in self.values.values() for one in some))
