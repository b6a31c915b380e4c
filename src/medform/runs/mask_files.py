"""Masks as files that viewers open: NIfTI, NRRD, DICOM segmentation, pictures.

A mask is an array (N, H, W) uint8 of label numbers, 0 for nothing, in the orientation of the cohort store, with the
affine (4, 4) of that array: (column, row, slice) to patient millimetres, LPS. The store flips and transposes rows and
columns but never resamples, so what is written here lies on the voxels of the source.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medform.errors import ExtraMissing, InputError
from medform.runs.dicom_seg import write_dicom_seg
from medform.runs.folder import write_atomically
from medform.runs.grids import HALF_VOXEL, AxisMap, Grid, match_grids
from medform.runs.mask_labels import LESION, checked_mask, label_name, numbers_in

__all__ = ["write_dicom_seg", "write_nifti", "write_nrrd", "write_png"]

COLOURS = ((0.9, 0.3, 0.2), (0.2, 0.6, 0.9), (0.3, 0.8, 0.3), (0.9, 0.8, 0.2))
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
RIGHT_ANGLE = 1e-4
"""Cosine up to which two axes are at right angles; over 1,000 voxels it moves none by more than a tenth."""
_SCANNER, _NONE = 1, 0
"""NIfTI-1 codes of what a transform leads to: the scanner's millimetres, nothing known."""


def write_nifti(mask: NDArray[np.uint8], affine_lps: ArrayLike | None, path: Path, *, grid: Grid | None = None) -> None:
    """Write a mask as ``.nii`` or ``.nii.gz``, the same bytes from the same mask.

    With ``grid``, that of a NIfTI source, the file has the source's own shape, axes and affine, so that both are
    equal voxel by voxel. Raises `ValueError` where the mask does not lie on that grid, and `InputError` without
    ``affine_lps``, unless the source has none either: then the file says, as the source does, that nothing is known.
    """
    import nibabel

    values = checked_mask(mask).transpose(2, 1, 0)
    if grid is not None:
        values = _onto(grid, values, affine_lps)
        affine_lps = grid.affine_lps
    elif affine_lps is None:
        raise _no_geometry(path)
    image = nibabel.Nifti1Image(np.ascontiguousarray(values), None)
    if affine_lps is not None:
        ras = _LPS_TO_RAS @ np.asarray(affine_lps, np.float64)
        image.set_sform(ras, _SCANNER)
        if _is_sheared(ras):
            image.set_qform(None, _NONE)  # a qform holds no shear: readers that prefer it would move the mask
            image.header.set_zooms(np.linalg.norm(ras[:3, :3], axis=0))
        else:
            image.set_qform(ras, _SCANNER)
    else:
        image.set_sform(None, _NONE)
        image.set_qform(None, _NONE)
    header: Any = image.header
    header.set_xyzt_units("mm")
    header.set_intent("label")
    content = image.to_bytes()
    write_atomically(path, gzip.compress(content, mtime=0) if path.name.lower().endswith(".gz") else content)


def write_nrrd(
    mask: NDArray[np.uint8], affine_lps: ArrayLike | None, path: Path, *, labels: Mapping[int, str] = LESION
) -> None:
    """Write a mask as ``.seg.nrrd``, the segmentation format of 3D Slicer, with names and colours of the labels.

    Raises `InputError` without ``affine_lps`` and `ExtraMissing` without SimpleITK.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise ExtraMissing(
            f"NRRD files are written by SimpleITK, which is not installed ({error}).",
            where=str(path),
            consequence="The file was not written.",
            fix='pip install "medform[nrrd]"',
        ) from None
    values = checked_mask(mask)
    if affine_lps is None:
        raise _no_geometry(path)
    affine = np.asarray(affine_lps, np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    for key, text in _segments(values, labels).items():
        image.SetMetaData(key, text)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("NrrdImageIO")
    writer.UseCompressionOn()

    def write(temporary: Path) -> None:
        writer.SetFileName(str(temporary))
        writer.Execute(image)

    write_atomically(path, write)


def write_png(mask: NDArray[np.uint8], folder: Path) -> list[Path]:
    """Write a picture a slice, ``mask_0000.png`` on, in the orientation of the mask; returns their paths.

    A mask of 0 and 1 becomes black and white (1 bit), other label numbers the grey values of the same number; both
    are read back as they were by a slice index with a mask column.
    """
    from PIL import Image

    values = checked_mask(mask)
    binary = values.max(initial=0) <= 1
    paths = []
    for at, one in enumerate(values):
        picture = Image.fromarray(one != 0 if binary else np.ascontiguousarray(one))
        content = io.BytesIO()
        picture.save(content, "PNG", optimize=True)
        paths.append(folder / f"mask_{at:04d}.png")
        write_atomically(paths[-1], content.getvalue())
    return paths


def _onto(grid: Grid, values: NDArray[np.uint8], affine_lps: ArrayLike | None) -> NDArray[np.uint8]:
    """The voxels (column, row, slice) of a mask along the axes of a file's own grid."""
    if (grid.affine_lps is None) != (affine_lps is None):
        raise ValueError("one of mask and source has an affine, the other has none")
    if grid.affine_lps is None or affine_lps is None:
        axes = AxisMap() if grid.shape == values.shape else None
    else:
        axes = match_grids(values.shape, affine_lps, grid.shape, grid.affine_lps)
    if axes is None or axes.shift > HALF_VOXEL:
        raise ValueError(f"the mask of {values.shape} voxels does not lie on the grid of {grid.shape} voxels")
    return axes.onto(values)


def _is_sheared(affine: NDArray[np.float64]) -> bool:
    """Whether the axes of an affine (4, 4) are not at right angles, as after a tilt of the gantry."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), rtol=0, atol=RIGHT_ANGLE)


def _segments(values: NDArray[np.uint8], labels: Mapping[int, str]) -> dict[str, str]:
    """The fields by which 3D Slicer knows segments: number, name, colour and extent of each label.

    Source: the documentation of Slicer's segmentation file format (``.seg.nrrd``).
    """
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for at, number in enumerate(sorted({*labels, *numbers_in(values)})):
        where = np.argwhere(values == number)[:, ::-1]  # slice, row, column -> column, row, slice
        low, high = (where.min(axis=0), where.max(axis=0)) if len(where) else (np.zeros(3, int), np.full(3, -1))
        fields |= {
            f"Segment{at}_ID": f"Segment_{number}",
            f"Segment{at}_Name": label_name(number, labels),
            f"Segment{at}_LabelValue": str(number),
            f"Segment{at}_Layer": "0",
            f"Segment{at}_Color": " ".join(map(str, COLOURS[at % len(COLOURS)])),
            f"Segment{at}_Extent": " ".join(f"{a} {b}" for a, b in zip(low, high, strict=True)),
        }
    return fields


def _no_geometry(path: Path) -> InputError:
    return InputError(
        "nothing is known of where these slices lie, so this format cannot be written.",
        where=str(path),
        consequence="The file was not written.",
        fix="ask for png, a picture a slice.",
    )
