"""Integrated gradients of genes: equal to the closed form, complete, and nothing for what is not known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medform.compute.seed import generator
from medform.errors import ExtraMissing
from medform.interfaces import Block, Encoded, Tower
from medform.models.genes import GeneMlpConfig, MambaConfig
from medform.models.hybrid import HybridConfig
from medform.objectives.segment import Segment, SegmentConfig
from medform.training.attribution import gene_attribution, lesion_logit, similarity_to

GENES = 20


def patients(count: int = 5, unknown: float = 0.2) -> Block:
    random = torch.Generator().manual_seed(3)
    known = torch.rand(count, GENES, generator=random) >= unknown
    expression = torch.randn(count, GENES, generator=random)
    code = 10 + torch.arange(count)  # places in a cohort, not rows
    return Block({"expression": expression, "known": known}, code, code)


def at_the_mean(genes: Block) -> Block:
    value = {"expression": torch.zeros(len(genes), GENES), "known": genes.value["known"]}
    return Block(value, genes.patient, genes.item)


class LinearGenes(Tower):
    """x W + b, whatever is known."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(GENES, self.width)

    def forward(self, block: Block) -> Encoded:
        return Encoded(self.layer(block.value["expression"]))


@pytest.mark.proves("G6.4")
def test_of_a_linear_tower_a_gene_s_share_is_weight_times_value() -> None:
    torch.manual_seed(0)
    tower, genes = LinearGenes(), patients()
    direction = torch.randn(4)

    def score(encoded: Encoded, _: Tensor) -> Tensor:
        return encoded.pooled @ direction

    found = gene_attribution(tower, genes, score, steps=3)
    weight = (direction @ tower.layer.weight).detach()
    wanted = genes.value["expression"].masked_fill(~genes.value["known"], 0.0) * weight
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_of_a_square_a_gene_s_share_is_the_integral_along_the_path() -> None:
    """f = (w x)^2 has the gradient 2 (w x) w, and its integral along a x, a from 0 to 1, times x is (w x) w x."""
    torch.manual_seed(0)
    tower, genes = LinearGenes(), patients(unknown=0)
    nn.init.zeros_(tower.layer.bias)

    def score(encoded: Encoded, _: Tensor) -> Tensor:
        return encoded.pooled[:, 0].square()

    x, w = genes.value["expression"], tower.layer.weight[0].detach()
    wanted = (x @ w)[:, None] * w * x
    np.testing.assert_allclose(gene_attribution(tower, genes, score, steps=8), wanted.numpy(), atol=1e-5)


@pytest.mark.proves("G6.4")
@pytest.mark.parametrize("similarity", ["cosine", "distance"])
@pytest.mark.parametrize(
    "config", [MambaConfig(width=8, layers=1, state=4, patch=4), GeneMlpConfig(hidden=[8], width=8)]
)
def test_shares_sum_to_what_the_genes_change_in_the_similarity(config, similarity) -> None:
    tower, genes = config.build(GENES, generator(0, "tower"), shared_width=6), patients()
    image = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    owner = torch.tensor([99, 14, 13, 12, 11, 10, 98])  # in another order, with patients without genes
    score = similarity_to(image, owner, similarity)
    tower.train()
    found = gene_attribution(tower, genes, score, steps=64, batch=20)
    assert tower.training and all(one.grad is None for one in tower.parameters())
    tower.eval()
    with torch.no_grad():
        change = [score(tower(block), block.patient) for block in (genes, at_the_mean(genes))]
        own = image[[5, 4, 3, 2, 1]]
        pooled = tower(genes).pooled
        plain = torch.cosine_similarity(pooled, own) if similarity == "cosine" else -(pooled - own).pow(2).sum(1) / 2
    torch.testing.assert_close(change[0], plain)
    assert found.shape == (5, GENES) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), (change[0] - change[1]).numpy(), atol=2e-4, rtol=2e-3)
    assert np.abs(found).max() > 1e-3


@pytest.mark.proves("G6.4")
def test_a_gene_that_is_not_known_has_no_share_whatever_stands_there() -> None:
    tower, genes = GeneMlpConfig(hidden=[8], width=8).build(GENES, generator(0, "tower")), patients()
    known, expression = genes.value["known"], genes.value["expression"].clone()
    expression[~known] = float("nan")
    spoilt = Block({"expression": expression, "known": known}, genes.patient, genes.item)
    score = similarity_to(torch.ones(5, 8), genes.patient)
    found = gene_attribution(tower, spoilt, score)
    assert (found[~known.numpy()] == 0).all() and (found[known.numpy()] != 0).all()
    np.testing.assert_array_equal(found, gene_attribution(tower, genes, score))


def test_a_patient_s_shares_do_not_depend_on_who_else_is_there() -> None:
    tower, genes = MambaConfig(width=8, layers=1, state=4, patch=4).build(GENES, generator(0, "tower")), patients()
    score = similarity_to(torch.eye(5, 8), genes.patient)
    together = gene_attribution(tower, genes, score, steps=8)
    alone = gene_attribution(tower, genes.take(torch.tensor([3])), score, steps=8)
    np.testing.assert_allclose(alone[0], together[3], atol=1e-6)


def test_genes_of_a_patient_without_an_image_vector_are_refused() -> None:
    tower, genes = LinearGenes(), patients()
    with pytest.raises(ValueError, match="patient 14 has genes and no image vector"):
        gene_attribution(tower, genes, similarity_to(torch.ones(4, 4), genes.patient[:4]))


def segmentation(fusion: str, **options: object) -> Segment:
    """A segmentation whose gene path says something, and whose moving average is not its last weights."""
    image = HybridConfig(model="resnet10t", width=12, blocks=1, heads=3).build(generator(0, "image"))
    genes = MambaConfig(width=8, layers=1, state=4, patch=4).build(GENES, generator(0, "genes"), shared_width=6)
    tree = {"decoder": {"kind": "fusion", "genes": fusion, "widths": (8, 8, 8, 8)}, **options}
    objective = SegmentConfig.model_validate(tree).build({"image": image, "genes": genes}, generator(1, "objective"))
    random = generator(2)
    with torch.no_grad():
        for parameter in objective.decoder.fusion.parameters():  # it begins at zero
            parameter.add_((1.0 if fusion == "film" else 0.5) * torch.randn(parameter.shape, generator=random))
        for part in objective.decoder.doublings.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.bias.fill_(20.0)  # every ReLU is open: a kink on the path would ask for many more steps
            elif isinstance(part, nn.Conv2d):
                part.weight.mul_(2)  # an untrained decoder lets next to nothing of its lowest map through
        objective.after_step()
        for part in (objective.towers, objective.decoder):
            for parameter in part.parameters():
                parameter.mul_(1.1)
    return objective


def slices(owners: tuple[int, ...]) -> tuple[Block, Tensor]:
    """A picture of each of ``owners``, and how much of each pixel is lesion."""
    random, code = generator(5), torch.tensor(owners)
    image = Block({"image": torch.rand(len(owners), 1, 32, 32, generator=random)}, code, torch.arange(len(owners)))
    return image, (torch.rand(len(owners), 1, 32, 32, generator=random) - 0.7).clamp(min=0)


@pytest.mark.proves("G6.4")
@pytest.mark.parametrize("fusion", ["cross_attention", "film"])
def test_shares_sum_to_what_the_genes_change_in_the_logit_of_the_lesion(fusion: str) -> None:
    """Beside the mask that `Segment.logits` draws: two slices of one patient count together, by their pixels."""
    objective, genes = segmentation(fusion).train(), patients(3, unknown=0)
    image, lesion = slices((12, 10, 11, 10))
    tower, score = lesion_logit(objective, image, lesion)
    found = gene_attribution(tower, genes, score, steps=48, batch=30)
    assert objective.training and objective.towers["image"].training
    logits = [objective.logits(image, block, flip=False) for block in (genes, at_the_mean(genes))]
    change = (logits[0] - logits[1]) * lesion
    for row, code in enumerate((10, 11, 12)):
        own = image.patient == code
        assert found[row].sum() == pytest.approx(float(change[own].sum() / lesion[own].sum()), abs=2e-4, rel=0.01)
    assert np.abs(found).max() > 1e-3


def test_a_segmentation_without_genes_and_a_patient_without_lesion_are_refused() -> None:
    image, lesion = slices((10, 11))
    with pytest.raises(ValueError, match="reads no genes"):
        lesion_logit(segmentation("film", gene_dropout=1.0), image, lesion)
    tower, score = lesion_logit(
        segmentation("film", ema=None), image, lesion * torch.tensor([1.0, 0.0])[:, None, None, None]
    )
    with pytest.raises(ValueError, match="patient 11 has genes and no pixel of lesion"):
        gene_attribution(tower, patients(2), score, steps=2)


@pytest.mark.proves("G.input")
def test_without_captum_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "captum"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "captum", None)
    genes = patients()
    with pytest.raises(ExtraMissing, match=r'pip install "medform\[explain\]"'):
        gene_attribution(LinearGenes(), genes, similarity_to(torch.ones(5, 4), genes.patient))
