"""`medform predict`: a trained model on new patients, with everything that was missing said. Research use only."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.errors import InputError
from medform.pipeline.readouts import Readout, from_files

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.runs.model_folder import ModelFiles

__all__ = ["Model", "Prediction", "predict", "rebuild"]

TOLERANCE = 1e-3  # of the self-test, relative to the vector's norm: other processors round differently
RESEARCH = "research use only, not a medical device"


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
        """Vector (d,) of one scan and the features (N, k) of its slices. Raises `InputError` for several patients."""
        with tempfile.TemporaryDirectory() as scratch:
            cohort = self._ingest(Path(scan), Path(scratch))
            vectors, side = self.embed_cohort(cohort)
        if len(vectors) != 1:
            raise InputError(f"{len(vectors)} patients in one scan.", where=str(scan), fix="use medform predict.")
        return next(iter(vectors.values())), side

    def predict(self, scan: Path | str | None, row: Mapping[str, Any] | None = None) -> list[Prediction]:
        """Predict for one patient from a scan, a table row (column -> value), or both."""
        image: np.ndarray | None = None
        if scan is not None:
            image = self.embed(scan)[0]
        table = None if row is None else self._typed_row(row)
        return self._decide("patient", image, table)

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

    def _ingest(self, path: Path, scratch: Path) -> Cohort:
        from medform.ingestion.ingest import ingest_scan

        preprocess = self.files.preprocess
        low, high = preprocess["window"]
        return ingest_scan(path, scratch / "store", unit=preprocess["unit"], window=(float(low), float(high)))

    def _typed_row(self, row: Mapping[str, Any]) -> pd.DataFrame:
        """A mapping as a typed table of one row; text stays text until its column's type converts it."""
        import pandas as pd

        table = self.files.columns
        if table is None:
            raise InputError("this model knows no table column.", fix="predict without --row and --table.")
        path_row = {
            **{str(key): "" if value is None else str(value) for key, value in row.items()},
            "patient_id": "patient",
        }
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "row.csv"
            pd.DataFrame([path_row]).to_csv(path, index=False)
            stored = table["file"] or {}
            plain = {"path": path.name, "patient_id": "patient_id", "separator": ","}
            kept = {key: stored[key] for key in ("missing", "decimal") if key in stored}
            numbers = {str(key) for key, value in row.items() if isinstance(value, int | float)}
            specs = {
                name: {**value, "decimal": ".", "thousands": None} if name in numbers else value
                for name, value in table["specs"].items()
            }
            return _typed_table(path, {**kept, **plain}, specs)

    def read_table(self, path: Path) -> pd.DataFrame:
        """Typed rows of a table laid out as the training table; columns of the model may be missing.

        Raises `InputError` with every cell that cannot be read.
        """
        table = self.files.columns
        if table is None:
            raise InputError("this model knows no table column.", fix="predict without --row and --table.")
        return _typed_table(path, {**(table["file"] or {}), "path": path.name}, table["specs"])

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

    def _decide(self, patient: str, image: np.ndarray | None, table: pd.DataFrame | None) -> list[Prediction]:
        row, said = None, []
        if table is not None:
            rows, degradations = self.encode(table)
            row = next(iter(rows.values()), None)
            said = next(iter(degradations.values()), [])
        return self.decide(patient, image, row, said)

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


def _typed_table(path: Path, table: Mapping[str, Any], columns: Mapping[str, Any]) -> pd.DataFrame:
    """The columns that are there, read as ``table`` (a `TableSpec`) and ``columns`` (`ColumnSpec` each) say."""
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
    present = {name: ColumnSpec.model_validate(one) for name, one in columns.items() if name in raw.frame.columns}
    frame, problems = type_table(raw, spec, present)
    refuse_problems(problems, str(path))
    return frame


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


def _set_aside(cohort: Cohort, vectors: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Patients whose images were all set aside, each with the reasons: they get a row too, and never vanish."""
    found: dict[str, list[str]] = {}
    for entry in cohort.quarantine():
        if entry.patient_id and entry.patient_id not in vectors:
            found.setdefault(entry.patient_id, []).append(f"image set aside ({entry.code}): {entry.reason}")
    return found


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
    are missing and categories that are new are said, never an error and never a silent zero. Raises `InputError`.
    """
    import pandas as pd

    from medform.config import read_yaml
    from medform.ingestion.identifiers import match_ids, refuse_strangers
    from medform.runs.folder import write_atomically

    loaded = Model.load(model).to(device)
    with tempfile.TemporaryDirectory() as scratch:
        cohort = loaded._ingest(Path(path), Path(scratch))
        vectors, _ = loaded.embed_cohort(cohort, progress)
        set_aside = _set_aside(cohort, vectors)
    rows: dict[str, np.ndarray] = {}
    said: dict[str, list[str]] = {}
    if table is not None:
        rows, said = loaded.encode(loaded.read_table(Path(table)))
        refuse_strangers(match_ids([*vectors, *set_aside], list(rows)), str(table))
    elif row is not None:
        if len(vectors) > 1:
            raise InputError(
                f"one row was given for {len(vectors)} patients.",
                where=str(row),
                consequence="Nothing was predicted.",
                fix="give one patient's scan, or a table with --table.",
            )
        given = read_yaml(Path(row).read_text(encoding="utf-8"), str(row))
        encoded, degradations = loaded.encode(loaded._typed_row(given))
        rows = {one: next(iter(encoded.values())) for one in vectors} if encoded else {}
        said = {one: next(iter(degradations.values()), []) for one in vectors}
    made = [
        prediction
        for one in sorted({*vectors, *rows, *set_aside})
        for prediction in loaded.decide(
            one, vectors.get(one), rows.get(one), [*set_aside.get(one, []), *said.get(one, [])]
        )
    ]
    frame = pd.DataFrame([dataclasses.asdict(one) | {"degradations": "; ".join(one.degradations)} for one in made])
    if out is not None:
        write_atomically(Path(out), frame.to_csv(index=False))
    return frame
