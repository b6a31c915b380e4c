"""`medform evaluate --embeddings`: vectors of any encoder, judged by the splits, controls and report of our own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from medform.errors import InputError, Problem

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.pipeline.bench import Group
    from medform.pipeline.fold import FoldResult
    from medform.recipes.recipe import Recipe

__all__ = ["GIVEN", "GivenVectors", "judge_vectors", "read_vectors"]

logger = logging.getLogger(__name__)

GIVEN = "embeddings"
"""Model name of the rows of vectors that were handed over."""
REFERENCE = "imagenet_encoder"
RECIPE = "medform-small"  # whose way of reading an ImageNet network gives the rows beside them
LEVELS = ("slice", "series")
SHOWN = 5


@dataclass(frozen=True)
class GivenVectors:
    """Vectors that were handed over: ``patients`` id -> (d,), ``slices`` slice id -> (e,); ``digest`` of their file.

    A patient's vector is the mean of its series' vectors, or of its slices' where no series is given.
    """

    patients: dict[str, np.ndarray]
    slices: dict[str, np.ndarray]
    digest: str

    def refuse_strangers(self, cohort: Cohort, where: str) -> None:
        """Raise `InputError` where no patient of the vectors is one of ``cohort``, with both sides and suggestions."""
        from medform.ingestion.identifiers import match_ids

        match = match_ids(cohort.patient_ids, self.patients)
        if match.matched:
            return
        sides = [", ".join(repr(one) for one in ids[:SHOWN]) for ids in (match.only_images, match.only_table)]
        raise InputError(
            f"no patient id of the vectors is one of the cohort (cohort: {sides[0]}; vectors: {sides[1]}).",
            where=where,
            consequence="Nothing was judged.",
            fix="write the cohort's ids into the column patient_id.",
            problems=[
                Problem(f"looks like '{one.image_id}' (not applied).", column="patient_id", value=one.table_id)
                for one in match.suggestions[:SHOWN]
            ],
        )

    def of_slices(self, cohort: Cohort) -> np.ndarray | None:
        """Vectors (T, e) of all slices of ``cohort``; None where one of them has none."""
        ids = [str(one) for one in cohort.slices["slice_id"]]
        if not self.slices or any(one not in self.slices for one in ids):
            return None
        return np.stack([self.slices[one] for one in ids]).astype(np.float32)


def judge_vectors(
    path: Path, cohort_file: Path, out: Path, root: Path | None = None, progress: Progress | None = None
) -> Path:
    """Judge the vectors in ``path`` on the tasks of a cohort file; writes a run folder and its report, returns the run.

    The file has the columns of `medform embed`: patient_id, level (`slice` or `series`), slice_id (of slices), vector.
    Beside the rows `embeddings` stand `imagenet_encoder`, `intensity_stats`, `table_logistic`, `table_boosting`,
    `fused_unaligned` and `permuted_labels`. What the vectors were made from is not known here: an encoder that was
    trained on patients of this cohort scores too well, and the report says that nobody checked. Raises `InputError`,
    also where ``out`` lies among the cohort's images.
    """
    from medform.cohort.cohort_file import read_cohort_file
    from medform.ingestion.ingest import ingest
    from medform.pipeline.ingest import refuse_output_among_images
    from medform.pipeline.run import task_labels
    from medform.runs.folder import RunFolder

    given = read_vectors(Path(path))
    file = read_cohort_file(Path(cohort_file), root)
    refuse_output_among_images(file, Path(out))
    folder = RunFolder(Path(out))
    with folder.lock():
        renewal = "choose another folder with -o."
        cohort = ingest(file, folder.path / "store", progress=progress, resume=True, renewal=renewal)
        given.refuse_strangers(cohort, str(path))
        labels = task_labels(cohort)
        if not len(labels.columns):
            raise InputError("the cohort has no task to be judged on.", where=cohort.name, fix="declare `tasks`.")
        _judge(folder, cohort, given, _recipe(given), labels, progress)
    return folder.path


def _judge(
    folder: Any, cohort: Cohort, given: GivenVectors, recipe: Recipe, labels: pd.DataFrame, progress: Progress | None
) -> None:
    from medform.pipeline.evaluate import evaluate_run
    from medform.pipeline.fold import run_fold
    from medform.pipeline.records import Spending, begin, write_cohort_pages
    from medform.pipeline.report import report
    from medform.pipeline.run import fold_groups, keep_fold, make_bench, merge_folds

    spending = Spending()
    bench = make_bench(cohort, folder, "auto", progress)
    begin(folder, cohort, recipe, labels, resume=True, overwrite=False)  # the same vectors may be judged again
    primary = cohort.file.primary_name
    by_slice = given.of_slices(cohort) if cohort.slice_tasks else None
    groups = [group for group in fold_groups(cohort, None) if group.fold is not None]
    for group in groups:
        result = run_fold(bench, group, recipe, labels, primary)
        keep_fold(folder, group, _beside(result, group, given, by_slice), recipe)
    merge_folds(folder, groups)
    evaluate_run(folder, cohort, recipe, labels)
    places = [folder.path / "folds" / str(group.fold) for group in groups]
    write_cohort_pages(folder, cohort, labels, primary, places)
    spending.finish(folder, _notes(cohort, given, by_slice), places)
    folder.update(status="complete")
    report(folder.path)


def _recipe(given: GivenVectors) -> Recipe:
    """How the rows `imagenet_encoder` are made; its citation names the file, so that a run is of one file only."""
    from medform.recipes.recipe import read_recipe

    chosen = read_recipe(RECIPE).variant(REFERENCE)
    citation = f"vectors of another encoder, SHA-256 {given.digest}"
    return chosen.model_copy(update={"name": GIVEN, "citation": citation, "sources": {}})


def _beside(result: FoldResult, group: Group, given: GivenVectors, by_slice: np.ndarray | None) -> FoldResult:
    """The rows of a fold under their names, those of the given vectors with them."""
    from dataclasses import replace

    from medform.pipeline.fold_rows import rows_of

    own = "image_only"  # the recipe's own rows, which are the ImageNet network's
    frames = [frame.assign(model=frame["model"].replace(own, REFERENCE)) for frame in result.embeddings]
    patients = [one for one in group.everybody if one in given.patients]
    if patients:
        vectors = np.stack([given.patients[one] for one in patients])
        frames.append(rows_of(group, GIVEN, "aligned", 0, patients, vectors))
    slices = {REFERENCE if name == own else name: array for name, array in result.slices.items()}
    if by_slice is not None:
        slices[GIVEN] = by_slice
    return replace(result, embeddings=frames, slices=slices)


def _notes(cohort: Cohort, given: GivenVectors, by_slice: np.ndarray | None) -> list[str]:
    """What a reader of the report must know."""
    notes = [
        "what the given vectors were made from is not known here: nobody checked that no test patient was among it"
    ]
    if missing := [one for one in cohort.patient_ids if one not in given.patients]:
        notes.append(f"{len(missing)} patients of the cohort have no given vector and are not judged in those rows")
    if strangers := set(given.patients) - set(cohort.patient_ids):
        notes.append(f"{len(strangers)} patients of the given vectors are not in the cohort and were left out")
    if cohort.slice_tasks and by_slice is None:
        notes.append("the given vectors lack slices of the cohort, so there is no slice probe of them")
    return notes


def read_vectors(path: Path) -> GivenVectors:
    """Read a Parquet file as `medform embed` writes it. Raises `InputError` with all that is wrong with it at once."""
    import pandas as pd

    from medform.cohort.files import file_sha256

    try:
        frame: Any = pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError("no such file.", where=str(path), fix="check the path.") from None
    except (ValueError, OSError) as error:
        raise _refused(path, [Problem(f"not a readable Parquet file ({error}).")]) from None
    missing = [name for name in ("patient_id", "level", "vector") if name not in frame.columns]
    if missing:
        raise _refused(path, [Problem("there is no such column.", column=name) for name in missing])
    if frame.empty:
        raise _refused(path, [Problem("there is no row.")])
    levels = frame["level"].astype(str)
    problems = [
        Problem("unknown level.", column="level", value=value, suggestion=f"Known: {', '.join(LEVELS)}.")
        for value in sorted(set(levels) - set(LEVELS))
    ]
    parts = {level: frame[levels == level] for level in LEVELS}
    vectors = {level: _vectors(part, level, problems) for level, part in parts.items()}
    slices = _by_slice(parts["slice"], vectors["slice"], problems)
    if problems:
        raise _refused(path, problems)
    patients: dict[str, np.ndarray] = {}
    for level in LEVELS:  # a patient's series, where there are any, come last and stand
        patients |= _means([str(one) for one in parts[level]["patient_id"]], vectors[level])
    if len({len(one) for one in patients.values()}) > 1:
        what = "some patients have series and others slices only, of vectors of another length."
        raise _refused(path, [Problem(what, column="vector")])
    return GivenVectors(patients, slices, file_sha256(path)[:16])


def _vectors(part: pd.DataFrame, level: str, problems: list[Problem]) -> list[np.ndarray]:
    """The vectors of one level; adds to ``problems`` where they are no numbers, not finite or of several lengths."""
    made: list[np.ndarray] = []
    for patient, value in zip(part["patient_id"], part["vector"], strict=True):
        try:
            vector = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            vector = np.zeros(0)
        if vector.ndim != 1 or len(vector) == 0:
            what = f"a {level} of patient '{patient}' has no vector: a list of numbers is wanted."
            problems.append(Problem(what, column="vector"))
        elif not np.isfinite(vector).all():
            what = f"the vector of a {level} of patient '{patient}' holds a value that is not finite."
            problems.append(Problem(what, column="vector"))
        made.append(vector)
    lengths = sorted({len(one) for one in made} - {0})
    if len(lengths) > 1:
        what = f"vectors of level {level} have different lengths: {', '.join(map(str, lengths[:SHOWN]))}."
        problems.append(Problem(what, column="vector"))
    return made


def _by_slice(part: pd.DataFrame, vectors: list[np.ndarray], problems: list[Problem]) -> dict[str, np.ndarray]:
    """Slice id -> vector; empty where slices have no id."""
    given = part["slice_id"].tolist() if "slice_id" in part.columns else [None]
    if any(pd.isna(one) for one in given):
        return {}
    ids = [str(one) for one in given]
    if twice := sorted({one for one in ids if ids.count(one) > 1}) if len(set(ids)) < len(ids) else []:
        problems.append(Problem(f"{len(twice)} slices stand twice.", column="slice_id", value=twice[0]))
    return dict(zip(ids, vectors, strict=True))


def _means(patients: list[str], vectors: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Patient -> mean of its vectors."""
    of_patient: dict[str, list[np.ndarray]] = {}
    for patient, vector in zip(patients, vectors, strict=True):
        of_patient.setdefault(patient, []).append(vector)
    return {patient: np.mean(found, axis=0) for patient, found in of_patient.items()}


def _refused(path: Path, problems: list[Problem]) -> InputError:
    return InputError(
        f"these vectors cannot be judged: {len(problems)} problem{'s' if len(problems) > 1 else ''}.",
        where=str(path),
        consequence="Nothing was judged.",
        fix="give a Parquet file with the columns patient_id, level (slice or series), slice_id and vector.",
        problems=problems[:20],
    )
