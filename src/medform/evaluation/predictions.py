"""The frames an evaluation writes: predictions, cases and curves; compact in memory, streamed to Parquet.

A run has about ten million few-shot predictions, so text columns are categories, probabilities are float32,
and `PredictionWriter` takes one chunk after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medform.errors import InputError
from medform.runs.folder import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "CASE_COLUMNS",
    "CURVE_COLUMNS",
    "PREDICTION_COLUMNS",
    "PredictionWriter",
    "case_frame",
    "coded",
    "concat_predictions",
    "prediction_frame",
    "read_predictions",
]

TEXT = ("cohort", "task", "protocol", "model", "readout", "supports", "patient_id", "slice_id")
WHOLE = {"shots": "Int16", "draw": "Int16", "fold": "Int16", "seed": "Int32"}
REAL = ("y_true", "y_prob")
PREDICTION_COLUMNS = (
    "cohort", "task", "protocol", "model", "readout", "shots", "supports", "draw", "fold", "seed",
    "patient_id", "slice_id", "y_true", "y_prob",
)  # fmt: skip
CASE_COLUMNS = ("cohort", "task", "protocol", "model", "fold", "seed", "patient_id", "metric", "value")
CURVE_COLUMNS = ("name", "model", "x", "y", "ci_low", "ci_high")
SCHEMA_VERSION = 1


def _category(values: Any, size: int) -> pd.Categorical:
    if isinstance(values, pd.Categorical):
        return values
    if values is None:
        return coded(np.full(size, -1), [])
    if isinstance(values, str):
        return coded(np.zeros(size), [values])
    codes, names = pd.factorize(np.asarray(values, dtype=object))
    return coded(codes, [str(name) for name in names])


def coded(codes: Any, names: Sequence[str]) -> pd.Categorical:
    """A text column from codes (n,) into ``names``, -1 for null.

    The names are plain objects: pandas 2 and 3 would infer different text types, which do not unite.
    """
    small = np.int8 if len(names) < 128 else np.int32
    return pd.Categorical.from_codes(np.asarray(codes).astype(small), categories=pd.Index(list(names), dtype=object))


def _whole(values: Any, size: int, dtype: str) -> Any:
    if values is None:
        return pd.array([pd.NA] * size, dtype=dtype)
    if np.ndim(values) == 0:
        return pd.array(np.full(size, values), dtype=dtype)
    return pd.array(values, dtype=dtype)


def prediction_frame(size: int, **columns: Any) -> pd.DataFrame:
    """A frame of ``size`` predictions with every column of `PREDICTION_COLUMNS`.

    A column is given as one value for all rows, as an array, or left out (null). ``y_true`` is 0 or 1,
    ``y_prob`` the predicted probability, NaN where no probability could be given.
    """
    unknown = set(columns) - set(PREDICTION_COLUMNS)
    if unknown:
        raise TypeError(f"no such column of predictions: {', '.join(sorted(unknown))}.")
    made: dict[str, Any] = {}
    for name in PREDICTION_COLUMNS:
        values = columns.get(name)
        if name in TEXT:
            made[name] = _category(values, size)
        elif name in WHOLE:
            made[name] = _whole(values, size, WHOLE[name])
        else:
            made[name] = np.broadcast_to(np.asarray(values, dtype=np.float32), (size,)).copy()
    return pd.DataFrame(made, columns=list(PREDICTION_COLUMNS))


def concat_predictions(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all frames in order, categories united (plain ``concat`` would make text of them)."""
    if not frames:
        return prediction_frame(0, y_true=[], y_prob=[])
    columns: dict[str, Any] = {}
    for name in PREDICTION_COLUMNS:
        if name in TEXT:
            columns[name] = _united([_category(frame[name].array, len(frame)) for frame in frames])
        else:
            columns[name] = pd.concat([frame[name] for frame in frames], ignore_index=True)
    return pd.DataFrame(columns, columns=list(PREDICTION_COLUMNS))


def _united(parts: Sequence[pd.Categorical]) -> pd.Categorical:
    place: dict[str, int] = {}
    codes = []
    for part in parts:
        known = [place.setdefault(str(name), len(place)) for name in part.categories]
        codes.append(np.array([*known, -1])[part.codes])  # the code -1 of a null takes the last entry
    return coded(np.concatenate(codes), list(place))


def case_frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Cases as a frame with every column of `CASE_COLUMNS`, absent ones null."""
    frame = pd.DataFrame(list(rows), columns=list(CASE_COLUMNS))
    types = {"fold": "Int16", "seed": "Int32", "value": "float64"}
    text = {name: "string" for name in CASE_COLUMNS if name not in types}
    return frame.astype({**text, **types})


def _schema() -> pa.Schema:
    import pyarrow as pa

    whole = {"Int16": pa.int16(), "Int32": pa.int32()}
    fields = []
    for name in PREDICTION_COLUMNS:
        if name in TEXT:
            fields.append(pa.field(name, pa.dictionary(pa.int32(), pa.string())))
        else:
            fields.append(pa.field(name, whole[WHOLE[name]] if name in WHOLE else pa.float32()))
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def _table(frame: pd.DataFrame) -> pa.Table:
    import pyarrow as pa

    schema = _schema()
    arrays = []
    for name in PREDICTION_COLUMNS:
        if name in TEXT:
            category = _category(frame[name].array, len(frame))
            codes = pa.array(category.codes.astype(np.int32), mask=category.codes < 0)
            arrays.append(pa.DictionaryArray.from_arrays(codes, pa.array(list(category.categories), pa.string())))
        else:
            arrays.append(pa.array(frame[name], type=schema.field(name).type, from_pandas=name in WHOLE))
    return pa.Table.from_arrays(arrays, schema=schema)


class PredictionWriter:
    """Writes ``predictions.parquet`` chunk by chunk; the file appears, whole, when the ``with`` block ends well.

    It is a sink: ``evaluate(..., sink=writer)`` calls it with each chunk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.chunks.writing")

    def __enter__(self) -> PredictionWriter:
        import pyarrow.parquet as pq

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._temporary, _schema(), compression="zstd")
        return self

    def __call__(self, frame: pd.DataFrame) -> None:
        """Append the rows of ``frame``."""
        if len(frame):
            self._writer.write_table(_table(frame))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._writer.close()
        try:
            if kind is None:
                write_atomically(self.path, self._temporary.replace)
        finally:
            self._temporary.unlink(missing_ok=True)


def read_predictions(path: Path) -> Iterator[pd.DataFrame]:
    """The chunks of a predictions file, in order. Raises `InputError` where it is missing or of another format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise InputError("no such file.", where=str(path), fix="run `medform evaluate` on this run first.") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"not a Parquet file ({error}).", where=str(path), fix="run `medform evaluate`.") from None
    with file:
        names = set(file.schema_arrow.names)
        if names != set(PREDICTION_COLUMNS):
            odd = ", ".join(sorted(names ^ set(PREDICTION_COLUMNS)))
            raise InputError(f"columns missing or unknown: {odd}.", where=str(path), fix="run `medform evaluate`.")
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            columns = {name: table.column(name).combine_chunks() for name in PREDICTION_COLUMNS}
            yield prediction_frame(len(table), **{name: _from_arrow(name, column) for name, column in columns.items()})


def _from_arrow(name: str, column: Any) -> Any:
    if name not in TEXT:
        return column.to_pandas() if name in REAL else pd.array(column.to_pylist(), dtype=WHOLE[name])
    codes = column.indices.fill_null(-1).to_numpy()
    return coded(codes, column.dictionary.to_pylist())
