"""What every part of the catalog keeps, whatever it computes: the promises that the loop and the files rely on.

A kind that is new in the catalog needs an entry in `EXAMPLES`; without one these tests fail and say so.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medform.compute.seed import generator
from medform.config import Config, dump, read_yaml
from medform.interfaces import Batch, Block, Encoded, Objective, Tower
from medform.recipes.catalog import FAMILIES, part

KINDS = [(family, kind) for family, kinds in FAMILIES.items() for kind in kinds]
PATIENTS, FEATURES, COLUMNS, GENES, SHARED = 6, 10, 5, 7, 4


class OwnNet(nn.Module):
    """A user's encoder: (M, 1, H, W) to (M, 6)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, width, 3, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        return self.convolution(image).relu().mean((2, 3))


def ids(count: int) -> dict[str, Tensor]:
    """The first ``count`` patients, one item each."""
    return {"patient": torch.arange(count), "item": torch.arange(count)}


def images(count: int = PATIENTS) -> Block:
    """One slice a patient, in [0, 1]."""
    image = torch.rand(count, 1, 32, 32, generator=generator(0, "images"))
    return Block({"image": image}, **ids(count), z=torch.arange(count))


def views() -> Block:
    """Two views of one slice a patient."""
    image = torch.rand(2 * PATIENTS, 1, 32, 32, generator=generator(0, "views"))
    item = torch.arange(PATIENTS).repeat(2)
    return Block({"image": image}, patient=item, item=item, z=torch.zeros_like(item))


def bags(count: int = PATIENTS) -> Block:
    """Bags of 1 to 3 slices."""
    sizes = [1 + number % 3 for number in range(count)]
    offset = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    feature = torch.randn(sum(sizes), FEATURES, generator=generator(0, "bags"))
    z = torch.cat([torch.arange(size) for size in sizes])
    return Block({"feature": feature}, **ids(count), offset=offset, z=z)


def table(count: int = PATIENTS) -> Block:
    """Encoded rows of the clinical table."""
    return Block({"table": torch.randn(count, COLUMNS, generator=generator(0, "table"))}, **ids(count))


def genes(count: int = PATIENTS) -> Block:
    """Standardised expression; the last gene of the first patient is not known."""
    expression = torch.randn(count, GENES, generator=generator(0, "genes"))
    known = torch.ones(count, GENES, dtype=torch.bool)
    known[0, -1] = False
    return Block({"expression": expression * known, "known": known}, **ids(count))


def masks() -> Block:
    """A soft lesion in a corner of each slice but the last."""
    mask = torch.zeros(PATIENTS, 1, 32, 32)
    mask[:-1, :, 4:14, 6:20] = 0.9
    return Block({"mask": mask}, **ids(PATIENTS), z=torch.arange(PATIENTS))


def survival() -> Block:
    """Months, and who died; of the last patient nothing is known."""
    value = {"time": torch.tensor([3.0, 9.0, 9.0, 20.0, 31.0]), "event": torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])}
    return Block(value, **ids(PATIENTS - 1))


def labels() -> Block:
    """A class a patient, but of the last one, whose label is not known."""
    return Block({"label": torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])}, **ids(PATIENTS - 1))


@dataclass(frozen=True)
class Example:
    """How one kind is made and fed. ``settings``: the kind's own keys, as small as they can be.

    ``arguments`` of ``build`` beside the generator. For a tower ``block`` gives what it encodes; for an objective
    ``towers`` is the recipe's mapping of its towers (modality -> example) and ``batch`` what it learns from.
    ``takes_random``: whether an objective draws initial weights of its own.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    block: Callable[[], Block] | None = None
    towers: Callable[[], Mapping[str, Tower]] | None = None
    batch: Callable[[], Batch] | None = None
    takes_random: bool = True


def made(family: str, kind: str, seed: int = 0) -> Any:
    """The part of an example, its initial weights drawn under ``seed``."""
    given = example(family, kind)
    config: Any = part(family, {"kind": kind, **given.settings})
    if family == "tower":
        return config.build(random=generator(seed, "tower"), **given.arguments)
    assert given.towers is not None
    random = {"random": generator(seed, "objective")} if given.takes_random else {}
    return config.build(given.towers(), **random, **given.arguments)


TOKENS = {"width": 8, "layers": 1, "patch": 3}
OF_GENES = {"genes": GENES, "shared_width": SHARED}
ABMIL = {"pool": {"kind": "abmil", "hidden": 3}, "head": {"kind": "linear"}}
EXAMPLES: dict[tuple[str, str], Example] = {
    ("tower", "timm"): Example({"model": "resnet10t"}, block=images),
    ("tower", "module"): Example({"module": "own_net:OwnNet", "width": "5"}, block=images),
    ("tower", "bag"): Example(ABMIL, {"width": FEATURES, "shared_width": SHARED}, block=bags),
    ("tower", "linear"): Example({}, {"width": COLUMNS, "shared_width": SHARED}, block=table),
    ("tower", "mlp"): Example({"hidden": [7]}, {"width": COLUMNS, "shared_width": SHARED}, block=table),
    ("tower", "hybrid"): Example({"model": "resnet10t", "width": 12, "blocks": 1}, block=images),
    ("tower", "vit"): Example({"model": "test_vit", "image_size": 32, "patch": 8, "depths": (3, 6)}, block=images),
    ("tower", "unet"): Example({"channels": (4, 6, 8), "units": 1}, block=images),
    ("tower", "mamba"): Example({**TOKENS, "state": 4}, OF_GENES, block=genes),
    ("tower", "gene_transformer"): Example({**TOKENS, "heads": 2}, OF_GENES, block=genes),
    ("tower", "gene_mlp"): Example({"hidden": [6], "width": 8}, OF_GENES, block=genes),
    ("objective", "simclr"): Example(
        {"projection": {"kind": "projection", "hidden": 8, "width": 4}},
        towers=lambda: {"image": made("tower", "timm")},
        batch=lambda: {"image": views()},
    ),
    ("objective", "align"): Example(
        {"similarity": "cosine", "temperature": 0.1},
        {"start": "random"},
        towers=lambda: {"image": made("tower", "bag"), "clinical": made("tower", "linear")},
        batch=lambda: {"image": bags(), "clinical": table()},
        takes_random=False,
    ),
    ("objective", "classify"): Example(
        {"classes": 2},
        towers=lambda: {"image": made("tower", "bag")},
        batch=lambda: {"image": bags(), "label": labels()},
    ),
    ("objective", "segment"): Example(
        {"gene_dropout": 0.0, "smallest": 0},
        towers=lambda: {"image": made("tower", "hybrid"), "genes": made("tower", "mamba")},
        batch=lambda: {"image": images(), "mask": masks(), "genes": genes(PATIENTS - 1)},
    ),
    ("objective", "cox"): Example(
        towers=lambda: {"genes": made("tower", "gene_mlp")},
        batch=lambda: {"genes": genes(), "survival": survival()},
    ),
    ("input", "patient_slices"): Example({"size": 64, "source": 96}),
    ("input", "segmentation"): Example({"size": 64, "source": 96}),
    ("input", "masks"): Example({"values": [1, 2]}),
    ("input", "genes"): Example({"select": "all", "order": "cluster"}),
    ("input", "slices"): Example({"size": 64, "source": 96, "augment": {"flip": False}}),
    ("input", "features"): Example({"of": "pretrain", "layers": [1, "head"], "smooth": "none", "pca": None}),
    ("input", "clinical"): Example({"clip": 2.5}),
}


def example(family: str, kind: str) -> Example:
    """The entry of a kind in `EXAMPLES`; the test fails, and says what to do, where there is none."""
    if (family, kind) not in EXAMPLES:
        pytest.fail(
            f"the {family} kind '{kind}' stands in recipes/catalog.py and has no example: add "
            f'("{family}", "{kind}"): Example(...) to EXAMPLES of tests/recipes/test_contracts.py',
            pytrace=False,
        )
    return EXAMPLES[family, kind]


@pytest.fixture(autouse=True)
def own_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that a user's encoder lies in."""
    module = ModuleType("own_net")
    vars(module).update(OwnNet=OwnNet)
    monkeypatch.setitem(sys.modules, "own_net", module)


def of_family(*families: str) -> Any:
    """One test a kind of these families."""
    kinds = [(family, kind) for family, kind in KINDS if family in families]
    return pytest.mark.parametrize(("family", "kind"), kinds, ids=["-".join(pair) for pair in kinds])


def row_of(block: Block, row: int) -> Block:
    """The one item ``row`` of a block, cut out of it."""
    whole = slice(row, row + 1)
    packed = slice(int(block.offset[row]), int(block.offset[row + 1])) if block.offset is not None else whole
    value = {
        name: tensor[packed if block.offset is not None and name in ("feature", "image") else whole]
        for name, tensor in block.value.items()
    }
    offset = None if block.offset is None else torch.tensor([0, packed.stop - packed.start])
    z = None if block.z is None else block.z[packed]
    return replace(block, value=value, patient=block.patient[whole], item=block.item[whole], z=z, offset=offset)


def block_of(kind: str) -> Block:
    """What the example of a tower encodes."""
    given = example("tower", kind)
    assert given.block is not None, f"tower '{kind}': its example gives no block"
    return given.block()


def encoded_tensors(encoded: Encoded) -> dict[str, Tensor]:
    """All that a tower returned, by name."""
    found = {name: getattr(encoded, name) for name in ("pooled", "tokens", "weight")}
    maps = {f"maps {number}": tensor for number, tensor in enumerate(encoded.maps or [])}
    return {name: tensor for name, tensor in (found | maps).items() if tensor is not None}


def leave_the_start(module: nn.Module) -> None:
    """Push every weight a little: what starts at 0 on purpose hides what lies behind it from the gradient."""
    random = generator(0, "push")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)


def without_gradient(module: nn.Module) -> list[str]:
    """Trainable weights that no gradient reached: none at all, not finite, or, for matrices and kernels, all 0."""
    bad = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient = parameter.grad
        if gradient is None or not gradient.isfinite().all() or (gradient.ndim > 1 and not gradient.any()):
            bad.append(name)
    return bad


@pytest.mark.proves("A1.5")
def test_no_example_is_left_of_a_kind_that_is_gone() -> None:
    assert sorted(set(EXAMPLES) - set(KINDS)) == []


@pytest.mark.proves("A1.5")
def test_a_new_kind_without_an_example_is_told_where_to_put_one() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"the tower kind 'new' .* EXAMPLES of tests/recipes"):
        example("tower", "new")


@pytest.mark.proves("A1.5")
@of_family("tower")
def test_a_tower_encodes_its_block_to_its_width_in_finite_values(family: str, kind: str) -> None:
    tower, block = made(family, kind), block_of(kind)
    for mode in (True, False):
        encoded = tower.train(mode)(block)
        assert encoded.pooled.shape == (len(block), tower.width)
        for name, tensor in encoded_tensors(encoded).items():
            assert tensor.isfinite().all(), name
            packed = name == "weight" and block.offset is not None
            assert len(tensor) == (int(block.offset[-1]) if packed else len(block)), name  # type: ignore[index]


@pytest.mark.proves("A1.5")
@of_family("tower", "objective")
def test_weights_follow_from_the_seed_and_nothing_else(family: str, kind: str) -> None:
    first = made(family, kind).state_dict()
    torch.rand(100)  # whatever was drawn before
    second = made(family, kind).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].nan_to_num(), second[name].nan_to_num()) for name in first)
    if family == "tower":
        other = made(family, kind, seed=1).state_dict()
        assert any(not torch.equal(first[name].nan_to_num(), other[name].nan_to_num()) for name in first)


@pytest.mark.proves("A1.5")
@of_family("tower")
def test_gradients_reach_every_trainable_weight_of_a_tower(family: str, kind: str) -> None:
    tower, block = made(family, kind).train(), block_of(kind)
    leave_the_start(tower)
    encoded = tower(block)
    total = sum(tensor.square().sum() for name, tensor in encoded_tensors(encoded).items() if name != "weight")
    assert isinstance(total, Tensor)
    total.backward()
    assert without_gradient(tower) == []


@pytest.mark.proves("A1.5")
@of_family("tower")
def test_in_evaluation_an_item_is_encoded_alike_whatever_stands_beside_it(family: str, kind: str) -> None:
    tower, block = made(family, kind).eval(), block_of(kind)
    with torch.no_grad():
        together = tower(block).pooled
        alone = torch.cat([tower(row_of(block, row)).pooled for row in range(len(block))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.proves("A1.5")
@of_family("tower")
def test_weights_put_into_another_tower_of_the_kind_make_it_the_same(family: str, kind: str) -> None:
    tower, other, block = made(family, kind).eval(), made(family, kind, seed=1).eval(), block_of(kind)
    leave_the_start(tower)
    other.load_state_dict(copy.deepcopy(tower.state_dict()), strict=True)
    with torch.no_grad():
        assert torch.equal(tower(block).pooled, other(block).pooled)


def objective_of(kind: str) -> tuple[Objective, Batch]:
    """The example's objective, started, in training, and its batch."""
    given = example("objective", kind)
    assert given.batch is not None, f"objective '{kind}': its example gives no batch"
    objective, batch = made("objective", kind), given.batch()
    objective.start(batch)
    return objective.train(), batch


@pytest.mark.proves("A1.5", "A4.2")
@of_family("objective")
def test_an_objective_steps_logs_its_chance_and_trains_every_weight(family: str, kind: str) -> None:
    objective, batch = objective_of(kind)
    leave_the_start(objective)
    optimizer = torch.optim.AdamW([one for one in objective.parameters() if one.requires_grad], lr=1e-3)
    for step in range(2):
        loss, logs = objective(batch, step, generator(0, step))
        assert loss.shape == () and loss.isfinite()
        assert logs["chance"] > 0 and all(isinstance(value, float) for value in logs.values())
        optimizer.zero_grad()
        loss.backward()
        assert without_gradient(objective) == []
        optimizer.step()
        objective.after_step()
    assert objective.learning_rate_scale() > 0


@pytest.mark.proves("A1.5", "A4.2", "U7")
@of_family("objective")
def test_a_step_follows_from_weights_batch_and_generator(family: str, kind: str) -> None:
    objective, batch = objective_of(kind)
    other = made(family, kind, seed=1)
    other.load_state_dict(copy.deepcopy(objective.state_dict()), strict=True)
    first, logs = objective(batch, 3, generator(0, 3))
    torch.rand(100)  # whatever was drawn before
    second, again = other.train()(batch, 3, generator(0, 3))
    assert torch.equal(first, second) and logs == again


@pytest.mark.proves("A1.5")
@of_family("tower", "objective", "input")
def test_a_configuration_comes_back_from_its_yaml_every_default_included(family: str, kind: str) -> None:
    config = part(family, {"kind": kind, **example(family, kind).settings})
    assert isinstance(config, Config)
    assert part(family, read_yaml(dump(config))) == config


@pytest.mark.proves("A1.5", "A.input")
@of_family("tower", "objective", "input")
def test_an_unknown_key_is_refused_with_the_key_that_was_meant(family: str, kind: str) -> None:
    config = part(family, {"kind": kind, **example(family, kind).settings})
    if type(config).model_config.get("extra") == "allow":
        return  # its other keys are arguments of the user's own class
    meant = max((name for name in type(config).model_fields if name != "kind"), key=len)
    with pytest.raises(ValueError, match=f"unknown key, did you mean '{meant}'"):
        part(family, {"kind": kind, **example(family, kind).settings, f"{meant}s": "1"})
