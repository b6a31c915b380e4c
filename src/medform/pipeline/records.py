"""What a run writes about itself and its cohort: run.json, the cohort's flow, table one, the attention montage."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medform
from medform.config import dump, load
from medform.errors import InputError
from medform.runs.folder import RunFolder, RunIdentity

if TYPE_CHECKING:
    import pandas as pd

    from medform.cohort.store import Cohort
    from medform.pipeline.plan import Plan
    from medform.recipes.recipe import Recipe

__all__ = ["Spending", "begin", "begin_external", "code_commit", "open_store", "write_cohort_pages"]

PACKAGES = ("torch", "timm", "lightning-fabric", "numpy", "pandas", "scikit-learn", "pydicom")


def begin(
    folder: RunFolder, cohort: Cohort, recipe: Recipe, labels: pd.DataFrame, *, resume: bool, overwrite: bool
) -> tuple[Recipe | None, Recipe]:
    """Start or go on with the run: refuses another configuration, writes run.json and recipe.yaml.

    Returns what the run was before where variants or seeds were added to it, else None; and what it is now: all that
    is there with all that is asked for.
    """
    from medform.pipeline.run import has_folds
    from medform.pipeline.segmentation import segments

    stored = _stored(folder) if resume and not overwrite else None
    whole = stored.joined(recipe) if stored is not None else None
    asked = stored if stored is not None and whole is not None else recipe
    identity = RunIdentity(dump(asked), {cohort.name: cohort.digest}, medform.__version__, _weights(asked))
    counts: dict[str, Any] = {name: labels[name].dropna() for name in labels.columns}
    tasks = [
        {
            "name": task.name,
            "primary": task == cohort.file.primary,
            "n": len(counts[task.name]),
            "positive": int(counts[task.name].sum()),
        }
        for task in cohort.tasks
        if task.name in counts
    ]
    folder.begin(
        identity,
        resume=resume,
        overwrite=overwrite,
        status="running",
        recipe=recipe.name,
        citation=recipe.citation,
        seed=recipe.seeds[0],
        tasks=tasks,
        transductive=recipe.transductive,
        precision=recipe.precision,
        folds=len(cohort.split().folds) if has_folds(cohort.file, segmented=segments(recipe)) else None,
        **_circumstances(folder, cohort),
    )
    if stored is None or whole is None:
        return None, recipe
    if dump(whole) == dump(stored):
        return None, stored
    folder.extend(dump(whole), _weights(whole))
    return stored, whole


def _weights(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of each weights file that a stage of the recipe, or of a variant, starts from.

    Folds that are done are not gone through again: a file that is exchanged under its name would start the others.
    """
    from medform.cohort.files import file_sha256

    every = [recipe, *(recipe.variant(name) for name in recipe.variants)]
    starts = {stage.start.image for one in every for stage in one.stages.values()}
    names = sorted(str(start) for start in starts if start not in (None, "imagenet", "random", *recipe.stages))
    return {name: file_sha256(Path(name)) for name in names if Path(name).is_file()}


def begin_external(folder: RunFolder, cohort: Cohort, model: Mapping[str, Any]) -> None:
    """Start or repeat judging a frozen model on a cohort; ``model`` is its config.json, with the digest of its weights.

    Raises `InputError` where another run lies in the folder.
    """
    text = json.dumps({"model": model}, indent=1, sort_keys=True) + "\n"
    identity = RunIdentity(text, {cohort.name: cohort.digest}, medform.__version__)
    told = {"recipe": model["recipe"], "citation": model["citation"], "seed": model["seed"], "tasks": []}
    folder.begin(identity, resume=True, status="running", **told, **_circumstances(folder, cohort))


def _circumstances(folder: RunFolder, cohort: Cohort) -> dict[str, Any]:
    """What run.json says of cohort, versions and call, whatever is run."""
    versions = {"medform": medform.__version__, "python": platform.python_version()}
    facts = {"digest": cohort.digest, "licence": cohort.licence, "n_patients": len(cohort.patient_ids)}
    return {
        "cohort": {"name": cohort.name, **facts},
        "store": _store_place(folder, cohort),
        "versions": versions | {name: metadata.version(name) for name in PACKAGES},
        "commit": code_commit(),
        "argv": list(sys.argv),
        "started": _now(),
    }


def _stored(folder: RunFolder) -> Recipe | None:
    """The recipe of the run that lies in ``folder``, None where there is none that this version reads."""
    from medform.recipes.recipe import Recipe

    try:
        return load(Recipe, folder.path / "recipe.yaml") if folder.exists() else None
    except InputError:
        return None


def _store_place(folder: RunFolder, cohort: Cohort) -> str:
    """Where the store lies, seen from the run folder where it is inside it, so that both can be moved together."""
    store, run = cohort.root.resolve(), folder.path.resolve()
    return str(store.relative_to(run)) if store.is_relative_to(run) else str(store)


def open_store(folder: RunFolder) -> Cohort:
    """The cohort store that a run was made from; raises `InputError` where it is not there, or is another one."""
    from medform.cohort.store import Cohort

    record = folder.record()
    made_from = record["identity"]["cohorts"]
    if not made_from:
        raise InputError(
            "this run was half overwritten.",
            where=str(folder.path),
            consequence="Nothing was done.",
            fix="start it again with --overwrite.",
        )
    cohort = Cohort.read(folder.path / str(record["store"]))
    if made_from != {cohort.name: cohort.digest}:
        was = ", ".join(f"{name} {digest[:12]}" for name, digest in made_from.items())
        raise InputError(
            f"this store is not the one that the run was made from: it is {cohort.name} {cohort.digest[:12]}, "
            f"the run is of {was}.",
            where=str(cohort.root),
            consequence="Nothing was done: what was learnt belongs to other data.",
            fix="make the run anew in another folder, or the store from the files of then.",
        )
    return cohort


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_commit() -> str | None:
    """The commit of medform's own checkout, None for an installed wheel."""
    home = Path(medform.__file__).resolve().parents[2]
    if not (home / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(home), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def _peak_memory_gb() -> float:
    """Largest resident memory of this process so far; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@dataclass
class Spending:
    """CPU time, wall time and memory of a run, added up over its resumed parts."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def planned(self, folder: RunFolder, plan: Plan, was: Plan | None = None) -> None:
        """Store the plan of a new run; one that goes on keeps the plan it began with, and adds what that was not of.

        That is folds which it did not name, and where something is added to all: ``was`` is the plan without it.
        """
        record = folder.record()
        # a run that goes on plans what is left alone: what was said of the rest still holds
        warnings = dict.fromkeys([*record.get("warnings", []), *plan.warnings])
        update: dict[str, Any] = {"detectable": plan.detectable, "warnings": list(warnings)}
        if "planned" not in record:
            steps = {f"{name} steps": counts["steps"] for name, counts in plan.stages.items()}
            passes = {f"{name} passes": c["passes"] for name, c in plan.stages.items() if "passes" in c}
            update["planned"] = (
                {"cpu_minutes": round(plan.cpu_minutes, 2), "disk_gb": round(plan.disk_gb, 2)} | steps | passes
            )
            update["planned_folds"] = plan.places
        elif new := [one for one in plan.places if one not in record.get("planned_folds", plan.places)]:
            kept, share = record["planned"], len(new) / len(plan.places)
            more = {"cpu_minutes": plan.cpu_minutes * share, "disk_gb": plan.disk_gb * share}
            grown = {key: round(kept[key] + one, 2) for key, one in more.items()}
            update |= {"planned": kept | grown, "planned_folds": [*record["planned_folds"], *new]}
        elif was is not None:
            more = {"cpu_minutes": plan.cpu_minutes - was.cpu_minutes, "disk_gb": plan.disk_gb - was.disk_gb}
            kept = record["planned"]
            update["planned"] = kept | {key: round(kept[key] + max(0.0, one), 2) for key, one in more.items()}
        folder.update(**update)

    def note(self, folder: RunFolder) -> None:
        """Add what was spent since the last note."""
        wall, cpu = time.perf_counter(), time.process_time()
        spent = folder.record().get("spent", {})
        peak = _peak_memory_gb()
        folder.update(
            spent={
                "cpu_minutes": round(spent.get("cpu_minutes", 0.0) + (cpu - self.cpu) / 60, 3),
                "wall_minutes": round(spent.get("wall_minutes", 0.0) + (wall - self.wall) / 60, 3),
                "peak_memory_gb": round(max(spent.get("peak_memory_gb", 0.0), peak), 3),
            }
        )
        self.wall, self.cpu = wall, cpu

    def finish(self, folder: RunFolder, notes: Sequence[str], places: Sequence[Path] = ()) -> None:
        """The last words of run.json: what was run, what collapsed, what to know.

        ``places``: folders of the folds (and of the final model) that hold every variant and seed; the figures are of
        these alone, whatever else lies there.
        """
        from medform.compute.device import choose_device, measured_gflops, usable_cores
        from medform.runs.folder import read_json

        self.note(folder)
        facts = [read_json(place / "facts.json") for place in places]
        names = [place.name for place in places]
        folder.update(
            status="complete" if "final" in names else "folds",
            finished=_now(),
            folds_run=sorted(int(name) for name in names if name != "final"),
            collapsed=[collapse for fact in facts for collapse in fact["collapsed"]],
            notes=[*notes, *_placed({name: fact["notes"] for name, fact in zip(names, facts, strict=True)})],
            device={
                "name": choose_device().name,
                "cores": usable_cores(),
                "gflops_per_core": round(measured_gflops(), 1),
                "machine": platform.machine(),
                "precision": folder.record().get("precision", "fp32"),
            },
        )


def _placed(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """The notes of all folds (and ``final``), each once, behind the places it was made at where those are not all."""
    places: dict[str, list[str]] = {}
    for place, said in notes.items():
        for note in dict.fromkeys(said):
            places.setdefault(note, []).append(place)
    return [note if len(at) == len(notes) else f"{_places(at)}: {note}" for note, at in places.items()]


def _places(names: Sequence[str]) -> str:
    folds = sorted(int(name) for name in names if name != "final")
    words = [f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"] if folds else []
    return " and the ".join([*words, "final model"] if "final" in names else words)


def write_cohort_pages(
    folder: RunFolder, cohort: Cohort, labels: pd.DataFrame, primary: str | None, places: Sequence[Path]
) -> None:
    """flow.json, table_one.json, montage and overlays: what the report shows of the cohort, by pseudonym.

    ``places`` as for `Spending.finish`: table one is of the test patients of these folds.
    """
    import pandas as pd

    from medform.pipeline.overlays import draw_overlays
    from medform.reporting.flow import write_flow
    from medform.reporting.montage import draw_montage
    from medform.reporting.table_one import summarise, write_table_one

    write_flow(folder.path, cohort_flow(cohort, labels, primary))
    if cohort.clinical is not None:
        groups = {"all": cohort.patient_ids}
        done = sorted(int(place.name) for place in places if place.name != "final")
        folds = cohort.split().folds if done or cohort.tasks else ()
        if len(done) == 1:
            parts = folds[done[0]]
            groups |= {
                f"train of fold {done[0]}": parts.train,
                f"validation of fold {done[0]}": parts.validation,
                f"test of fold {done[0]}": parts.test,
            }
        else:
            groups |= {f"test of fold {fold}": folds[fold].test for fold in done or range(len(folds))}
        columns = cohort.columns
        table = summarise(
            cohort.table(),
            groups,
            roles={name: spec.role for name, spec in columns.items()},
            units={name: getattr(spec, "unit", None) for name, spec in columns.items()},
            types={name: spec.type for name, spec in columns.items() if spec.type is not None},
        )
        write_table_one(folder.path, table)
    attention = folder.path / "attention.parquet"
    if attention.is_file():
        draw_montage(folder.path, cohort, pd.read_parquet(attention), task=primary)
    draw_overlays(folder, cohort)


def cohort_flow(cohort: Cohort, labels: pd.DataFrame, primary: str | None) -> Any:
    """From files found to patients used, counted by the store."""
    from collections import Counter

    from medform.reporting.flow import Exclusion, Flow, FlowStep

    counts = cohort.counts
    imaged: Any = cohort.patients[cohort.patients["n_series"] > 0]
    found, accepted = "files found", "series accepted"
    steps = [
        FlowStep(found, files=counts.get("files_found"), series=counts.get("series_found")),
        FlowStep(accepted, patients=len(imaged), series=len(cohort.series), slices=len(cohort.slices)),
    ]
    reasons = Counter(
        (one.code.replace("_", " "), "series" if one.series_id else "files") for one in cohort.quarantine()
    )
    exclusions = [Exclusion(reason, number, unit, after=found) for (reason, unit), number in sorted(reasons.items())]
    if cohort.clinical is not None:
        with_table = int(imaged["has_table"].sum())
        steps.append(FlowStep("patients with images and a row of the table", patients=with_table))
        if without := len(imaged) - with_table:
            exclusions.append(Exclusion("images but no row of the table", without, "patients", after=accepted))
        if only := len(cohort.patients) - len(imaged):
            exclusions.append(Exclusion("a row of the table but no images", only, "patients", after=accepted))
    if primary is not None:
        known: Any = labels[primary].reindex(list(imaged["patient_id"])).notna()
        before = steps[-1]  # with a table, those without a row of it are gone already
        if without := (before.patients or 0) - int(known.sum()):
            exclusions.append(Exclusion(f"images but no label for {primary}", without, "patients", after=before.name))
        steps.append(FlowStep(f"patients with a label for {primary}", patients=int(known.sum())))
    return Flow(tuple(steps), tuple(exclusions))
