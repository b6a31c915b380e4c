"""Writes one scan as the DICOM files of its scanner; nothing in them depends on time or machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medform.synthetic.randomness import generator
from medform.synthetic.scans import DESCRIPTIONS, Scan

__all__ = ["series_folder", "series_uid", "study_uid", "write_scan"]

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
TURNED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def _uid(seed: int, *names: str) -> str:
    """A UID under the root 2.25 (UUIDs as integers) that only the seed and the names decide."""
    digest = hashlib.sha256("\x1f".join(["medform phantom", str(seed), *names]).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def study_uid(scan: Scan, seed: int) -> str:
    """StudyInstanceUID of the study that holds ``scan``."""
    return _uid(seed, "study", scan.patient.patient_id, scan.study)


def series_uid(scan: Scan, seed: int) -> str:
    """SeriesInstanceUID of ``scan``."""
    return _uid(seed, "series", scan.patient.patient_id, scan.kind)


def series_folder(scan: Scan, seed: int) -> Path:
    """Where the files of ``scan`` lie below the image folder; names say nothing about patient or label.

    The first scanner puts all series of a study into one folder, the second gives every series its own.
    """
    tokens = generator(seed, "folders", scan.patient.patient_id, scan.study).bytes(8).hex().upper()
    if scan.scanner.shared_folder:
        return Path(tokens[:2], tokens[2:10])
    series = generator(seed, "folders", scan.patient.patient_id, scan.kind).bytes(3).hex()
    return Path("export", tokens[:8], f"series_{series}")


def write_scan(scan: Scan, stack: np.ndarray, root: Path, seed: int) -> list[Path]:
    """Write ``stack`` (N,H,W in HU) as one file a slice; returns the paths in the order of the slices.

    What a reader decodes is within half a slope of ``stack``. File names are random and the instance
    numbers of the first scanner run from head to feet, so that neither gives the order away.
    """
    folder = root / series_folder(scan, seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = generator(seed, "files", scan.patient.patient_id, scan.kind)
    shared = _series_header(scan, seed)
    paths = []
    for index in range(len(stack)):
        name = names.bytes(5).hex().upper() + scan.scanner.suffix
        if index == scan.left_out:
            continue
        dataset = Dataset()
        dataset.update(shared)
        _describe_slice(dataset, scan, index, len(stack), seed)
        _store_pixels(dataset, scan, stack[index], scan.slopes[index], scan.intercepts[index])
        dataset.file_meta = _file_meta(dataset, scan)
        dcmwrite(folder / name, dataset, enforce_file_format=True)
        paths.append(folder / name)
    return paths


def _series_header(scan: Scan, seed: int) -> Dataset:
    """What all files of the series share. Whatever names a person or a place says that it is invented."""
    patient, scanner = scan.patient, scan.scanner
    header = Dataset()
    header.SOPClassUID = CTImageStorage
    header.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER" if scan.kind == "localizer" else "AXIAL"]
    header.Modality = "CT"
    header.PatientName = f"PHANTOM^PATIENT {patient.patient_id}"
    header.PatientID = patient.patient_id
    header.PatientBirthDate = f"{scan.day.year - patient.age_years:04d}0101"
    header.PatientSex = patient.sex
    header.PatientAge = f"{patient.age_years:03d}Y"
    header.PatientWeight = patient.weight_kg
    header.InstitutionName = "SYNTHETIC HOSPITAL (NOT REAL)"
    header.ReferringPhysicianName = "SYNTHETIC^DOCTOR"
    header.Manufacturer = scanner.manufacturer
    header.ManufacturerModelName = scanner.model
    header.StationName = f"PHANTOM-{scanner.name.upper()}"
    header.StudyInstanceUID = study_uid(scan, seed)
    header.SeriesInstanceUID = series_uid(scan, seed)
    header.FrameOfReferenceUID = _uid(seed, "frame", patient.patient_id, scan.study)
    header.StudyID = "1" if scan.study == "first" else "2"
    header.AccessionNumber = f"SYN{patient.patient_id}{header.StudyID}"
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = scan.day.strftime("%Y%m%d")
    header.StudyTime = header.SeriesTime = "101500"
    header.StudyDescription = "SYNTHETIC CHEST CT"
    header.SeriesDescription = DESCRIPTIONS[scan.kind]
    header.SeriesNumber = {"localizer": 1, "main": 2, "second_kernel": 3, "follow_up": 2}[scan.kind]
    header.ConvolutionKernel = scan.kernel
    header.BodyPartExamined = "CHEST"
    header.PatientPosition = "HFP" if scan.turned else "HFS"
    header.KVP = 120
    header.SliceThickness = scanner.thickness_mm  # never the distance between slices: a reader must measure that
    header.PixelSpacing = [scan.grid.spacing_mm[1], scan.grid.spacing_mm[2]]
    return header


def _describe_slice(dataset: Dataset, scan: Scan, index: int, slices: int, seed: int) -> None:
    """Identity, number and place of one slice."""
    pixel, extent = scan.grid.spacing_mm[2], scan.grid.size - 1
    x, y, z = scan.grid.origin_mm
    if scan.kind == "localizer":
        orientation, position = CORONAL, (x, 0.0, pixel * extent / 2)
    elif scan.turned:
        orientation = TURNED
        position = (x + pixel * extent, y + pixel * extent, z + index * scan.grid.spacing_mm[0])
    else:
        orientation, position = AXIAL, (x, y, z + index * scan.grid.spacing_mm[0])
    dataset.SOPInstanceUID = _uid(seed, "instance", scan.patient.patient_id, scan.kind, str(index))
    dataset.InstanceNumber = slices - index if scan.scanner.head_first_numbers else index + 1
    dataset.ImageOrientationPatient = list(orientation)
    dataset.ImagePositionPatient = [round(value, 6) for value in position]
    if scan.kind != "localizer":
        dataset.SliceLocation = round(position[2], 6)


def _store_pixels(dataset: Dataset, scan: Scan, image: np.ndarray, slope: float, intercept: float) -> None:
    """Turn HU (H,W) into the scanner's stored integers, with the rescale that leads back."""
    signed, bits = scan.scanner.signed, scan.scanner.bits_stored
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    stored = np.clip(np.rint((image.astype(np.float64) - intercept) / slope), lowest, highest)
    if scan.turned:
        stored = stored[::-1, ::-1]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = image.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.RescaleSlope = slope
    dataset.RescaleIntercept = intercept
    dataset.RescaleType = "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()


def _file_meta(dataset: Dataset, scan: Scan) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if scan.scanner.implicit_vr else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(_uid(0, "implementation"))  # pydicom would write its own version here
    meta.ImplementationVersionName = "MEDFORM_PHANTOM"
    return meta
