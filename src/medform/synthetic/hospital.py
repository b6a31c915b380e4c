"""Writes a whole synthetic hospital, or gives the same patients in memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medform.errors import InputError
from medform.synthetic.clinical_table import (
    as_json,
    clinical_values,
    damage,
    lost_cells,
    write_csv,
    write_excel,
)
from medform.synthetic.cohort_text import COHORT_FILE
from medform.synthetic.dicom_files import series_folder, series_uid, study_uid, write_scan
from medform.synthetic.genes import planted_module, write_genes
from medform.synthetic.masks import write_mask
from medform.synthetic.options import HospitalOptions
from medform.synthetic.planting import PlantedPatient, plant
from medform.synthetic.scans import Scan, plan_scans, render
from medform.synthetic.truth import FileCounts, PatientTruth, SeriesTruth, Truth

__all__ = ["PhantomPatient", "make_stacks", "write_hospital"]

EXPORT_LOG = "EXPORT_LOG.txt"
TRUTH_FILE = "truth.json"
REASONS = {
    "gap": "a slice of the only scan is missing",
    "no_table": "no row in the clinical table",
    "no_images": "no images",
}


@dataclass(frozen=True)
class PhantomPatient:
    """A usable patient in memory.

    ``stack`` (N,H,W) float32 HU, slices feet to head, rows to the back, columns to the left; ``mask``
    (N,H,W) uint8; ``spacing_mm`` (z,y,x); ``row`` the clinical row as it is exported (text, numbers,
    None).
    """

    patient_id: str
    stack: np.ndarray
    mask: np.ndarray
    spacing_mm: tuple[float, float, float]
    malignant: bool
    planted: PlantedPatient
    row: dict[str, Any]


def make_stacks(patients: int = 40, seed: int = 0, options: HospitalOptions | None = None) -> list[PhantomPatient]:
    """The usable patients that `write_hospital` would write with the same arguments, without any file."""
    options = options or HospitalOptions()
    made = []
    for planted in plant(patients, seed, options):
        if planted.flaw != "none":
            continue
        scan = plan_scans(planted, seed, options)[0]
        stack, mask = render(scan, seed)
        row = damage(clinical_values(planted, scan.day, seed), seed, options)
        made.append(
            PhantomPatient(planted.patient_id, stack, mask, scan.grid.spacing_mm, planted.malignant, planted, row)
        )
    return made


def write_hospital(
    out: Path,
    *,
    patients: int = 40,
    seed: int = 0,
    options: HospitalOptions | None = None,
    overwrite: bool = False,
) -> Truth:
    """Write the hospital to the folder ``out`` and return what was planted.

    ``patients`` can be used; three more people cannot (see `HospitalOptions.defects`). The folder appears
    whole or not at all, and its bytes depend on the arguments only. Raises `InputError` where ``out`` holds
    something already; ``overwrite`` replaces an earlier hospital, and nothing else.
    """
    options = options or HospitalOptions()
    planted = plant(patients, seed, options)
    _refuse_to_replace(out, overwrite=overwrite)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        truth = _fill(partial, planted, seed, options)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return truth


def _refuse_to_replace(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    earlier = (out / TRUTH_FILE).is_file()
    if earlier and overwrite:
        return
    raise InputError(
        "an earlier hospital is here." if earlier else "this is neither an empty folder nor an earlier hospital.",
        where=str(out),
        consequence="Nothing was written.",
        fix="choose another folder" + (", or pass --overwrite to replace it." if earlier else "."),
    )


def _fill(root: Path, planted: list[PlantedPatient], seed: int, options: HospitalOptions) -> Truth:
    images, masks = root / "images", root / "masks"
    images.mkdir()
    masks.mkdir()
    series: list[SeriesTruth] = []
    people: list[PatientTruth] = []
    rows = []
    files = 0
    for patient in planted:
        scans = plan_scans(patient, seed, options)
        values = clinical_values(patient, scans[0].day if scans else None, seed)
        exported = damage(values, seed, options)
        if patient.flaw != "no_table":
            rows.append(exported)
        mask = None
        for scan in scans:
            stack, shown = render(scan, seed)
            files += len(write_scan(scan, stack, images, seed))
            series.append(_series_truth(scan, seed))
            if scan.kind == "main":
                mask = shown
        if mask is not None and patient.flaw != "gap":
            write_mask(mask, scans[0].grid, masks / f"{patient.patient_id}.nii.gz")
        people.append(_patient_truth(patient, scans, mask, values, exported))
    if options.defects:
        (images / EXPORT_LOG).write_text("Synthetic export, no errors.\n", encoding="utf-8")
    write_csv(rows, root / "clinical.csv")
    write_excel(rows, root / "clinical.xlsx")
    write_genes([one for one in planted if one.has_genes], seed, options, root / "genes.csv")
    (root / "cohort.yaml").write_text(COHORT_FILE, encoding="utf-8")
    others = int(options.defects)
    truth = Truth(
        seed=seed,
        options=options.model_dump(mode="json"),
        files=FileCounts(found=files + others, image=files, other=others, unreadable=0),
        series=tuple(series),
        patients=tuple(people),
        module=planted_module(seed),
        leaks=("chemo_cycles",),
        nuisances=("room",),
    )
    truth.write(root / TRUTH_FILE)
    return truth


def _series_truth(scan: Scan, seed: int) -> SeriesTruth:
    code = "localizer" if scan.kind == "localizer" else "gap" if scan.left_out is not None else None
    size = scan.grid.size
    return SeriesTruth(
        series_uid=series_uid(scan, seed),
        study_uid=study_uid(scan, seed),
        patient_id=scan.patient.patient_id,
        kind=scan.kind,
        folder=series_folder(scan, seed).as_posix(),
        shape=(len(scan.stored_slices), size, size),
        spacing_mm=scan.grid.spacing_mm,
        scanner=scan.scanner.name,
        kernel=scan.kernel,
        turned=scan.turned,
        verdict="quarantined" if code else "accepted",
        code=code,
        selected=scan.kind == "main" and code is None,
    )


def _patient_truth(
    patient: PlantedPatient,
    scans: list[Scan],
    mask: np.ndarray | None,
    values: dict[str, Any],
    exported: dict[str, Any],
) -> PatientTruth:
    lesion = scans[0].lesion if scans else None
    twin = scans[0].twin if scans else None
    voxel_mm3 = float(np.prod(scans[0].grid.spacing_mm)) if scans else 0.0
    in_table = patient.flaw != "no_table"
    lesion_slices = np.flatnonzero(mask.any(axis=(1, 2))).tolist() if mask is not None else []
    return PatientTruth(
        patient_id=patient.patient_id,
        usable=patient.flaw == "none",
        reason=REASONS.get(patient.flaw),
        severity=patient.severity,
        malignant=patient.malignant,
        stage=patient.stage,
        scanner=patient.scanner,
        marker=patient.marker,
        lesion_mm3=patient.lesion_mm3,
        mask_mm3=float(mask.sum() * voxel_mm3) if mask is not None else None,
        lesion_centre_lps_mm=lesion.centre if lesion else None,
        twin_centre_lps_mm=twin.centre if twin else None,
        lesion_slices=tuple(lesion_slices),
        slices=scans[0].grid.slices if scans else 0,
        survival_months=patient.survival_months,
        died=patient.died,
        has_genes=patient.has_genes,
        table={name: as_json(cell) for name, cell in values.items()} if in_table else None,
        emptied=lost_cells(values, exported) if in_table else (),
    )
