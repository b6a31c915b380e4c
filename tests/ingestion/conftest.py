"""Small DICOM series of an analytic phantom, so that what is read can be checked at every voxel's
position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medform.ingestion.dicom import group_dicom
from medform.ingestion.dicom_file import NotAnImage
from medform.ingestion.dicom_header import DicomImage, read_header
from medform.ingestion.dicom_pixels import DicomPixels
from medform.ingestion.found_series import FoundSeries, Refused
from medform.ingestion.voxels import VoxelPass

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def phantom_hu(points: np.ndarray) -> np.ndarray:
    """HU at LPS positions (..., 3) in mm: a slope along each axis and one blob, so that no two axes look
    alike."""
    x, y, z = np.moveaxis(np.asarray(points, float), -1, 0)
    blob = 300 * np.exp(-((x - 9) ** 2 + (y + 4) ** 2 + (z - 3) ** 2) / 128)
    return np.rint(2 * x - 3 * y + 5 * z + blob)


@dataclass
class Planted:
    """One file to write: where its slice lies, how its values are stored, which tags differ."""

    position: np.ndarray
    orientation: tuple[float, ...] = AXIAL
    size: tuple[int, int] = (12, 16)
    spacing: tuple[float, float] = (2.0, 1.5)
    slope: float = 1.0
    intercept: float = -1024.0
    signed: bool = False
    shift_hu: float = 0.0
    tags: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    uid: str = ""

    def values(self) -> np.ndarray:
        """HU (rows, columns) of the slice as it is stored."""
        columns, rows = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        row, column = np.mgrid[: self.size[0], : self.size[1]]
        points = self.position + column[..., None] * self.spacing[1] * columns + row[..., None] * self.spacing[0] * rows
        return phantom_hu(points) + self.shift_hu

    def dataset(self) -> Dataset:
        """The file's data set; tags set to None are left out."""
        made = Dataset()
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = self.uid
        made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3", "1.2.3.1"
        made.PatientID, made.PatientName, made.PatientBirthDate = "P1", "Phantom^One", "19700101"
        made.Modality, made.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        made.StudyDate, made.SeriesDescription, made.ConvolutionKernel = "20200102", "CHEST", "SOFT"
        made.ImagePositionPatient = [f"{value:.8g}" for value in self.position]
        made.ImageOrientationPatient = [f"{value:.12g}" for value in self.orientation]
        made.PixelSpacing, made.SliceThickness = [f"{value:g}" for value in self.spacing], "9"
        made.Rows, made.Columns = self.size
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation = 15, int(self.signed)
        made.RescaleSlope, made.RescaleIntercept = f"{self.slope:g}", f"{self.intercept:g}"
        stored = np.rint((self.values() - self.intercept) / self.slope)
        made.PixelData = stored.astype("<i2" if self.signed else "<u2").tobytes()
        for key, value in self.tags.items():
            if value is None and key in made:
                delattr(made, key)
            elif value is not None:
                setattr(made, key, value)
        return made


def plant_stack(
    count: int = 6,
    step: float = 3.0,
    orientation: tuple[float, ...] = AXIAL,
    shear: float = 0.0,
    series: str = "a",
    **more: Any,
) -> list[Planted]:
    """A regular stack along the slice normal, ``shear`` mm sideways for each mm."""
    columns, rows = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(columns, rows)
    start = np.array([-11.0, -10.0, -7.0])
    return [
        Planted(
            start + at * step * (normal + shear * rows),
            orientation,
            name=f"{series}{at:03d}",
            uid=generate_uid(entropy_srcs=[series, str(at)]),
            **more,
        )
        for at in range(count)
    ]


def write_files(folder: Path, slices: list[Planted]) -> Path:
    """Write every planted file; the bytes depend on the arguments only."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in slices:
        one.dataset().save_as(folder / one.name, enforce_file_format=True)
    return folder


def read_series(folder: Path, **settings: Any) -> list[FoundSeries]:
    """Series of a folder by headers and duplicates alone."""
    images: list[DicomImage] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                images += read_header(path, path.relative_to(folder).as_posix())
            except (Refused, NotAnImage):
                continue
    return group_dicom(images, DicomPixels(folder).frame, **settings)


def read_hu(folder: Path, series: FoundSeries) -> np.ndarray:
    """(N, H, W) values in the series' unit."""
    voxels = VoxelPass(folder, series)
    return np.stack(
        [
            stored.astype(float) * source.slope + source.intercept
            for source, stored in zip(series.slices, voxels, strict=True)
        ]
    )


def expected_hu(series: FoundSeries) -> np.ndarray:
    """What the phantom is at the positions that the series' affine claims, (N, H, W)."""
    count, rows, columns = series.shape
    k, r, c = np.mgrid[:count, :rows, :columns]
    index = np.stack([c, r, k, np.ones_like(c)], -1)
    return phantom_hu((index @ np.array(series.affine_lps).T)[..., :3])


@dataclass(frozen=True)
class Kit:
    """The functions above, for tests (a conftest cannot be imported)."""

    stack: Callable[..., list[Planted]] = plant_stack
    write: Callable[[Path, list[Planted]], Path] = write_files
    series: Callable[..., list[FoundSeries]] = read_series
    hu: Callable[[Path, FoundSeries], np.ndarray] = read_hu
    expected: Callable[[FoundSeries], np.ndarray] = expected_hu
    phantom: Callable[[np.ndarray], np.ndarray] = phantom_hu


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


@pytest.fixture(scope="session")
def planted_probes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Any]:
    """Folder, truth and module of the shared probe `plant.py`: 27 series with known defects, from another
    hand."""
    import importlib.util
    import json
    import sys

    path = Path(__file__).resolve().parents[3] / "shared" / "reference" / "probes" / "plant.py"
    if not path.is_file():
        pytest.skip("the shared probes are not here")
    spec = importlib.util.spec_from_file_location("shared_probe_plant", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path_factory.mktemp("planted")
    before = sys.argv
    sys.argv = ["plant.py", str(out), "--size", "32"]
    try:
        module.main()
    finally:
        sys.argv = before
    return out, json.loads((out / "truth.json").read_text())["cases"], module
