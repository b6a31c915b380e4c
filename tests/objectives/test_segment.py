"""Segmentation as a whole step: the loss against a loop, genes by patient, the average that predicts."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medform.compute.seed import generator
from medform.errors import InputError
from medform.interfaces import Block, Encoded, Tower
from medform.models.hybrid import HybridConfig
from medform.models.unet import UnetConfig
from medform.objectives.segment import Segment, SegmentConfig

GENES, SIDE = 8, 32


class GeneTower(Tower):
    """Counts how many rows it was given."""

    width, token_width = 5, 4

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.token = nn.Linear(GENES, 5), nn.Linear(GENES, 12)
        self.seen: list[list[int]] = []

    def forward(self, block: Block) -> Encoded:
        self.seen.append(block.patient.tolist())
        expression = block.value["expression"]
        return Encoded(self.vector(expression), tokens=self.token(expression).reshape(len(block), 3, 4))


def towers(seed: int = 0, genes: bool = True) -> dict[str, Tower]:
    image = HybridConfig(model="resnet10t", width=12, blocks=1, heads=3).build(generator(seed, "image"))
    torch.manual_seed(seed)
    return {"image": image, "genes": GeneTower()} if genes else {"image": image}


def objective(genes: bool = True, **options: Any) -> Segment:
    return SegmentConfig.model_validate(options).build(towers(genes=genes), generator(1, "objective"))


def batch(patients: tuple[int, ...] = (3, 3, 7, 9, 4), owners: tuple[int, ...] = (9, 3, 7, 5)) -> dict[str, Block]:
    """Slices of patients, the last without lesion; genes of other patients, in another order, 4 has none."""
    random = generator(2)
    ids, item = torch.tensor(patients), torch.arange(len(patients)) + 100
    mask = (torch.rand(len(patients), 1, SIDE, SIDE, generator=random) - 0.5).clamp(min=0)
    mask[-1] = 0
    image = Block({"image": torch.rand(len(patients), 1, SIDE, SIDE, generator=random)}, ids, item)
    own = torch.tensor(owners)
    genes = Block({"expression": torch.randn(len(owners), GENES, generator=random)}, own, own)
    return {"image": image, "mask": Block({"mask": mask}, ids, item), "genes": genes}


def losses_by_loop(logit: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """The formulas, one pixel at a time, in float64."""

    def dice(slices: list[int]) -> float:
        both = total = 0.0
        for i in slices:
            for z, t in zip(logit[i].flatten().tolist(), target[i].flatten().tolist(), strict=True):
                p = 1 / (1 + math.exp(-z))
                both, total = both + p * t, total + p + t
        return 1 - (2 * both + 1) / (total + 1)

    bce = 0.0
    for z, t in zip(logit.flatten().tolist(), target.flatten().tolist(), strict=True):
        bce += max(z, 0) - z * t + math.log1p(math.exp(-abs(z)))
    lesion = [i for i in range(len(target)) if float(target[i].sum()) > 0]
    by_slice = sum(dice([i]) for i in lesion) / len(lesion)
    return {"bce": bce / target.numel(), "dice_batch": dice(list(range(len(target)))), "dice_slice": by_slice}


@pytest.mark.proves("G4.1", "G.tests")
def test_the_loss_is_bce_and_monais_dice_over_the_batch_and_over_slices_with_lesion() -> None:
    model, given = objective(gene_dropout="0", ema=None), batch()
    wanted = losses_by_loop(
        model.eval().logits(given["image"], given["genes"], flip=False), given["mask"].value["mask"]
    )
    loss, logs = model(given, 0, generator(0))
    for name, value in wanted.items():
        assert logs[name] == pytest.approx(value, rel=1e-5), name
    total = wanted["bce"] + 0.5 * wanted["dice_batch"] + 0.5 * wanted["dice_slice"]
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5) == pytest.approx(logs["loss"], rel=1e-5)
    assert logs["lesion_slices"] == 4 and logs["slices_with_genes"] == 4


@pytest.mark.proves("G4.1")
def test_chance_is_the_loss_of_the_share_of_lesion_everywhere() -> None:
    given = batch()
    _, logs = objective()(given, 0, generator(0))
    target = given["mask"].value["mask"].double()
    share = target.mean()
    wanted = losses_by_loop(share.logit().expand_as(target), target)
    assert logs["chance"] == pytest.approx(
        wanted["bce"] + 0.5 * wanted["dice_batch"] + 0.5 * wanted["dice_slice"], rel=1e-4
    )


def test_a_batch_without_lesion_has_a_finite_loss_and_gradients() -> None:
    model, given = objective(), batch()
    given["mask"] = Block({"mask": torch.zeros(5, 1, SIDE, SIDE)}, given["mask"].patient, given["mask"].item)
    loss, logs = model.train()(given, 0, generator(0))
    loss.backward()
    assert math.isfinite(logs["loss"]) and logs["dice_slice"] == 0 and math.isfinite(logs["chance"])
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.proves("G3.1", "G4.1")
@pytest.mark.parametrize("genes", ["film", "cross_attention"])
def test_each_patients_genes_run_once_and_reach_all_of_their_slices(genes: str) -> None:
    model, given = objective(gene_dropout="0", decoder={"kind": "fusion", "genes": genes}), batch()
    model(given, 0, generator(0))[0].backward()
    tower: Any = model.towers["genes"]
    assert tower.seen == [[9, 3, 7]]  # 5 has no slice here; 3 has two
    with torch.no_grad():  # the gene path begins at zero; here it is to matter
        path: Any = model.decoder.fusion
        last = path.mlp[-1] if genes == "film" else path.attention.out_proj
        last.weight.normal_(std=50, generator=generator(3))
    image, rows = given["image"], given["genes"]
    found = model.logits(image, rows, use_ema=False)
    torch.testing.assert_close(model.logits(image, rows.take(torch.tensor([2, 3, 1, 0])), use_ema=False), found)
    without = model.logits(image, use_ema=False)
    torch.testing.assert_close(found[4], without[4])  # patient 4 has no genes
    assert not torch.allclose(found[:4], without[:4])
    alone = model.logits(image, rows.take(torch.tensor([1])), use_ema=False)
    torch.testing.assert_close(alone[:2], found[:2])
    torch.testing.assert_close(alone[2:], without[2:])


@pytest.mark.proves("G4.1")
def test_gene_dropout_withholds_patients_as_often_as_it_says() -> None:
    model = objective(gene_dropout="0.5")
    decoded: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: decoded.append(inputs[2]))
    given = batch((0, 0, 1, 1, 2, 2, 3, 3), (3, 2, 1, 0))
    for step in range(24):
        model(given, step, generator(step))
    kept = torch.stack(decoded)
    assert torch.equal(kept[:, 0::2], kept[:, 1::2])  # both slices of a patient together
    assert 0.35 < float((kept >= 0).float().mean()) < 0.65
    _, again = model(given, 7, generator(7)), decoded[-1]
    assert torch.equal(again, kept[7])


@pytest.mark.proves("G5")
def test_the_matched_control_has_the_gene_path_and_never_a_gene() -> None:
    model, real, given = objective(gene_dropout="1"), objective(gene_dropout="0.3"), batch()
    loss, logs = model.train()(given, 0, generator(0))
    loss.backward()
    tower: Any = model.towers["genes"]
    assert tower.seen == [] and logs["slices_with_genes"] == 0
    assert {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None} == set()
    assert torch.equal(model.logits(given["image"], given["genes"]), model.logits(given["image"]))
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    for name, tensor in real.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) or "running" in name or "tracked" in name, name


@pytest.mark.proves("G4.1")
@pytest.mark.parametrize("dropout", [0.0, 0.999])
def test_every_weight_gets_a_gradient_in_every_step(dropout: float) -> None:
    model = objective(gene_dropout=dropout, decoder={"kind": "fusion", "genes": "cross_attention"}).train()
    model(batch(), 0, generator(0))[0].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.proves("G4.1")
def test_the_average_is_the_recursion_over_weights_and_statistics() -> None:
    model, given = objective(ema="0.25"), batch()
    solver = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    live = {"decoder.head.weight", "decoder.head.bias", "decoder.stem.layers.1.1.running_mean"}
    wanted: dict[str, torch.Tensor] = {}
    for k in range(4):
        solver.zero_grad()
        model.train()(given, k, generator(k))[0].backward()
        solver.step()
        model.after_step()
        kept = min(0.25, (1 + k) / (10 + k)) if k else 0.0
        state = model.state_dict()
        for name in live:
            now = state[name].clone()
            wanted[name] = now if k == 0 else kept * wanted[name] + (1 - kept) * now
    state = model.state_dict()
    for name in live:
        torch.testing.assert_close(state[f"average.module.{name}"], wanted[name])
        assert not torch.equal(state[name], wanted[name])
    assert int(state["average.module.decoder.stem.layers.1.1.num_batches_tracked"]) == 4
    assert not torch.allclose(model.logits(given["image"]), model.logits(given["image"], use_ema=False))


@pytest.mark.proves("G4.1")
def test_the_average_comes_back_with_the_weights_and_predicts_the_same() -> None:
    model, given = objective(), batch()
    model.train()(given, 0, generator(0))[0].backward()
    model.after_step()
    other = SegmentConfig().build(towers(5), generator(6))
    other.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
    assert torch.equal(other.predict(given["image"], given["genes"]), model.predict(given["image"], given["genes"]))
    assert model.training


@pytest.mark.proves("G4.1")
def test_a_mirrored_slice_gets_the_mirrored_mask() -> None:
    model, image = objective(), batch()["image"]
    mirrored = Block({"image": image.value["image"].flip(-1)}, image.patient, image.item)
    found = model.predict(image)
    assert found.shape == (5, 1, SIDE, SIDE) and float(found.min()) >= 0 and float(found.max()) <= 1
    torch.testing.assert_close(model.predict(mirrored).flip(-1), found)
    assert not torch.allclose(model.predict(image, flip=False), found)


@pytest.mark.proves("G5")
def test_the_unet_learns_from_images_alone() -> None:
    tower = UnetConfig(channels=(4, 8)).build(generator(0))
    config = SegmentConfig.model_validate({"decoder": {"kind": "head"}, "encoder_rate": "1"})
    model = config.build({"image": tower}, generator(1))
    loss, _ = model.train()(batch(), 0, generator(0))
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert {model.rate_of(name) for name, _ in model.named_parameters()} == {1.0}


@pytest.mark.proves("G4.1")
def test_parts_learn_at_rates_of_their_own() -> None:
    model = objective(genes_rate="2", encoder_rate="0.25")
    rates = {name: model.rate_of(name) for name, p in model.named_parameters() if p.requires_grad}
    assert {rate for name, rate in rates.items() if name.startswith("towers.image.encoder.")} == {0.25}
    assert {rate for name, rate in rates.items() if name.startswith("towers.genes.")} == {2.0}
    assert {rate for name, rate in rates.items() if name.startswith("decoder.fusion.")} == {5.0}
    rest = {name.split(".")[0] + "." + name.split(".")[1] for name, rate in rates.items() if rate == 1.0}
    assert rest == {"towers.image", "decoder.stem", "decoder.doublings", "decoder.head"}
    attention = objective(decoder={"kind": "fusion", "genes": "cross_attention"})
    assert attention.rate_of("decoder.fusion.null") == 1.0


@pytest.mark.proves("G.input")
def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="a tower `image`"):
        SegmentConfig().build({"genes": GeneTower()}, generator(0))
    with pytest.raises(InputError, match="no place for genes"):
        SegmentConfig.model_validate({"decoder": {"kind": "head"}}).build(
            {"image": UnetConfig(channels=(4, 8)).build(generator(0)), "genes": GeneTower()}, generator(1)
        )
    with pytest.raises(ValidationError, match="gene_dropout"):
        SegmentConfig.model_validate({"gene_dropout": "1.5"})
    given = batch()
    given["mask"] = given["mask"].take(torch.tensor([1, 0, 2, 3, 4]))
    with pytest.raises(ValueError, match="another order"):
        objective()(given, 0, generator(0))
