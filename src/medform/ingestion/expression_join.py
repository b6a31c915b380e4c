"""Whose is each sample of an expression matrix? Barcodes, sample sheets and id rules, and a report of all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from medform.cohort.genes import JoinRow
from medform.cohort.genes_spec import GenesSpec
from medform.errors import Problem
from medform.ingestion.barcodes import REPLICATE_RULE, is_wanted_tissue, parse_barcode
from medform.ingestion.identifiers import IdMatch, match_ids, normalised
from medform.ingestion.sample_sheet import SheetRow

__all__ = ["Joined", "Sample", "SampleMatcher", "sample_counts"]

SHOWN = 5
KEEP_ONE = "Keep one of them."


@dataclass(frozen=True)
class Sample:
    """One sample of a matrix: its id there, and what its file says of it.

    ``source`` is a file name where each sample has its own. ``patient`` and ``kind`` (the sample type in words)
    come from a sheet or from the matrix's own annotation. ``place`` is its row or column, for messages.
    """

    sample_id: str
    source: str = ""
    patient: str | None = None
    kind: str = ""
    place: str = ""


@dataclass(frozen=True)
class Joined:
    """Which sample is whose.

    ``sample_of``: patient -> number of the sample taken; ``rows``: the report; ``problems``: what must be mended
    first.
    """

    sample_of: dict[str, int]
    rows: tuple[JoinRow, ...]
    problems: tuple[Problem, ...]


def sample_counts(rows: Iterable[JoinRow]) -> dict[str, int]:
    """How many samples of the matrix a join report calls matched, ambiguous and orphans, for a cohort's flow."""
    found = Counter(row.status for row in rows if row.sample_id)
    return {
        "genes_samples": sum(found.values()),
        "genes_matched": found["matched"],
        "genes_ambiguous": found["ambiguous"],
        "genes_orphan": found["orphan"],
    }


class SampleMatcher:
    """Decides whose a sample is.

    ``known``: patients with images or a row of the table; ``sheet``: sample id or file name -> its row.
    """

    def __init__(
        self,
        known: Iterable[str],
        spec: GenesSpec,
        sheet: Mapping[str, SheetRow] | None = None,
        id_map: dict[str, str] | None = None,
    ) -> None:
        self.known, self.spec, self.sheet, self.id_map = frozenset(known), spec, sheet, id_map or {}
        self._alike = {normalised(one, spec.id_rules) for one in self.known}

    def patient_id(self, sample: Sample) -> str | None:
        """The patient's id by the sample, its sheet or its barcode; None where the sheet leaves the sample out."""
        if sample.patient is not None:
            return sample.patient
        if self.sheet is not None:
            row = self.sheet.get(sample.sample_id)
            return None if row is None else row.patient_id
        if sample.sample_id in self.known:
            return sample.sample_id
        barcode = parse_barcode(sample.sample_id)
        return sample.sample_id if barcode is None else barcode.participant

    def wanted(self, sample: Sample) -> bool:
        """Whether the values of a sample may be needed: it is a known patient's and of the right tissue."""
        patient = self.patient_id(sample)
        if patient is None or self._other_tissue(sample):
            return False
        return self.is_known(patient)

    def is_known(self, patient: str) -> bool:
        """Whether an id is a known patient's, as written, by the map or under the rules."""
        return (
            patient in self.known
            or self.id_map.get(patient) in self.known
            or (bool(self.spec.id_rules) and normalised(patient, self.spec.id_rules) in self._alike)
        )

    def _other_tissue(self, sample: Sample) -> str:
        """Why a sample is not of the wanted tissue; empty where it is, or where nothing says what it is."""
        row = self.sheet.get(sample.sample_id) if self.sheet is not None else None
        barcode, tissue = parse_barcode(sample.sample_id), self.spec.tissue
        if barcode is not None and barcode.sample is not None and sample.sample_id not in self.known:
            if is_wanted_tissue(barcode, tissue):
                return ""
            return f"sample code {barcode.sample:02d}, {barcode.tissue}; genes.tissue is {tissue}."
        kind = sample.kind or (row.kind if row else "")
        if kind and tissue != "any" and ("normal" in kind.casefold()) != (tissue == "normal"):
            return f"sample type '{kind}'; genes.tissue is {tissue}."
        return ""

    def join(self, samples: Sequence[Sample]) -> Joined:
        """Assign every sample. The result does not depend on the order of samples."""
        rows: list[JoinRow] = []
        claims: dict[str, list[int]] = {}
        for number, sample in enumerate(samples):
            patient = self.patient_id(sample)
            if patient is None:
                rows.append(_orphan(sample, "", "not in the sample sheet."))
            elif why := self._other_tissue(sample):
                rows.append(_orphan(sample, patient if self.is_known(patient) else "", why))
            else:
                claims.setdefault(patient, []).append(number)
        match = match_ids(self.known, claims, self.spec.id_rules, self.id_map)
        problems = [replace(one, suggestion="Join them by hand with genes.id_map.") for one in match.problems]
        sample_of: dict[str, int] = {}
        for theirs, numbers in sorted(claims.items()):
            patient = match.matched.get(theirs)
            if patient is None:
                why = "its patient has neither images nor a row of the table."
                rows += [_orphan(samples[number], "", why) for number in numbers]
                continue
            how = self._how(theirs, patient, samples[numbers[0]], match)
            first, *others = sorted(numbers, key=lambda number: _rank(samples[number]))
            sample_of[patient] = first
            taken = samples[first]
            rule = f" First of {len(numbers)} samples by {REPLICATE_RULE}." if others else ""
            rows.append(JoinRow("matched", patient, taken.sample_id, taken.source, how + rule))
            for number in others:
                why = f"{_name(taken)} was taken: {REPLICATE_RULE}."
                rows.append(JoinRow("ambiguous", patient, samples[number].sample_id, samples[number].source, why))
            problems += _unruled(patient, [samples[number] for number in numbers])
        rows += [
            JoinRow("orphan", one, "", "", "the matrix has no sample of this patient.")
            for one in self.known
            if one not in sample_of
        ]
        return Joined(sample_of, tuple(sorted(rows)), tuple(problems))

    def _how(self, theirs: str, patient: str, sample: Sample, match: IdMatch) -> str:
        if theirs in match.by_rule:
            return "by genes.id_map." if theirs in self.id_map else f"by rules {', '.join(self.spec.id_rules)}."
        if patient == sample.sample_id:
            return "equal ids."
        return "by the sheet." if self.sheet is not None or sample.patient else "by the barcode's participant."


def _rank(sample: Sample) -> tuple[object, ...]:
    """Lowest first: by barcode, then id and file; ids that are no barcode come last."""
    barcode = parse_barcode(sample.sample_id)
    return (barcode is None, *(barcode.rank if barcode else ()), sample.sample_id, sample.source)


def _unruled(patient: str, mine: Sequence[Sample]) -> list[Problem]:
    """Several samples of one patient that no barcode ranks: a person must say which one counts."""
    ids = Counter(one.sample_id for one in mine)
    problems = []
    for one, count in sorted(ids.items()):
        if count > 1 and not any(sample.source for sample in mine):
            places = ", ".join(sample.place for sample in mine if sample.sample_id == one)
            problems.append(Problem(f"this sample stands {count} times ({places}).", value=one, suggestion=KEEP_ONE))
    if len(ids) > 1 and not all(parse_barcode(one) for one in ids):
        listed = ", ".join(map(repr, sorted(ids)[:SHOWN]))
        hint = "Leave the one that counts in the sample sheet (genes.samples)."
        problems.append(Problem(f"{len(ids)} samples of patient '{patient}': {listed}.", suggestion=hint))
    return problems


def _orphan(sample: Sample, patient: str, why: str) -> JoinRow:
    return JoinRow("orphan", patient, sample.sample_id, sample.source, why)


def _name(sample: Sample) -> str:
    return f"'{sample.sample_id}'" + (f" ({sample.source})" if sample.source else "")
