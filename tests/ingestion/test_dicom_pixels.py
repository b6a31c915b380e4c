"""Transfer syntaxes of real files."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medform.ingestion.dicom_header import read_header
from medform.ingestion.dicom_pixels import DicomPixels
from medform.ingestion.plan import ReadSettings, plan_folder
from medform.ingestion.voxels import examine


@pytest.mark.shared
@pytest.mark.proves("A3.1")
def test_one_slice_in_14_syntaxes_decodes_to_the_same_hu(shared_data: Path) -> None:
    """8 lossless syntaxes equal; J2K within 5 and JPEG-LS within 1 HU; the 12 and 8 bit JPEGs near in the
    median."""
    root = shared_data / "dicom_ct" / "transfer_syntaxes"
    pixels, hu = DicomPixels(root), {}
    for path in sorted(root.glob("*.dcm")):
        (image,) = read_header(path, path.name)
        assert image.slope is not None and image.intercept is not None
        stored = pixels.frame(path.name, 0)
        assert stored.dtype.isnative
        hu[path.stem.rsplit("_", 1)[1].removeprefix("1.2.840.10008.")] = stored * image.slope + image.intercept
    plain = hu["1.2.1"]
    worst = {syntax: np.abs(values - plain).max() for syntax, values in hu.items()}
    equal = {syntax for syntax, error in worst.items() if error == 0}
    assert equal == {"1.2.1", "1.2.2", "1.2.1.99", "1.2.5", "1.2.4.57", "1.2.4.70", "1.2.4.80", "1.2.4.90"}
    assert worst["1.2.4.91"] <= 5 and worst["1.2.4.81"] <= 1
    for syntax in ("1.2.4.51", "1.2.4.53", "1.2.4.55"):
        assert np.median(np.abs(hu[syntax] - plain)) < 3 and worst[syntax] < 36
    assert np.median(np.abs(hu["1.2.4.50"] - plain)) < 25


@pytest.mark.shared
@pytest.mark.proves("A9", "A3.1", "D5")
def test_the_real_series_have_the_geometry_and_values_of_their_index(shared_data: Path) -> None:
    """Ranges of stored values as published; spacing from positions; tilt, gaps and derived maps called by
    name."""
    root = shared_data / "dicom_ct"
    plan = plan_folder(root, ReadSettings(layout="dicom"))
    by_folder: dict[str, list[Any]] = defaultdict(list)
    for one in plan.series:
        by_folder[one.files[0].split("/")[0]].append(one)
    status = {name: [(one.verdict.status, set(one.codes)) for one in found] for name, found in by_folder.items()}
    assert status["chest_siemens_jpegll"] == status["chest_philips_j2k"] == [("accepted", set())]
    assert status["phantom_philips_tilt_raw"] == [("repaired", {"gantry_tilt"})]
    assert status["head_ge_tilt_gaps_jpegls"] == [("quarantined", {"gantry_tilt", "nonuniform_spacing"})]
    assert status["enhanced_ct"] == [("quarantined", {"hu_unknown"})]
    assert status["transfer_syntaxes"] == [("quarantined", {"duplicate_conflict"})]
    assert status["toshiba_planes_raw"] == [("accepted", {"single_slice"})] * 2
    (siemens,), (philips,) = by_folder["chest_siemens_jpegll"], by_folder["chest_philips_j2k"]
    assert siemens.shape == (30, 512, 512) and philips.shape == (24, 512, 512)
    assert siemens.spacing_mm == pytest.approx((8, 0.646484375, 0.646484375))
    assert philips.spacing_mm == pytest.approx((5, 0.841796875, 0.841796875))
    with (root / "index.csv").open() as lines:
        index = {row["file"]: row for row in csv.DictReader(lines)}
    pixels = DicomPixels(root)
    for series in (siemens, philips):
        for source in series.slices[::6]:
            stored, row = pixels.frame(source.file, 0), index[source.file]
            assert (stored.min(), stored.max()) == (int(row["pixel_min"]), int(row["pixel_max"]))
            assert source.position_mm == pytest.approx(float(row["z_mm"]))
    assert examine(root, by_folder["phantom_philips_tilt_raw"][0]).usable
