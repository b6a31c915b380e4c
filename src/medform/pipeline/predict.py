"""`medform predict`: a trained model on new patients, with everything that was missing said. Research use only."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.errors import InputError, nearest
from medform.pipeline.readouts import Readout, from_files
from medform.pipeline.scans import exclusions, left_out, reading, remarks_on

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.runs.model_folder import ModelFiles

__all__ = ["Model", "Prediction", "predict", "rebuild"]

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of the self-test, relative to the vector's norm: other processors round differently
RESEARCH = "research use only, not a medical device"
PLAIN_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
"""A number as JSON writes it."""


@dataclass(frozen=True)
class Prediction:
    """One patient and task. ``inputs``: image, table or both; None where nothing could be used."""

    patient_id: str
    task: str
    probability: float | None
    positive: bool | None
    inputs: str | None
    degradations: tuple[str, ...] = ()
    note: str = RESEARCH


@dataclass(frozen=True)
class _Scans:
    """Images as the model sees them.

    ``vectors``: patient -> (d,); ``side``: slice features (T, k); ``said``: patient -> what of the images is not as in
    training, also for patients whose images were all set aside; ``left_out``: a line each thing that was not used;
    ``exclusions``: how many of these for a fault.
    """

    vectors: dict[str, np.ndarray]
    side: np.ndarray
    said: dict[str, list[str]]
    left_out: list[str]
    exclusions: int

    @property
    def patients(self) -> list[str]:
        """Everybody of whom there is an image, used or not."""
        return sorted({*self.vectors, *self.said})


class Model:
    """A model folder in memory: ``embed(scan)`` and ``predict(scan, row)``."""

    def __init__(self, files: ModelFiles, tower: Any, pair: Any) -> None:
        self.files, self.tower, self.pair = files, tower, pair
        self.readouts: Mapping[str, Mapping[Any, Readout]] = from_files(files.probes, files.readouts)

    @classmethod
    def load(cls, folder: Path | str) -> Model:
        """Read a model folder (or the run that holds one), rebuild it strictly and run its self-test.

        Raises `InputError` where an own encoder's module is not here, weights do not fit their settings or the
        self-test fails.
        """
        from medform.runs.model_folder import find_model, read_model

        path = find_model(Path(folder))
        try:
            model = rebuild(read_model(path))
            test = model.files.selftest
            found = model.embed_values(test["images"])
            wanted = test["vector"]
        except InputError as error:
            place = str(path) if error.where is None or str(path) in error.where else f"{path}: {error.where}"
            raise InputError(error.what, place, "The model was not used.", error.fix, error.problems) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, error) from None
        off = (
            float("inf")
            if found.shape != wanted.shape
            else float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-12))
        )
        if not off <= TOLERANCE:
            raise InputError(
                f"the self-test fails: its vector is off by {off:.2g} of its length (tolerance {TOLERANCE:g}).",
                where=str(path),
                consequence="The model was not used.",
                fix="export it again, or use the versions that its config.json names.",
            )
        return model

    def to(self, device: str) -> Model:
        """The same model on ``device`` (`auto`, `cpu` or `cuda`)."""
        from medform.compute.device import choose_device

        place: Any = choose_device(device).torch
        for network in (self.tower, self.pair):
            if network is not None:
                network.to(place)
        return self

    def embed(self, scan: Path | str) -> tuple[np.ndarray, np.ndarray]:
        """Vector (d,) of one scan and the features (N, k) of its slices; what is not as in training is logged.

        Raises `InputError` for several patients, those whose images were set aside included.
        """
        image, side, said = self._scan(Path(scan))
        for remark in said:
            logger.warning("%s: %s", scan, remark)
        return image, side

    def predict(self, scan: Path | str | None, row: Mapping[str, Any] | None = None) -> list[Prediction]:
        """Predict for one patient from a scan, a table row (column -> value), or both.

        A number of ``row`` is that number, whatever the training table's decimal sign; text is read as in that table.
        Raises `InputError` for a scan of several patients and for values that cannot be read.
        """
        image, remarks = None, []
        if scan is not None:
            image, _, remarks = self._scan(Path(scan))
        values, said = (None, []) if row is None else self._encoded_row(row)
        return self.decide("patient", image, values, [*remarks, *said])

    def _scan(self, path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Vector (d,), slice features (N, k) and remarks of the one patient of a scan."""
        scans = self._scans(path)
        if len(scans.patients) != 1:
            raise InputError(
                f"{len(scans.patients)} patients in one scan.",
                where=str(path),
                consequence="Nothing was predicted.",
                fix="give one patient's files, or use medform predict.",
            )
        one = scans.patients[0]
        return scans.vectors[one], scans.side, scans.said.get(one, [])

    def _scans(self, path: Path, progress: Progress | None = None) -> _Scans:
        with tempfile.TemporaryDirectory() as scratch:
            cohort = self._ingest(path, Path(scratch))
            vectors, side = self.embed_cohort(cohort, progress)
            selected = "select" in self.files.preprocess.get("images", {})
            said = remarks_on(cohort, set(vectors), selected=selected)
            return _Scans(vectors, side, said, left_out(cohort), exclusions(cohort))

    def embed_cohort(
        self, cohort: Cohort, progress: Progress | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Patient -> vector (d,), and slice features (T, k) in the order of ``cohort.slices``.

        The window is the model's, whatever the store's is. Raises `InputError` for a store in another unit.
        """
        from medform.inputs.slices import working_slices
        from medform.training.infer import slice_features

        preprocess = self.files.preprocess
        if cohort.unit != preprocess["unit"]:
            raise InputError(
                f"the values of the store are {cohort.unit}, those of the model's training {preprocess['unit']}.",
                where=str(cohort.root),
                consequence="Nothing was embedded.",
                fix=f"ingest the images with images.unit: {preprocess['unit']}, if that is what they are.",
            )
        low, high = preprocess["window"]
        cohort = dataclasses.replace(cohort, window=(float(low), float(high)))
        config = self.files.config["features"]
        told = None if progress is None else lambda done, total: progress(done, total, "embedding slices")
        store = working_slices(cohort, int(config["size"]))
        raw = slice_features(self.tower, store, config["layers"], progress=told)
        feature = self._feature_map().apply(raw, store.series)
        imaged = [one for one in store.patient_ids if (store.patient == store.codes([one])[0]).any()]
        vectors = self._vectors(feature, store.patient, store.codes(imaged), store.index, store.z_mm)
        return dict(zip(imaged, vectors, strict=True)), feature

    def embed_values(self, values: np.ndarray) -> np.ndarray:
        """Vector (d,) of one bag of slices (N, H, W) in the model's unit, through its own size and window."""
        from medform.inputs.slices import Scale, shrink

        low, high = (float(bound) for bound in self.files.preprocess["window"])
        size = int(self.files.preprocess["size"])
        small = np.stack([shrink(np.asarray(image, np.float32), size, low) for image in values])
        return self.embed_images(Scale(1.0, 0.0, (low, high)).unit(small))

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Vector (d,) of one bag of slices (N, size, size) in [0, 1]."""
        import torch

        config = self.files.config["features"]
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(images[:, None], dtype=np.float32))
            weight = next(self.tower.parameters(), batch)
            raw = self.tower.eval().slice_vector(batch.to(weight.device), config["layers"]).cpu().numpy()
        one = np.zeros(len(images), np.int64)
        feature = self._feature_map().apply(raw, one)
        index = np.arange(len(images), dtype=np.int64)
        return self._vectors(feature, one, np.zeros(1, np.int64), index, np.full(len(images), np.nan, np.float32))[0]

    def _inputs(self, prefix: str) -> dict[str, np.ndarray]:
        start = f"inputs.{prefix}."
        return {key.removeprefix(start): value for key, value in self.files.weights.items() if key.startswith(start)}

    def _feature_map(self) -> Any:
        from medform.inputs.features import FeatureMap

        return FeatureMap.from_arrays(self._inputs("feature_map"))

    def _vectors(
        self,
        feature: np.ndarray,
        patient: np.ndarray,
        wanted: np.ndarray,
        index: np.ndarray,
        z_mm: np.ndarray,
    ) -> np.ndarray:
        """Embeddings (n, d) of packed slice features, as the run made them."""
        from medform.inputs.bags import BagSource
        from medform.inputs.features import ImageOnly, Joined, mean_bags
        from medform.training.infer import bag_embeddings

        image_only = ImageOnly.from_arrays(self._inputs("image_only")).apply(mean_bags(feature, patient, wanted))
        if self.pair is None:
            return image_only.astype(np.float32)
        parts = {"image_only": image_only}
        parts["aligned"] = bag_embeddings(self.pair, BagSource(feature, patient, index, z_mm).block(wanted))[0]
        joined = Joined.from_arrays(self._inputs("joined"))
        return joined.apply([parts[name] for name in self.files.config["embedding"]])

    def _ingest(self, path: Path, scratch: Path, *, every_series: bool = False) -> Cohort:
        """A store of ``path``, read as the training's files were; with the series that training would have chosen."""
        from medform.cohort.cohort_file import Select
        from medform.config import parse
        from medform.ingestion.ingest import ingest_scan

        wanted = self.files.preprocess.get("images", {}).get("select")
        select = None if wanted is None or every_series else parse(Select, wanted, where="preprocess.json of the model")
        return ingest_scan(path, scratch / "store", **reading(self.files.preprocess), select=select)

    def _known(self) -> Mapping[str, Any]:
        """The table of training: encoder, specs and file."""
        if self.files.columns is None:
            raise InputError("this model knows no table column.", fix="predict without --row and --table.")
        return self.files.columns

    def _encoded_row(self, row: Mapping[str, Any]) -> tuple[np.ndarray | None, list[str]]:
        """A mapping as one encoded row (q,), None where no column of the model has a value, and what to say of it."""
        import pandas as pd

        table = self._known()
        absent = {key for key, value in row.items() if pd.api.types.is_scalar(value) and pd.isna(value)}
        written = {str(key): "" if key in absent else str(value) for key, value in row.items()}
        numbers = {str(key) for key, value in row.items() if isinstance(value, Real)}
        specs = {
            name: {**spec, "decimal": ".", "thousands": None} if name in numbers else spec
            for name, spec in table["specs"].items()
        }
        stored = table["file"] or {}
        kept = {key: stored[key] for key in ("missing", "decimal") if key in stored}
        plain = {"path": "row.csv", "patient_id": "patient_id", "separator": ","}
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "row.csv"
            pd.DataFrame([{**written, "patient_id": "patient"}]).to_csv(path, index=False)
            frame = _typed_table(path, {**kept, **plain}, specs)[0]
        rows, said = self.encode(frame)
        given = [name for name in written if name not in ("patient_id", stored.get("patient_id"))]
        remarks = [remark or f"column '{name}' is not known to the model" for name, remark in self._strange(given)]
        return rows.get("patient"), [*remarks, *said.get("patient", [])]

    def _strange(self, given: Sequence[str]) -> list[tuple[str, str]]:
        """Columns that the model does not know, and what to say where one is like a missing column ('' elsewhere)."""
        table = self._known()
        columns = [one["name"] for one in table["encoder"]["columns"]]
        missing = {name.casefold(): name for name in columns if name not in given}
        found = []
        for name in given:
            if name not in table["specs"]:
                close = nearest(name.casefold(), list(missing), 1)
                hint = (
                    f"column '{name}' is not known to the model; did you mean '{missing[close[0]]}'?" if close else ""
                )
                found.append((name, hint))
        return found

    def read_table(self, path: Path) -> pd.DataFrame:
        """Typed rows of a table laid out as the training table; columns of the model may be missing.

        Raises `InputError` with every cell that cannot be read.
        """
        return self._read_table(path)[0]

    def _read_table(self, path: Path) -> tuple[pd.DataFrame, list[str]]:
        """`read_table`, and what to say of columns that look like one of the model's.

        Other columns of a table (labels, notes) are nothing that the model should know.
        """
        table = self._known()
        stored = table["file"] or {}
        frame, names = _typed_table(path, {**stored, "path": path.name}, table["specs"])
        given = [name for name in names if name != stored.get("patient_id")]
        return frame, [remark for _, remark in self._strange(given) if remark]

    def encode(self, frame: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
        """Patient -> encoded row (q,), and patient -> what of it is not as in training."""
        from medform.inputs.clinical import TableEncoder

        assert self.files.columns is not None
        found = TableEncoder.from_json(self.files.columns["encoder"]).encode(frame)
        said: dict[str, list[str]] = {one: [] for one in found.patient_ids}
        for degradation in found.degradations:
            whose = [degradation.patient_id] if degradation.patient_id is not None else list(found.patient_ids)
            for one in whose:
                said.setdefault(one, []).append(degradation.message)
        return dict(zip(found.patient_ids, found.values.astype(np.float64), strict=True)), said

    def decide(
        self, patient: str, image: np.ndarray | None, row: np.ndarray | None, said: Sequence[str] = ()
    ) -> list[Prediction]:
        """Every task's probability from the largest set of inputs that is there."""
        missing = list(said)
        if image is None:
            missing.append("no image")
        if row is None and self.files.columns is not None:
            missing.append("no table row")
        made = []
        for task, sets in self.readouts.items():
            if image is not None and row is not None and "both" in sets:
                name, given = "both", (image, row)
            elif image is not None and "image" in sets:
                name, given = "image", (image, None)
            elif row is not None and "table" in sets:
                name, given = "table", (None, row)
            else:
                made.append(Prediction(patient, task, None, None, None, tuple(missing)))
                continue
            readout = sets[name]
            probability = readout.probability(readout.score(*given))
            positive = probability >= readout.threshold
            made.append(Prediction(patient, task, probability, positive, name, tuple(missing)))
        return made


def _typed_table(path: Path, table: Mapping[str, Any], columns: Mapping[str, Any]) -> tuple[pd.DataFrame, list[str]]:
    """The columns that are there, read as ``table`` (a `TableSpec`) and ``columns`` (`ColumnSpec` each) say.

    And the names of all columns of the file. A number that looks like a code for "unknown" is taken as it is unless it
    was one in training: there is no cohort file to declare it in, and what lies outside the range of training is said.
    """
    from medform.cohort.cohort_file import ColumnSpec, TableSpec
    from medform.ingestion.tables import read_table, refuse_problems, type_table

    spec = TableSpec.model_validate(table)
    raw = read_table(
        path,
        spec.sheet,
        encoding=spec.encoding,
        separator=spec.separator,
        header_row=spec.header_row,
        skip_rows=spec.skip_rows,
    )
    present = {
        name: ColumnSpec.model_validate({**one, "sentinels": one.get("sentinels") or []})
        for name, one in columns.items()
        if name in raw.frame.columns
    }
    frame, problems = type_table(raw, spec, present)
    refuse_problems(problems, str(path))
    return frame, list(map(str, raw.frame.columns))


def rebuild(files: ModelFiles) -> Model:
    """The networks of a model folder, weights loaded strictly; raises `InputError` with the keys that do not fit."""
    import torch

    from medform.compute.seed import generator
    from medform.recipes.catalog import part

    config = files.config
    tower_config: Any = part("tower", config["tower"])
    tower = tower_config.build(generator(0, "rebuild"))
    pair = None
    parts: list[tuple[str, Any]] = [("tower.", tower)]
    if config["pair"] is not None:
        width = len(files.weights["inputs.feature_map.mean"])
        if "inputs.feature_map.components" in files.weights:
            width = files.weights["inputs.feature_map.components"].shape[1]
        head = files.weights.get("pair.head.weight")
        shared = None if head is None else head.shape[0]
        pair_config: Any = part("tower", config["pair"])
        pair = pair_config.build(width, generator(0, "rebuild"), shared_width=shared)
        parts.append(("pair.", pair))
    for prefix, module in parts:
        given = {
            k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in files.weights.items() if k.startswith(prefix)
        }
        own = module.state_dict()
        odd = sorted(own.keys() ^ given.keys()) + [
            k for k in own.keys() & given.keys() if own[k].shape != given[k].shape
        ]
        if odd:
            raise InputError(
                f"the weights are of another architecture: {len(odd)} tensors do not fit ({', '.join(odd[:6])}).",
                where=f"model.safetensors, {prefix[:-1]}",
                consequence="Nothing was loaded.",
                fix="use a model folder as `medform export` wrote it, and an own encoder's code as it was in training.",
            )
        module.load_state_dict(given, strict=True)
        module.eval()
    return Model(files, tower, pair)


def selftest_values(window: tuple[float, float]) -> np.ndarray:
    """Input of every self-test, of no patient: three slices (3, H, W) of the phantom, greys spread over ``window``."""
    from medform.synthetic.hospital import make_stacks

    stack = make_stacks(2, 0)[0].stack
    middle = len(stack) // 2
    grey = np.clip((stack[middle - 1 : middle + 2] + 200.0) / 500.0, 0.0, 1.0)
    return (window[0] + grey * (window[1] - window[0])).astype(np.float32)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"the model folder is damaged ({type(error).__name__}: {error}).",
        where=str(path),
        consequence="The model was not used.",
        fix="export it again.",
    )


def _read_row(path: Path) -> dict[str, Any]:
    """One patient's columns from YAML or JSON: what is written as a number is one, everything else is text."""
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


def predict(
    path: Path,
    model: Path,
    table: Path | None = None,
    row: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Predict for one scan or a folder of patients; a row a patient and task, also written to ``out`` (CSV).

    ``table``: a clinical table with the model's columns; ``row``: one patient's columns as YAML or JSON. Columns that
    are missing and categories that are new are said, never an error and never a silent zero. What was set aside is
    logged, and stands in the frame's ``attrs``: ``left_out`` (lines), ``exclusions`` (how many for a fault), and
    ``lines`` (what a person is told). Raises `InputError`.
    """
    import pandas as pd

    from medform.runs.folder import write_atomically

    if table is not None and row is not None:
        raise InputError("--table and --row exclude each other.", fix="give one of them.")
    given = None if row is None else _read_row(Path(row))
    loaded = Model.load(model).to(device)
    rows: dict[str, np.ndarray] = {}
    said: dict[str, list[str]] = {}
    read = None if table is None else loaded._read_table(Path(table))
    encoded = None if given is None else loaded._encoded_row(given)
    scans = loaded._scans(Path(path), progress)
    if read is not None:
        rows, said = _joined_rows(loaded, read, scans.patients, str(table))
    elif encoded is not None:
        if len(scans.patients) > 1:
            raise InputError(
                f"one row was given for {len(scans.patients)} patients.",
                where=str(row),
                consequence="Nothing was predicted.",
                fix="give one patient's scan, or a table with --table.",
            )
        (one,) = scans.patients
        rows, said = ({} if encoded[0] is None else {one: encoded[0]}), {one: encoded[1]}
    made = [
        prediction
        for one in sorted({*scans.patients, *said})
        for prediction in loaded.decide(
            one, scans.vectors.get(one), rows.get(one), [*scans.said.get(one, []), *said.get(one, [])]
        )
    ]
    frame = pd.DataFrame([dataclasses.asdict(one) | {"degradations": "; ".join(one.degradations)} for one in made])
    if out is not None:
        write_atomically(Path(out), frame.to_csv(index=False))
    for line in scans.left_out:
        logger.warning("left out: %s", line)
    frame.attrs["lines"] = [*map(_line, made), *([] if out is None else [f"written to {out}"]), RESEARCH]
    frame.attrs["left_out"] = scans.left_out
    frame.attrs["exclusions"] = scans.exclusions
    return frame


def _joined_rows(
    model: Model, read: tuple[pd.DataFrame, list[str]], patients: Sequence[str], where: str
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Encoded rows (q,) and what to say of them, both under the ids of the images; everybody of the table is said."""
    from medform.ingestion.identifiers import match_ids, refuse_strangers
    from medform.ingestion.tables import refuse_problems

    frame, strange = read
    stored = model._known()["file"] or {}
    match = match_ids(patients, map(str, frame.index), stored.get("id_rules", []))
    refuse_problems(match.problems, where)
    refuse_strangers(match, where)
    for row, image in sorted(match.by_rule.items()):
        logger.info("row '%s' joined to images '%s' by rule", row, image)
    frame = frame.rename(index=match.matched)
    rows, said = model.encode(frame)
    return rows, {str(one): [*strange, *said.get(str(one), [])] for one in frame.index}


def _line(one: Prediction) -> str:
    """What a person is told of one prediction."""
    found = "no prediction"
    if one.probability is not None:
        inputs = "image and table" if one.inputs == "both" else one.inputs
        found = f"{one.probability:.3f} ({'positive' if one.positive else 'negative'}) from {inputs}"
    return "; ".join([f"patient {one.patient_id}, {one.task}: {found}", *one.degradations])
