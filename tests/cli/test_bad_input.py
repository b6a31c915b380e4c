"""What bad input gets, through the command line: one entry for every case of the issue's list.

Each is answered with exit code 2, without a trace, with what is wrong, where, and what to do; and nothing that is
half-written is left. A full disk and Ctrl-C leave what can be gone on with, and going on ends with the same bytes.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID
from safetensors.numpy import save_file

from medform.cli.main import invoke
from medform.objectives.simclr import Simclr
from medform.runs.scores import read_scores
from medform.synthetic.hospital import write_hospital
from medform.synthetic.options import HospitalOptions

TOWER = (
    "{kind: module, module: 'timm.models.vision_transformer:VisionTransformer', img_size: 32, patch_size: 8, "
    "in_chans: 1, num_classes: 0, embed_dim: 12, depth: 1, num_heads: 2}"
)
TINY = (
    f"stages.pretrain.towers.image={TOWER}",
    "stages.pretrain.inputs.image={kind: slices, size: 32, source: 32}",
    "stages.pretrain.objective.projection={kind: projection, hidden: 8, width: 4}",
    "stages.pretrain.start={image: random}",
    "stages.pretrain.batch=8",
    "stages.pretrain.budget={steps: 6}",
    "stages.pretrain.checkpoint_every=2",
    "stages.pretrain.log_every=1",
    "stages.align.inputs.image={kind: features, of: pretrain, size: 32, layers: [head], pca: 4}",
    "stages.align.budget={steps: 3}",
    "image_only={pca: 4}",
    "variants={}",
    "evaluation={draws: 2, shots: [1], permutations: 2, bootstrap: 100}",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital of twelve patients without any fault, its rows in the table in the order of the images."""
    plain = {"defects": False, "localizers": 0, "second_kernels": 0, "follow_ups": 0, "missing": 0, "sentinel": 0}
    root = tmp_path_factory.mktemp("bad") / "hospital"
    write_hospital(root, patients=12, seed=3, options=HospitalOptions(size=32, **plain))  # type: ignore[arg-type]
    change(root, "folds: 5", "folds: 2")
    change(root, "[III, IV]", "[IV]")  # a secondary task of a single positive patient
    return root


@pytest.fixture
def hospital(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "hospital"))


def change(hospital: Path, old: str, new: str) -> None:
    """Write ``new`` for ``old`` in the cohort file."""
    path = hospital / "cohort.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def change_cells(hospital: Path, column: str, new: Callable[[int, str], str]) -> None:
    """Write ``new(line of the file, old)`` into every cell of a column of the table."""
    path = hospital / "clinical.csv"
    header, *rows = [line.split(";") for line in path.read_text(encoding="utf-8").splitlines()]
    place = header.index(column)
    for line, row in enumerate(rows, start=2):
        row[place] = new(line, row[place])
    path.write_text("\n".join(";".join(row) for row in [header, *rows]) + "\n", encoding="utf-8")


def empty_folder(hospital: Path) -> list[str]:
    shutil.rmtree(hospital / "images")
    (hospital / "images").mkdir()
    return []


def no_image(hospital: Path) -> list[str]:
    empty_folder(hospital)
    (hospital / "images" / "letter.txt").write_text("dear colleague")
    return []


def no_table(hospital: Path) -> list[str]:
    (hospital / "clinical.csv").unlink()
    return []


def strange_ids(hospital: Path) -> list[str]:
    change_cells(hospital, "patient_id", lambda _, old: f"P-{int(old)}")
    return []


def absent_column(hospital: Path) -> list[str]:
    change(hospital, '"weight (kg)":', '"wieght (kg)":')
    return []


def unit_suffix(hospital: Path) -> list[str]:
    change_cells(hospital, "weight (kg)", lambda line, old: f"{old} kg" if line == 3 else old)
    change_cells(hospital, "age (years)", lambda line, old: "6o" if line == 5 else old)
    return []


def label_by_name(hospital: Path) -> list[str]:
    text = (hospital / "clinical.csv").read_text(encoding="utf-8").replace("room", "is malignant", 1)
    (hospital / "clinical.csv").write_text(text, encoding="utf-8")
    change(hospital, "  room:  ", '  "is malignant":  ')
    return []


def label_itself(hospital: Path) -> list[str]:
    change(hospital, "{role: label, type: boolean}", "{role: feature, type: boolean, known_at: before_scan}")
    return []


def label_by_auroc(hospital: Path) -> list[str]:
    change(
        hospital, "{role: outcome, type: number, known_at: follow_up}", "{role: feature, type: number, known_at: scan}"
    )
    return []


def known_later(hospital: Path) -> list[str]:
    change(hospital, 'decimal: ",", known_at: before_scan', 'decimal: ",", known_at: after_surgery')
    return []


def one_class(hospital: Path) -> list[str]:
    change_cells(hospital, "malignant", lambda *_: "no")
    return []


def many_folds(hospital: Path) -> list[str]:
    change(hospital, "folds: 2", "folds: 9")
    return []


def no_rule(hospital: Path) -> list[str]:
    patient = next(path for path in sorted((hospital / "images").iterdir()) if path.is_dir())
    study = next(path.parent for path in sorted(patient.rglob("*")) if path.is_file())
    again = Path(shutil.copytree(study, study.parent / "again"))
    for number, path in enumerate(sorted(again.iterdir())):
        image = pydicom.dcmread(path)
        image.SeriesInstanceUID = "1.2.3.4"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.4.{number}")
        image.SeriesDescription = "BONE"
        image.save_as(path)
    text = (hospital / "cohort.yaml").read_text(encoding="utf-8")
    start, end = text.index("  select:"), text.index("tables:")
    (hospital / "cohort.yaml").write_text(text[:start] + text[end:], encoding="utf-8")
    return []


def unknown_cohort_key(hospital: Path) -> list[str]:
    change(hospital, "licence:", "license:")
    change(hospital, "folds: 2", "folds: two")
    return []


def unknown_recipe(_: Path) -> list[str]:
    return ["--set", "stages.pretrain.bach=8", "--set", "stages.align.optimizer.warmup={share: 2}"]


def unknown_backbone(_: Path) -> list[str]:
    return ["--set", "stages.pretrain.towers.image={kind: timm, model: resnet5O}"]


def other_weights(hospital: Path) -> list[str]:
    save_file({"layer.weight": np.zeros((2, 2), np.float32)}, hospital / "own.safetensors")
    tower = "{kind: timm, model: resnet10t}"
    return [
        "--set", f"stages.pretrain.towers.image={tower}",
        "--set", f"stages.pretrain.start={{image: '{hospital / 'own.safetensors'}'}}",
    ]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """``spoil`` makes the input bad and gives further options; every one of ``words`` must be said."""

    spoil: Callable[[Path], list[str]]
    words: tuple[str, ...]


CASES = {
    "empty folder": Case(empty_folder, ("images: the folder holds no file", "give the folder that holds the images")),
    "folder without an image": Case(no_image, ("no image among 1 files", "give a folder with DICOM, NIfTI")),
    "no table": Case(no_table, ("'tables.clinical.path'", "no such file", "relative to --root")),
    "ids that do not match": Case(
        strange_ids,
        (
            "clinical.csv: no patient id of the table",
            "images: '",
            "table: 'P-",
            "(not applied)",
            "tables.clinical.id_map",
        ),
    ),
    "column that is not in the table": Case(
        absent_column, ("row 1, column 'wieght (kg)'", "no such column", "Did you mean 'weight (kg)'?")
    ),
    "numbers with a unit, and another fault": Case(
        unit_suffix,
        ("2 problems", "row 3, column 'weight (kg)': '", "cell_unit: 'kg'", "row 5, column 'age (years)': '6o'"),
    ),
    "label as a feature": Case(label_itself, ("column 'malignant'", "allow_as_feature: true")),
    "label as a feature, by name": Case(label_by_name, ("column 'is malignant'", "allow_as_feature")),
    "label as a feature, by what it predicts": Case(
        label_by_auroc, ("column 'chemo_cycles'", "AUROC 1.00", "allow_as_feature")
    ),
    "feature that is known later": Case(known_later, ("column 'marker'", "known at after_surgery", "role: ignore")),
    "one class only": Case(one_class, ("task 'malignant' has one class only", "Fix: bring more patients")),
    "fewer patients than folds": Case(many_folds, ("6 positive patients for 9 folds", "Fix: set splits.folds: 6")),
    "several series without a rule": Case(no_rule, ("BONE", "images.select")),
    "unknown key and value of the cohort file": Case(
        unknown_cohort_key, ("cohort.yaml:2", "Did you mean 'licence'?", "'splits.folds': 'two'")
    ),
    "unknown key and value of the recipe": Case(
        unknown_recipe, ("stages.pretrain.bach", "Did you mean 'batch'?", "warmup", "less than or equal to 1")
    ),
    "unknown timm name": Case(unknown_backbone, ("has no model 'resnet5O'", "resnet50")),
    "weights of another architecture": Case(
        other_weights, ("own.safetensors: these weights do not fit", "Not of this backbone: layer.weight", "Fix:")
    ),
}


def run_of(hospital: Path, out: Path, *more: str) -> list[str]:
    """Arguments of a tiny run on the first fold."""
    settings = [word for setting in TINY for word in ("--set", setting)]
    cohort = str(hospital / "cohort.yaml")
    return ["run", "medform-demo", "--cohort", cohort, "-o", str(out), "--fold", "0", *settings, *more]


def half_written(out: Path) -> list[str]:
    """What should not lie there: anything but a store that is whole."""
    found = [path.name for path in out.parent.glob(f".{out.name}*")]
    if out.exists():
        found += [path.name for path in out.iterdir() if path.name not in ("store", ".lock")]
        found += [] if not (out / "store").exists() or (out / "store" / "cohort.json").is_file() else ["store"]
        found += [path.name for path in out.rglob("*") if path.name.endswith((".partial", ".writing"))]
    return found


@pytest.mark.proves("A.input")
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_words_and_leaves_nothing_half_written(
    name: str, hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    options = case.spoil(hospital)
    assert invoke(run_of(hospital, tmp_path / "out", *options)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    for word in case.words:
        assert word in told.err, told.err
    assert "Traceback" not in told.err and "fault in medform" not in told.err
    assert half_written(tmp_path / "out") == []


@pytest.mark.proves("A.input")
@pytest.mark.parametrize("verb", ["check", "init", "pretrain", "embed"])
@pytest.mark.parametrize("spoil", [empty_folder, no_image])
def test_every_verb_that_takes_a_folder_says_that_nothing_in_it_can_be_used(
    verb: str, spoil: Callable[[Path], list[str]], hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(hospital)
    out = [] if verb == "check" else ["-o", str(tmp_path / "out")]
    assert invoke([verb, str(hospital / "images"), *out]) == 2
    told = capsys.readouterr()
    assert "Fix:" in told.out + told.err and "Traceback" not in told.err
    assert not (tmp_path / "out").exists() and half_written(tmp_path / "out") == []


@pytest.fixture(scope="module")
def calm(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("calm") / "run"
    assert invoke(run_of(original, out)) == 0
    return out


@pytest.fixture(scope="module")
def calm_store(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nothing disturbed."""
    out = tmp_path_factory.mktemp("calm") / "store"
    assert invoke(["ingest", str(original / "cohort.yaml"), "-o", str(out)]) == 0
    return out


@pytest.mark.proves("A.input", "A6.1")
def test_a_secondary_task_of_too_few_patients_gets_rows_with_a_note(calm: Path) -> None:
    rows = [row for row in read_scores(calm / "scores.json") if row.task == "late_stage"]
    judged = [row for row in rows if row.model == "aligned" and row.protocol == "cross_validation"]
    assert judged and all(row.value is None and "one class only" in str(row.note) for row in judged)
    assert all(row.note for row in rows if row.value is None)


@pytest.mark.proves("A.input")
def test_a_run_of_another_configuration_in_the_folder_is_refused_with_the_difference(
    calm: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (calm / "run.json", calm / "recipe.yaml", calm / "scores.json")}
    assert invoke(run_of(original, calm, "--resume", "--set", "stages.pretrain.batch=7")) == 2
    told = capsys.readouterr().err
    assert "holds a run of another configuration" in told and "--overwrite" in told
    assert "-    batch: 8" in told and "+    batch: 7" in told
    assert invoke(run_of(original, calm)) == 2
    assert "already holds this run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


RESULTS = ("embeddings.parquet", "predictions.parquet", "scores.json", "attention.parquet")


def same_results(one: Path, other: Path) -> bool:
    """Whether two runs left the same bytes (their reports also say how long they took)."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in RESULTS)


def same_store(one: Path, other: Path) -> bool:
    """Whether two stores hold the same files with the same bytes."""
    files = [sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file()) for root in (one, other)]
    return files[0] == files[1] and all((one / name).read_bytes() == (other / name).read_bytes() for name in files[0])


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """A disk that has room for ``after`` more files."""
    left = [after]
    fsync = os.fsync

    def refuse(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        yield


@contextmanager
def ctrl_c(monkeypatch: pytest.MonkeyPatch, place: str, after: int) -> Iterator[None]:
    """The user presses Ctrl-C in the call number ``after`` of the function at ``place``."""
    module, _, name = place.rpartition(".")
    owner: Any = Simclr if module == "Simclr" else __import__(module, fromlist=[name])
    function, calls = getattr(owner, name), [0]

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == after:
            raise KeyboardInterrupt
        return function(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, interrupted)
        yield


@pytest.mark.proves("A.input", "A3.3")
@pytest.mark.parametrize("after", [0, 30])
def test_a_disk_that_fills_during_ingest_is_named_and_the_ingest_goes_on_later(
    after: int, calm_store: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["ingest", str(original / "cohort.yaml"), "-o", str(tmp_path / "store")]
    with full_disk(monkeypatch, after):
        assert invoke(arguments) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "store") in told and "the disk is full" in told and "free some space" in told
    assert "run the command again" in told and "Traceback" not in told
    assert not (tmp_path / "store" / "cohort.json").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".partial", ".writing"))]
    assert invoke([*arguments, "--resume"]) == 0
    assert same_store(tmp_path / "store", calm_store)


@pytest.mark.proves("A.input", "U7")
def test_a_disk_that_fills_during_a_run_is_named_and_the_run_goes_on_later(
    calm: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(calm / "store", tmp_path / "run" / "store")).parent
    with full_disk(monkeypatch, after=20):
        assert invoke(run_of(original, out)) == 2
    told = capsys.readouterr().err
    assert str(out) in told and "the disk is full" in told and "free some space" in told and "again" in told
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".partial", ".writing"))]
    assert invoke(run_of(original, out, "--resume")) == 0
    assert same_results(out, calm)


@pytest.mark.proves("A.input", "A3.3")
@pytest.mark.parametrize("after", [1, 7])
def test_ctrl_c_during_ingest_is_130_and_going_on_ends_with_the_same_store(
    after: int, calm_store: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["ingest", str(original / "cohort.yaml"), "-o", str(tmp_path / "store")]
    with ctrl_c(monkeypatch, "medform.ingestion.ingest.store_series", after):
        assert invoke(arguments) == 130
    told = capsys.readouterr().err
    assert f"Continue with: medform ingest {original / 'cohort.yaml'} -o {tmp_path / 'store'} --resume" in told
    assert not (tmp_path / "store" / "cohort.json").exists()
    assert invoke([*arguments, "--resume"]) == 0
    assert same_store(tmp_path / "store", calm_store)


@pytest.mark.proves("A.input", "U7")
def test_ctrl_c_during_training_is_130_and_going_on_ends_with_the_same_results(
    calm: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(calm / "store", tmp_path / "run" / "store")).parent
    with ctrl_c(monkeypatch, "Simclr.forward", after=9):  # four steps are timed for the plan
        assert invoke(run_of(original, out)) == 130
    told = capsys.readouterr().err
    assert "nterrupted" in told and "--resume" in told and "Traceback" not in told
    assert invoke(run_of(original, out, "--resume")) == 0
    assert same_results(out, calm)


@pytest.mark.proves("A.input", "G.input")
def test_a_step_that_finds_no_memory_says_what_to_lower_and_the_run_goes_on_later(
    calm: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(calm / "store", tmp_path / "run" / "store")).parent

    def exhausted(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4398046511104 bytes.")

    with monkeypatch.context() as patched:
        patched.setattr(Simclr, "forward", exhausted)
        assert invoke(run_of(original, out)) == 2
    told = capsys.readouterr().err
    assert "not enough memory" in told and "stage pretrain" in told and "--set stages.pretrain.batch=" in told
    assert "Traceback" not in told and not (out / "scores.json").exists()
    assert invoke(run_of(original, out, "--resume")) == 0
    assert same_results(out, calm)
