"""`medform doctor`: every point has a status and, where something is wrong, a fix."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medform.cli.main import invoke
from medform.errors import InputError
from medform.pipeline import doctor as module
from medform.pipeline.doctor import doctor

RUN = Path(__file__).parents[1] / "fixtures" / "run_v1"


@pytest.mark.proves("A1.4", "U1")
def test_machine_is_described_point_by_point(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medform.compute.device.measured_gflops", lambda: 61.2)
    code = invoke(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    found = {check["name"]: check for check in checks}
    assert {"Python", "PyTorch", "CPU", "CPU speed", "RAM", "Disk", "Cache", "ImageNet start"} <= set(found)
    assert {name for name in found if name.startswith("DICOM ")} == {f"DICOM {t}" for t in module.SYNTAXES.values()}
    assert any(name.startswith("Extra ") for name in found)
    assert found["CPU speed"]["value"].startswith("61 GFLOP/s")
    assert all(
        check["status"] in ("OK", "WARN", "FAIL") and set(check) == {"name", "status", "value", "fix"}
        for check in checks
    )
    assert all(check["fix"] for check in checks if check["status"] != "OK")
    assert code == (2 if any(check["status"] == "FAIL" for check in checks) else 0)
    assert all(found[f"DICOM {title}"]["status"] == "OK" for title in module.SYNTAXES.values())


@pytest.mark.proves("A1.4")
def test_gpu_that_this_torch_cannot_use_is_a_warning_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    note = "a GPU is visible, but torch was built for the CPU only; running on the CPU. Install a CUDA build."
    monkeypatch.setattr("medform.compute.device.choose_device", lambda: SimpleNamespace(name="cpu", note=note))
    (check,) = module._torch()
    assert check["status"] == "WARN" and "built for the CPU only; runs on the CPU, much slower" in check["value"]
    assert check["fix"] == "Install a CUDA build."


def test_torch_that_does_not_import_fails_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "medform.compute.device"):
        monkeypatch.setitem(sys.modules, name, None)
    (check,) = module._torch()
    assert check["status"] == "FAIL" and check["fix"]
    assert [check["name"] for check in module._cpu()] == ["CPU"]


def test_missing_decoders_full_disk_and_little_memory_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    monkeypatch.setattr(module, "memory_bytes", lambda: int(2e9))
    by_syntax = {check["name"]: check for check in module._decoders()}
    assert by_syntax["DICOM JPEG Spectral Selection (retired)"]["status"] == "WARN"
    assert by_syntax["DICOM Implicit VR Little Endian"]["status"] == "OK"
    assert module._disk(Path())["status"] == "FAIL" and module._memory()["status"] == "WARN"
    assert module._imagenet()["status"] == "FAIL"


def test_run_is_checked_and_a_broken_one_fails(tmp_path: Path) -> None:
    assert [(check["name"], check["status"]) for check in doctor(RUN)] == [("Run", "OK"), ("Scores", "OK")]
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    (run / "scores.json").write_text("[")
    (check,) = doctor(run)
    assert check["status"] == "FAIL" and "scores.json" in check["value"] and check["fix"]


def test_store_is_verified(tmp_path: Path) -> None:
    (tmp_path / "cohort.json").write_text("{}")
    (check,) = doctor(tmp_path)
    assert check["name"] == "Store" and check["status"] == "FAIL"
    with pytest.raises(InputError, match="neither a store"):
        doctor(tmp_path / "nothing")


def test_kernel_cache_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    check: Any = module._cache()
    assert check["status"] == "WARN" and "compiled at each start" in check["value"]
