"""What in DICOM headers names a person, place or moment: which attributes are filled, never what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from medform.errors import Problem
from medform.ingestion.dicom_file import guard, open_header
from medform.ingestion.found_series import Refused

__all__ = ["identity_problems"]

IDENTIFYING = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientAddress", "PatientTelephoneNumbers"),
    *("OtherPatientIDs", "OtherPatientNames", "PatientComments", "EthnicGroup", "Occupation"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "RequestingPhysician"),
    *("InstitutionName", "InstitutionAddress", "StationName", "DeviceSerialNumber"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ImageComments"),
)
"""Attributes of DICOM PS3.15 annex E that hospitals commonly fill; private ones are not looked at."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def identity_problems(root: Path, files: Sequence[str]) -> list[Problem]:
    """A `Problem` for each identifying attribute that is filled, and for pixels that may hold burned-in text.

    ``files`` are relative to ``root``. A clean list is no proof: text in the pixels and private elements
    are not read.
    """
    filled: Counter[str] = Counter()
    first: dict[str, str] = {}
    for name in files:
        for found in _attributes(root / name, name):
            filled[found] += 1
            first.setdefault(found, name)
    problems = []
    for attribute in (*IDENTIFYING, "BurnedInAnnotation"):
        if count := filled[attribute]:
            burned = attribute == "BurnedInAnnotation"
            text = "the pixels may hold text that names a person" if burned else "may identify a person"
            hint = "Blank or leave out these images." if burned else "Remove it before the files leave the hospital."
            plural = "s" if count > 1 else ""
            problem = f"{text} ({count} file{plural})."
            problems.append(Problem(problem, file=first[attribute], column=attribute, suggestion=hint))
    return problems


def _attributes(path: Path, name: str) -> list[str]:
    """Names of the identifying attributes that a file fills."""
    tags = (*IDENTIFYING, "BurnedInAnnotation", "SOPClassUID")
    try:
        dataset, _ = open_header(path, name, tags)
        with guard(name):
            found = [attribute for attribute in IDENTIFYING if str(dataset.get(attribute) or "").strip()]
            burned = str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES"
            if burned or str(dataset.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE):
                found.append("BurnedInAnnotation")
            return found
    except (Refused, OSError):
        return []
