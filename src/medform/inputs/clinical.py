"""The clinical table as numbers, fitted on training patients, and what of a new row is not as in training.

The core is numpy; missing stays missing up to here, where it is filled and, where it was common, flagged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32
from pydantic import Field

from medform.cohort.cohort_file import ColumnSpec
from medform.cohort.files import column as series_of
from medform.config import Config
from medform.errors import InputError, Problem

__all__ = ["ClinicalInputConfig", "Degradation", "EncodedTable", "FittedColumn", "TableEncoder"]

_NUMERIC = ("number", "boolean", "ordinal")
_OPEN = ("category", "set")


class ClinicalInputConfig(Config):
    """``clip``: standard deviations at which a number is cut off; ``flag_above``: missing share to flag."""

    kind: Literal["clinical"] = "clinical"
    clip: Annotated[float, Field(gt=0)] = 3.5
    flag_above: Annotated[float, Field(ge=0, le=1)] = 0.05


@dataclass(frozen=True)
class Degradation:
    """A way in which a row is not as the encoder was trained. ``patient_id`` None: the table as a whole."""

    patient_id: str | None
    column: str
    kind: Literal["missing_column", "missing_value", "unseen_category", "out_of_range", "column_order"]
    message: str


@dataclass(frozen=True)
class FittedColumn:
    """One column as training patients showed it.

    Numbers, booleans and ordinals (a level's place) have ``fill`` (median), ``mean``, ``sd``, ``low``,
    ``high``. Categories and sets have ``levels`` and ``shares`` (how often each is present), which stand in
    for a missing value. A column that did not vary gives nothing but its flag.
    """

    name: str
    type: str
    levels: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    separator: str = ";"
    fill: float = 0.0
    mean: float = 0.0
    sd: float = 0.0
    low: float = 0.0
    high: float = 0.0
    flagged: bool = False

    @property
    def varies(self) -> bool:
        """Whether training patients differed in it."""
        return self.sd > 0 if self.type in _NUMERIC else any(share < 1 for share in self.shares)

    @property
    def names(self) -> list[str]:
        """Names of the encoded columns."""
        flag = [f"{self.name} missing"] if self.flagged else []
        if not self.varies:
            return flag
        return ([self.name] if self.type in _NUMERIC else [f"{self.name}={level}" for level in self.levels]) + flag


@dataclass(frozen=True)
class EncodedTable:
    """Encoded rows: ``values`` (n, q) of ``patient_ids``; patients without any value are not among them."""

    patient_ids: tuple[str, ...]
    names: tuple[str, ...]
    values: Float32[np.ndarray, "n q"]
    degradations: tuple[Degradation, ...]


def _numbers(values: pd.Series, column: FittedColumn | ColumnSpec, name: str) -> Float[np.ndarray, " n"]:
    """A numeric column as float64, NaN where missing; of an ordinal the level's place, NaN if unknown."""
    if column.type == "ordinal":
        place = {level: float(rank) for rank, level in enumerate(column.levels or ())}
        return np.array([np.nan if pd.isna(value) else place.get(str(value), np.nan) for value in values], float)
    try:
        return values.astype("Float64").to_numpy(float, na_value=np.nan)
    except (ValueError, TypeError):
        words = [value for value in values if not pd.isna(value) and not _is_number(value)]
        problems = [
            Problem("not a number.", column=name, value=value, suggestion="Declare the column a category?")
            for value in sorted({str(word) for word in words})[:5]
        ]
        raise InputError(
            f"column '{name}' holds text where numbers were declared.",
            consequence="Nothing was encoded; text is never turned into 0.",
            problems=problems,
            fix="correct the cells, or the column's type in the cohort file.",
        ) from None


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _members(values: pd.Series, column: FittedColumn | ColumnSpec) -> list[frozenset[str] | None]:
    """The categories of every row, None where missing."""
    if column.type == "set":
        return [
            None
            if pd.isna(value)
            else frozenset(part.strip() for part in str(value).split(column.separator) if part.strip())
            for value in values
        ]
    return [None if pd.isna(value) else frozenset([str(value)]) for value in values]


def _fit_column(name: str, spec: ColumnSpec, values: pd.Series, config: ClinicalInputConfig) -> FittedColumn:
    if spec.type in _NUMERIC:
        numbers = _numbers(values, spec, name)
        present = numbers[np.isfinite(numbers)]
        flagged = 0 < len(present) < len(numbers) and 1 - len(present) / len(numbers) > config.flag_above
        if not len(present):
            return FittedColumn(name, spec.type, levels=tuple(spec.levels or ()))
        fill = float(np.median(present))
        filled = np.where(np.isfinite(numbers), numbers, fill)
        return FittedColumn(
            name,
            spec.type,
            levels=tuple(spec.levels or ()),
            fill=fill,
            mean=float(filled.mean()),
            sd=float(filled.std()) if present.min() < present.max() else 0.0,
            low=float(present.min()),
            high=float(present.max()),
            flagged=flagged,
        )
    rows = [row for row in _members(values, spec) if row is not None]
    levels = sorted(frozenset().union(*rows))
    shares = [sum(level in row for row in rows) / len(rows) for level in levels]
    flagged = 0 < len(rows) < len(values) and 1 - len(rows) / len(values) > config.flag_above
    return FittedColumn(name, spec.type, tuple(levels), tuple(shares), spec.separator, flagged=flagged)


@dataclass(frozen=True)
class TableEncoder:
    """Typed table rows to (n, q) numbers. Columns are matched by name, whatever their order."""

    columns: tuple[FittedColumn, ...]
    clip: float

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        specs: Mapping[str, ColumnSpec],
        patients: Iterable[str],
        config: ClinicalInputConfig | None = None,
    ) -> Self:
        """Fit on the rows of ``patients`` (training patients); no other row of ``frame`` is looked at.

        ``frame`` is typed as in the store, with patient ids as index. ``specs`` are the columns to use, in
        order. Patients without any value in them do not count. Raises `InputError` for a column that is not
        there or of a type that cannot be encoded, or where no training patient has a value.
        """
        config = config or ClinicalInputConfig()
        problems = [
            Problem("the table has no such column.", column=name) for name in specs if name not in frame.columns
        ]
        problems += [
            Problem(
                f"a {spec.type} cannot be a feature.",
                column=name,
                suggestion="Use another type, or role: ignore.",
            )
            for name, spec in specs.items()
            if spec.type not in (*_NUMERIC, *_OPEN)
        ]
        if problems:
            raise InputError("the clinical table cannot be encoded.", problems=problems)
        wanted = set(patients)
        rows = frame.loc[[name for name in frame.index if name in wanted], list(specs)].dropna(how="all")
        if rows.empty:
            raise InputError(
                "no training patient has a value in any feature column.",
                consequence="There is nothing to align with.",
                fix="check the patient ids and the columns with role: feature.",
            )
        return cls(
            tuple(_fit_column(name, spec, series_of(rows, name), config) for name, spec in specs.items()),
            config.clip,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the q encoded columns."""
        return tuple(name for column in self.columns for name in column.names)

    @property
    def constant(self) -> tuple[str, ...]:
        """Columns that did not vary among the training patients and so give no number."""
        return tuple(column.name for column in self.columns if not column.varies)

    def encode(self, frame: pd.DataFrame) -> EncodedTable:
        """Encode any rows; each depends on itself alone. An absent column counts as missing, and is named.

        Nobody has a row where no column is there: pandas drops no row of a frame without columns.
        """
        present = [column.name for column in self.columns if column.name in frame.columns]
        rows: pd.DataFrame = frame.loc[:, present].dropna(how="all") if present else frame.iloc[:0]
        patient_ids = tuple(str(name) for name in rows.index)
        degradations: list[Degradation] = []
        if [name for name in frame.columns if name in set(present)] != present:
            text = "the columns stand in another order than in training; they were matched by name"
            degradations.append(Degradation(None, "", "column_order", text))
        parts: list[np.ndarray] = [np.empty((len(rows), 0))]
        for column in self.columns:
            if column.name in present:
                values, kind, text = series_of(rows, column.name), "missing_value", "no value"
            else:
                values = pd.Series([None] * len(rows), index=rows.index, dtype="object")
                kind, text = "missing_column", "no such column"
            text = f"{column.name}: {text}; the training patients' middle stands in"
            for name, value in zip(patient_ids, values, strict=True):
                if pd.isna(value):
                    degradations.append(Degradation(name, column.name, kind, text))
            encode = self._encode_number if column.type in _NUMERIC else self._encode_category
            encoded, found = encode(column, values)
            parts.append(encoded)
            degradations += found
        return EncodedTable(
            patient_ids, self.names, np.concatenate(parts, axis=1).astype(np.float32), tuple(degradations)
        )

    def _encode_number(
        self, column: FittedColumn, values: pd.Series
    ) -> tuple[Float[np.ndarray, "n k"], list[Degradation]]:
        numbers = _numbers(values, column, column.name)
        missing = ~np.isfinite(numbers)
        degradations = []
        for name, value, raw in zip(values.index, numbers, values, strict=True):
            if np.isfinite(value) and not column.low <= value <= column.high:
                seen = f"{column.low:g} to {column.high:g}"
                text = f"{column.name}: {value:g} lies outside the training patients' range, {seen}"
                degradations.append(Degradation(str(name), column.name, "out_of_range", text))
            elif not np.isfinite(value) and not pd.isna(raw):
                text = f"{column.name}: level '{raw}' is not known; the training patients' middle stands in"
                degradations.append(Degradation(str(name), column.name, "unseen_category", text))
        parts = []
        if column.varies:
            filled = np.where(missing, column.fill, numbers)
            parts.append(((filled - column.mean) / column.sd).clip(-self.clip, self.clip))
        if column.flagged:
            parts.append(missing.astype(float))
        return np.stack(parts, axis=1) if parts else np.empty((len(values), 0)), degradations

    def _encode_category(
        self, column: FittedColumn, values: pd.Series
    ) -> tuple[Float[np.ndarray, "n k"], list[Degradation]]:
        members = _members(values, column)
        degradations = []
        known = frozenset(column.levels)
        encoded = np.empty((len(values), len(column.levels)))
        for row, (name, own) in enumerate(zip(values.index, members, strict=True)):
            if own is None or (own and not own & known):
                encoded[row] = column.shares
            else:
                encoded[row] = [level in own for level in column.levels]
            for level in sorted((own or frozenset()) - known):
                text = f"{column.name}: category '{level}' was not seen in training"
                degradations.append(Degradation(str(name), column.name, "unseen_category", text))
        encoded = encoded / np.sqrt(len(column.levels)) if column.varies else encoded[:, :0]
        if column.flagged:
            flag = np.array([own is None for own in members], float)[:, None]
            encoded = np.concatenate([encoded, flag], axis=1)
        return encoded, degradations

    def to_json(self) -> dict[str, Any]:
        """What was fitted, as a JSON-able tree that `from_json` reads back exactly."""
        return {"clip": self.clip, "columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """The encoder that `to_json` described."""
        columns: Sequence[Mapping[str, Any]] = tree["columns"]
        return cls(
            tuple(
                FittedColumn(**{**column, "levels": tuple(column["levels"]), "shares": tuple(column["shares"])})
                for column in columns
            ),
            tree["clip"],
        )
