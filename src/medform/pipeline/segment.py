"""`medform segment`: the lesion of a scan by a trained model, written back on the voxels of its source."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.errors import ExtraMissing, InputError, Problem, nearest

if TYPE_CHECKING:
    from medform.cohort.patient import Series
    from medform.cohort.store import Cohort
    from medform.ingestion.found_series import FoundSeries
    from medform.ingestion.workers import Progress
    from medform.inputs.genes import EncodedGenes, GeneEncoder
    from medform.pipeline.frozen_segmentation import FrozenSegmenter

__all__ = ["FORMATS", "SegmentResult", "SegmentedSeries", "far_from_training", "segment"]

FORMATS = ("nifti", "nrrd", "dicomseg", "png")
PLACED = ("nifti", "nrrd", "dicomseg")
"""Formats that say where a voxel lies."""
EXTRAS = {"nrrd": ("SimpleITK", "nrrd"), "dicomseg": ("highdicom", "seg")}
RESEARCH = "research use only, not a medical device"
FURTHEST = 3.0
"""Median distance of a patient's genes from the training mean, in standard deviations, from which on the values are
not of the scale of training; patients of the same scale have about 0.7."""
FEWEST_JUDGED = 20


@dataclass(frozen=True)
class SegmentedSeries:
    """One series: the files written, and how much is lesion.

    ``lesion_ml`` is None where the spacing is unknown; ``genes`` says whether the patient's own genes were used.
    """

    patient_id: str
    series_id: str
    files: tuple[Path, ...]
    lesion_voxels: int
    lesion_ml: float | None
    genes: bool

    def line(self) -> str:
        """What a person is told of it."""
        size = f"{self.lesion_voxels:,} voxels (spacing unknown)"
        if self.lesion_ml is not None:
            size = f"{self.lesion_ml:.2f} ml ({self.lesion_voxels:,} voxels)"
        found = size if self.lesion_voxels else "none found"
        return f"patient {self.patient_id}, series {self.series_id}: lesion {found}{', with genes' * self.genes}"


@dataclass(frozen=True)
class SegmentResult:
    """What `segment` wrote. ``notes``: what of the input is not as in training; ``set_aside``: what was left out."""

    out: Path
    model: str
    series: tuple[SegmentedSeries, ...]
    notes: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    note: str = RESEARCH

    @property
    def files(self) -> tuple[Path, ...]:
        """All files written."""
        return tuple(file for one in self.series for file in one.files)

    @property
    def exclusions(self) -> int:
        """How many series and files were left out."""
        return len(self.set_aside)

    def lines(self) -> list[str]:
        """What a person is told: each series with its files, what was missing, and what this is not."""
        told = []
        for one in self.series:
            pictures = [file for file in one.files if file.suffix == ".png"]
            told += [one.line(), *(f"  {file}" for file in one.files if file.suffix != ".png")]
            told += [f"  {pictures[0].parent}: {len(pictures)} pictures"] if pictures else []
        told += [f"note: {one}" for one in self.notes]
        told += [f"left out: {one}" for one in self.set_aside]
        return [*told, self.note]


def segment(
    scan: Path | str,
    model: Path | str,
    genes: Path | str | None = None,
    out: Path | str = Path("masks"),
    formats: str | Sequence[str] = "nifti",
    device: str = "auto",
    progress: Progress | None = None,
) -> SegmentResult:
    """Segment a DICOM, NIfTI or picture scan, or a folder of patients, into ``out``; a mask a series.

    ``genes``: a table with genes as columns, in the scale of training, a row a patient (for one patient a single row,
    with or without an id); ids stand in the column that had them in training, else in the first. Who has no row is
    segmented by the model's learnt stand-in for genes. ``formats``: some of `FORMATS`, in a list or joined by commas.
    Masks lie on the voxels of their source: NIfTI of a NIfTI source on its
    own grid; DICOM SEG there is only of DICOM.
    Raises `InputError` with everything that is wrong before anything is written, and leaves no half of a result.
    """
    from medform.compute.device import choose_device, set_threads
    from medform.ingestion.ingest import ingest_scan
    from medform.ingestion.plan import ReadSettings, plan_folder
    from medform.pipeline.frozen_segmentation import load_segmenter
    from medform.pipeline.scans import reading, unsure
    from medform.runs.folder import read_json
    from medform.runs.model_folder import find_model

    source, target = Path(scan), Path(out)
    asked = [one.strip() for one in formats.split(",") if one.strip()] if isinstance(formats, str) else list(formats)
    problems = _asked(asked, source, target)
    place: Any = choose_device(device).torch
    segmenter = load_segmenter(Path(model))
    segmenter.objective.to(place)
    preprocess = read_json(find_model(Path(model)) / "preprocess.json")
    read = reading(preprocess)
    with tempfile.TemporaryDirectory() as scratch:
        cohort = ingest_scan(source, Path(scratch) / "store", **read, progress=progress)
        plan = plan_folder(source, ReadSettings(unit=read["unit"]))
        found = {one.series_id: one for one in plan.series}
        sources = [(cohort.open(str(one)), found[str(one)]) for one in cohort.series["series_id"]]
        wanted = [one for one in FORMATS if one in asked]
        problems += [fault for series, one in sources for fault in _unplaced(series, one, wanted)]
        encoded, notes, faults = _genes(segmenter, cohort, None if genes is None else Path(genes))
        doubts = unsure(cohort, preprocess)
        notes += [f"patient {patient}: {remark}" for patient, remarks in doubts.items() for remark in remarks]
        _refuse([*problems, *faults], source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as unfinished:
            store = segmenter.slices(cohort)
            stems = _stems([one for _, one in sources])
            series = []
            for number, (one, origin) in enumerate(sources):
                mask = segmenter.draw(cohort, store, number, encoded, set_threads()).astype(np.uint8)
                written = _write(mask, one, origin, plan.root, Path(unfinished) / stems[number], wanted)
                having = encoded is not None and one.patient_id in encoded.patient_ids
                series.append(_segmented(mask, one, written, Path(unfinished), target, genes=having))
                if progress is not None:
                    progress(number + 1, len(sources), "segmenting series")
            _move(Path(unfinished), target)
        aside = tuple(f"{one.file}: {one.reason}" for one in cohort.quarantine() if one.code != "skipped")
    return SegmentResult(target, segmenter.name, tuple(series), tuple(notes), aside)


def _asked(formats: Sequence[str], scan: Path, out: Path) -> list[Problem]:
    """What is wrong with the call itself; raises `ExtraMissing` where a format's library is not installed."""
    problems = []
    for one in dict.fromkeys(formats):
        if one not in FORMATS:
            close = nearest(one, FORMATS, 1)
            hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(FORMATS)}."
            problems.append(Problem("no such format.", column="--format", value=one, suggestion=hint))
        elif one in EXTRAS and importlib.util.find_spec(EXTRAS[one][0]) is None:
            library, extra = EXTRAS[one]
            raise ExtraMissing(
                f"{one} files are written by {library}, which is not installed.",
                where="--format",
                consequence="Nothing was written.",
                fix=f'pip install "medform[{extra}]"',
            )
    if not formats:
        problems.append(Problem("no format is asked for.", column="--format", suggestion="Give nifti, for example."))
    if out.exists() and not out.is_dir():
        problems.append(Problem("this is a file; masks go into a folder.", column="--out", value=str(out)))
    elif scan.is_dir() and out.resolve().is_relative_to(scan.resolve()):
        text = "lies in the scan's own folder, where the masks would be taken for scans."
        problems.append(Problem(text, column="--out", value=str(out), suggestion="Name a folder elsewhere."))
    return problems


def _unplaced(series: Series, source: FoundSeries, formats: Sequence[str]) -> list[Problem]:
    """The formats in which the mask of this series cannot be written, with why."""
    found = []
    for one in formats:
        why = None
        if one == "dicomseg" and source.reader != "dicom":
            why = f"a DICOM segmentation refers to DICOM slices, and this scan is a {source.reader} file."
        elif one in PLACED and series.affine_lps is None and (one, source.reader) != ("nifti", "nifti"):
            why = "nothing is known of where its slices lie."
        if why is not None:
            hint = "Ask for png, a picture a slice." if series.affine_lps is None else "Ask for nifti, nrrd or png."
            found.append(Problem(why, file=source.files[0], column="--format", value=one, suggestion=hint))
    return found


def _genes(
    segmenter: FrozenSegmenter, cohort: Cohort, path: Path | None
) -> tuple[EncodedGenes | None, list[str], list[Problem]]:
    """Expression of the patients as the model takes it, what of it is not as in training, and what is wrong."""
    from medform.cohort.genes_spec import GenesSpec
    from medform.ingestion.gene_rows import read_gene_rows

    encoder = segmenter.genes
    if path is None:
        notes = ["no genes were given: their learnt stand-in was used"] if segmenter.reads_genes else []
        return None, notes, []
    if encoder is None or not segmenter.reads_genes:
        return None, [], [Problem("this model reads no genes.", column="--genes", suggestion="Leave --genes out.")]
    spec = GenesSpec.model_validate({"path": path.name, **segmenter.gene_file, "scale": encoder.scale})
    try:
        known = {*encoder.gene_ids, *encoder.left_out, *encoder.constant}
        rows = read_gene_rows(path, known, spec, cohort.patient_ids)
        if rows.problems:
            return None, [], list(rows.problems)
        owned, said = _owned(rows.genes, named=rows.named, cohort=cohort)
        encoded = encoder.encode(owned)
        if far := far_from_training(encoder, owned, encoded.patient_ids):
            return None, [], [Problem(far, file=path.name, suggestion=f"Give the values as {encoder.scale}.")]
    except InputError as error:
        where = error.where if error.where not in (None, "genes.scale") else path.name
        return None, [], [*error.problems] or [Problem(error.what, file=where, suggestion=error.fix)]
    without = sum(one not in encoded.patient_ids for one in cohort.patient_ids)
    said += [f"{without} patients have no genes: their learnt stand-in was used"] if without else []
    return encoded, [*said, *rows.notes, *dict.fromkeys(one.message for one in encoded.degradations)], []


def _owned(genes: Any, *, named: bool, cohort: Cohort) -> tuple[Any, list[str]]:
    """The rows under the ids of the scan's patients; a single row for a single patient is that patient's."""
    from dataclasses import replace

    from medform.ingestion.identifiers import match_ids, refuse_strangers

    patients = cohort.patient_ids
    if len(genes.patient_ids) == 1 and len(patients) == 1:
        given = genes.patient_ids[0]
        said = [f"genes: row '{given}' was taken for patient '{patients[0]}'"] if named and given != patients[0] else []
        return replace(genes, patient_ids=patients), said
    if not named:
        raise InputError(
            f"{len(genes.patient_ids)} rows without ids for {len(patients)} patients.",
            fix="add a first column with the patients' ids.",
        )
    match = match_ids(patients, genes.patient_ids)
    refuse_strangers(match, "--genes")
    return genes.select(match.matched), []


def far_from_training(encoder: GeneEncoder, genes: Any, kept: Sequence[str]) -> str | None:
    """Why these values cannot be of the scale of training: too far from its mean throughout. None where they can.

    Only patients ``kept`` by the encoder are judged: the others count as ones without genes, and counts that lack many
    reads are far from training in any scale.
    """
    genes = genes.select(kept)
    away = np.abs(encoder.unscaled(genes, np.arange(len(genes.patient_ids))) - encoder.mean) / encoder.spread
    for patient, row in zip(genes.patient_ids, away, strict=True):
        known = row[np.isfinite(row)]
        if len(known) >= FEWEST_JUDGED and np.median(known) > FURTHEST:
            return (
                f"the expression of patient '{patient}' is not {encoder.scale} as in training: half of its genes are "
                f"more than {np.median(known):.1f} standard deviations from the training mean."
            )
    return None


def _refuse(problems: Sequence[Problem], scan: Path) -> None:
    if problems:
        raise InputError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}.",
            where=str(scan),
            consequence="Nothing was written.",
            problems=problems,
        )


def _stems(sources: Sequence[FoundSeries]) -> list[str]:
    """A name a series, from its file (DICOM: its UID); from its whole id where two would be alike."""
    from medform.cohort.files import file_stem
    from medform.ingestion.layouts.place import stem

    short = [stem(one.files[0]) if one.reader == "nifti" else one.series_id for one in sources]
    return [
        f"{file_stem(name if short.count(name) == 1 else one.series_id)}_mask"
        for name, one in zip(short, sources, strict=True)
    ]


def _write(
    mask: np.ndarray, series: Series, source: FoundSeries, root: Path, start: Path, formats: Sequence[str]
) -> list[Path]:
    """Write one mask in every format, under names that begin with ``start``."""
    from medform.ingestion.nifti import read_nifti_grid
    from medform.runs.mask_files import write_dicom_seg, write_nifti, write_nrrd, write_png

    affine = series.affine_lps
    files: list[Path] = []
    paths: Mapping[str, Path] = {
        "nifti": start.with_name(f"{start.name}.nii.gz"),
        "nrrd": start.with_name(f"{start.name}.seg.nrrd"),
        "dicomseg": start.with_name(f"{start.name}.dcm"),
    }
    files += [paths[one] for one in formats if one in paths]
    if "nifti" in formats:
        name = source.files[0]
        grid = read_nifti_grid(root / name, name) if source.reader == "nifti" else None
        write_nifti(mask, affine, paths["nifti"], grid=grid)
    if "nrrd" in formats:
        write_nrrd(mask, affine, paths["nrrd"])
    if "dicomseg" in formats:
        slices = list(dict.fromkeys(root / one.file for one in source.slices))
        write_dicom_seg(mask, affine, slices, paths["dicomseg"], instances=[one.instance for one in source.slices])
    return files + (write_png(mask, start) if "png" in formats else [])


def _segmented(
    mask: np.ndarray, series: Series, files: Sequence[Path], unfinished: Path, out: Path, *, genes: bool
) -> SegmentedSeries:
    voxels, spacing = int(mask.sum()), series.spacing_mm
    known = spacing is not None and bool(np.isfinite(spacing).all())
    volume = voxels * float(np.prod(spacing)) / 1000 if known and spacing is not None else None
    moved = tuple(out / file.relative_to(unfinished) for file in files)
    return SegmentedSeries(series.patient_id, series.series_id, moved, voxels, volume, genes)


def _move(unfinished: Path, out: Path) -> None:
    """Put the finished files into ``out``; pictures of an earlier mask of the same name go first."""
    out.mkdir(exist_ok=True)
    for folder in (one for one in unfinished.iterdir() if one.is_dir()):
        for old in (out / folder.name).glob("mask_*.png"):
            old.unlink()
    for file in sorted(one for one in unfinished.rglob("*") if one.is_file()):
        target = out / file.relative_to(unfinished)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
