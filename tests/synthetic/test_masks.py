"""Masks lie on the lesion in millimetres, whatever the orientation of the CT beside them."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest


def voxels_in_lps(image: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Positions (K,3) in LPS mm of the voxels that are set, and the volume of one voxel."""
    index = np.argwhere(np.asarray(image.dataobj) > 0)
    ras = nib.affines.apply_affine(image.affine, index)
    return ras * (-1, -1, 1), abs(np.linalg.det(image.affine[:3, :3]))


@pytest.mark.proves("A2.1")
def test_mask_voxels_are_the_bright_lesion_of_the_ct(hospital):
    series = {one.patient_id: one for one in hospital.truth.series if one.selected}
    people = {one.patient_id: one for one in hospital.truth.patients}
    paths = sorted((hospital.root / "masks").iterdir())
    assert {path.name.removesuffix(".nii.gz") for path in paths} == set(series)
    assert any(one.turned for one in series.values())
    for path in paths:
        patient = path.name.removesuffix(".nii.gz")
        truth = people[patient]
        points, voxel = voxels_in_lps(nib.load(path))
        assert truth.mask_mm3 == pytest.approx(len(points) * voxel)
        half_voxel = np.array(series[patient].spacing_mm[::-1]) / 2
        assert (np.abs(points.mean(axis=0) - truth.lesion_centre_lps_mm) <= half_voxel).all()
        by_height = {round(float(d.ImagePositionPatient[2]), 3): d for d in hospital.series[series[patient].series_uid]}
        inside = []
        for x, y, z in points:
            dataset = by_height[round(float(z), 3)]
            direction = np.array(dataset.ImageOrientationPatient, float)
            away = np.array([x, y, z]) - np.array(dataset.ImagePositionPatient, float)
            column = away @ direction[:3] / float(dataset.PixelSpacing[1])
            row = away @ direction[3:] / float(dataset.PixelSpacing[0])
            stored = dataset.pixel_array[round(row), round(column)]
            inside.append(stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
        assert 90 < np.max(inside) < 230  # the lesion is planted at 140 HU under noise of 20
        assert np.median(inside) > -300  # its rim mixes with lung at -840
        heights = sorted(by_height)
        assert {heights.index(round(float(z), 3)) for z in points[:, 2]} == set(truth.lesion_slices)
