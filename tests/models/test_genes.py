"""The gene towers: one interface, missing genes, order by identity, and that a planted module is learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from medform.cohort.genes import Genes
from medform.compute.seed import generator
from medform.inputs.genes import GeneEncoder, GeneInputConfig, GeneSource
from medform.interfaces import Block
from medform.models.genes import (
    GeneMlpConfig,
    GeneTokens,
    GeneTower,
    GeneTransformerConfig,
    MambaConfig,
    masked_mean,
)

SMALL = {"width": 16, "layers": 2, "patch": 4, "dropout": 0.0}
CONFIGS = {
    "mamba": MambaConfig(**SMALL),
    "mamba_onward": MambaConfig(**SMALL, bidirectional=False),
    "mamba_by_gene": MambaConfig(**(SMALL | {"patch": 1})),
    "gene_transformer": GeneTransformerConfig(**SMALL, heads=4),
    "gene_mlp": GeneMlpConfig(hidden=[16], width=16, dropout=0.0),
}
EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def built(config: Any, genes: int = 22, shared: int | None = None) -> GeneTower:
    return config.build(genes, generator(0), shared).eval()


def block(expression: torch.Tensor, known: torch.Tensor | None = None) -> Block:
    ids = torch.arange(len(expression))
    there = torch.ones_like(expression, dtype=torch.bool) if known is None else known
    return Block({"expression": expression, "known": there}, patient=ids, item=ids)


def rows(patients: int, genes: int = 22, seed: int = 0) -> torch.Tensor:
    return torch.randn(patients, genes, generator=generator(seed))


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.proves("G2.2")
@EVERY
@torch.no_grad()
def test_every_tower_gives_a_vector_and_tokens(config: Any) -> None:
    tower = built(config)
    got = tower(block(rows(3)))
    assert got.pooled.shape == (3, tower.width) == (3, 16)
    length = {"gene_mlp": 1}.get(config.kind) or -(-22 // config.patch)
    assert got.tokens.shape == (3, length, tower.token_width)
    assert got.extra["known"].shape == (3, length) and bool(got.extra["known"].all())
    into_space = built(config, shared=5)
    assert into_space.width == 5 and into_space.token_width == 16
    assert into_space(block(rows(3))).pooled.shape == (3, 5)
    assert len(tower(block(rows(0))).pooled) == 0


@pytest.mark.proves("G2.2")
@EVERY
@torch.no_grad()
def test_a_tower_depends_on_its_generator_and_a_row_on_itself_alone(config: Any) -> None:
    batch = rows(4)
    got = built(config)(block(batch)).pooled
    assert torch.equal(got, built(config)(block(batch)).pooled)
    other = config.build(22, generator(1)).eval()
    assert not torch.allclose(got, other(block(batch)).pooled)
    torch.testing.assert_close(got[2:3], built(config)(block(batch[2:3])).pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.proves("G2.1", "G2.2")
def test_the_default_mamba_has_the_size_of_the_reference() -> None:
    tower = MambaConfig().build(2048, generator(0), shared_width=128)
    assert size(tower.mixer) == 3_504_128
    assert size(tower.norm) == 256
    assert tower.tokens.length == 128
    assert size(tower.tokens) == (2 * 16 * 256 + 256) + 256 + 128 * 256
    assert size(MambaConfig(bidirectional=False).build(2048, generator(0)).mixer) == 1_752_064


@pytest.mark.proves("G2.1")
@EVERY
def test_a_gene_that_is_not_known_counts_as_a_learnt_value(config: Any) -> None:
    tower = built(config)
    known = torch.ones(2, 22, dtype=torch.bool)
    known[0, 3] = known[0, 4:8] = False
    expression = rows(2)
    got = tower(block(expression, known)).pooled
    garbage = torch.where(known, expression, torch.nan)
    assert torch.equal(got, tower(block(garbage, known)).pooled)
    zero = tower(block(torch.where(known, expression, 0.0))).pooled
    if config.kind == "gene_mlp":
        with torch.no_grad():
            tower.missing.fill_(1.0)
        got = tower(block(expression, known)).pooled
    assert not torch.allclose(got[0], zero[0])  # not known is not the mean
    torch.testing.assert_close(got[1], zero[1])
    tower.zero_grad()
    tower(block(expression, known)).pooled.square().sum().backward()
    learnt = tower.missing if config.kind == "gene_mlp" else tower.tokens.missing
    assert learnt.grad is not None and bool(learnt.grad.any())


@pytest.mark.proves("G2.1", "G2.2")
def test_tokens_without_a_known_gene_are_not_pooled() -> None:
    tower = built(CONFIGS["mamba"])
    known = torch.ones(2, 22, dtype=torch.bool)
    known[0, 4:12] = False
    got = tower(block(rows(2), known))
    assert got.extra["known"].tolist() == [[True, False, False, True, True, True], [True] * 6]
    torch.testing.assert_close(got.pooled[0], got.tokens[0, [0, 3, 4, 5]].mean(0))
    torch.testing.assert_close(got.pooled[1], got.tokens[1].mean(0))
    nobody = tower(block(rows(1), torch.zeros(1, 22, dtype=torch.bool)))
    assert bool((nobody.pooled == 0).all()) and bool(nobody.tokens.isfinite().all())


def test_a_masked_mean_by_hand() -> None:
    token = torch.tensor([[[1.0], [3.0], [torch.inf]]])
    assert masked_mean(token, torch.tensor([[True, True, False]])).tolist() == [[2.0]]


@pytest.mark.proves("G2.1")
def test_a_token_is_the_genes_identity_and_its_value() -> None:
    tokens = GeneTokens(3, 4, patch=1)
    values = torch.tensor([[2.0, 2.0, 5.0]])
    known = torch.tensor([[True, True, False]])
    token, there = tokens(values, known)
    assert tokens.identity is not None and there.tolist() == known.tolist()
    torch.testing.assert_close(token[0, 0] - token[0, 1], tokens.identity[0] - tokens.identity[1])
    torch.testing.assert_close(token[0, 2], tokens.missing + tokens.identity[2])
    plain = GeneTokens(3, 4, patch=1, identity=False)
    token, _ = plain(values, known)
    assert torch.equal(token[0, 0], token[0, 1])


@pytest.mark.proves("G2.1")
def test_the_last_patch_may_be_short_and_one_patch_may_hold_all() -> None:
    tokens = GeneTokens(5, 4, patch=3)
    values = rows(2, 5)
    token, there = tokens(values, torch.ones(2, 5, dtype=torch.bool))
    assert token.shape == (2, 2, 4) and bool(there.all())
    full = F.pad(values, (0, 1))
    slots = torch.tensor([0.0, 0.0, 1.0]).expand(2, 3)  # beyond the genes a slot is a missing gene
    assert tokens.identity is not None
    torch.testing.assert_close(token[:, 1], tokens.project(torch.cat([full[:, 3:], slots], 1)) + tokens.identity[1])
    assert GeneTokens(5, 4, patch=64).length == 1


def cohort(seed: int = 0) -> Genes:
    random = np.random.default_rng(seed)
    values = random.standard_normal((20, 22)).astype(np.float32)
    return Genes(tuple(f"P{row}" for row in range(20)), tuple(f"G{column}" for column in range(22)), values, "zscore")


@pytest.mark.proves("G2.1", "G.tests")
@EVERY
@torch.no_grad()
def test_predictions_are_equal_for_genes_in_another_order(config: Any) -> None:
    genes, tower = cohort(), built(config)
    encoder = GeneEncoder.fit(genes, genes.patient_ids[:15], GeneInputConfig(order="cluster"))
    again = GeneEncoder.from_json(encoder.to_json(), encoder.arrays())
    turned = np.random.default_rng(1).permutation(22)
    names = tuple(genes.gene_ids[place] for place in turned)
    other = Genes(genes.patient_ids, names, genes.values[:, turned], genes.scale)
    code = {one: row for row, one in enumerate(genes.patient_ids)}
    expected = tower(GeneSource.of(encoder.encode(genes), code).block(np.arange(20))).pooled
    assert torch.equal(expected, tower(GeneSource.of(again.encode(other), code).block(np.arange(20))).pooled)
    wrong = tower(block(torch.from_numpy(encoder.encode(genes).expression).flip(1))).pooled
    assert not torch.allclose(expected, wrong)  # a tower told by place alone would not care for names


@pytest.mark.proves("G2.1")
@torch.no_grad()
def test_a_patient_without_genes_has_no_row() -> None:
    genes = cohort()
    values = genes.values.copy()
    values[4] = np.nan
    encoded = GeneEncoder.fit(genes, genes.patient_ids).encode(
        Genes(genes.patient_ids, genes.gene_ids, values, genes.scale)
    )
    code = {one: row for row, one in enumerate(genes.patient_ids)}
    rows_of = GeneSource.of(encoded, code).block(np.arange(3, 6))
    assert rows_of.patient.tolist() == [3, 5]
    assert len(built(CONFIGS["mamba"])(rows_of).pooled) == 2


@pytest.mark.proves("G2.2")
@EVERY
def test_a_few_steps_find_a_planted_module(config: Any) -> None:
    expression = rows(24, seed=3)
    label = (expression[:, 5:9].sum(1) > 0).float()
    tower = config.build(22, generator(0), 1).train()
    optimizer = torch.optim.AdamW(tower.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        loss = F.binary_cross_entropy_with_logits(tower(block(expression)).pooled[:, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None for name, parameter in tower.named_parameters() if "missing" not in name)


def test_a_config_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValidationError, match="cannot be shared among 8 heads"):
        GeneTransformerConfig(width=20)
    with pytest.raises(ValidationError):
        MambaConfig(patch=0)
    with pytest.raises(ValidationError):
        GeneMlpConfig(hidden=[0])
