"""From an exception to what the user reads and the exit code; our own faults leave their trace in a file."""

from __future__ import annotations

import errno
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from medform.errors import MedformError

__all__ = ["explain_fault", "interrupted"]

DISK = {errno.ENOSPC: "no space is left on the disk.", errno.EDQUOT: "the disk quota is used up."}
RIGHTS = {errno.EACCES, errno.EPERM, errno.EROFS}
KIND = {
    IsADirectoryError: ("this is a folder, and a file is needed here.", "give a file"),
    NotADirectoryError: (
        "a part of this path is a file, not a folder.",
        "choose a path whose every part before the last is a folder",
    ),
    FileExistsError: ("a file stands where a folder is needed.", "choose another folder, or move the file away"),
}
KINDS = tuple(KIND)
RESUMABLE = ("ingest", "pretrain", "align", "run")


def explain_fault(error: Exception, debug: bool) -> int:
    """Print what went wrong on stderr and return the exit code."""
    if isinstance(error, BrokenPipeError):
        return 0  # the reader of our output has gone, as in `medform check ... | head`
    if isinstance(error, MedformError):
        if debug:
            traceback.print_exception(error, file=sys.stderr)
        print(error, file=sys.stderr)
        return error.exit_code
    text = _users_own(error)
    if text is not None and not debug:
        print(text, file=sys.stderr)
        return 2
    if debug:
        traceback.print_exception(error, file=sys.stderr)
        return 1
    path = _save_trace(error)
    message = str(error).splitlines()
    print(
        f"This is a fault in medform: {type(error).__name__}: {message[0] if message else ''}",
        file=sys.stderr,
    )
    print(f"The trace is in {path}" if path else "The trace could not be saved anywhere.", file=sys.stderr)
    print("Please report it with that file; --debug shows the trace here.", file=sys.stderr)
    return 1


def _users_own(error: Exception) -> str | None:
    """Text for what the machine refuses: a full disk, a missing right, a file for a folder, too little memory."""
    if isinstance(error, MemoryError):
        return "Not enough memory.\nFix: use fewer --workers, smaller slices or a machine with more."
    if not isinstance(error, OSError):
        return None
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in DISK:
        fix = "free some space on that disk (the folder `cache` of a run can be made again)"
        return f"{where}{DISK[error.errno]} Nothing is half-written.\nFix: {fix}, then run the same command again."
    if error.errno in RIGHTS:
        reason = (error.strerror or "not allowed").lower()
        return f"{where}{reason}.\nFix: choose a folder that you may write to."
    # only with a name: without one it is no path that the user gave
    if isinstance(error, KINDS) and error.filename:
        reason, fix = next(said for kind, said in KIND.items() if isinstance(error, kind))
        return f"{where}{reason} Nothing is half-written.\nFix: {fix}."
    return None


def _save_trace(error: Exception) -> Path | None:
    import platformdirs

    text = "".join(traceback.format_exception(error))
    name = f"trace-{datetime.now():%Y%m%d-%H%M%S-%f}.txt"
    for folder in (Path(platformdirs.user_cache_dir("medform")) / "traces", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return None


def interrupted(arguments: Sequence[str]) -> str:
    """What is said after Ctrl-C: how to go on, where the verb can."""
    if not arguments or arguments[0] not in RESUMABLE:
        return "Interrupted. To begin again, run the same command again."
    import shlex

    kept = [argument for argument in arguments if argument not in ("--resume", "--overwrite")]
    return f"Interrupted; what was finished is kept. Continue with: medform {shlex.join([*kept, '--resume'])}"
