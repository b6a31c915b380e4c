"""Device, cores and precision on machines that are only described to the code."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch

from medform.compute import device as device_module
from medform.compute.device import (
    Device,
    choose_device,
    cpu_flags,
    gpu_is_visible,
    keep_freed_memory,
    measured_gflops,
    set_threads,
    usable_cores,
)
from medform.compute.precision import choose_precision
from medform.errors import ExtraMissing, InputError


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


@pytest.mark.proves("A1.4", "D32")
def test_without_a_gpu_auto_takes_the_cpu_and_cuda_is_refused_with_exit_code_4(
    no_cuda: pytest.MonkeyPatch,
) -> None:
    assert choose_device("auto", visible=False) == Device("cpu")
    assert choose_device("cpu").torch == torch.device("cpu")
    with pytest.raises(ExtraMissing, match="no NVIDIA GPU") as caught:
        choose_device("cuda", visible=False)
    assert caught.value.exit_code == 4


@pytest.mark.proves("A1.4")
def test_a_gpu_that_torch_cannot_use_is_pointed_out(no_cuda: pytest.MonkeyPatch) -> None:
    no_cuda.setattr(torch.version, "cuda", None)
    chosen = choose_device("auto", visible=True)
    assert chosen.name == "cpu"
    assert "built for the CPU only" in str(chosen.note)
    no_cuda.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ExtraMissing, match="cannot use its driver"):
        choose_device("cuda", visible=True)


def test_a_usable_gpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").name == choose_device("cuda").name == "cuda"
    assert choose_device("cpu").name == "cpu"


def test_what_the_machine_says_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx2", "avx512_bf16"}
    assert cpu_flags(tmp_path / "none") is None
    assert not gpu_is_visible(tmp_path, tmp_path)
    (tmp_path / "nvidia0").touch()
    assert gpu_is_visible(tmp_path, tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cores(tmp_path / "cpu.max") == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path / "cpu.max") >= 1
    assert usable_cores(tmp_path / "none") >= 1


def test_threads_are_set_and_speed_is_measured_without_changing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(device_module, "usable_cores", lambda: 1)
        assert set_threads() == torch.get_num_threads() == 1
        assert 0.1 < measured_gflops(0.05, size=256) < 10_000
        assert torch.get_num_threads() == 1
    finally:
        set_threads(before)


@pytest.mark.proves("A4.2", "D20")
def test_bf16_is_taken_where_the_cpu_has_it_refused_where_not_and_noted_where_unknown() -> None:
    cpu = Device("cpu")
    assert choose_precision("fp32", cpu, flags=()).fabric == "32-true"
    native = choose_precision("bf16", cpu, flags=("avx2", "avx512_bf16"))
    assert native.fabric == "bf16-mixed"
    assert native.note is None
    assert choose_precision("bf16", cpu, flags=("asimd", "bf16")).name == "bf16"
    with pytest.raises(InputError, match="no bf16 arithmetic"):
        choose_precision("bf16", cpu, flags=("avx2", "fma"))


@pytest.mark.proves("A4.2")
def test_bf16_on_a_silent_cpu_or_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medform.compute.precision.cpu_flags", lambda: None)
    assert "unknown" in str(choose_precision("bf16", Device("cpu")).note)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    with pytest.raises(InputError, match="Old GPU"):
        choose_precision("bf16", Device("cuda"))


@pytest.mark.proves("A.input")
def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no device 'gpu'.*\n.*auto, cpu, cuda"):
        choose_device("gpu")


def test_freed_memory_is_kept_for_the_next_tensor_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    with monkeypatch.context() as said:
        said.setenv("MALLOC_ARENA_MAX", "1")
        assert not keep_freed_memory()
    if not keep_freed_memory():
        pytest.skip("no glibc here")
    for _ in range(10):
        torch.empty(10_000_000).fill_(1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(10_000_000).fill_(1.0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2_000  # handed back each time: 97,000
