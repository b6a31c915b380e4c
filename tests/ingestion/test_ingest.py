"""Files -> store: the same bytes whatever interrupts it, everything counted, and clear words for bad
input."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from medform.cohort import files as store_files
from medform.cohort.cohort_file import CohortFile, parse_cohort_file
from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.ingestion.changed import SEEN
from medform.ingestion.ingest import ingest, ingest_scan
from medform.ingestion.store_series import store_series
from medform.runs.folder import RunFolder

COHORT: dict[str, Any] = {
    "name": "small",
    "licence": "CC0-1.0",
    "images": {"layout": "dicom", "path": "images"},
    "tables": {"clinical": {"path": "clinical.csv", "patient_id": "id"}},
    "columns": {
        "age": {"role": "feature", "type": "number", "known_at": "before_scan"},
        "ill": {"role": "label", "type": "boolean"},
    },
    "tasks": [{"name": "ill", "label": "clinical.ill", "predicted_at": "scan"}],
}


def tree_digest(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != SEEN  # times of the sources, no part of the store
    }


def cohort_file(root: Path, **changes: Any) -> CohortFile:
    return parse_cohort_file(COHORT | changes, "cohort.yaml", root)


@pytest.fixture
def hospital(tmp_path: Path, kit: Any) -> Path:
    """Four patients with a scan, one of them gapped and one without a row; a row without a scan; a
    localizer."""
    root = tmp_path / "hospital"
    for patient in ("A", "B", "C", "D", "E"):
        uid = f"1.2.{ord(patient)}"
        tags = {"PatientID": patient, "SeriesInstanceUID": uid, "StudyInstanceUID": f"{uid}.9"}
        slices = kit.stack(4 + ord(patient) % 3, series=patient, shift_hu=ord(patient) % 7, tags=tags)
        kit.write(root / "images" / patient.lower(), slices[:2] + slices[3:] if patient == "D" else slices)
    scout = {
        "PatientID": "A",
        "SeriesInstanceUID": "1.2.1",
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
    }
    kit.write(root / "images" / "a", kit.stack(1, series="scout", tags=scout))
    (root / "images" / "readme.txt").write_text("an export")
    (root / "images" / "broken.dcm").write_text("<html>")
    rows = ["id,age,ill", "A,50,1", "B,61,0", "C,47,1", "D,70,0", "F,33,0"]
    (root / "clinical.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.proves("A3.1", "R30", "D6")
def test_everything_that_was_found_is_counted_and_set_aside_with_a_reason(hospital: Path, tmp_path: Path) -> None:
    cohort = ingest(cohort_file(hospital), tmp_path / "store")
    counts = cohort.counts
    assert counts["files_found"] == counts["files_image"] + counts["files_other"] + counts["files_unreadable"]
    assert (counts["files_other"], counts["files_unreadable"]) == (1, 1)
    assert (
        counts["series_found"] == counts["series_quarantined"] + counts["series_not_selected"] + counts["series_used"]
    )
    assert (counts["series_quarantined"], counts["series_used"]) == (2, 4)
    assert counts["patients_found"] == 5 and counts["patients_without_usable_images"] == 1
    assert counts["patients_images_only"] == 1 and counts["patients_table_only"] == 2
    assert counts["patients_used"] == 3
    rows = {(row.patient_id, row.code, row.file) for row in cohort.quarantine()}
    assert ("D", "gap", "d/D001") in rows and ("A", "localizer", "a/scout000") in rows
    assert ("", "unreadable", "broken.dcm") in rows
    assert set(cohort.patient_ids) == {"A", "B", "C", "D", "E", "F"}
    with Image.open(cohort.preview("A")) as picture:
        assert picture.size == (16, 12)


@pytest.mark.proves("A3.1", "D1")
def test_the_store_holds_stored_integers_and_gives_hu(hospital: Path, tmp_path: Path, kit: Any) -> None:
    cohort = ingest(cohort_file(hospital), tmp_path / "store")
    series = cohort.open("1.2.66")
    assert series.voxels.dtype == np.uint16 and series.shape == (4, 12, 16)
    (found,) = kit.series(hospital / "images" / "b")
    expected = kit.expected(found) + ord("B") % 7
    for at in range(4):
        np.testing.assert_allclose(series.slice(at), expected[at], atol=1.0)
    np.testing.assert_allclose(series.affine_lps, found.affine_lps)
    sources = cohort.slices[cohort.slices["series_id"] == "1.2.66"]
    path = hospital / "images" / "b" / "B000"
    assert sources["file_digest"].iloc[0] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.proves("A3.3", "A.tests", "R49")
def test_workers_and_order_of_files_leave_no_trace(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ingest(cohort_file(hospital), tmp_path / "one", workers=1)
    shared = ingest(cohort_file(hospital), tmp_path / "four", workers=4)
    assert tree_digest(alone.root) == tree_digest(shared.root)
    moved = tmp_path / "moved"
    shutil.copytree(hospital, moved)  # other inodes and times
    backwards = SimpleNamespace(scandir=lambda folder: list(os.scandir(folder))[::-1])
    monkeypatch.setattr("medform.ingestion.discover.os", backwards)
    copied = ingest(cohort_file(moved), tmp_path / "copy")
    assert tree_digest(copied.root) == tree_digest(alone.root)


class Killed(BaseException):
    pass


@pytest.mark.proves("A3.3", "R42")
def test_a_run_stopped_before_any_rename_ends_with_the_same_bytes(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every single file, in the moment between writing and renaming, with the half file left behind."""
    undisturbed = tree_digest(ingest(cohort_file(hospital), tmp_path / "whole").root)
    store, moment = tmp_path / "store", 0
    real = os.fsync

    def stop(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        real(descriptor)

    monkeypatch.setattr(store_files, "_discard", lambda path: None)
    while True:
        left = moment
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", stop)
            try:
                ingest(cohort_file(hospital), store)
                break
            except Killed:
                names = [path.name for path in store.rglob("*") if path.is_file()]
                assert sum(name.endswith(".partial") for name in names) >= 1 and "cohort.json" not in names
        moment += 1
    assert moment > 5
    assert tree_digest(store) == undisturbed


@pytest.mark.proves("A3.3", "R42")
@pytest.mark.parametrize("moment", [2, 9])
def test_kill_9_costs_at_most_the_series_in_hand(hospital: Path, tmp_path: Path, moment: int) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from medform.cohort.cohort_file import CohortFile;"
        "from medform.config import parse; from medform.ingestion.ingest import ingest; import json\n"
        "real, left = os.fsync, int(sys.argv[4])\n"
        "def stop(descriptor):\n"
        "    global left; left -= 1\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if left < 0 else real(descriptor)\n"
        "os.fsync = stop\n"
        "file = parse(CohortFile, json.loads(sys.argv[3])).model_copy(update={'root': Path(sys.argv[1])})\n"
        "ingest(file, Path(sys.argv[2]))\n"
    )
    store = tmp_path / "store"
    import json

    command = [sys.executable, "-c", program, str(hospital), str(store), json.dumps(COHORT), str(moment)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in (store / "voxels").glob("*.npy")}
    resumed = ingest(cohort_file(hospital), store)
    assert tree_digest(resumed.root) == tree_digest(ingest(cohort_file(hospital), tmp_path / "whole").root)
    kept = {name for name, time in done.items() if (store / "voxels" / name).stat().st_mtime_ns == time}
    assert len(done) - len(kept) <= 1
    with pytest.raises(InputError, match="begun here and not finished"):
        (tmp_path / "begun" / "parts").mkdir(parents=True)
        ingest(cohort_file(hospital), tmp_path / "begun", resume=False)


@pytest.mark.proves("A.input", "R44")
def test_a_full_disk_is_said_and_the_rerun_completes(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="the disk is full"):
            ingest(cohort_file(hospital), tmp_path / "store")
    assert len(ingest(cohort_file(hospital), tmp_path / "store").patient_ids) == 6


@pytest.mark.proves("R44", "A3.3")
def test_a_file_that_the_disk_cannot_read_costs_its_series_alone(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> str:
        if path.name == "B002":
            raise OSError(errno.EIO, "Input/output error")
        return store_files.file_sha256(path)

    monkeypatch.setattr("medform.ingestion.voxels.file_sha256", failing)
    cohort = ingest(cohort_file(hospital), tmp_path / "store")
    (row,) = [one for one in cohort.quarantine() if one.patient_id == "B"]
    assert (row.code, row.file, row.reason) == ("unreadable", "b/B002", "cannot be read: Input/output error.")
    assert set(cohort.series["patient_id"]) == {"A", "C", "E"}


@pytest.mark.proves("R44", "A3.3")
@pytest.mark.parametrize("left", ["empty", "nothing", "stale"])
def test_a_share_that_goes_away_leaves_no_finished_store_and_the_rerun_goes_on(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """After the first of four series: an empty mount point, no folder, or files that answer with an error."""
    images, away, store = hospital / "images", hospital / "away", tmp_path / "store"
    real, real_stat, done = store_series, Path.stat, []

    def unmounting(task: Any) -> Any:
        if done and left != "stale" and not away.exists():
            images.rename(away)
            if left == "empty":
                images.mkdir()
        done.append(task.series.series_id)
        return real(task)

    def stale(path: Path, **more: Any) -> os.stat_result:
        if left == "stale" and len(done) > 1 and "images" in path.parts:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real_stat(path, **more)

    with monkeypatch.context() as patched:
        patched.setattr("medform.ingestion.ingest.store_series", unmounting)
        patched.setattr(Path, "stat", stale)
        with pytest.raises(InputError, match=r"went away while it was read[\s\S]*the same command again"):
            ingest(cohort_file(hospital), store)
    assert len(done) == 2 and not (store / "cohort.json").exists()
    if left != "stale":
        shutil.rmtree(images, ignore_errors=True)
        away.rename(images)
    kept = {path: path.stat().st_mtime_ns for path in (store / "voxels").iterdir()}
    assert len(kept) == 1
    resumed = ingest(cohort_file(hospital), store)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in (store / "voxels").iterdir()}.items()
    assert tree_digest(resumed.root) == tree_digest(ingest(cohort_file(hospital), tmp_path / "whole").root)


def test_a_source_that_is_no_longer_readable_at_the_end_leaves_no_finished_store(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    def refusing(folder: Path) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("medform.ingestion.voxels.file_sha256", failing)
        patched.setattr("medform.ingestion.store_series.os", SimpleNamespace(scandir=refusing))
        with pytest.raises(InputError, match="went away while it was read"):
            ingest(cohort_file(hospital), tmp_path / "store")
    assert not (tmp_path / "store" / "cohort.json").exists() and (tmp_path / "store" / "parts").is_dir()


@pytest.mark.proves("R45")
def test_a_second_process_on_the_same_store_is_refused(hospital: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / ".store.lock").lock(), pytest.raises(InputError, match="another process"):
        ingest(cohort_file(hospital), tmp_path / "store")
    ingest(cohort_file(hospital), tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".lock")] == []


@pytest.mark.proves("A3.3", "R46")
def test_a_finished_store_is_taken_only_from_the_same_sources(hospital: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = ingest(cohort_file(hospital), store)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    assert ingest(cohort_file(hospital), store).digest == first.digest
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    table = hospital / "clinical.csv"
    table.write_text(table.read_text().replace("50", "51"))
    with pytest.raises(InputError, match="made from other files"):
        ingest(cohort_file(hospital), store)
    again = ingest(cohort_file(hospital), store, overwrite=True)
    assert again.table().loc["A", "age"] == 51
    image = hospital / "images" / "a" / "A000"  # other pixels, same size and header
    image.write_bytes(image.read_bytes()[:-2] + b"\x07\x07")
    for time in (2**31, 10**9):  # also one that came with an older time than the store has
        os.utime(image, (time, time))
        with pytest.raises(InputError, match=r"1 image files changed[\s\S]*a/A000"):
            ingest(cohort_file(hospital), store)


@pytest.mark.proves("A3.3", "R46")
def test_an_unchanged_cohort_is_not_read_again(hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ingest(cohort_file(hospital), tmp_path / "store").root
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return store_files.file_sha256(path)

    monkeypatch.setattr("medform.ingestion.changed.file_sha256", counted)
    ingest(cohort_file(hospital), store)
    assert not read
    os.utime(hospital / "images" / "a" / "A000", (1, 1))  # other times, the same bytes: read once
    ingest(cohort_file(hospital), store)
    assert read
    read.clear()
    ingest(cohort_file(hospital), store)
    assert not read


@pytest.mark.proves("A3.3", "R46")
def test_a_begun_store_does_not_keep_the_voxels_of_a_file_that_changed(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    with monkeypatch.context() as patched:
        patched.setattr("medform.ingestion.ingest.CohortWriter.finish", lambda *_, **__: sys.exit("stopped"))
        with pytest.raises(SystemExit):
            ingest(cohort_file(hospital), store)
    image = hospital / "images" / "a" / "A000"
    stat = image.stat()
    image.write_bytes(image.read_bytes()[:-2] + b"\x07\x07")
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    ingest(cohort_file(hospital), store)
    assert tree_digest(store) == tree_digest(ingest(cohort_file(hospital), tmp_path / "fresh").root)


@pytest.mark.proves("D8", "A3.2")
def test_a_limit_below_the_threshold_is_negative_in_the_store(hospital: Path, tmp_path: Path) -> None:
    (hospital / "clinical.csv").write_text("id,pdl1\nA,<1%\nB,50%\nC,<2%\nD,0%\nF,1%\n")
    column = {"role": "label", "type": "number", "cell_unit": "%", "censored": "limit"}
    tasks = [{"name": "high", "label": "clinical.pdl1", "predicted_at": "scan", "threshold": 1}]
    cohort = ingest(cohort_file(hospital, columns={"pdl1": column}, tasks=tasks), tmp_path / "store")
    labels = cohort.labels("high")
    assert labels[["A", "B", "D", "F"]].tolist() == [0.0, 1.0, 0.0, 1.0] and np.isnan(labels["C"])
    notes = json.loads((cohort.root / "columns.json").read_text())["notes"]
    assert "task 'high': 1 patients have no label; a limit in 'pdl1' leaves it open." in notes


@pytest.mark.proves("A3.3", "R46")
def test_another_own_split_is_another_cohort(hospital: Path, tmp_path: Path) -> None:
    plain = ingest(cohort_file(hospital), tmp_path / "plain")
    assert not any(name.startswith("splits") for name in json.loads((plain.root / "cohort.json").read_text())["files"])
    (hospital / "s.csv").write_text("patient_id,fold,part\nA,0,test\n")
    file = cohort_file(hospital, splits={"file": "s.csv"})
    first = ingest(file, tmp_path / "store")
    assert ingest(file, tmp_path / "store").digest == first.digest
    (hospital / "s.csv").write_text("patient_id,fold,part\nB,0,test\n")
    with pytest.raises(InputError, match="made from other files"):
        ingest(file, tmp_path / "store")
    second = ingest(file, tmp_path / "store", overwrite=True)
    assert second.split().folds[0].test == ("B",) and second.digest != first.digest
    (second.root / "splits" / "main.json").unlink()
    with pytest.raises(InputError, match="the store is damaged"):
        Cohort.read(second.root)


@pytest.mark.proves("A.input")
def test_folders_without_usable_images_are_refused_before_anything_is_written(tmp_path: Path, kit: Any) -> None:
    file = {"name": "x", "licence": "x", "images": {"path": "images"}}
    images = tmp_path / "images"
    images.mkdir()

    def refused() -> str:
        with pytest.raises(InputError) as error:
            ingest(parse_cohort_file(file, "x", tmp_path), tmp_path / "store")
        assert not (tmp_path / "store").exists()
        return str(error.value)

    assert "the folder holds no file" in refused()
    (images / "notes.txt").write_text("x")
    (images / "page.dcm").write_text("<html>")
    assert "no image among 2 files" in refused() and "page.dcm" in refused()
    kit.write(images, kit.stack(tags={"RescaleSlope": None}))
    text = refused()
    assert "none of the 1 series can be used" in text and "hu_unknown" in text and "images.assume_hu" in text


@pytest.mark.proves("A.input", "R29")
def test_ids_that_match_nowhere_are_shown_with_suggestions(hospital: Path, tmp_path: Path) -> None:
    table = hospital / "clinical.csv"
    table.write_text("id,age,ill\npat-a,50,1\npat-b,61,0\n")
    with pytest.raises(InputError) as error:
        ingest(cohort_file(hospital), tmp_path / "store")
    assert "'A'" in str(error.value) and "'pat-a'" in str(error.value) and not (tmp_path / "store").exists()
    table.write_text("id,age,ill\na,50,1\nb,61,0\n")
    with pytest.raises(InputError, match=r"tables.clinical.id_rules: \[case\]"):
        ingest(cohort_file(hospital), tmp_path / "store")
    tables = {"clinical": COHORT["tables"]["clinical"] | {"id_rules": ["case"]}}
    joined = ingest(cohort_file(hospital, tables=tables), tmp_path / "store")
    assert joined.table().loc["A", "age"] == 50


@pytest.mark.proves("A.input", "A3.2")
def test_faults_of_table_label_and_leak_stop_before_anything_is_written(hospital: Path, tmp_path: Path) -> None:
    table = hospital / "clinical.csv"
    table.write_text("id,age,ill\nA,6o,1\nB,61,maybe\n")
    with pytest.raises(InputError) as error:
        ingest(cohort_file(hospital), tmp_path / "store")
    assert "row 2, column 'age'" in str(error.value) and "row 3, column 'ill'" in str(error.value)
    rows = [f"{name},{50 + at},{at % 2},{at % 2}" for at, name in enumerate("ABCDEFGHIJKLMNOPQRST")]
    table.write_text("id,age,ill,ill_score\n" + "\n".join(rows) + "\n")
    leak = {"ill_score": {"role": "feature", "type": "number", "known_at": "scan"}}
    with pytest.raises(InputError, match="ill_score"):
        ingest(cohort_file(hospital, columns=COHORT["columns"] | leak), tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.proves("A3.1", "R7")
def test_a_code_that_the_user_accepts_is_let_through_and_recorded(hospital: Path, tmp_path: Path) -> None:
    images = COHORT["images"] | {"accept": ["gap"]}
    cohort = ingest(cohort_file(hospital, images=images), tmp_path / "store")
    row = cohort.series[cohort.series["patient_id"] == "D"].iloc[0]
    assert row["verdict"] == "repaired" and "images.accept" in row["details"]
    series = cohort.open(row["series_id"])
    assert series.affine_lps is None and np.diff(series.position_mm).max() == pytest.approx(6)


@pytest.mark.proves("A3.1", "A9")
def test_slices_with_an_index_keep_order_labels_and_masks(tmp_path: Path, random: np.random.Generator) -> None:
    lines, stacks = ["who,n,img,seg,bleeding"], {}
    for patient in ("P2", "P1"):
        (tmp_path / patient).mkdir()
        stacks[patient] = random.integers(0, 256, (3, 8, 9)).astype(np.uint8)
        for at, order in enumerate((10, 9, 2)):
            Image.fromarray(stacks[patient][at]).save(tmp_path / patient / f"{order}.png")
            Image.fromarray(stacks[patient][at] > 99).save(tmp_path / patient / f"m{order}.png")
            lines.append(f"{patient},{order},{patient}/{order}.png,{patient}/m{order}.png,{at % 2}")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    Image.fromarray(stacks["P1"][0]).save(tmp_path / "stray.png")
    tree = {
        "name": "slices",
        "licence": "x",
        "images": {"layout": "slices", "index": "index.csv", "unit": "display"},
        "index": {"patient": "who", "order": "n", "file": "img", "mask": "seg"},
        "slice_tasks": [{"name": "bleeding", "label": "index.bleeding"}],
    }
    cohort = ingest(parse_cohort_file(tree, "x", tmp_path), tmp_path / "store")
    series = cohort.open("P1")
    np.testing.assert_array_equal([series.stored(at) for at in range(3)], stacks["P1"][::-1])
    masks = cohort.masks("P1")
    assert masks is not None
    np.testing.assert_array_equal(masks, stacks["P1"][::-1] > 99)
    assert cohort.slice_labels("bleeding").loc["P1:0001"] == 1.0 and cohort.unit == "display"
    assert cohort.counts["files_image"] == 7 and cohort.counts["files_other"] == 7
    assert [(row.code, row.file) for row in cohort.quarantine()] == [("not_in_index", "stray.png")]


@pytest.mark.proves("A.input", "A3.2")
def test_every_fault_of_an_index_is_reported_at_once(tmp_path: Path) -> None:
    tree = {"name": "x", "licence": "x", "images": {"layout": "slices", "index": "i.csv", "unit": "display"}}
    (tmp_path / "i.csv").write_text("patient_id,slice_idx,image\nP1,1,a.png\n")
    with pytest.raises(InputError, match="Did you mean 'slice_idx'"):
        ingest(parse_cohort_file(tree, "x", tmp_path), tmp_path / "store")
    (tmp_path / "i.csv").write_text("patient_id,slice_index,image\nP1,1,a.png\nP1,one,b.png\nP1,1,c.png\n,4,d.png\n")
    with pytest.raises(InputError) as error:
        ingest(parse_cohort_file(tree, "x", tmp_path), tmp_path / "store")
    assert [problem.row for problem in error.value.problems] == [3, 4, 5]
    (tmp_path / "i.csv").write_text("patient_id,slice_index,image\nP1,1,a.png\n")
    with pytest.raises(InputError, match="none of the 1 files of the index exists"):
        ingest(parse_cohort_file(tree, "x", tmp_path), tmp_path / "store")


@pytest.mark.proves("U5", "A8.1", "A4.4")
def test_a_bare_scan_needs_no_cohort_file(tmp_path: Path, kit: Any) -> None:
    """A DICOM folder and its NIfTI conversion give equal stores of one series in HU."""
    kit.write(tmp_path / "dicom", kit.stack(8, shift_hu=-700.0))
    dicom = ingest_scan(tmp_path / "dicom", tmp_path / "a")
    series = dicom.open(dicom.series["series_id"].iloc[0])
    volume = np.stack([series.slice(at) for at in range(8)])
    affine = np.diag([-1.0, -1, 1, 1]) @ series.affine_lps
    nibabel.Nifti1Image(volume.transpose(2, 1, 0).astype(np.int16), affine).to_filename(tmp_path / "ct.nii.gz")
    nifti = ingest_scan(tmp_path / "ct.nii.gz", tmp_path / "b")
    other = nifti.open("ct.nii.gz")
    assert dicom.unit == nifti.unit == "HU" and nifti.patient_ids == ("ct",)
    np.testing.assert_array_equal(np.stack([other.slice(at) for at in range(8)]), volume)
    np.testing.assert_allclose(other.position_mm, series.position_mm, atol=1e-4)
    assert "unit_by_range" in nifti.series["codes"].iloc[0]


@pytest.mark.proves("A4.4", "A3.1")
def test_a_folder_of_pictures_is_a_cohort_of_its_folders(tmp_path: Path, random: np.random.Generator) -> None:
    for patient, count in (("one", 12), ("two", 3)):
        (tmp_path / "set" / patient).mkdir(parents=True)
        for at in range(count):
            values = np.full((6, 6), 10 * at, np.uint8)
            Image.fromarray(values).save(tmp_path / "set" / patient / f"s{at}.png")
    cohort = ingest_scan(tmp_path / "set", tmp_path / "store")
    assert set(cohort.patient_ids) == {"one", "two"} and cohort.unit == "display"
    series = cohort.open("one")
    assert [int(series.stored(at)[0, 0]) for at in range(12)] == [10 * at for at in range(12)]
    flat = ingest_scan(tmp_path / "set" / "two", tmp_path / "flat")
    assert flat.patient_ids == ("two",) and isinstance(flat, Cohort)


def test_a_series_of_a_modality_that_the_model_cannot_take_is_set_aside_alone(tmp_path: Path, kit: Any) -> None:
    for patient, modality in (("p", "CT"), ("q", "MR")):
        tags = {"PatientID": patient, "SeriesInstanceUID": f"1.2.{patient == 'p':d}", "Modality": modality}
        kit.write(tmp_path / "scans" / patient, kit.stack(8, series=patient, tags=tags))
    refused = {"CT": "no CT was seen."}
    cohort = ingest_scan(tmp_path / "scans", tmp_path / "store", unit="raw", refused=refused)
    assert cohort.patient_ids == ("q",)
    (aside,) = cohort.quarantine()
    assert (aside.patient_id, aside.code, aside.reason) == ("p", "unit_differs", "no CT was seen.")
    assert set(ingest_scan(tmp_path / "scans", tmp_path / "both", unit="raw").patient_ids) == {"p", "q"}
    with pytest.raises(InputError, match="none of the 1 series can be used") as caught:
        ingest_scan(tmp_path / "scans" / "p", tmp_path / "none", unit="raw", refused=refused)
    assert "unit_differs: " in str(caught.value) and "use a model that was trained on CT" in str(caught.value)


@pytest.mark.shared
@pytest.mark.proves("A9", "A3.1")
def test_head_ct_slices_are_ingested_in_seconds(shared_data: Path, tmp_path: Path) -> None:
    """59 patients, 1,788 slices, 220 with haemorrhage: every slice on file, with its labels, in < 30
    CPU-seconds."""
    import time

    tree = {
        "name": "ct_ich",
        "licence": "CC BY 4.0",
        "images": {"layout": "slices", "index": "slices.csv", "unit": "display"},
        "slice_tasks": [{"name": "ich", "label": "index.any_ich"}],
    }
    start = time.process_time()
    cohort = ingest(parse_cohort_file(tree, "x", shared_data / "ct_ich"), tmp_path / "store")
    assert time.process_time() - start < 30
    assert len(cohort.patient_ids) == 59 and len(cohort.slices) == cohort.counts["files_image"] == 1788
    assert cohort.slice_labels("ich").sum() == 220 and not cohort.quarantine()
