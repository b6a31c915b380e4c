"""An own encoder that does not give vectors is refused by name, at the start or at the first slice."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from medform.compute.seed import generator
from medform.errors import InputError
from medform.interfaces import Block
from medform.models.image import ImageTower, ModuleConfig


class Maps(nn.Module):
    """Forgets to pool."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image)


class Flat(Maps):
    """One number a slice, without the second axis."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).mean((1, 2, 3))


class Pair(Maps):
    """Two things at once."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        maps = super().forward(image)
        return maps.mean((2, 3)), maps


class Summed(Maps):
    """The slices of a batch become one vector."""

    width = 4

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).mean((0, 2, 3))[None]


class Wide(Maps):
    """Says another width than it has."""

    width = 5

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).mean((2, 3))


class Fixed(Maps):
    """Takes slices of 32 pixels only, and does not say its width."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4 * 30 * 30, 6)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(super().forward(image).flatten(1))


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_shapes")
    vars(module).update({one.__name__: one for one in (Maps, Flat, Pair, Summed, Wide, Fixed)})
    monkeypatch.setitem(sys.modules, "own_shapes", module)


def build(name: str) -> ImageTower:
    return ModuleConfig.model_validate({"module": f"own_shapes:{name}"}).build(generator(0, "own"))


@pytest.mark.proves("A8.2", "U15", "A.input")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Maps", r"makes \(1, 4, 62, 62\) of 1 slice, not \(1, d\)"),
        ("Flat", r"makes \(1,\) of 1 slice"),
        ("Pair", "makes tuple of 1 slice"),
        ("Fixed", "has no attribute `width` and cannot encode an empty slice of 64 x 64 pixels"),
    ],
)
def test_what_is_no_vector_is_refused_at_the_start(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        build(name)
    assert refused.value.where == f"towers.image, own_shapes:{name}" and "(M, d)" in str(refused.value.fix)


@pytest.mark.proves("A8.2", "U15", "A.input")
@pytest.mark.parametrize(("name", "made"), [("Summed", r"\(1, 4\)"), ("Wide", r"\(3, 4\)")])
def test_what_only_slices_show_is_refused_at_the_first_of_them(name: str, made: str) -> None:
    tower = build(name)
    image = torch.zeros(3, 1, 32, 32)
    for encode in (
        lambda: tower.slice_vector(image, ["head"]),
        lambda: tower(Block({"image": image}, torch.zeros(3, dtype=torch.int64), torch.arange(3))),
    ):
        with pytest.raises(InputError, match=rf"makes {made} of 3 slices, not \(3, {tower.width}\)"):
            encode()
