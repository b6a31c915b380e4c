"""What an evaluation may be asked to do; every default is the design's."""

from __future__ import annotations

from pydantic import Field, field_validator

from medform.config import Config

__all__ = ["EvaluationSettings"]


class EvaluationSettings(Config):
    """Numbers of an evaluation.

    ``draws`` of few-shot supports for each k of ``shots`` (patients a class), ``bootstrap`` resamples of
    patients for intervals, ``permutations`` of the labels for the null, ``inner_folds`` for out-of-fold
    scores of fusion, ``held_out`` the share of training patients that `unseen` supports come from.
    ``image_c`` and ``table_c`` are the C of the logistic readouts. ``recall_at`` is the k of retrieval.
    ``primary`` names the primary task.
    """

    draws: int = Field(default=200, ge=1)
    shots: list[int] = Field(default=[1, 2, 3, 5, 10, 25], min_length=1)
    bootstrap: int = Field(default=2000, ge=100)
    permutations: int = Field(default=200, ge=1)
    inner_folds: int = Field(default=5, ge=2)
    held_out: float = Field(default=0.3, gt=0, lt=1)
    image_c: float = Field(default=30.0, gt=0)
    table_c: float = Field(default=1.0, gt=0)
    recall_at: int = Field(default=5, ge=1)
    primary: str | None = None
    seed: int = 0

    @field_validator("shots")
    @classmethod
    def _distinct_and_positive(cls, shots: list[int]) -> list[int]:
        if min(shots) < 1 or len(set(shots)) != len(shots):
            raise ValueError("shots are distinct numbers of patients a class, 1 or more.")
        return sorted(shots)
