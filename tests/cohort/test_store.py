"""The store: version 1 reads, bytes follow from content, damage and leaks are refused, kills are mended."""

from __future__ import annotations

import filecmp
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medform.cohort import files
from medform.cohort.cohort_file import parse_cohort_file
from medform.cohort.quarantine import Quarantined, Verdict
from medform.cohort.split import Fold, Split
from medform.cohort.store import Cohort, CohortWriter, SeriesRecord, SliceRecord, series_complete, write_series
from medform.errors import InputError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def _fixture_maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_store_v1", FIXTURES / "make_store_v1.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = _fixture_maker()


def _tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of the committed store, to be damaged."""
    shutil.copytree(FIXTURES / "store_v1", tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.proves("A1.5")
def test_the_committed_store_of_version_1_reads() -> None:
    cohort = Cohort.read(FIXTURES / "store_v1", verify=True)
    assert (cohort.name, cohort.unit, cohort.window) == ("store_v1", "HU", (-1000.0, 400.0))
    assert cohort.counts["patients"] == 9 and cohort.counts["files_found"] == 25
    series = cohort.open("1.2.3")
    stored = maker.slices_of(3)
    assert series.shape == (3, 12, 12) and series.spacing_mm == (2.0, 1.0, 1.0)
    for index, slope in enumerate([1.0, 2.0, 1.0]):
        np.testing.assert_array_equal(series.stored(index), stored[index])
        np.testing.assert_array_equal(series.slice(index), stored[index].astype(np.float32) * slope - 1024)
    assert series.slice(0).dtype == np.float32 and series.affine_lps is not None
    assert series.affine_lps.shape == (4, 4) and list(series.position_mm) == [0.0, 2.0, 4.0]
    with pytest.raises(IndexError):
        series.slice(3)
    masks = cohort.masks("1.2.1")
    assert masks is not None and masks.shape == (3, 12, 12) and cohort.masks("1.2.2") is None
    assert cohort.quarantine() == [
        Quarantined("00042", "1.2.42", "ct/42", "gap", "ImagePositionPatient", "a slice is missing at 4 mm")
    ]
    assert cohort.split().certificate["clean"] is True


@pytest.mark.proves("D8", "D9", "A.tests")
def test_ids_stay_text_and_missing_stays_missing() -> None:
    cohort = Cohort.read(FIXTURES / "store_v1")
    assert set(cohort.patient_ids) == {*(f"{number:05d}" for number in range(8)), "00099"}
    table = cohort.table()
    assert table.loc["00003", "age"] == 70.0 and np.isnan(table.loc["00002", "age"])
    assert table.loc["00000", "sex"] == "F" and pd.isna(table.loc["00004", "sex"])
    labels = cohort.labels("lesion")
    assert list(labels.index) == list(cohort.patient_ids)
    assert labels["00000"] == 1.0 and labels["00001"] == 0.0 and np.isnan(labels["00006"]) and np.isnan(labels["00007"])
    assert cohort.features("lesion") == ["age", "sex"] == cohort.features()


@pytest.mark.proves("A3.3", "R49", "D33")
def test_bytes_do_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    maker.make_store(tmp_path / "a")
    maker.make_store(tmp_path / "b", (5, 2, 7, 0, 1, 6, 4, 3))
    assert _tree(tmp_path / "a") == _tree(tmp_path / "b")


@pytest.mark.proves("A1.5")
def test_the_script_still_makes_the_committed_content(tmp_path: Path) -> None:
    new, old = maker.make_store(tmp_path / "new"), Cohort.read(FIXTURES / "store_v1")
    for mine, theirs in ((new.patients, old.patients), (new.series, old.series), (new.slices, old.slices)):
        pd.testing.assert_frame_equal(mine, theirs)
    assert new.split() == old.split()
    assert filecmp.cmp(tmp_path / "new/voxels/1.2.0.npy", FIXTURES / "store_v1/voxels/1.2.0.npy", shallow=False)


@pytest.mark.proves("A3.3", "R42")
def test_a_killed_write_continues_and_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = maker.make_store(tmp_path / "whole")
    broken = tmp_path / "broken"
    writer = CohortWriter(broken, maker.cohort_file(), inputs="fixture")
    writer.write_series(maker.record_of(99), maker.slices_of(99))  # a series that the next run no longer finds
    writer.write_series(maker.record_of(0), maker.slices_of(0), inputs="same")

    def killed():
        yield maker.slices_of(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write_series(maker.record_of(1), killed())
    (broken / "voxels/1.2.1.npy.partial").write_bytes(b"left by a kill -9")
    assert not (broken / "voxels/1.2.1.npy").exists()
    with pytest.raises(InputError, match="unfinished"):
        Cohort.read(broken)
    assert series_complete(broken, "1.2.0", "same")
    assert not series_complete(broken, "1.2.0", "other") and not series_complete(broken, "1.2.1", "same")
    maker.make_store(broken)
    assert _tree(broken) == _tree(whole.root)


@pytest.mark.proves("A3.3")
def test_a_finished_store_is_left_alone_and_another_is_refused(tmp_path: Path, store: Path) -> None:
    assert CohortWriter(store, maker.cohort_file(), inputs="fixture").finished
    with pytest.raises(InputError, match="other files or another cohort file"):
        CohortWriter(store, maker.cohort_file(), inputs="changed")
    assert not CohortWriter(store, maker.cohort_file(), inputs="changed", overwrite=True).finished
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday/photo.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match="holds no cohort store"):
        CohortWriter(tmp_path / "holiday", maker.cohort_file(), overwrite=True)
    assert (tmp_path / "holiday/photo.jpg").exists()


@pytest.mark.proves("A1.5", "A.input")
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "cohort.json",
            lambda text: text.replace('"schema_version": 1', '"schema_version": 9'),
            "schema version 9",
        ),
        ("cohort.json", lambda text: text.replace("synthetic", "public domain"), "does not match its digest"),
        ("cohort.json", lambda text: text[: len(text) // 2], "not a manifest"),
        ("quarantine.csv", lambda text: text + "x\n", "quarantine.csv"),
    ],
)
def test_damage_and_other_versions_are_refused_by_name(store: Path, name: str, damage: Any, message: str) -> None:
    (store / name).write_text(damage((store / name).read_text()))
    with pytest.raises(InputError, match=message):
        Cohort.read(store)


def test_damaged_voxels_are_found(store: Path) -> None:
    path = store / "voxels/1.2.3.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"1\.2\.3\.npy.*changed"):
        Cohort.read(store, verify=True)
    path.write_bytes(content[:-5])
    with pytest.raises(InputError, match="another size"):
        Cohort.read(store).open("1.2.3")


@pytest.mark.proves("R44", "A.input")
def test_a_full_disk_says_so_and_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full") as caught:
        write_series(tmp_path, maker.record_of(0), maker.slices_of(0))
    assert caught.value.exit_code == 2 and list(tmp_path.rglob("*.npy*")) == []


@pytest.mark.proves("R44")
def test_whichever_write_fails_the_next_run_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _tree(maker.make_store(tmp_path / "whole", (0, 1, 2, 3)).root)
    real, left = files.os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    failed = 0
    for number in range(1, 40):
        root = tmp_path / f"broken-{number}"
        left = number
        try:
            maker.make_store(root, (0, 1, 2, 3))
        except InputError as error:
            failed += 1
            assert "Input/output error" in str(error) and not (root / "cohort.json").exists()
        reached, left = left <= 0, 0
        assert list(root.rglob("*.partial")) == []
        assert _tree(maker.make_store(root, (0, 1, 2, 3)).root) == whole
        if not reached:
            break
    assert failed == 17  # the writes of four series, a mask, seven tables and the mark of an unfinished store


@pytest.mark.proves("R47")
def test_values_that_are_not_finite_name_series_and_slice(tmp_path: Path) -> None:
    bad = [np.zeros((4, 4), np.float32), np.full((4, 4), np.nan, np.float32), np.zeros((4, 4), np.float32)]
    with pytest.raises(InputError, match=r"series 1\.2\.0.*slice 1"):
        write_series(tmp_path, maker.record_of(0), bad)
    assert list(tmp_path.rglob("*.npy*")) == []


@pytest.mark.parametrize("count", [0, 2, 4])
def test_slices_that_do_not_fit_the_record_are_our_bug(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match=r"1\.2\.0"):
        write_series(tmp_path, maker.record_of(0), [np.zeros((4, 4), np.int16)] * count)


@pytest.mark.proves("A3.4", "A.input")
def test_too_few_of_a_class_for_the_primary_task_is_an_error_with_the_number_that_works(
    tmp_path: Path,
) -> None:
    file = maker.cohort_file()
    file = file.model_copy(update={"splits": file.splits.model_copy(update={"folds": 4})})
    writer = CohortWriter(tmp_path / "s", file)
    for number in range(7):
        writer.write_series(maker.record_of(number), maker.slices_of(number))
    writer.finish([f"1.2.{number}" for number in range(7)], clinical=maker.table())
    with pytest.raises(InputError) as caught:
        Cohort.read(tmp_path / "s").split()
    assert "'lesion' has 3 positive patients for 4 folds" in str(caught.value)
    assert "splits.folds: 3" in str(caught.value) and not (tmp_path / "s/splits").exists()


@pytest.mark.proves("R33", "A3.4")
def test_one_person_under_two_ids_is_found_by_a_near_copy_and_an_own_split_that_parts_them_is_refused(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    file = maker.cohort_file().model_copy(update={"tasks": [], "columns": {}, "tables": {}})
    writer = CohortWriter(tmp_path / "s", file)
    for number in range(4):
        image = random.normal(0, 1, (8, 8)).repeat(8, 0).repeat(8, 1) * 500
        if number == 0:
            twin = image
        if number == 3:  # the same picture, rescaled and with noise, under another id
            image = twin * 0.5 + random.normal(0, 2, image.shape) + 30
        writer.write_series(maker.record_of(number, 1), [image.astype(np.int16)])
    writer.finish([f"1.2.{number}" for number in range(4)])
    cohort = Cohort.read(tmp_path / "s")
    split = cohort.split()
    assert split.certificate["same_person"] == [["00000", "00003"]] and split.certificate["clean"] is True
    parts = [fold.part_of() for fold in split.folds]
    assert all(part["00000"] == part["00003"] for part in parts)

    poisoned = Split("main", (Fold(("00000", "00001"), (), ("00002", "00003")),))
    (cohort.root / "splits/main.json").write_text(poisoned.to_json())
    with pytest.raises(InputError, match=r"00000, 00003.*near-duplicates.*test and train"):
        cohort.split()

    (tmp_path / "mine.csv").write_text("patient_id,fold,part\n00000,0,train\n00003,0,test\n")
    own = file.model_copy(update={"root": tmp_path, "splits": file.splits.model_copy(update={"file": "mine.csv"})})
    second = CohortWriter(tmp_path / "t", own)
    shutil.copytree(tmp_path / "s/voxels", tmp_path / "t/voxels")
    for number in (0, 3):
        values = np.load(tmp_path / f"s/voxels/1.2.{number}.npy")
        second.write_series(maker.record_of(number, 1), list(values))
    with pytest.raises(InputError, match="this split leaks"):
        second.finish(["1.2.0", "1.2.3"])
    assert not (tmp_path / "t/cohort.json").exists()


def test_select_keeps_order_pseudonyms_and_folds(store: Path) -> None:
    cohort = Cohort.read(store)
    some = cohort.select(["00001", "00004", "00099"])
    assert some.patient_ids == tuple(one for one in cohort.patient_ids if one in ("00001", "00004", "00099"))
    assert some.digest != cohort.digest and len(some.series) == 2 and len(some.slices) == 6
    names = cohort.patients.set_index("patient_id")["pseudonym"]
    assert (some.patients.set_index("patient_id")["pseudonym"] == names[list(some.patient_ids)]).all()
    for small, large in zip(some.split().folds, cohort.split().folds, strict=True):
        assert set(small.test) == set(large.test) & set(some.patient_ids)
    patient = some.patient("00099")
    assert patient.series_ids == () and patient.has_table
    with pytest.raises(KeyError):
        cohort.select(["nobody"])


def test_the_store_names_no_machine_and_no_patient_in_file_names(tmp_path: Path) -> None:
    record = replace(maker.record_of(0), series_id="../Müller/1", patient_id="Müller, H.")
    writer = CohortWriter(tmp_path / "s", maker.cohort_file().model_copy(update={"tasks": []}))
    writer.write_series(record, maker.slices_of(0))
    writer.write_preview("Müller, H.", b"png")
    writer.finish(["../Müller/1"])
    assert all(path.resolve().is_relative_to(tmp_path / "s") for path in (tmp_path / "s").rglob("*"))
    assert str(tmp_path) not in json.dumps(json.loads((tmp_path / "s/cohort.json").read_text()))
    cohort = Cohort.read(tmp_path / "s", verify=True)
    assert cohort.open("../Müller/1").shape == (3, 12, 12) and cohort.preview("Müller, H.").read_bytes() == b"png"


def test_a_copy_stored_with_black_as_high_has_the_same_fingerprint(tmp_path: Path, random: np.random.Generator) -> None:
    image = random.integers(0, 4096, (16, 17)).repeat(4, 0).repeat(4, 1).astype(np.uint16)
    prints = []
    for number, (stored, slope, intercept) in enumerate([(image, 1.0, 0.0), (4095 - image, -1.0, 4095.0)]):
        record = SeriesRecord(
            f"s{number}", "p", "DX", "raw", Verdict("accepted"), (SliceRecord(slope=slope, intercept=intercept),)
        )
        write_series(tmp_path, record, [stored])
        part = json.loads((tmp_path / "parts" / f"s{number}.json").read_text())
        prints.append(part["fingerprints"])
    assert prints[0] == prints[1]


def _grouped(root: Path, values: list[str | None], **splits: Any) -> Cohort:
    """The store of the fixture with a column ``family``: of patients 0 to 6, and of one without images."""
    column = {"role": "group", "type": "text"}
    tree = maker.COHORT_FILE | {
        "columns": maker.COHORT_FILE["columns"] | {"family": column},
        "splits": maker.COHORT_FILE["splits"] | splits,
    }
    file = parse_cohort_file(tree, "c.yaml").model_copy(update={"root": root.parent})
    writer = CohortWriter(root, file)
    for number in range(8):
        writer.write_series(maker.record_of(number), maker.slices_of(number))
    table = maker.table().assign(family=pd.array(values, dtype="string"))
    writer.finish([f"1.2.{number}" for number in range(8)], clinical=table)
    return Cohort.read(root)


FAMILIES = ["a", "a", "b", "b", None, None, "a", "b"]


def test_patients_of_one_declared_group_are_never_parted(tmp_path: Path) -> None:
    cohort = _grouped(tmp_path / "s", FAMILIES, group="family")
    split = cohort.split()
    for fold in split.folds:
        part = fold.part_of()
        assert len({part[one] for one in ("00000", "00001", "00006")}) == 1
        assert len({part[one] for one in ("00002", "00003", "00099")}) == 1
    assert split.certificate["clean"] is True and split.settings["group"] == "family"
    assert split.certificate["same_person"] == []  # of one family is not the same person
    folds: Any = split.certificate["folds"]
    assert folds[0]["train-test"]["groups"] == 0
    parted = Split("main", (Fold(("00000", "00004"), (), ("00001", "00005")),))
    (cohort.root / "splits/main.json").write_text(parted.to_json())
    with pytest.raises(InputError, match=r"00000, 00001.*share groups.*test and train"):
        cohort.split()


def test_a_group_column_that_no_split_names_changes_nothing(tmp_path: Path) -> None:
    split = _grouped(tmp_path / "s", FAMILIES).split()
    plain = Cohort.read(FIXTURES / "store_v1").split()
    assert split.folds == plain.folds and split.certificate == plain.certificate and split.settings == plain.settings


def test_an_own_split_that_parts_a_declared_group_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("patient_id,fold,part\n00000,0,train\n00001,0,test\n")
    with pytest.raises(InputError, match=r"00000, 00001.*share groups") as caught:
        _grouped(tmp_path / "s", FAMILIES, group="family", file="mine.csv")
    assert "one person or group" in str(caught.value)
    own = _grouped(tmp_path / "t", ["a", "b", "b", "b", None, None, "a", "b"], group="family", file="mine.csv").split()
    folds: Any = own.certificate["folds"]
    assert folds[0]["train-test"]["groups"] == 0


def test_too_few_groups_for_the_folds_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"column 'family' leaves 2 groups of patients for 3 folds") as caught:
        _grouped(tmp_path / "s", ["a"] * 7 + ["a"], group="family", folds=3)
    assert "splits.folds: 2" in str(caught.value)
    cohort = _grouped(tmp_path / "t", ["a", None, "a", None, "a", None, "a", "a"], group="family")
    with pytest.raises(InputError, match="only 1 groups of column 'family' have a positive patient, for 2 folds"):
        cohort.split()
