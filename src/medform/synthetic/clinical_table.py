"""The clinical table as a hospital exports it: units, gaps, sentinels, decimal commas; CSV and Excel."""

from __future__ import annotations

import csv
import io
import zipfile
from datetime import date
from pathlib import Path

import numpy as np

from medform.synthetic.options import HospitalOptions
from medform.synthetic.planting import PlantedPatient
from medform.synthetic.randomness import generator

__all__ = [
    "FEATURES",
    "SENTINEL",
    "as_json",
    "clinical_values",
    "damage",
    "lost_cells",
    "write_csv",
    "write_excel",
]

Cell = str | int | float | date | None

# Columns that lose cells: what a clinician fills in by hand. The others come out of a system: complete.
FEATURES = ("age (years)", "sex", "weight (kg)", "smoking", "marker", "ldh (U/L)", "room")
SENTINEL = 999  # 'not done' in the column of LDH
MISSING_WORDS = ("", "NA", "n/a")
FIXED_MOMENT = (1980, 1, 1, 0, 0, 0)  # the earliest that a ZIP can say


def clinical_values(patient: PlantedPatient, day: date | None, seed: int) -> dict[str, Cell]:
    """The true row of a patient, nothing missing; ``day`` is that of the first scan (None without one).

    ``chemo_cycles`` is decided after the outcome and gives it away; ``room`` means nothing.
    """
    random = generator(seed, "table", patient.patient_id)
    cycles = int(random.integers(2, 7)) if patient.malignant else 0
    return {
        "patient_id": patient.patient_id,
        "age (years)": patient.age_years,
        "sex": patient.sex,
        "weight (kg)": patient.weight_kg,
        "smoking": str(random.choice(["never", "former", "current"], p=[0.3, 0.45, 0.25])),
        "marker": round(patient.marker, 1),
        "marker_unit": "U/mL",
        "ldh (U/L)": int(np.clip(np.round(random.normal(220, 45)), 90, 600)),
        "scan_date": day,
        "room": int(random.integers(101, 149)),
        "scanner": patient.scanner,
        "stage": patient.stage,
        "malignant": "yes" if patient.malignant else "no",
        "chemo_cycles": cycles,
        "follow_up_months": round(patient.survival_months, 1),
        "died": "yes" if patient.died else "no",
    }


def damage(row: dict[str, Cell], seed: int, options: HospitalOptions) -> dict[str, Cell]:
    """The row as exported: cells emptied, 999 for an LDH that was not done, a decimal comma in the marker."""
    random = generator(seed, "gaps", str(row["patient_id"]))
    exported = dict(row)
    exported["marker"] = _text(row["marker"]).replace(".", ",")
    if random.random() < options.sentinel:
        exported["ldh (U/L)"] = SENTINEL
    for column in FEATURES:
        lost, word = (
            random.random() < options.missing,
            MISSING_WORDS[int(random.integers(len(MISSING_WORDS)))],
        )
        if lost:
            exported[column] = word or None
    return exported


def lost_cells(true: dict[str, Cell], exported: dict[str, Cell]) -> tuple[str, ...]:
    """Columns of the exported row that no longer say what is true: emptied, or a sentinel."""
    return tuple(name for name, cell in exported.items() if _text(cell).replace(",", ".") != _text(true[name]))


def as_json(cell: Cell) -> str | int | float | None:
    """A cell as JSON can hold it: a date as YYYY-MM-DD, the rest as it is."""
    return cell.isoformat() if isinstance(cell, date) else cell


def _text(cell: Cell) -> str:
    """A cell as text, a number as a spreadsheet shows it (25, not 25.0)."""
    if cell is None:
        return ""
    return cell.isoformat() if isinstance(cell, date) else f"{cell:g}" if isinstance(cell, float) else str(cell)


def write_csv(rows: list[dict[str, Cell]], path: Path) -> None:
    """Semicolons between the cells, as where the decimal sign is a comma; dates as YYYY-MM-DD; UTF-8."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";", lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_text(cell) for cell in row.values()] for row in rows)


def write_excel(rows: list[dict[str, Cell]], path: Path) -> None:
    """The same table as a workbook of one sheet: numbers and dates are real ones, ids and marker are text."""
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    assert sheet is not None  # a new workbook has one sheet
    sheet.title = "patients"
    sheet.append(list(rows[0]))
    for row in rows:
        sheet.append(list(row.values()))
    for column in sheet.iter_cols(min_row=2):
        for cell in column:
            if isinstance(cell.value, date):
                cell.number_format = "yyyy-mm-dd"
    buffer = io.BytesIO()
    book.save(buffer)
    path.write_bytes(_without_time(buffer.getvalue()))


def _without_time(workbook: bytes) -> bytes:
    """The same workbook with the moment of writing taken out of its properties and of the ZIP's entries."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(workbook)) as source,
        zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in sorted(source.namelist(), key=lambda one: (one != "[Content_Types].xml", one)):
            content = source.read(name)
            if name == "docProps/core.xml":
                content = _core_properties()
            entry = zipfile.ZipInfo(name, date_time=FIXED_MOMENT)
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, content)
    return result.getvalue()


def _core_properties() -> bytes:
    moment = "1980-01-01T00:00:00Z"
    dated = "".join(
        f'<dcterms:{name} xsi:type="dcterms:W3CDTF">{moment}</dcterms:{name}>' for name in ("created", "modified")
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
        "<cp:coreProperties "
        'xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dcterms="http://purl.org/dc/terms/" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f"<dc:creator>medform phantom</dc:creator>{dated}</cp:coreProperties>"
    ).encode()
