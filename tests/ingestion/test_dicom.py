"""DICOM series: voxels at the right place with the right HU, and a verdict for everything that is not."""

from __future__ import annotations

import hashlib
import random as stdlib_random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medform.ingestion.found_series import FoundSeries
from medform.ingestion.plan import accepting
from medform.ingestion.voxels import examine

CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (1.0, 0.0, 0.0, 0.0, float(np.cos(0.3)), float(np.sin(0.3)))
FEETWARD = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
PRONE = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


def codes(series: FoundSeries) -> list[str]:
    return series.codes


@pytest.mark.proves("A3.1", "R2", "D2")
@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1.0, 0), CORONAL, SAGITTAL, OBLIQUE, FEETWARD, PRONE])
def test_every_voxel_has_the_hu_of_its_position(tmp_path: Path, kit: Any, orientation: tuple[float, ...]) -> None:
    """The phantom, evaluated where the affine says a voxel is, equals what was read, whatever the
    orientation."""
    kit.write(tmp_path, kit.stack(orientation=orientation))
    (series,) = kit.series(tmp_path)
    assert series.verdict.status == "accepted"
    np.testing.assert_allclose(kit.hu(tmp_path, series), kit.expected(series), atol=1.0)
    assert series.spacing_mm is not None and series.spacing_mm[0] == pytest.approx(3.0)
    assert np.linalg.det(np.array(series.affine_lps)[:3, :3]) > 0


@pytest.mark.proves("A3.1", "R2")
def test_axial_slices_run_from_feet_to_head_with_left_and_posterior_axes(tmp_path: Path, kit: Any) -> None:
    kit.write(tmp_path, kit.stack(orientation=PRONE))
    (series,) = kit.series(tmp_path)
    affine = np.array(series.affine_lps)
    np.testing.assert_allclose(affine[:3, :3], np.diag([1.5, 2.0, 3.0]), atol=1e-9)
    positions = [source.position_mm for source in series.slices]
    assert positions == sorted(positions)


@pytest.mark.proves("A3.1", "D2", "D5")
def test_names_numbers_and_thickness_decide_nothing(tmp_path: Path, kit: Any) -> None:
    slices = kit.stack(count=7, step=2.5)
    numbers = list(range(7))
    stdlib_random.Random(3).shuffle(numbers)
    for one, number in zip(slices, numbers, strict=True):
        one.name = f"{number * 7919 % 97:02x}"
        one.tags = {"InstanceNumber": number, "SliceThickness": "5", "SpacingBetweenSlices": "1.25"}
    kit.write(tmp_path / "deep" / "er", slices)
    (series,) = kit.series(tmp_path)
    assert series.verdict.status == "accepted"
    assert series.spacing_mm == (pytest.approx(2.5), 2.0, 1.5)
    np.testing.assert_allclose(kit.hu(tmp_path, series), kit.expected(series), atol=1.0)


@pytest.mark.proves("A3.1", "D1")
def test_each_slice_keeps_its_own_fractional_rescale(tmp_path: Path, kit: Any) -> None:
    slices = kit.stack()
    for at, one in enumerate(slices):
        one.slope, one.intercept = 0.3 + 0.1 * at, -1000.5 - at
    kit.write(tmp_path, slices)
    (series,) = kit.series(tmp_path)
    assert series.dtype == "uint16"
    assert np.abs(kit.hu(tmp_path, series) - kit.expected(series)).max() <= 0.5 * 0.8 + 1e-9


def test_signed_and_unsigned_slices_are_stored_as_one_type(tmp_path: Path, kit: Any) -> None:
    slices = kit.stack()
    for one in slices[::2]:
        one.signed, one.intercept = True, 0.0
    for one in slices[1::2]:
        one.tags = {"BitsStored": 12, "HighBit": 11}
    kit.write(tmp_path, slices)
    (series,) = kit.series(tmp_path)
    assert series.dtype == "int16"
    np.testing.assert_allclose(kit.hu(tmp_path, series), kit.expected(series), atol=1.0)


@pytest.mark.proves("R3")
def test_an_identical_duplicate_is_dropped(tmp_path: Path, kit: Any) -> None:
    copy = kit.stack()[2]
    copy.uid, copy.name = "1.2.9", "copy"
    kit.write(tmp_path, [*kit.stack(), copy])
    (series,) = kit.series(tmp_path)
    assert series.verdict.status == "repaired" and codes(series) == ["duplicate_dropped"]
    assert series.shape[0] == 6 and len(series.files) == 7


@pytest.mark.proves("R4")
def test_another_image_at_the_same_place_is_refused(tmp_path: Path, kit: Any) -> None:
    copy = kit.stack(shift_hu=40)[2]
    copy.uid, copy.name = "1.2.9", "copy"
    kit.write(tmp_path, [*kit.stack(), copy])
    (series,) = kit.series(tmp_path)
    assert series.verdict.status == "quarantined" and codes(series) == ["duplicate_conflict"]


@pytest.mark.proves("R5")
def test_a_tilted_gantry_is_kept_with_an_affine_that_leans(tmp_path: Path, kit: Any) -> None:
    kit.write(tmp_path, kit.stack(shear=float(np.tan(np.deg2rad(15)))))
    (series,) = kit.series(tmp_path)
    assert series.verdict.status == "repaired" and codes(series) == ["gantry_tilt"]
    assert "15.0 degrees" in series.details[0]
    np.testing.assert_allclose(kit.hu(tmp_path, series), kit.expected(series), atol=1.0)
    assert series.spacing_mm is not None and series.spacing_mm[0] == pytest.approx(3.0)


@pytest.mark.proves("R6", "R7")
def test_gaps_and_uneven_steps_are_named_and_can_be_overridden(tmp_path: Path, kit: Any) -> None:
    slices = kit.stack(8)
    kit.write(tmp_path / "gap", slices[:3] + slices[4:])
    (gap,) = kit.series(tmp_path / "gap")
    assert codes(gap) == ["gap"] and gap.verdict.status == "quarantined"
    assert "between -1.00 and 5.00 mm" in gap.details[0] and "images.accept: [gap]" in gap.details[0]
    for at, one in enumerate(slices[4:]):
        one.position = one.position + np.array([0, 0, 1.7 * (at + 1)])
    kit.write(tmp_path / "uneven", slices)
    (uneven,) = kit.series(tmp_path / "uneven")
    assert codes(uneven) == ["nonuniform_spacing"] and uneven.affine_lps is None


@pytest.mark.proves("R8", "D3")
@pytest.mark.parametrize(
    ("change", "code"),
    [({"spacing": (2.4, 1.8)}, "pixel_spacing_changes"), ({"size": (6, 8)}, "matrix_changes")],
)
def test_a_change_of_the_grid_inside_a_series_is_refused(
    tmp_path: Path, kit: Any, change: dict[str, Any], code: str
) -> None:
    slices = kit.stack(6)
    for one in slices[3:]:
        vars(one).update(change)
    for number, one in enumerate(slices):
        one.tags["InstanceNumber"] = number + 1
    kit.write(tmp_path, slices)
    (series,) = kit.series(tmp_path)
    assert series.verdict.status == "quarantined" and codes(series) == [code]
    assert "a003" in series.details[0]


@pytest.mark.proves("R9", "D6")
def test_localizers_and_captures_are_left_out_and_listed(tmp_path: Path, kit: Any) -> None:
    scout = kit.stack(2, 20.0, CORONAL, series="scout", tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    capture = kit.stack(1, series="shot")
    capture[0].tags = {
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelData": bytes(12 * 16 * 3),
    }
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        capture[0].tags[name] = None
    kit.write(tmp_path, [*kit.stack(), *scout, *capture])
    main, *aside = kit.series(tmp_path)
    assert main.shape[0] == 6 and codes(main) == ["colour_left_out", "localizer_left_out"]
    assert {one.series_id: codes(one) for one in aside} == {
        "1.2.3.1#colour": ["colour"],
        "1.2.3.1#localizer": ["localizer"],
    }
    assert sum(len(one.files) for one in (main, *aside)) == 9


@pytest.mark.proves("R10")
@pytest.mark.parametrize("shown_as", [-2000, 63536])
def test_padding_becomes_air(tmp_path: Path, kit: Any, shown_as: int) -> None:
    """Both spellings of -2000 in signed pixels; voxels that are not padding keep their HU."""
    slices = kit.stack(signed=True, intercept=-1024.0)
    for one in slices:
        stored = np.frombuffer(one.dataset().PixelData, "<i2").reshape(one.size).copy()
        stored[:2] = -2000
        one.tags = {"PixelData": stored.tobytes(), "PixelPaddingValue": shown_as}
    folder = tmp_path
    for one in slices:
        made = one.dataset()
        made["PixelPaddingValue"].VR = "SS" if shown_as < 0 else "US"
        made.save_as(folder / one.name, enforce_file_format=True)
    (series,) = kit.series(folder)
    series = examine(folder, series)
    assert codes(series) == ["padding_to_air"] and series.verdict.status == "repaired"
    values = kit.hu(folder, series)
    assert (values[:, :2] == -1000).all()
    np.testing.assert_allclose(values[:, 2:], kit.expected(series)[:, 2:], atol=1.0)


def with_padding(kit: Any, folder: Path, value: int, **tags: Any) -> Path:
    """A stack of an MR whose first two rows are padding of ``value``; all other values are 500 and more."""
    slices = kit.stack(signed=True, intercept=0.0, shift_hu=600.0)
    for one in slices:
        stored = np.frombuffer(one.dataset().PixelData, "<i2").reshape(one.size).copy()
        stored[:2] = value
        one.tags = {"PixelData": stored.tobytes(), "Modality": "MR", **tags}
    kit.write(folder, [])
    for one in slices:
        made = one.dataset()
        made.add_new("PixelPaddingValue", "SS", value)
        made.save_as(folder / one.name, enforce_file_format=True)
    return folder


@pytest.mark.proves("R10")
def test_padding_of_a_raw_unit_becomes_the_lowest_value_outside_it(tmp_path: Path, kit: Any) -> None:
    for value in (-30000, 30000):
        folder = with_padding(kit, tmp_path / str(value), value)
        (series,) = kit.series(folder)
        series = examine(folder, series)
        assert series.unit == "raw" and codes(series) == ["padding_to_lowest"]
        values = kit.hu(folder, series)
        assert (values[:, :2] == values[:, 2:].min()).all() and values.max() < 2000
        np.testing.assert_allclose(values[:, 2:], (kit.expected(series) + 600)[:, 2:], atol=1.0)


@pytest.mark.parametrize("tags", [{"BitsStored": 12, "HighBit": 15}, {"BitsStored": 12, "HighBit": 12}])
def test_values_that_are_not_in_the_lowest_bits_are_refused(tmp_path: Path, kit: Any, tags: dict[str, int]) -> None:
    kit.write(tmp_path, kit.stack(tags=tags))
    (series,) = kit.series(tmp_path)
    assert codes(series) == ["high_bit"] and "end at bit 1" in series.details[0] and not series.usable


def test_hu_beyond_every_scanner_are_refused(tmp_path: Path, kit: Any) -> None:
    """Signed values that the header calls unsigned: air is 64,536."""
    slices = kit.stack(signed=True, intercept=0.0, shift_hu=-300.0, tags={"PixelRepresentation": 0})
    kit.write(tmp_path, slices)
    series = examine(tmp_path, kit.series(tmp_path)[0])
    assert codes(series) == ["beyond_hu"] and "which no scanner gives" in series.details[0]


def test_acquisitions_that_alternate_along_the_stack_are_refused(tmp_path: Path, kit: Any) -> None:
    """Two volumes half a step apart; the same numbers in two blocks are one volume."""
    for name in ("AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime"):
        slices = kit.stack(8, 1.5)
        for at, one in enumerate(slices):
            one.tags = {name: 1 + at % 2}
        kit.write(tmp_path / name, slices)
        (series,) = kit.series(tmp_path / name)
        assert codes(series) == ["interleaved"] and name in series.details[0]
        assert accepting(series, ["interleaved"]).usable
        for at, one in enumerate(slices):
            one.tags = {name: 1 + at // 4}
        kit.write(tmp_path / name, slices)
        assert codes(kit.series(tmp_path / name)[0]) == []


def test_concatenations_of_mr_alternate_and_are_one_volume(tmp_path: Path, kit: Any) -> None:
    slices = kit.stack(8, tags={"Modality": "MR"})
    for at, one in enumerate(slices):
        one.tags = {**one.tags, "AcquisitionNumber": 1 + at % 2}
    kit.write(tmp_path, slices)
    assert "interleaved" not in codes(kit.series(tmp_path)[0])


def test_a_mosaic_is_no_slice(tmp_path: Path, kit: Any) -> None:
    tags = {"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}
    kit.write(tmp_path, kit.stack(3, tags=tags))
    (series,) = kit.series(tmp_path)
    assert codes(series) == ["mosaic"] and not series.usable


def test_a_padded_name_is_the_same_person(tmp_path: Path, kit: Any) -> None:
    """Padding, letters of another alphabet; another name stays another."""
    people = []
    for at, name in enumerate(("DOE^JOHN", "DOE^JOHN^^ ", "Doe ^John=\u30c9\u30a6", "DOE^JOHANNA")):
        tags = {"PatientName": name, "SpecificCharacterSet": "ISO_IR 192"}
        kit.write(tmp_path / str(at), kit.stack(2, tags=tags))
        people.append(kit.series(tmp_path / str(at))[0].person)
    assert people[0] == people[1] == people[2] != people[3] and all(people)


@pytest.mark.proves("R11")
def test_ct_without_rescale_is_refused_unless_hu_are_assumed(tmp_path: Path, kit: Any) -> None:
    slices = kit.stack(signed=True, intercept=0.0, tags={"RescaleSlope": None, "RescaleIntercept": None})
    kit.write(tmp_path, slices)
    (series,) = kit.series(tmp_path)
    assert codes(series) == ["hu_unknown"] and "images.assume_hu: true" in series.details[0]
    (assumed,) = kit.series(tmp_path, assume_hu=True)
    assert assumed.verdict.status == "repaired" and codes(assumed) == ["hu_assumed"]
    np.testing.assert_allclose(kit.hu(tmp_path, assumed), kit.expected(assumed), atol=1.0)


@pytest.mark.proves("R12")
def test_a_cut_file_refuses_its_series_with_byte_counts(tmp_path: Path, kit: Any) -> None:
    kit.write(tmp_path, kit.stack())
    last = tmp_path / "a005"
    last.write_bytes(last.read_bytes()[:-100])
    (series,) = kit.series(tmp_path)
    assert codes(series) == ["truncated"]
    assert "a005" in series.details[0] and "284 bytes" in series.details[0] and "384" in series.details[0]


@pytest.mark.proves("R13")
def test_acquisitions_orientations_and_patients_are_told_apart(tmp_path: Path, kit: Any) -> None:
    first = kit.stack(tags={"AcquisitionNumber": 1})
    second = kit.stack(series="b", shift_hu=50, tags={"AcquisitionNumber": 2})
    kit.write(tmp_path / "4d", [*first, *second])
    one, two = kit.series(tmp_path / "4d")
    assert codes(one) == codes(two) == ["split_acquisition"] and one.series_id != two.series_id
    np.testing.assert_allclose(kit.hu(tmp_path / "4d", two) - kit.hu(tmp_path / "4d", one), 50, atol=1.0)
    kit.write(tmp_path / "planes", [*kit.stack(8), *kit.stack(5, 3.0, CORONAL, series="c")])
    axial, coronal = kit.series(tmp_path / "planes")
    assert (axial.shape[0], coronal.shape[0]) == (8, 5) and codes(axial) == ["split_orientation"]
    strangers = kit.stack(series="d", tags={"PatientID": "P2"})
    kit.write(tmp_path / "two", [*kit.stack(), *strangers])
    (mixed,) = kit.series(tmp_path / "two")
    assert codes(mixed) == ["two_patients"] and mixed.verdict.status == "quarantined"


def test_monochrome1_turns_grey_values_and_never_hu(tmp_path: Path, kit: Any) -> None:
    kit.write(tmp_path / "ct", kit.stack(tags={"PhotometricInterpretation": "MONOCHROME1"}))
    (ct,) = kit.series(tmp_path / "ct")
    assert ct.verdict.status == "accepted"
    np.testing.assert_allclose(kit.hu(tmp_path / "ct", ct), kit.expected(ct), atol=1.0)
    tags = {"Modality": "DX", "PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    kit.write(tmp_path / "dx", kit.stack(1, slope=1.0, intercept=0.0, shift_hu=500.0, tags=tags))
    (dx,) = kit.series(tmp_path / "dx")
    assert dx.unit == "raw" and codes(dx) == ["monochrome1_inverted", "single_slice"]
    np.testing.assert_allclose(kit.hu(tmp_path / "dx", dx), 4095 - (kit.expected(dx) + 500), atol=1.0)


def test_values_that_are_not_hu_are_refused_in_derived_ct_only(tmp_path: Path, kit: Any) -> None:
    kit.write(tmp_path / "original", kit.stack(tags={"RescaleType": "US"}))
    assert kit.series(tmp_path / "original")[0].verdict.status == "accepted"
    kit.write(tmp_path / "map", kit.stack(tags={"RescaleType": "US", "ImageType": ["DERIVED", "PRIMARY"]}))
    assert codes(kit.series(tmp_path / "map")[0]) == ["hu_unknown"]


@pytest.mark.proves("A3.1")
def test_one_image_is_a_series_without_slice_spacing(tmp_path: Path, kit: Any) -> None:
    kit.write(tmp_path, kit.stack(1))
    (series,) = kit.series(tmp_path)
    assert series.verdict.status == "accepted" and codes(series) == ["single_slice"]
    assert series.spacing_mm == (None, 2.0, 1.5)


def test_order_of_files_never_matters(tmp_path: Path, kit: Any) -> None:
    """The same stack under other file names gives the same slices in the same order."""
    slices = kit.stack()
    kit.write(tmp_path / "a", slices)
    for at, one in enumerate(slices):
        one.name = f"z{9 - at}"
    kit.write(tmp_path / "b", slices)
    (first,), (second,) = kit.series(tmp_path / "a"), kit.series(tmp_path / "b")
    assert [one.instance for one in first.slices] == [one.instance for one in second.slices]


@pytest.mark.proves("A3.1")
def test_an_enhanced_file_is_read_frame_by_frame(tmp_path: Path, kit: Any) -> None:
    """Positions, spacing and rescale of each frame from its functional groups; frames in any order."""
    frames = kit.stack(5)
    for at, one in enumerate(frames):
        one.slope, one.intercept = 1.0 + 0.25 * at, -1024.0
    mixed = [frames[at] for at in (3, 0, 4, 1, 2)]
    made = mixed[0].dataset()
    for name in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(made, name)

    def item(**values: Any) -> Dataset:
        holder = Dataset()
        for name, value in values.items():
            setattr(holder, name, value)
        return holder

    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(mixed[0].orientation))],
        PixelMeasuresSequence=[item(PixelSpacing=list(mixed[0].spacing))],
    )
    made.SharedFunctionalGroupsSequence = [shared]
    made.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[float(value) for value in one.position])],
            PixelValueTransformationSequence=[
                item(RescaleSlope=one.slope, RescaleIntercept=one.intercept, RescaleType="HU")
            ],
        )
        for one in mixed
    ]
    made.NumberOfFrames = 5
    made.PixelData = b"".join(one.dataset().PixelData for one in mixed)
    made.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    (series,) = kit.series(tmp_path)
    assert series.verdict.status == "accepted" and series.shape == (5, 12, 16) and len(series.files) == 1
    np.testing.assert_allclose(kit.hu(tmp_path, series), kit.expected(series), atol=1.5)
    del made.PerFrameFunctionalGroupsSequence
    made.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    assert codes(kit.series(tmp_path)[0]) == ["multiframe"]


def test_frames_without_a_position_keep_their_numbers_beyond_the_ninth(tmp_path: Path, kit: Any) -> None:
    made = kit.stack(1)[0].dataset()
    del made.ImagePositionPatient
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [Dataset()], [Dataset()] * 12
    made.NumberOfFrames, made.PixelData = 12, made.PixelData * 12
    made.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    (series,) = kit.series(tmp_path)
    assert codes(series) == ["no_position"] and accepting(series, ["no_position"]).usable
    assert [one.frame for one in series.slices] == list(range(12))


@pytest.mark.shared
@pytest.mark.proves("R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "R10", "R11", "R12", "R13", "R14")
def test_no_planted_series_comes_out_wrong(planted_probes: tuple[Path, dict[str, Any], Any], kit: Any) -> None:
    """All 27 of the shared probe: right HU at the claimed place within 12 HU, or refused; none wrong,
    none lost."""
    out, truth, probe = planted_probes
    verdicts: Counter[str] = Counter()
    for name, case in truth.items():
        found = [examine(out / name, one) for one in kit.series(out / name)]
        usable = [one for one in found if one.usable]
        split = len([one for one in usable if one.shape[0] > 2]) > 1
        status = "quarantine" if not usable else "accept"
        if any(one.verdict.status == "repaired" for one in usable) or split:
            status = "repair"
        assert status in case["expect"], (name, [one.codes for one in found])
        verdicts[status] += 1
        assert len(usable) in (0, len(case["volumes"])), name
        for one in usable:
            values, index = kit.hu(out / name, one), np.indices(one.shape)
            points = (
                np.einsum("ij,jkrc->krci", np.array(one.affine_lps)[:3, :3], index[::-1])
                + np.array(one.affine_lps)[:3, 3]
            )
            errors = []
            for volume in case["volumes"]:
                wanted = probe.hu(points, volume["variant"])
                difference = np.abs(values - wanted)
                if volume["padded"]:
                    assert values.min() >= -1024
                    difference = difference[values > -999]
                errors.append(np.percentile(difference, 99))
            assert min(errors) <= (0.5 if status == "accept" else 12), name
            if status == "accept":  # the probe keeps the scanner's rows and slices, a flip of both away from ours
                turned = [values, values[::-1, ::-1]]
                digests = {hashlib.sha256(one.astype("<i2").tobytes()).hexdigest() for one in turned}
                assert digests & {volume["sha256"] for volume in case["volumes"]}, name
    assert verdicts["accept"] == 9, verdicts
