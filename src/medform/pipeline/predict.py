"""`medform predict`: a trained model on new patients, with everything that was missing said. Research use only."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.errors import InputError, Problem
from medform.pipeline.frozen_encoder import FrozenEncoder
from medform.pipeline.new_rows import EncodedRows, TrainingTable, read_row
from medform.pipeline.readouts import Readout, from_files
from medform.pipeline.scans import exclusions, left_out, reading, remarks_on
from medform.pipeline.table_result import TableResult

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.runs.model_folder import ModelFiles

__all__ = ["Model", "Prediction", "predict"]

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of the self-test, relative to the vector's norm: other processors round differently
RESEARCH = "research use only, not a medical device"


@dataclass(frozen=True)
class Prediction:
    """One patient and task.

    ``inputs``: image, table or both; None where nothing could be used. ``positive`` is None where nothing could be used
    and where the model's scores did not follow the label in training (its ``degradations`` say so): nobody is called
    by noise.
    """

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


class Model(FrozenEncoder):
    """A model folder in memory: ``embed(scan)`` and ``predict(scan, row)``."""

    def __init__(self, files: ModelFiles, tower: Any, pair: Any) -> None:
        super().__init__(files, tower, pair)
        self.readouts: Mapping[str, Mapping[Any, Readout]] = from_files(files.probes, files.readouts)
        self.unanswered: Mapping[str, str] = files.config.get("unanswered", {})
        """Task of the training cohort -> why the model has no readout of it; a folder of before does not say."""

    @classmethod
    def load(cls, folder: Path | str) -> Model:
        """Read a model folder (or the run that holds one), rebuild it strictly and run its self-test.

        Raises `InputError` where an own encoder's module is not here, weights do not fit their settings or the
        self-test fails.
        """
        from medform.runs.model_folder import find_model, read_model

        path = find_model(Path(folder))
        try:
            model = cls.rebuild(read_model(path))
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
        Raises `InputError` for a scan of several patients, for values that cannot be read and for a model that answers
        no task.
        """
        self.refuse_without_task()
        image, remarks = None, []
        if scan is not None:
            image, _, remarks = self._scan(Path(scan))
        if row is None:
            return self.decide("patient", image, None, remarks)
        encoded = self.table.encode_row(row)
        return self.decide("patient", image, encoded.values, [*remarks, *encoded.remarks])

    @property
    def table(self) -> TrainingTable:
        """How rows of new patients are read; raises `InputError` for a model that was trained without a table."""
        return TrainingTable.of(self.files.columns)

    def refuse_without_task(self) -> None:
        """Raise `InputError` where the model has no readout: there is nothing that it could predict."""
        if self.readouts:
            return
        fix = "medform embed gives its vectors"
        if "segmentation" in self.files.config:
            fix += ", medform segment its masks"
        raise InputError(
            "this model answers no task.",
            consequence="Nothing was predicted.",
            fix=f"{fix}; to predict, train on a cohort with a task (`tasks` of the cohort file).",
            problems=[Problem(f"task {task}: {why}.") for task, why in self.unanswered.items()],
        )

    def decide(
        self, patient: str, image: np.ndarray | None, row: np.ndarray | None, said: Sequence[str] = ()
    ) -> list[Prediction]:
        """Every task's probability from the largest set of inputs that is there; of unanswered tasks, why not."""
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
            remarks = (*missing, readout.caution) if readout.caution else tuple(missing)
            made.append(Prediction(patient, task, probability, readout.call(probability), name, remarks))
        made += [
            Prediction(patient, task, None, None, None, (*missing, f"not answered by this model: {why}"))
            for task, why in self.unanswered.items()
        ]
        return made

    def ingest(self, path: Path, scratch: Path, *, every_series: bool = False) -> Cohort:
        """A store of ``path``, read as the training's files were; with the series that training would have chosen."""
        from medform.cohort.cohort_file import Select
        from medform.config import parse
        from medform.ingestion.ingest import ingest_scan

        wanted = self.files.preprocess.get("images", {}).get("select")
        select = None if wanted is None or every_series else parse(Select, wanted, where="preprocess.json of the model")
        return ingest_scan(path, scratch / "store", **reading(self.files.preprocess), select=select)

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
            cohort = self.ingest(path, Path(scratch))
            vectors, side = self.embed_cohort(cohort, progress)
            selected = "select" in self.files.preprocess.get("images", {})
            said = remarks_on(cohort, set(vectors), self.files.preprocess, selected=selected)
            return _Scans(vectors, side, said, left_out(cohort), exclusions(cohort))


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"the model folder is damaged ({type(error).__name__}: {error}).",
        where=str(path),
        consequence="The model was not used.",
        fix="export it again.",
    )


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
    ``lines`` (what a person is told). A task of the training without a readout has rows that say why. Raises
    `InputError`, also for a model that answers no task.
    """
    import pandas as pd

    from medform.runs.folder import write_atomically

    if table is not None and row is not None:
        raise InputError("--table and --row exclude each other.", fix="give one of them.")
    given = None if row is None else read_row(Path(row))
    loaded = Model.load(model).to(device)
    loaded.refuse_without_task()
    rows = EncodedRows()
    read = None if table is None else loaded.table.read(Path(table))
    encoded = None if given is None else loaded.table.encode_row(given)
    scans = loaded._scans(Path(path), progress)
    if read is not None:
        rows = loaded.table.join(read, scans.patients, str(table))
    elif encoded is not None:
        if len(scans.patients) > 1:
            raise InputError(
                f"one row was given for {len(scans.patients)} patients.",
                where=str(row),
                consequence="Nothing was predicted.",
                fix="give one patient's scan, or a table with --table.",
            )
        (one,) = scans.patients
        rows = EncodedRows({} if encoded.values is None else {one: encoded.values}, {one: list(encoded.remarks)})
    made = [
        prediction
        for one in sorted({*scans.patients, *rows.said})
        for prediction in loaded.decide(
            one, scans.vectors.get(one), rows.values.get(one), [*scans.said.get(one, []), *rows.said.get(one, [])]
        )
    ]
    frame = pd.DataFrame([dataclasses.asdict(one) | {"degradations": "; ".join(one.degradations)} for one in made])
    if out is not None:
        write_atomically(Path(out), frame.to_csv(index=False))
    for line in scans.left_out:
        logger.warning("left out: %s", line)
    lines = [_line(one) for one in made if one.task not in loaded.unanswered]
    lines += [f"{task}: not answered by this model: {why}" for task, why in loaded.unanswered.items()]
    lines += [*([] if out is None else [f"written to {out}"]), RESEARCH]
    return TableResult(frame, lines, scans.left_out, scans.exclusions).told()


def _line(one: Prediction) -> str:
    """What a person is told of one prediction."""
    found = "no prediction"
    if one.probability is not None:
        inputs = "image and table" if one.inputs == "both" else one.inputs
        called = "not called" if one.positive is None else "positive" if one.positive else "negative"
        found = f"{one.probability:.3f} ({called}) from {inputs}"
    return "; ".join([f"patient {one.patient_id}, {one.task}: {found}", *one.degradations])
