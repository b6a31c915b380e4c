"""The run folder: its paths, whole-file writes, the record in run.json, and who may write into it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medform.errors import InputError, MedformError

__all__ = ["SCHEMA_VERSION", "RunFolder", "RunIdentity", "copy_whole", "read_json", "write_atomically", "write_json"]

SCHEMA_VERSION = 1
_TEMPORARY = ".writing"  # suffix of a file or folder that is not complete yet
_KEPT = ("store", ".lock")  # what `--overwrite` leaves: the cohort store has its own rules
_FOLDERS = ("folds", "final", "cache", "figures", "model", "montage")
_FREE_SPACE = "free some space on that disk (the folder `cache` of a run can be made again)"
_FILES = ("*.json", "*.jsonl", "*.parquet", "report.html")


def write_atomically(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write a whole file or nothing: to a temporary name beside ``path``, fsynced, then renamed.

    ``content`` is the bytes, the text (UTF-8), or a function that writes the file whose path it is given.
    A full disk or a missing right raises `MedformError`; what stood under ``path`` before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _write_error(path, error) from error
        raise


def copy_whole(source: Path, target: Path) -> None:
    """Copy a folder whole or not at all: to a temporary name beside ``target``, then renamed. ``target`` is not there.

    A full disk or a missing right raises `MedformError`.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}{_TEMPORARY}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, temporary)
        temporary.rename(target)
        _sync_folder(target.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _write_error(target, error) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; Windows has no such call and needs none."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_error(path: Path, error: OSError) -> MedformError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return MedformError(
        "the disk is full." if full else f"cannot be written: {error.strerror or error}.",
        where=str(path),
        consequence="Nothing was half-written; what stood there before is unchanged.",
        fix=(_FREE_SPACE if full else "check the rights of the folder") + ", then run again with --resume.",
    )


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented UTF-8 JSON, whole or not at all; NaN is refused (it is no JSON)."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; raises `InputError` naming it where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file.", where=str(path), fix="check the path of the run folder.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"damaged JSON ({error}).",
            where=str(path),
            fix="restore the file, or (run, pretrain, align) start anew with --overwrite.",
        ) from None


@dataclass(frozen=True)
class RunIdentity:
    """What a run folder was made from. Two runs with an equal identity may share a folder.

    ``recipe`` is the resolved recipe as YAML text, ``cohorts`` maps each cohort's name to its digest,
    ``version`` is medform's own, ``weights`` maps each file that a stage starts from to its SHA-256.
    Which files those are is the recipe's to say: only files that both sides know are compared.
    """

    recipe: str
    cohorts: Mapping[str, str]
    version: str
    weights: Mapping[str, str] = field(default_factory=dict)

    def difference(self, other: RunIdentity) -> list[str]:
        """Lines of what changed from ``self`` (in the folder) to ``other`` (asked for); empty if nothing."""
        mine, theirs = self.recipe.splitlines(), other.recipe.splitlines()
        lines = list(
            difflib.unified_diff(mine, theirs, "recipe.yaml (in the folder)", "recipe (asked for)", lineterm="", n=1)
        )
        for what, ours, others, names in (
            ("cohort", self.cohorts, other.cohorts, {*self.cohorts, *other.cohorts}),
            ("weights", self.weights, other.weights, {*self.weights} & {*other.weights}),
        ):
            for name in sorted(names):
                before, after = ours.get(name, "absent"), others.get(name, "absent")
                if before != after:
                    lines.append(f"{what} {name}: {before} -> {after}")
        if self.version != other.version:
            lines.append(f"medform: {self.version} -> {other.version}")
        return lines


class RunFolder:
    """One run on disk. Reading needs nothing else; writing happens inside ``with folder.lock():``."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def cache(self) -> Path:
        """Where recomputable arrays lie (working slices, slice features), each named by a digest."""
        return self.path / "cache"

    @property
    def metrics(self) -> Path:
        """The log of all stages, one JSON object a line."""
        return self.path / "metrics.jsonl"

    def stage(self, stage: str, variant: str = "main", seed: int = 0, fold: int | None = None) -> Path:
        """``folds/<k>/<variant>/<seed>/<stage>``, or below ``final/`` without a fold."""
        top = self.path / "final" if fold is None else self.path / "folds" / str(fold)
        return top / variant / str(seed) / stage

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "run.json").is_file()

    def record(self) -> dict[str, Any]:
        """The content of run.json; raises `InputError` where there is no run or a newer format."""
        if not self.exists():
            raise InputError("no run.json here, so this is no run folder.", where=str(self.path), fix="check the path.")
        record = read_json(self.path / "run.json")
        found = record.get("schema_version") if isinstance(record, dict) else None
        if found != SCHEMA_VERSION:
            raise InputError(
                f"run.json has schema_version {found!r}; this medform reads {SCHEMA_VERSION}.",
                where=str(self.path / "run.json"),
                fix="use the version of medform that wrote the run, or a newer one.",
            )
        return record

    def update(self, **fields: Any) -> None:
        """Set top-level fields of run.json, the others kept."""
        write_json(self.path / "run.json", {**self.record(), **fields})

    def identity(self) -> RunIdentity:
        """What the run in this folder was made from."""
        stored = self.record()["identity"]
        recipe = (self.path / "recipe.yaml").read_text(encoding="utf-8")
        return RunIdentity(recipe, stored["cohorts"], stored["version"], stored.get("weights", {}))

    def begin(self, identity: RunIdentity, *, resume: bool = False, overwrite: bool = False, **fields: Any) -> bool:
        """Start a run here or go on with one; True where it goes on. Call it while holding the lock.

        ``fields`` are stored in run.json of a new run. Raises `InputError` where another configuration lies
        here (with the difference), where a run lies here and neither ``resume`` nor ``overwrite`` is given,
        and where the folder holds files that are not a run's.
        """
        self._sweep()
        if self.exists() and not overwrite:
            self._refuse_other(identity)
            if resume:
                return True
            raise InputError(
                "this folder already holds this run.",
                where=str(self.path),
                consequence="Nothing was started.",
                fix="--resume goes on where it stopped, --overwrite starts anew, -o names another folder.",
            )
        if self.exists():
            self._clear()
        else:
            self._refuse_foreign()
        write_atomically(self.path / "recipe.yaml", identity.recipe)
        stored = {key: value for key, value in asdict(identity).items() if key != "recipe"}
        # run.json comes last: a folder without it was never begun
        write_json(self.path / "run.json", {"schema_version": SCHEMA_VERSION, "identity": stored, **fields})
        return False

    def extend(self, recipe: str, weights: Mapping[str, str]) -> None:
        """Let the run be of a recipe that holds more than its own did, with the ``weights`` of that.

        It is running again. Call it after `begin`, holding the lock.
        """
        identity = self.record()["identity"]
        known = {**identity.get("weights", {}), **weights}
        self.update(identity={**identity, "weights": known}, status="running")
        write_atomically(self.path / "recipe.yaml", recipe)

    def _refuse_other(self, identity: RunIdentity) -> None:
        changed = self.identity().difference(identity)
        if changed:
            raise InputError(
                "this folder holds a run of another configuration:\n" + "\n".join(f"  {line}" for line in changed),
                where=str(self.path),
                consequence="Nothing was started.",
                fix="name another folder with -o, or (run, pretrain, align) start anew with --overwrite.",
            )

    def _refuse_foreign(self) -> None:
        if not self.path.exists():
            return
        # recipe.yaml alone is a beginning that was killed before run.json
        foreign = sorted({entry.name for entry in self.path.iterdir()} - {*_KEPT, "recipe.yaml", "cache"})
        if foreign:
            shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
            raise InputError(
                f"this folder is not empty and holds no run ({shown}).",
                where=str(self.path),
                consequence="Nothing was written.",
                fix="name a new or empty folder.",
            )

    def _clear(self) -> None:
        """Remove the run's own files; notes that a user has put beside them stay.

        run.json goes last and until then names no configuration: killed here, a run can only be overwritten.
        """
        self.update(identity={"cohorts": {}, "version": "half overwritten"})
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for pattern in _FILES:
            for file in self.path.glob(pattern):
                if file.name != "run.json":
                    file.unlink()
        for name in ("run.json", "recipe.yaml"):
            (self.path / name).unlink()

    def _sweep(self) -> None:
        """Remove what a killed process left unfinished."""
        for leftover in sorted(self.path.rglob(f".*{_TEMPORARY}")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Hold the folder: a second process that wants it gets an `InputError` naming the first.

        The operating system drops the lock with the process, so a killed run never blocks the next one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        with lock.open("a+", encoding="utf-8") as file:
            # a lock file that was removed in between (see below) holds nobody off
            ours = _try_lock(file.fileno())
            if not ours or not (lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno()))):
                file.seek(0)
                raise InputError(
                    f"another process is writing here: {file.read().strip() or 'unknown'}.",
                    where=str(self.path),
                    consequence="Nothing was started.",
                    fix="wait for it to end, or name another folder.",
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                if [entry.name for entry in self.path.iterdir()] == [".lock"]:  # refused: nothing was created
                    with contextlib.suppress(OSError):
                        lock.unlink()
                        self.path.rmdir()


def _try_lock(handle: int) -> bool:
    """Take the exclusive lock of an open file without waiting."""
    try:
        if os.name == "nt":
            import msvcrt

            # a byte far behind the text, so that others can still read who holds it
            os.lseek(handle, 1 << 30, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
