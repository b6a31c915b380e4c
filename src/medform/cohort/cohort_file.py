"""Schema of the cohort file: what a hospital's files are, which column means what, which questions are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from medform.cohort.field_types import IdRule, Pattern, Words
from medform.cohort.genes_spec import GenesSpec
from medform.cohort.masks_spec import Masks
from medform.config import Config, load, parse
from medform.errors import InputError, Problem

__all__ = [
    "MOMENTS",
    "CohortFile",
    "ColumnSpec",
    "ColumnType",
    "Images",
    "Index",
    "Moment",
    "Role",
    "Select",
    "SliceTask",
    "Splits",
    "Survival",
    "TableSpec",
    "Task",
    "Unit",
    "VisitRule",
    "parse_cohort_file",
    "read_cohort_file",
]

Moment = Literal["before_scan", "scan", "before_surgery", "after_surgery", "follow_up"]
MOMENTS: tuple[Moment, ...] = ("before_scan", "scan", "before_surgery", "after_surgery", "follow_up")
Role = Literal["id", "feature", "label", "outcome", "time", "group", "ignore"]
ColumnType = Literal["number", "category", "ordinal", "set", "boolean", "date", "text"]
Unit = Literal["HU", "display", "raw"]

DEFAULT_WINDOW: dict[Unit, tuple[float, float]] = {"HU": (-1000.0, 400.0), "display": (0.0, 255.0)}


class Select(Config):
    """Which series is the patient's image. Patterns are regular expressions, searched without regard to case."""

    modality: str | None = None
    description: Pattern | None = None
    kernel: Pattern | None = None
    rule: Literal["thinnest", "most_slices", "first_visit", "all"] | None = None


class Images(Config):
    """Where the images are and what their numbers mean.

    ``unit``: HU, ``display`` (grey values 0-255 of a fixed window) or ``raw`` (arbitrary, as in MRI). Where it is not
    written it is HU, and files that are no DICOM are refused unless their values are those of a CT.
    ``window_hu`` is the range that is mapped to [0, 1], in the unit of the images. ``index`` is the table that lists
    the files of slice images. ``assume_hu`` takes CT values as HU where the header does not say what they are.
    ``accept`` lists quarantine codes to let through (the quarantine names them).
    """

    layout: Literal["auto", "dicom", "nifti", "slices", "nnunet", "msd", "bids"] = "auto"
    path: str = "."
    index: str | None = None
    unit: Unit = "HU"
    window_hu: tuple[float, float] | None = None
    select: Select = Select()
    assume_hu: bool = False
    accept: Words = []

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.layout == "slices" and self.index is None:
            raise ValueError("layout 'slices' needs the table that lists them: set images.index.")
        if self.layout == "slices" and "unit" not in self.model_fields_set:
            raise ValueError("layout 'slices' needs images.unit: display for grey values 0-255, HU, or raw.")
        if self.window_hu is not None and not self.window_hu[0] < self.window_hu[1]:
            raise ValueError("images.window_hu needs [low, high] with low < high.")
        return self


class Index(Config):
    """Columns of the slice index table (``images.index``)."""

    patient: str = "patient_id"
    order: str = "slice_index"
    file: str = "image"
    mask: str | None = None


class VisitRule(Config):
    """Which row counts where a patient has several: the first or last by a declared date or number column."""

    by: str
    keep: Literal["first", "last"] = "first"


class TableSpec(Config):
    """How a table is read. Rows are counted as in the file, the header's first line being row 1.

    ``missing`` lists the words that mean "no value" (an empty cell always does). ``id_rules`` are differences
    between ids of table and images that are ignored (``zeros``: those that an id begins with; ``separators``: which
    they are, but between two digits not whether there are any); ``id_map`` is a CSV with the columns ``table_id`` and
    ``image_id``. ``skip_rows`` are rows that are none of a patient.
    """

    path: str
    patient_id: str
    sheet: str | None = None
    missing: Words = [""]
    decimal: Literal[".", ","] | None = None
    encoding: str | None = None
    separator: str | None = None
    header_row: int = Field(default=1, ge=1)
    skip_rows: list[int] = []
    visit: VisitRule | None = None
    id_rules: list[IdRule] = []
    id_map: str | None = None


class ColumnSpec(Config):
    """One declared column.

    ``role`` says what it may be used for, ``known_at`` when a feature becomes known (see the glossary). ``levels`` are
    those of an ordinal, lowest first; ``separator`` stands between the members of a set; ``format`` is how dates are
    written (``DD.MM.YYYY``), or ``excel`` for day numbers; ``true_words`` and ``false_words`` are a boolean's.
    ``allow_as_feature`` lets a label, or what restates it, be a feature all the same. ``sentinels`` are numbers that
    mean "no value" (``[]`` says that suspicious ones are real). ``cell_unit`` is a unit written into the cells.
    ``censored: limit`` reads '<0.3' as 0.3 and keeps the sign in ``<column>.censored``.
    """

    role: Role
    type: ColumnType = "text"
    unit: str | None = None
    known_at: Moment | None = None
    levels: Words | None = None
    separator: str = ";"
    format: str | None = None
    sentinels: list[float] | None = None
    missing: Words = []
    decimal: Literal[".", ","] | None = None
    thousands: Literal[",", ".", " ", "'"] | None = None
    cell_unit: str | None = None
    censored: Literal["limit"] | None = None
    true_words: Words = []
    false_words: Words = []
    allow_as_feature: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.type == "ordinal" and not self.levels:
            raise ValueError("an ordinal needs its levels, lowest first: levels: [G1, G2, G3].")
        if self.levels and self.type != "ordinal":
            raise ValueError(f"levels are for ordinals; this column is a {self.type} (a category is open).")
        if self.levels and len(set(self.levels)) < len(self.levels):
            raise ValueError("a level stands twice.")
        if self.decimal and self.decimal == self.thousands:
            raise ValueError("decimal and thousands cannot be the same sign.")
        return self


class Task(Config):
    """A question about a patient: a binary label, when it is asked, and which values are positive.

    ``positive`` lists the positive values (of a set: members, of which one is enough); ``threshold`` makes numbers >=
    threshold positive. A limit such as '<0.3' gives a label only where it lies wholly on one side of the threshold.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    label: str
    predicted_at: Moment
    primary: bool = False
    positive: Words | None = None
    threshold: float | None = None

    @field_validator("label")
    @classmethod
    def _of_the_table(cls, label: str) -> str:
        if not label.startswith("clinical.") or label == "clinical.":
            raise ValueError("a task's label is a column of the clinical table: clinical.<column>.")
        return label

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.positive is not None and self.threshold is not None:
            raise ValueError("give positive or threshold, not both.")
        return self

    @property
    def column(self) -> str:
        """Name of the label column in the clinical table."""
        return self.label.removeprefix("clinical.")


class SliceTask(Config):
    """A question about a slice, from a column of the index; it probes the encoder and never trains it.

    ``positive`` is a list of values or a comparison such as ``"> 0"``; without it the column must hold 0 and
    1.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    label: str
    positive: Words | None = None

    @field_validator("label")
    @classmethod
    def _of_the_index(cls, label: str) -> str:
        if not label.startswith("index.") or label == "index.":
            raise ValueError("a slice task's label is a column of the index: index.<column>.")
        return label

    @property
    def column(self) -> str:
        """Name of the label column in the index."""
        return self.label.removeprefix("index.")


class Splits(Config):
    """How patients are divided.

    ``validation`` is a share of each fold's training patients. ``stratify`` names tasks whose classes every fold gets
    its share of (default: the primary task). ``group`` names a column of the clinical table (family, person): patients
    with the same value in it stay in one part of each fold; a column's role ``group`` alone does not do that. ``file``
    brings an own split: a CSV with the columns ``patient_id``, ``fold`` (from 0) and ``part`` (train, validation or
    test), a line a patient and fold.
    """

    name: str = Field(default="main", pattern=r"^[A-Za-z0-9_.-]+$")
    folds: int = Field(default=5, ge=2)
    validation: float = Field(default=0.15, ge=0.0, lt=1.0)
    stratify: Words | None = None
    group: str | None = None
    seed: int = 7
    file: str | None = None


class Survival(Config):
    """Columns of the clinical table that hold follow-up time and event.

    ``time`` is a number since one moment, of role ``time`` or ``outcome``. ``event`` is a boolean or a number 0 / 1 (1:
    it happened, 0: censored) of role ``outcome`` or ``label``; ``positive`` lists the values that count as 1 where it
    holds words. ``predicted_at`` is when it is asked, as of a task: a feature must be known by then.
    """

    time: str
    event: str
    positive: Words | None = None
    predicted_at: Moment = "scan"


class Reports(Config):
    """Folder or table of report texts; no recipe reads them yet."""

    path: str


class CohortFile(Config):
    """A cohort. Only ``name``, ``licence`` and ``images`` are required; every path is relative to ``root``."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    licence: str = Field(min_length=1)
    images: Images
    index: Index = Index()
    tables: dict[str, TableSpec] = {}
    columns: dict[str, ColumnSpec] = {}
    tasks: list[Task] = []
    slice_tasks: list[SliceTask] = []
    splits: Splits = Splits()
    genes: GenesSpec | None = None
    masks: Masks | None = None
    survival: Survival | None = None
    reports: Reports | None = None
    root: Path | None = None

    @field_validator("tables")
    @classmethod
    def _known_tables(cls, tables: dict[str, TableSpec]) -> dict[str, TableSpec]:
        if other := sorted(set(tables) - {"clinical"}):
            raise ValueError(f"the table is called 'clinical'; '{other[0]}' would not be read.")
        return tables

    @property
    def clinical(self) -> TableSpec | None:
        """The clinical table, if the cohort has one."""
        return self.tables.get("clinical")

    @property
    def primary(self) -> Task | None:
        """The task marked ``primary``; else the first; None without tasks."""
        marked = [task for task in self.tasks if task.primary]
        return (marked or self.tasks or [None])[0]

    @property
    def primary_name(self) -> str | None:
        """Name of the primary task; None without tasks."""
        return None if self.primary is None else self.primary.name

    @property
    def stratify(self) -> list[str]:
        """Names of the tasks that a split is stratified by: as declared, else the primary task."""
        if self.splits.stratify is not None:
            return list(self.splits.stratify)
        return [self.primary.name] if self.primary else []

    @property
    def window(self) -> tuple[float, float] | None:
        """Range mapped to [0, 1], in the unit of the images; None for ``raw`` images without a declared one."""
        return self.images.window_hu or DEFAULT_WINDOW.get(self.images.unit)

    def task(self, name: str) -> Task:
        """The patient task called ``name``; `InputError` with the known names otherwise."""
        for task in self.tasks:
            if task.name == name:
                return task
        known = ", ".join(task.name for task in self.tasks) or "none"
        raise InputError(f"no task '{name}' in cohort '{self.name}'.", fix=f"use one of: {known}.")

    def path(self, relative: str) -> Path:
        """A path of the cohort file, resolved against ``root``."""
        return (self.root or Path()) / relative

    def portable(self) -> dict[str, Any]:
        """JSON-able tree without ``root``: what a store keeps, equal on every machine.

        ``masks``, ``splits.group`` and ``survival.predicted_at`` are left out where they are not set, so that stores
        older than these keys are known as made from the same file.
        """
        tree = self.model_dump(mode="json", exclude={"root"})
        if self.masks is None:
            del tree["masks"]
        if self.splits.group is None:
            del tree["splits"]["group"]
        if self.survival is not None and self.survival.predicted_at == Survival.model_fields["predicted_at"].default:
            del tree["survival"]["predicted_at"]
        return tree


def parse_cohort_file(tree: Any, where: str, root: Path | None = None, text: str | None = None) -> CohortFile:
    """Validate a tree, then the rules between its keys (see `columns.rule_problems`), all faults at once."""
    return _ruled(parse(CohortFile, tree, where, text), where, root)


def read_cohort_file(path: Path, root: Path | None = None) -> CohortFile:
    """Read a cohort file; paths resolve against ``root`` (default: its ``root`` key, else its own folder).

    Raises `InputError` with every fault: unknown keys, broken rules between columns and tasks, files that are
    missing.
    """
    path = Path(path)
    file = load(CohortFile, path)
    folder = Path(root) if root is not None else path.parent / (file.root or ".")
    if not folder.is_dir():
        raise InputError(
            "no such folder.",
            where=str(folder),
            fix="give the folder that holds the cohort's files with --root.",
        )
    return _ruled(file, str(path), folder.resolve())


def _ruled(file: CohortFile, where: str, root: Path | None) -> CohortFile:
    from medform.cohort.columns import rule_problems

    file = file.model_copy(update={"root": root})
    problems = rule_problems(file, where)
    if root is not None:
        problems += _missing_paths(file, where)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise InputError(
            f"{count} in the cohort file.", where=where, consequence="Nothing was started.", problems=problems
        )
    return file


def _missing_paths(file: CohortFile, where: str) -> list[Problem]:
    named = {
        "images.path": file.images.path,
        "images.index": file.images.index,
        "splits.file": file.splits.file,
        "masks.path": file.masks.path if file.masks else None,
    }
    for name, table in file.tables.items():
        named[f"tables.{name}.path"] = table.path
        named[f"tables.{name}.id_map"] = table.id_map
    if file.genes is not None:
        named |= {f"genes.{key}": getattr(file.genes, key) for key in ("path", "samples", "id_map")}
    return [
        Problem(
            f"no such file or folder under {file.root}.",
            file=where,
            column=key,
            value=value,
            suggestion="Paths are relative to --root, else to the cohort file's own folder.",
        )
        for key, value in named.items()
        if value is not None and not file.path(value).exists()
    ]
