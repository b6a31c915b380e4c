"""What run.json and the pages of the cohort say of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from medform.cohort.store import Cohort
from medform.errors import InputError
from medform.pipeline.records import Spending, _weights, begin, cohort_flow, open_store
from medform.pipeline.run import task_labels
from medform.recipes.recipe import read_recipe
from medform.runs.folder import RunFolder, RunIdentity, write_json


@pytest.mark.proves("A7", "U7")
def test_folds_that_lack_a_seed_are_not_said_to_have_been_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(RunIdentity("name: r\n", {"c": "0"}, "0"), status="running")
    for name in ("folds/0", "folds/1", "final"):
        write_json(folder.path / name / "facts.json", {"collapsed": [], "notes": [f"note of {name}"]})
    Spending().finish(folder, [], [folder.path / "folds" / "1"])
    record = folder.record()
    assert (record["folds_run"], record["status"], record["notes"]) == ([1], "folds", ["note of folds/1"])


@pytest.mark.proves("A7", "U7")
def test_a_note_stands_once_and_says_where_it_was_made_unless_everywhere(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(RunIdentity("name: r\n", {"c": "0"}, "0"), status="running")
    said = {"folds/0": ["all", "some", "all"], "folds/2": ["all", "some"], "folds/10": ["all", "one"]}
    said["final"] = ["own", "all", "one"]
    for name, notes in said.items():
        write_json(folder.path / name / "facts.json", {"collapsed": [], "notes": notes})
    Spending().finish(folder, ["of the run"], [folder.path / name for name in said])
    assert folder.record()["notes"] == [
        "of the run", "all", "folds 0, 2: some", "fold 10 and the final model: one", "final model: own",
    ]  # fmt: skip


def test_what_the_plan_warned_of_is_not_forgotten_when_a_run_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(RunIdentity("name: r\n", {"c": "0"}, "0"), status="running")
    plain: dict[str, Any] = {"detectable": {}, "stages": {}, "disk_gb": 0.1}
    first: Any = SimpleNamespace(warnings=["few passes"], places=["0"], cpu_minutes=1.0, **plain)
    rest: Any = SimpleNamespace(warnings=["few steps"], places=[], cpu_minutes=0.0, **plain)
    for plan in (first, rest, first):
        Spending().planned(folder, plan)
    assert folder.record()["warnings"] == ["few passes", "few steps"] and folder.record()["planned"]["cpu_minutes"] == 1


@pytest.mark.proves("G6.1")
def test_folds_that_the_first_plan_was_not_of_are_planned_beside(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(RunIdentity("name: r\n", {"c": "0"}, "0"), status="running")
    plain: dict[str, Any] = {"detectable": {}, "warnings": [], "stages": {}}
    part: Any = SimpleNamespace(places=["0", "1"], cpu_minutes=4.0, disk_gb=0.2, **plain)
    rest: Any = SimpleNamespace(places=["1", "final"], cpu_minutes=3.0, disk_gb=1.0, **plain)
    for plan in (part, rest, rest):  # fold 1 was killed: it is planned once
        Spending().planned(folder, plan)
    assert folder.record()["planned"] == {"cpu_minutes": 5.5, "disk_gb": 0.7}
    assert folder.record()["planned_folds"] == ["0", "1", "final"]


@pytest.mark.proves("A7")
def test_the_flow_counts_every_patient_who_is_left_out_once() -> None:
    ids = [f"p{number}" for number in range(60)]
    patients = pd.DataFrame({"patient_id": ids, "n_series": 1, "has_table": [number < 55 for number in range(60)]})
    empty = pd.DataFrame({"series_id": []})
    cohort: Any = SimpleNamespace(
        counts={}, patients=patients, series=empty, slices=empty, clinical=patients, quarantine=list
    )
    labels = pd.DataFrame({"t": [1.0 if number < 50 else float("nan") for number in range(60)]}, index=ids)
    flow = cohort_flow(cohort, labels, "t")
    left = {one.reason: (one.count, one.after) for one in flow.exclusions}
    steps = [(step.name, step.patients) for step in flow.steps if step.patients is not None]
    assert [number for _, number in steps] == [60, 55, 50]
    assert left == {
        "images but no row of the table": (5, steps[0][0]),
        "images but no label for t": (5, steps[1][0]),
    }


@pytest.mark.proves("U7")
def test_a_file_that_a_stage_starts_from_is_part_of_what_a_run_is_made_from(tmp_path: Path) -> None:
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(b"one")
    start = f"stages.pretrain.start.image={weights}"
    recipe = read_recipe("medform-demo", [start])
    before = _weights(recipe)
    weights.write_bytes(b"two")
    assert set(before) == {str(weights)} and before != _weights(recipe) and not _weights(read_recipe("medform-demo"))


@pytest.mark.proves("U7", "A5.2")
def test_a_run_that_got_a_variant_with_a_weights_file_of_its_own_goes_on(tmp_path: Path, phantom_store: Cohort) -> None:
    folder, labels = RunFolder(tmp_path / "run"), task_labels(phantom_store)
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(b"one")
    first = read_recipe("medform-demo", ["variants={}"])
    more = read_recipe("medform-demo", [f"variants={{own: {{stages.pretrain.start.image: '{weights}'}}}}"])
    begin(folder, phantom_store, first, labels, resume=False, overwrite=False)
    stored, whole = begin(folder, phantom_store, more, labels, resume=True, overwrite=False)
    assert stored is not None and not stored.variants and set(whole.variants) == {"own"}
    for asked in (more, first):
        assert begin(folder, phantom_store, asked, labels, resume=True, overwrite=False) == (None, whole)
    assert set(folder.identity().weights) == {str(weights)}
    weights.write_bytes(b"two")
    with pytest.raises(InputError, match=r"weights .*encoder.safetensors: [0-9a-f]+ -> [0-9a-f]+"):
        begin(folder, phantom_store, more, labels, resume=True, overwrite=False)


@pytest.mark.proves("A.input")
def test_a_store_that_was_made_anew_since_is_not_that_of_the_run(tmp_path: Path, phantom_store: Cohort) -> None:
    folder, cohort = RunFolder(tmp_path / "run"), phantom_store
    folder.begin(RunIdentity("name: r\n", {cohort.name: cohort.digest}, "0"), status="running", store=str(cohort.root))
    assert open_store(folder).digest == cohort.digest
    other = RunIdentity("name: r\n", {cohort.name: "0"}, "0")
    folder.begin(other, overwrite=True, status="running", store=str(cohort.root))
    with pytest.raises(InputError, match="this store is not the one that the run was made from") as raised:
        open_store(folder)
    said = str(raised.value)
    assert cohort.digest[:12] in said and f"the run is of {cohort.name} 0." in said
    assert "another folder" in said and "--overwrite" not in said, "not every command that makes a run has it"


@pytest.mark.proves("A.input")
def test_a_run_that_was_killed_while_it_was_overwritten_is_told_as_such(
    tmp_path: Path, phantom_store: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cohort = RunFolder(tmp_path / "run"), phantom_store
    identity = RunIdentity("name: r\n", {cohort.name: cohort.digest}, "0")
    folder.begin(identity, status="running", store=str(cohort.root))

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("medform.runs.folder.shutil.rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            folder.begin(identity, overwrite=True)
    with pytest.raises(InputError, match=r"(?s)half overwritten.*start it again with --overwrite"):
        open_store(folder)
