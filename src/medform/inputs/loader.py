"""Which slices or patients meet at a step: batches as a pure function of (seed, step), nothing carried along.

So a run that was killed goes on with the very batches it would have seen, in any process and on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, Protocol, Self, TypeGuard, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int

from medform.compute.seed import derive, numpy_generator
from medform.errors import InputError
from medform.inputs.augment import augment, parameter_table
from medform.inputs.slices import SliceInputConfig, SliceStore
from medform.inputs.stacks import PatientSlicesConfig, plain_stacks, stack_table, stack_views
from medform.interfaces import Batch, Block

__all__ = [
    "EpochSampler",
    "Loader",
    "PairedSource",
    "PatientLoader",
    "RowSource",
    "SliceLoader",
    "SlicePatientLoader",
    "Source",
    "mismatch",
    "mismatched",
    "slice_block",
]

Codes = Int[np.ndarray, " n"]
DRAWS = 100  # cycles that are tried for a second shuffled modality; about every third does


class Loader(Protocol):
    """What the training loop asks for."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every item comes once."""
        ...

    def batch(self, step: int) -> Batch:
        """The batch of ``step``, whatever was asked before."""
        ...

    def whole(self) -> Batch:
        """All training patients at once, for closed-form starts."""
        ...


class Source(Protocol):
    """One modality of many patients."""

    def block(self, patients: Codes) -> Block:
        """A row for each of ``patients`` that has the modality, in the order given."""
        ...


@runtime_checkable
class PairedSource(Source, Protocol):
    """A source whose rows can be given to other patients, for the shuffled control."""

    def reassigned(self, owner: Mapping[int, int]) -> Self:
        """The same rows in other hands: patient p gets the row of ``owner[p]``."""
        ...


def slice_block(store: SliceStore, rows: Codes, value: Mapping[str, Float32[np.ndarray, "m c s s"]]) -> Block:
    """A block of single slices: ``value`` by name, one entry for each of ``rows`` of ``store``.

    Beside them what is known of places: ``series`` (of the cohort) and ``height`` in it, 0 to 1.
    """
    patient = torch.from_numpy(store.patient[rows])
    known = {"series": store.series[rows], "height": store.height[rows]}
    return Block(
        value={name: torch.from_numpy(array) for name, array in (known | dict(value)).items()},
        patient=patient,
        item=torch.from_numpy(rows),
        cohort=torch.zeros_like(patient),
        z=torch.from_numpy(store.index[rows]),
        z_mm=torch.from_numpy(store.z_mm[rows]),
    )


@dataclass(frozen=True)
class EpochSampler:
    """Items 0..n-1 in a new order each epoch, cut into batches of nearly equal size, none larger than ``batch``.

    Every item comes once an epoch. No batch is smaller than ``least``, unless there are fewer items: where
    that cannot be kept otherwise (odd n in pairs), one item sits out an epoch, another one each time.
    """

    n: int
    batch: int
    seed: int
    least: int = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError("there is nothing to train on.", fix="check the training patients of the fold.")
        if self.batch < self.least:
            raise InputError(
                f"a batch of {self.batch} cannot be learnt from: it holds no negatives.",
                where="batch",
                fix=f"use a batch of {self.least} or more.",
            )

    @property
    def used(self) -> int:
        """Items of one epoch."""
        cuts = math.ceil(self.n / self.batch)
        return self.n if self.n // cuts >= self.least or self.n < self.least else self.n // self.batch * self.batch

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        return math.ceil(self.used / self.batch)

    def at(self, step: int) -> tuple[int, Codes]:
        """Epoch of ``step`` and the items of its batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = numpy_generator(self.seed, "order", epoch).permutation(self.n)[: self.used]
        return epoch, np.array_split(order, self.steps_per_epoch)[place]


class SliceLoader:
    """Batches of two views of single slices: one block, first all first views, then all second ones."""

    views = 2

    def __init__(
        self,
        store: SliceStore,
        rows: Int[np.ndarray, " n"],
        config: SliceInputConfig,
        batch: int,
        seed: int,
        threads: int = 1,
        modality: str = "image",
    ) -> None:
        self.store, self.rows, self.config = store, rows, config
        self.seed, self.threads, self.modality = derive(seed, "views"), threads, modality
        self.sampler = EpochSampler(len(rows), batch, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every slice comes once."""
        return self.sampler.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """Views of ``step``'s slices, (2 M, 1, size, size) in [0, 1]; two views of a slice share ``item``."""
        epoch, places = self.sampler.at(step)
        rows = np.tile(self.rows[places], self.views)
        view = np.repeat(np.arange(self.views), len(places))
        table = parameter_table(self.config.augment, self.store.key[rows], view, epoch, self.seed)
        pixels, to_unit = self.store.pixels, self.store.scale.to_unit
        image = augment(pixels, rows, table, to_unit, self.config.size, self.threads)
        return {self.modality: slice_block(self.store, rows, {"image": image})}

    def whole(self) -> Batch:
        """Every training slice once, as it is seen at inference."""
        return {self.modality: slice_block(self.store, self.rows, {"image": self.store.images(self.rows)})}


@dataclass(frozen=True)
class RowSource:
    """One row of numbers a patient (encoded table, labels): ``values`` (n, q) of patients ``codes`` (n,)."""

    values: Float32[np.ndarray, "n q"]
    codes: Codes
    name: str = "table"  # of the tensor in Block.value

    def block(self, patients: Codes) -> Block:
        """Rows of those of ``patients`` that have one, in the order given."""
        place = {int(code): row for row, code in enumerate(self.codes)}
        found = [int(code) for code in patients if int(code) in place]
        code = torch.tensor(found, dtype=torch.int64)
        rows = np.array([place[code] for code in found], np.int64)
        values = torch.from_numpy(np.ascontiguousarray(self.values[rows]))
        return Block(value={self.name: values}, patient=code, item=code, cohort=torch.zeros_like(code))

    def reassigned(self, owner: Mapping[int, int]) -> RowSource:
        """The same rows in other hands: patient p gets the row of ``owner[p]``, else keeps its own."""
        inverse = {old: new for new, old in owner.items()}
        codes = np.array([inverse.get(int(code), int(code)) for code in self.codes], np.int64)
        return RowSource(self.values, codes, self.name)


def mismatch(patients: Codes, seed: int, taken: Sequence[Mapping[int, int]] = ()) -> dict[int, int]:
    """A random assignment in which each of ``patients`` gets another one's row (a single one its own).

    One cycle through all of them (Sattolo 1986), so that no pair of the shuffled control is a true pair. Of up to
    `DRAWS` cycles it is the first in which nobody gets the row of one whose row of another modality, assigned by one
    of ``taken``, is theirs too; where two patients or fewer leave no such cycle, the one with the fewest.
    """
    random = numpy_generator(seed, "mismatch")
    drawn: list[tuple[int, dict[int, int]]] = []
    while not drawn or (drawn[-1][0] and len(drawn) < DRAWS):
        given = [int(code) for code in patients]
        for last in range(len(given) - 1, 0, -1):
            other = int(random.integers(last))
            given[last], given[other] = given[other], given[last]
        owner = dict(zip((int(code) for code in patients), given, strict=True))
        drawn.append((sum(other.get(one) == row for other in taken for one, row in owner.items()), owner))
    return min(drawn, key=itemgetter(0))[1]


def mismatched(source: PairedSource, patients: Codes, seed: int) -> PairedSource:
    """``source`` with the rows of those of ``patients`` who have one exchanged, by `mismatch`."""
    return source.reassigned(mismatch(source.block(patients).patient.numpy(), seed))


def _paired(source: Source) -> TypeGuard[PairedSource]:
    """Whether the control gives the rows of ``source`` to other patients: tables and genes, never labels."""
    return source.name == "table" if isinstance(source, RowSource) else isinstance(source, PairedSource)


def _shuffled(sources: Mapping[str, Source], patients: Codes, seed: int) -> dict[str, Source]:
    """``sources`` of the shuffled control: the rows of two modalities that meet are never of one patient."""
    given, taken = dict(sources), list[Mapping[int, int]]()
    for modality, source in sources.items():
        if _paired(source):
            taken.append(mismatch(source.block(patients).patient.numpy(), seed, taken))
            given[modality] = source.reassigned(taken[-1])
    return given


class PatientLoader:
    """Batches of patients over several modalities; each block holds the patients that have the modality.

    ``pairing="shuffled"`` is the control: the rows of every table (a `RowSource` called "table") and of every
    other `PairedSource`, as genes, go to other training patients, seeded: the table of one to one,
    the genes to another; labels stay. ``batch`` counts patients.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        patients: Codes,
        batch: int,
        seed: int,
        pairing: Literal["matched", "shuffled"] = "matched",
    ) -> None:
        there = [source.block(patients).patient.numpy() for source in sources.values()]
        patients = patients[np.isin(patients, np.concatenate(there))]  # one without anything teaches nothing
        self.patients = patients
        self.sources = dict(sources)
        self.sampler = EpochSampler(len(patients), batch, seed, least=2)
        if pairing == "shuffled":
            self.sources = _shuffled(sources, patients, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every patient comes once."""
        return self.sampler.steps_per_epoch

    def _blocks(self, patients: Codes) -> Batch:
        blocks = {modality: source.block(patients) for modality, source in self.sources.items()}
        return {modality: block for modality, block in blocks.items() if len(block)}

    def batch(self, step: int) -> Batch:
        """The patients of ``step``; a modality that none of them has is not in the batch."""
        return self._blocks(self.patients[self.sampler.at(step)[1]])

    def whole(self) -> Batch:
        """All training patients, in the cohort's order."""
        return self._blocks(self.patients)


class SlicePatientLoader:
    """Batches of patients: a few single slices of each ("image"), and one row of each further source, as "genes".

    The slices of a patient are drawn without replacement (all of them where there are no more than asked for), so
    that a multi-positive contrast meets 64 slices with 32 gene rows and a gene tower runs once a patient. A
    patient without genes keeps the slices, one without images the row. ``lesion_pixels`` (T,), as of a
    `MaskStore`, are needed where the configuration's ``lesion_weight`` is not 1. ``batch`` counts patients.
    """

    def __init__(
        self,
        store: SliceStore,
        patients: Codes,
        config: PatientSlicesConfig,
        batch: int,
        seed: int,
        sources: Mapping[str, Source],
        *,
        threads: int = 1,
        lesion_pixels: Int[np.ndarray, " t"] | None = None,
        pairing: Literal["matched", "shuffled"] = "matched",
    ) -> None:
        self.store, self.config, self.threads = store, config, threads
        self.seed, self.views = seed, derive(seed, "views")
        self._rows = {int(code): np.flatnonzero(store.patient == code) for code in patients}
        imaged = np.array([code for code, rows in self._rows.items() if len(rows)], np.int64)
        there = [imaged, *(source.block(patients).patient.numpy() for source in sources.values())]
        self.patients = patients[np.isin(patients, np.concatenate(there))]
        self.sampler = EpochSampler(len(self.patients), batch, seed, least=2)
        self.sources = dict(sources)
        if pairing == "shuffled":
            self.sources = _shuffled(sources, self.patients, seed)
        self._weight = np.ones(len(store))
        if config.lesion_weight != 1:
            if lesion_pixels is None:
                raise InputError("lesion_weight needs masks.", where="inputs.image", fix="add a mask input, or use 1.")
            self._weight[lesion_pixels > 0] = config.lesion_weight

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every patient comes once."""
        return self.sampler.steps_per_epoch

    def _draw(self, code: int, epoch: int) -> Codes:
        rows = self._rows[code]
        if len(rows) <= self.config.slices:
            return rows
        share = self._weight[rows] / self._weight[rows].sum()
        random = numpy_generator(self.seed, "slices", epoch, code)
        return np.sort(random.choice(rows, self.config.slices, replace=False, p=share))

    def _blocks(self, patients: Codes, rows: Codes, image: Float32[np.ndarray, "m c s s"]) -> Batch:
        blocks = {"image": slice_block(self.store, rows, {"image": image})}
        blocks |= {modality: source.block(patients) for modality, source in self.sources.items()}
        return {modality: block for modality, block in blocks.items() if len(block)}

    def batch(self, step: int) -> Batch:
        """The patients of ``step``; a modality that none of them has is not in the batch."""
        epoch, places = self.sampler.at(step)
        patients = self.patients[places]
        rows = np.concatenate([self._draw(int(code), epoch) for code in patients]).astype(np.int64)
        key = self.store.key[rows]
        table = stack_table(self.config.augment, key, np.zeros_like(key), epoch, self.views)
        image = stack_views(self.store, rows, table, self.config, self.threads)
        return self._blocks(patients, rows, image)

    def whole(self) -> Batch:
        """All slices of all training patients, as they are seen at inference, with all rows."""
        rows = np.concatenate([self._rows[int(code)] for code in self.patients]).astype(np.int64)
        return self._blocks(self.patients, rows, plain_stacks(self.store, rows, self.config, self.threads))
