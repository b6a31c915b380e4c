"""The selective scan: every implementation equals the float64 loop, in values and gradients, on any input."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medform.compute.seed import generator
from medform.errors import ExtraMissing
from medform.models import scan, scan_cpu
from medform.models.scan import Implementation, selective_scan
from medform.models.scan_kernel import CHUNK, GROUP, LANES

NAMES = ("y", "x", "delta", "a", "b", "c", "skip")
STEP_SIZES = (1e-3, 1e-1)  # of a Mamba before training
DOUBLE = torch.float64
# what a test scans with: the implementation, its precision, and the largest relative error of values and gradients
EXACT = ("chunked", DOUBLE, 1e-12)
FLOATS = [("numba", torch.float32, 1e-6), ("chunked", torch.float32, 1e-6)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(
    batch: int, steps: int, channels: int, states: int, seed: int = 0, sizes: tuple[float, float] = STEP_SIZES
) -> list[Tensor]:
    """x, delta, a, b, c, skip and the gradient of y, in float64 but exact in float32; rates as at Mamba's start."""
    random = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).double()

    share = torch.rand(batch, steps, channels, generator=random, dtype=DOUBLE)
    delta = torch.exp(math.log(sizes[0]) + share * math.log(sizes[1] / sizes[0])).float().double()
    a = -torch.arange(1, states + 1, dtype=DOUBLE).repeat(channels, 1)
    rows = (batch, steps)
    return [
        normal(*rows, channels), delta, a, normal(*rows, states), normal(*rows, states), normal(channels),
        normal(*rows, channels),
    ]  # fmt: skip


def scanned(
    tensors: list[Tensor], implementation: Implementation, kind: torch.dtype = DOUBLE, **options: object
) -> list[Tensor]:
    """y and the gradients of the six inputs."""
    *given, dy = (tensor.detach().to(kind) for tensor in tensors)
    given = [tensor.clone().requires_grad_() for tensor in given]
    y = selective_scan(*given, implementation=implementation, **options)
    return [y.detach(), *torch.autograd.grad(y, given, dy)]


def assert_equal(found: list[Tensor], wanted: list[Tensor], error: float, absolute: float = 1e-30) -> None:
    """Equal to ``error`` of the norm of each."""
    for name, ours, theirs in zip(NAMES, found, wanted, strict=True):
        assert ours.isfinite().all(), name
        assert (ours.double() - theirs).norm() <= error * theirs.norm() + absolute, name


@pytest.mark.proves("G2.3", "G.tests")
@pytest.mark.parametrize("shape", [(2, 2 * CHUNK + 5, LANES, 16), (2, CHUNK + 6, GROUP + LANES + 3, 5), (1, 1, 1, 1)])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_every_implementation_equals_the_loop(shape: tuple[int, int, int, int], ragged: bool, reverse: bool) -> None:
    tensors = drawn(*shape)
    length = torch.tensor([shape[1], CHUNK + 1])[: shape[0]] if ragged else None
    wanted = scanned(tensors, "reference", reverse=reverse, length=length)
    for implementation, kind, error in [EXACT, *FLOATS]:
        assert_equal(scanned(tensors, implementation, kind, reverse=reverse, length=length), wanted, error)


@pytest.mark.proves("G2.3", "G.tests")
@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    steps=st.integers(1, CHUNK + 9),
    channels=st.integers(1, 2 * LANES + 1),
    states=st.integers(1, 17),
    reverse=st.booleans(),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_shapes_lengths_and_directions(
    batch: int, steps: int, channels: int, states: int, reverse: bool, seed: int, data: st.DataObject
) -> None:
    tensors = drawn(batch, steps, channels, states, seed)
    lengths = st.lists(st.integers(0, steps), min_size=batch, max_size=batch)
    drawn_lengths = data.draw(st.none() | lengths)
    length = None if drawn_lengths is None else torch.tensor(drawn_lengths)
    wanted = scanned(tensors, "reference", reverse=reverse, length=length)
    for implementation, kind, error in [EXACT, *FLOATS]:
        found = scanned(tensors, implementation, kind, reverse=reverse, length=length)
        assert_equal(found, wanted, error, absolute=10 * error)  # a sum of few products of size 1 may cancel


@pytest.mark.proves("G2.3", "G.tests")
@pytest.mark.parametrize("sizes", [(1e-4, 20.0), (1e-4, 1e-4), (20.0, 20.0), (1e-3, 1e-1)])
def test_long_sequences_with_extreme_step_sizes_stay_finite_and_exact(sizes: tuple[float, float]) -> None:
    tensors = drawn(1, 4096, LANES, 4, sizes=sizes)
    wanted = scanned(tensors, "chunked")
    # where one decay near 1 is taken 4,096 times, its rounding to float32 alone costs the other implementations 5e-5
    slow, fast = (sizes == (extreme, extreme) for extreme in (1e-4, 20.0))
    # where all is forgotten in a step, a rate's gradient is below what float32 resolves beside the others'
    absolute = 1e-6 * float(wanted[NAMES.index("b")].norm()) if fast else 0.0
    assert_equal(scanned(tensors, "numba", torch.float32), wanted, 2e-6 if slow else 1e-6, absolute)
    assert_equal(scanned(tensors, "chunked", torch.float32), wanted, 1e-4 if slow else 1e-6)


@pytest.mark.proves("G.speed")
@pytest.mark.parametrize("steps", [1024, 20_000])
def test_the_kernels_gradients_are_exact_to_a_millionth(steps: int) -> None:
    tensors = drawn(1, steps, 8, 2)
    assert_equal(scanned(tensors, "numba", torch.float32), scanned(tensors, "chunked"), 1e-6)


@pytest.mark.proves("G2.3", "G.tests")
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("reverse", [False, True])
def test_it_can_be_differentiated_twice(
    monkeypatch: pytest.MonkeyPatch, implementation: Implementation, reverse: bool
) -> None:
    monkeypatch.setattr(scan, "_CHUNK", 3)
    *given, _ = drawn(1, 5, 3, 2)
    given = [tensor.requires_grad_() for tensor in given]

    def function(*tensors: Tensor) -> Tensor:
        return selective_scan(*tensors, reverse=reverse, implementation=implementation)

    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


@pytest.mark.proves("G2.3", "G.tests")
@pytest.mark.parametrize(("implementation", "kind"), [("reference", DOUBLE), ("chunked", DOUBLE), ("auto", None)])
def test_no_step_sees_a_later_one(implementation: Implementation, kind: torch.dtype | None) -> None:
    x, delta, a, b, c, skip, _ = (tensor.to(kind or torch.float32) for tensor in drawn(2, 3 * CHUNK, LANES + 2, 4))
    cut = 2 * CHUNK - 7
    before = selective_scan(x, delta, a, b, c, skip, implementation=implementation)
    x, delta, b, c = (tensor.clone() for tensor in (x, delta, b, c))
    for tensor in (x, b, c):
        tensor[:, cut:] += 1000.0
    delta[:, cut:] *= 3
    after = selective_scan(x, delta, a, b, c, skip, implementation=implementation)
    assert torch.equal(before[:, :cut], after[:, :cut])
    assert not (before[:, cut:] == after[:, cut:]).any()


@pytest.mark.proves("G2.3", "G.tests")
@pytest.mark.parametrize("implementation", ["reference", "chunked", "numba"])
def test_backwards_is_forwards_on_the_mirrored_sequence(implementation: Implementation) -> None:
    x, delta, a, b, c, skip, _ = (tensor.float() for tensor in drawn(2, CHUNK + 9, LANES, 4))
    backwards = selective_scan(x, delta, a, b, c, skip, reverse=True, implementation=implementation)
    x, delta, b, c = (tensor.flip(1) for tensor in (x, delta, b, c))
    forwards = selective_scan(x, delta, a, b, c, skip, implementation=implementation)
    assert torch.equal(backwards, forwards.flip(1))


@pytest.mark.proves("G2.3")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("implementation", ["reference", "chunked", "numba"])
def test_padding_holds_anything_and_gets_nothing(implementation: Implementation, reverse: bool) -> None:
    tensors, steps = drawn(2, CHUNK + 20, 5, 3), CHUNK + 3
    length = torch.tensor([steps, 0])
    kind = torch.float32 if implementation == "numba" else DOUBLE
    real = [tensor[:1, :steps] if tensor.ndim == 3 else tensor for tensor in tensors]
    wanted = scanned(real, implementation, kind, reverse=reverse)
    for tensor in (tensors[0], tensors[1], tensors[3], tensors[4]):
        tensor[0, steps:], tensor[1] = torch.nan, torch.nan
    found = scanned(tensors, implementation, kind, length=length, reverse=reverse)
    for name, ours, theirs in zip(NAMES, found, wanted, strict=True):
        if ours.ndim == 3:
            assert not ours[1].any() and not ours[0, steps:].any(), name
        kept = ours[:1, :steps] if ours.ndim == 3 else ours
        assert torch.allclose(kept, theirs, rtol=1e-6, atol=1e-6), name


@pytest.mark.proves("G2.3")
def test_the_kernel_reads_tensors_as_they_lie_in_memory() -> None:
    tensors = drawn(2, 40, LANES, 4)
    wanted = scanned(tensors, "reference")
    x, delta, a, b, c, skip, dy = (tensor.float() for tensor in tensors)
    b, _, c = torch.cat([b, torch.full_like(b, torch.nan), c], 2).split(4, 2)  # parts of one projection
    x, delta = x.mT.contiguous().mT, delta.transpose(0, 1).contiguous().transpose(0, 1)
    assert_equal(scanned([x, delta, a, b, c, skip, dy], "numba", torch.float32), wanted, 1e-6)


@pytest.mark.proves("G.speed")
def test_the_bits_do_not_depend_on_threads(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cpu, "_WORTH_THREADS", 0)
    tensors = drawn(2, CHUNK + 3, GROUP + LANES, 4)
    runs = []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        runs.append(scanned(tensors, "numba", torch.float32))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def saved_bytes(steps: int, implementation: Implementation) -> int:
    """What a forward pass keeps for backward beyond its inputs."""
    *given, _ = (tensor.float().requires_grad_() for tensor in drawn(1, steps, LANES, 16))
    own = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(*given, implementation=implementation)
    return sum(kept.values())


@pytest.mark.proves("G2.3", "G.tests")
def test_the_kernel_keeps_little_and_in_proportion_to_the_length() -> None:
    short, long = saved_bytes(10 * CHUNK, "numba"), saved_bytes(40 * CHUNK, "numba")
    assert long == 4 * short == 40 * LANES * 16 * 4
    assert long <= 40 * CHUNK * LANES * 4 / 4  # a quarter of x; the states of all steps would be 16 times x


@pytest.mark.proves("G2.3")
def test_the_chunked_scan_keeps_one_state_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    once = scan._one_chunk

    def counted(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        started.append(tensors[-1].numel())
        return once(*tensors)

    monkeypatch.setattr(scan, "_one_chunk", counted)
    scanned(drawn(1, 4 * scan._CHUNK, 3, 2), "chunked")
    assert started == [3 * 2] * 8  # four chunks from a state each, and each again in backward


def seconds(steps: int) -> float:
    """CPU time of the kernel, forward and backward: the least of some runs."""
    tensors = [tensor.float() for tensor in drawn(1, steps, LANES, 16)]
    taken = []
    for _ in range(5):
        started = time.process_time()
        scanned(tensors, "numba", torch.float32)
        taken.append(time.process_time() - started)
    return min(taken)


@pytest.mark.proves("G2.3", "G.tests", "G.speed")
def test_the_time_is_linear_in_the_length() -> None:
    assert seconds(20_000) < 2 * 8 * seconds(2_500)  # 8 times as long; quadratic would be 64


@pytest.mark.proves("G2.3", "G.tests")
def test_it_equals_mambapys_parallel_scan() -> None:
    pscan = pytest.importorskip("mambapy.pscan").pscan
    tensors = drawn(2, 37, 8, 16)
    given = [tensor.clone().requires_grad_() for tensor in tensors[:-1]]
    x, delta, a, b, c, skip = given
    states = pscan(torch.exp(delta[..., None] * a), delta[..., None] * b[:, :, None] * x[..., None])
    y = (states @ c[..., None]).squeeze(3) + skip * x
    theirs = [y.detach(), *torch.autograd.grad(y, given, tensors[-1])]
    assert_equal(scanned(tensors, "reference"), theirs, 1e-12)
    assert_equal(scanned(tensors, "numba", torch.float32), theirs, 1e-6)


@pytest.mark.proves("G2.3")
@pytest.mark.parametrize("name", NAMES[1:])
def test_a_nan_is_never_hidden(name: str) -> None:
    given = [tensor.float() for tensor in drawn(1, 8, 4, 2)[:-1]]
    given[NAMES.index(name) - 1][..., 0] = torch.nan
    for implementation in ("reference", "chunked", "numba"):
        assert selective_scan(*given, implementation=implementation).isnan().any()


@pytest.mark.proves("G2.3")
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_scanned_in_float32(kind: torch.dtype) -> None:
    x, delta, a, b, c, skip, _ = drawn(1, 50, 4, 3)
    x, delta = x.to(kind), delta.to(kind)
    y = selective_scan(x, delta, a.float(), b.float(), c.float(), skip.float())
    wanted = selective_scan(x.double(), delta.double(), a, b, c, skip, implementation="reference")
    assert y.dtype == kind
    assert torch.allclose(y.double(), wanted, rtol=torch.finfo(kind).eps, atol=1e-5)


@pytest.mark.proves("G2.3")
def test_autocast_does_not_reach_into_the_scan() -> None:
    *given, _ = (tensor.float() for tensor in drawn(1, 50, 4, 3))
    for implementation in ("reference", "chunked", "numba"):
        wanted = selective_scan(*given, implementation=implementation)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(selective_scan(*given, implementation=implementation), wanted)


def test_without_skip_and_without_steps() -> None:
    x, delta, a, b, c, _, _ = (tensor.float() for tensor in drawn(2, 5, 4, 3))
    none = selective_scan(x, delta, a, b, c)
    assert torch.equal(none, selective_scan(x, delta, a, b, c, torch.zeros(4)))
    assert selective_scan(x[:, :0], delta[:, :0], a, b[:, :0], c[:, :0]).shape == (2, 0, 4)


def test_what_does_not_fit_is_refused() -> None:
    x, delta, a, b, c, skip, _ = (tensor.float() for tensor in drawn(2, 5, 4, 3))
    with pytest.raises(ValueError, match=r"c has shape \(2, 5, 2\)"):
        scan._check(x, delta, a, b, c[..., :2], None, None)  # below the shape checks that tests add
    with pytest.raises(ValueError, match="above 0"):
        selective_scan(x, delta, -a, b, c)
    with pytest.raises(ValueError, match="0 to 5"):
        selective_scan(x, delta, a, b, c, length=torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="float32 on the CPU"):
        selective_scan(*(tensor.double() for tensor in (x, delta, a, b, c)), implementation="numba")
    given = [tensor.requires_grad_() for tensor in (x, delta, a, b, c, skip)]
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(selective_scan(*given).sum(), given, create_graph=True)


class Stub(ModuleType):
    """mamba_ssm's interface (its layout, its signature), computed by the loop."""

    def __init__(self) -> None:
        super().__init__("mamba_ssm.ops.selective_scan_interface")
        self.layouts: list[tuple[int, ...]] = []

    def selective_scan_fn(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        return_last_state: bool = False,
    ) -> Tensor:
        assert D is not None and z is None and delta_bias is None and not delta_softplus and not return_last_state
        assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in (u, delta, A, B, C, D))
        self.layouts = [tuple(tensor.shape) for tensor in (u, delta, A, B, C, D)]
        u, delta, B, C = (tensor.transpose(1, 2) for tensor in (u, delta, B, C))
        return selective_scan(u, delta, A, B, C, D, implementation="reference").transpose(1, 2)


@pytest.mark.proves("G2.3")
@pytest.mark.parametrize("reverse", [False, True])
def test_mamba_ssm_is_called_in_its_own_layout(monkeypatch: pytest.MonkeyPatch, reverse: bool) -> None:
    stub = Stub()
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    tensors, length = drawn(2, 9, 5, 3), torch.tensor([9, 4])
    found = scanned(tensors, "mamba_ssm", torch.float32, reverse=reverse, length=length)
    assert stub.layouts == [(2, 5, 9), (2, 5, 9), (5, 3), (2, 3, 9), (2, 3, 9), (5,)]
    assert_equal(found, scanned(tensors, "reference", reverse=reverse, length=length), 1e-6)


@pytest.mark.proves("G2.3")
def test_without_mamba_ssm_the_choice_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    *given, _ = (tensor.float() for tensor in drawn(1, 3, 2, 2))
    with pytest.raises(ExtraMissing, match="pip install mamba-ssm"):
        selective_scan(*given, implementation="mamba_ssm")
    assert torch.equal(selective_scan(*given), selective_scan(*given, implementation="numba"))


@pytest.mark.proves("G2.3")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_chunked_scan_equals_the_loop() -> None:
    tensors = drawn(2, 200, 40, 16)
    wanted = scanned(tensors, "reference")
    found = scanned([tensor.cuda() for tensor in tensors], "chunked", torch.float32)
    assert_equal([tensor.cpu() for tensor in found], wanted, 1e-6)
