"""Clinical rows of new patients: read in the layout of the training table, encoded, and what is not as in training."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medform.errors import InputError, nearest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["EncodedRow", "EncodedRows", "TrainingTable", "TypedRows", "read_row"]

logger = logging.getLogger(__name__)

PLAIN_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
"""A number as JSON writes it."""
ONLY = "patient"
"""Whose row a mapping of columns is while it is read: it names nobody."""


@dataclass(frozen=True)
class TypedRows:
    """A table that was read.

    ``frame``: the columns that the model knows, typed, by patient id; ``remarks``: a line each column that looks like
    one of the model's and is none.
    """

    frame: pd.DataFrame
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedRow:
    """One patient's row.

    ``values``: (q,), None where no column of the model has a value; ``remarks``: what of it is not as in training.
    """

    values: np.ndarray | None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedRows:
    """Rows by patient.

    ``values``: patient -> (q,), of those for whom a column of the model has a value; ``said``: patient -> what of the
    row is not as in training.
    """

    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    said: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingTable:
    """The table of a model's training, as its ``columns.json`` keeps it: how rows of new patients are read.

    ``encoder``: the tree of a `TableEncoder`; ``specs``: column -> tree of its `ColumnSpec`; ``file``: tree of the
    `TableSpec`, empty where the training had no table file.
    """

    encoder: Mapping[str, Any]
    specs: Mapping[str, Mapping[str, Any]]
    file: Mapping[str, Any]

    @classmethod
    def of(cls, columns: Mapping[str, Any] | None) -> TrainingTable:
        """From the content of ``columns.json``; raises `InputError` for a model that was trained without a table."""
        if columns is None:
            raise InputError("this model knows no table column.", fix="predict without --row and --table.")
        return cls(columns["encoder"], columns["specs"], columns["file"] or {})

    def read(self, path: Path) -> TypedRows:
        """Rows of a table laid out as the training table; columns of the model may be missing.

        Other columns of the table (labels, notes) are nothing that the model should know. Raises `InputError` with
        every cell that cannot be read.
        """
        frame, names = _typed(path, {**self.file, "path": path.name}, self.specs)
        given = [name for name in names if name != self.file.get("patient_id")]
        return TypedRows(frame, tuple(remark for _, remark in self._strange(given) if remark))

    def encode(self, frame: pd.DataFrame) -> EncodedRows:
        """Typed rows, by patient id, as the model takes them."""
        import numpy as np

        from medform.inputs.clinical import TableEncoder

        found = TableEncoder.from_json(self.encoder).encode(frame)
        said: dict[str, list[str]] = {one: [] for one in found.patient_ids}
        for degradation in found.degradations:
            whose = [degradation.patient_id] if degradation.patient_id is not None else list(found.patient_ids)
            for one in whose:
                said.setdefault(one, []).append(degradation.message)
        return EncodedRows(dict(zip(found.patient_ids, found.values.astype(np.float64), strict=True)), said)

    def encode_row(self, row: Mapping[str, Any]) -> EncodedRow:
        """One patient's columns (column -> value) as the model takes them.

        A number is that number, whatever the training table's decimal sign; text is read as in that table. Raises
        `InputError` for values that cannot be read.
        """
        import pandas as pd

        absent = {key for key, value in row.items() if pd.api.types.is_scalar(value) and pd.isna(value)}
        written = {str(key): "" if key in absent else str(value) for key, value in row.items()}
        numbers = {str(key) for key, value in row.items() if isinstance(value, Real)}
        specs = {
            name: {**spec, "decimal": ".", "thousands": None} if name in numbers else spec
            for name, spec in self.specs.items()
        }
        kept = {key: self.file[key] for key in ("missing", "decimal") if key in self.file}
        plain = {"path": "row.csv", "patient_id": "patient_id", "separator": ","}
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "row.csv"
            pd.DataFrame([{**written, "patient_id": ONLY}]).to_csv(path, index=False)
            frame = _typed(path, {**kept, **plain}, specs)[0]
        rows = self.encode(frame)
        given = [name for name in written if name not in ("patient_id", self.file.get("patient_id"))]
        remarks = [remark or f"column '{name}' is not known to the model" for name, remark in self._strange(given)]
        return EncodedRow(rows.values.get(ONLY), (*remarks, *rows.said.get(ONLY, [])))

    def join(self, read: TypedRows, patients: Sequence[str], where: str) -> EncodedRows:
        """Rows of a table under the ids of the images' ``patients``; everybody of the table stands in ``said``.

        Raises `InputError`, naming ``where`` the table lies, for ids that cannot be told apart or of which none is
        one of the images.
        """
        from medform.ingestion.identifiers import match_ids, refuse_strangers
        from medform.ingestion.tables import refuse_problems

        match = match_ids(patients, map(str, read.frame.index), self.file.get("id_rules", []))
        refuse_problems(match.problems, where)
        refuse_strangers(match, where)
        for row, image in sorted(match.by_rule.items()):
            logger.info("row '%s' joined to images '%s' by rule", row, image)
        frame = read.frame.rename(index=match.matched)
        rows = self.encode(frame)
        said = {str(one): [*read.remarks, *rows.said.get(str(one), [])] for one in frame.index}
        return EncodedRows(rows.values, said)

    def _strange(self, given: Sequence[str]) -> list[tuple[str, str]]:
        """Columns that the model does not know, and what to say where one is like a missing column ('' elsewhere)."""
        columns = [one["name"] for one in self.encoder["columns"]]
        missing = {name.casefold(): name for name in columns if name not in given}
        found = []
        for name in given:
            if name not in self.specs:
                close = nearest(name.casefold(), list(missing), 1)
                hint = (
                    f"column '{name}' is not known to the model; did you mean '{missing[close[0]]}'?" if close else ""
                )
                found.append((name, hint))
        return found


def _typed(path: Path, table: Mapping[str, Any], columns: Mapping[str, Any]) -> tuple[pd.DataFrame, list[str]]:
    """The columns that are there, read as ``table`` (a `TableSpec`) and ``columns`` (`ColumnSpec` each) say.

    And the names of all columns of the file. A number that looks like a code for "unknown" is taken as it is unless it
    was one in training: there is no cohort file to declare it in, and what lies outside the range of training is said.
    Of the layout of training counts what this file has too: a sheet where several hold data, and the rows around the
    header that were skipped (a model of before may name others, which are patients here).
    """
    from medform.cohort.cohort_file import ColumnSpec, TableSpec
    from medform.ingestion.raw_table import filled_sheets, layout_rows
    from medform.ingestion.tables import read_table, refuse_problems, type_table

    spec = TableSpec.model_validate(table)
    raw = read_table(
        path,
        spec.sheet if spec.sheet is not None and len(filled_sheets(path)) > 1 else None,
        encoding=spec.encoding,
        separator=spec.separator,
        header_row=spec.header_row,
        skip_rows=layout_rows(spec.header_row, spec.skip_rows),
    )
    present = {
        name: ColumnSpec.model_validate({**one, "sentinels": one.get("sentinels") or []})
        for name, one in columns.items()
        if name in raw.frame.columns
    }
    frame, problems = type_table(raw, spec, present)
    refuse_problems(problems, str(path))
    return frame, list(map(str, raw.frame.columns))


def read_row(path: Path) -> dict[str, Any]:
    """One patient's columns from YAML or JSON: what is written as a number is one, everything else is text.

    Raises `InputError` for a file that cannot be read or is no mapping of columns to single values.
    """
    import yaml

    from medform.config import read_yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or "cannot be read")
        raise InputError(
            f"{reason[0].lower()}{reason[1:]}.",
            where=str(path),
            consequence="Nothing was predicted.",
            fix="give a JSON or YAML file that maps columns to one patient's values.",
        ) from None
    given = read_yaml(text, str(path))
    nested = [key for key, value in given.items() if isinstance(value, dict | list)] if isinstance(given, dict) else []
    if not isinstance(given, dict) or not given or nested:
        fault = f"'{nested[0]}' holds more than one value" if nested else "this is no mapping of columns to values"
        raise InputError(
            f"{fault}.",
            where=str(path),
            consequence="Nothing was predicted.",
            fix="write one value a column, as in age: 61.",
        )
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    bare = {str(key.value) for key, value in node.value if isinstance(value, yaml.ScalarNode) and value.style is None}
    return {
        key: json.loads(value) if key in bare and value is not None and PLAIN_NUMBER.fullmatch(value) else value
        for key, value in given.items()
    }
