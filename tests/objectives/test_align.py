"""Alignment as a whole step: the paper's loss, absent modalities, the closed-form start, a frozen table."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from medform.compute.seed import generator
from medform.errors import InputError
from medform.interfaces import Block, Encoded, Tower
from medform.metrics.linear_maps import cca
from medform.models.bag import BagConfig, BagTower
from medform.models.pooling import AbmilConfig, MeanPoolConfig
from medform.models.projection import LinearHeadConfig
from medform.models.tabular import LinearConfig, LinearTower, MlpConfig
from medform.objectives.align import Align, AlignConfig

FEATURES, COLUMNS = 12, 5


def bags(patients: list[int], seed: int = 0, signal: torch.Tensor | None = None) -> Block:
    random = generator(seed)
    sizes = torch.randint(1, 5, (len(patients),), generator=random).tolist()
    feature = torch.randn(sum(sizes), FEATURES, generator=random)
    if signal is not None:
        feature[:, : signal.shape[1]] += 2 * signal.repeat_interleave(torch.tensor(sizes), dim=0)
    ids = torch.tensor(patients)
    return Block({"feature": feature}, ids, ids, offset=torch.tensor([0, *np.cumsum(sizes).tolist()]))


def table(patients: list[int], seed: int = 1) -> Block:
    ids = torch.tensor(patients)
    return Block({"table": torch.randn(len(patients), COLUMNS, generator=generator(seed)) + 3}, ids, ids)


def cohort(n: int = 30, seed: int = 0) -> dict[str, Block]:
    """Patients whose bags carry their table rows, listed in another order."""
    clinical = table(list(range(n))[::-1], seed + 1)
    own = clinical.value["table"].flip(0)
    return {"image": bags(list(range(n)), seed, own), "clinical": clinical}


def linear_towers(width: int = COLUMNS, seed: int = 0) -> dict[str, Tower]:
    pool = AbmilConfig(hidden=4)
    return {
        "image": BagConfig(pool=pool, head=LinearHeadConfig()).build(
            FEATURES, generator(seed, "image"), shared_width=width
        ),
        "clinical": LinearConfig().build(COLUMNS, generator(seed, "clinical"), shared_width=width),
    }


DISTANCE = AlignConfig.model_validate({"similarity": "distance", "temperature": {"relative": "0.1"}})


def small(start: Any = "cca", seed: int = 0) -> Align:
    return DISTANCE.build(linear_towers(seed=seed), start)


@pytest.mark.proves("A5.1", "A.tests")
def test_the_papers_stage_two_is_symmetric_infonce_over_bag_and_mlp() -> None:
    towers = {
        "image": BagConfig(pool=AbmilConfig(hidden=4, pre_attention=[16])).build(FEATURES, generator(0)),
        "clinical": MlpConfig(hidden=["columns", "columns"], width=16).build(COLUMNS, generator(1)),
    }
    model = AlignConfig(temperature=0.01).build(towers).eval()
    batch = cohort(7)
    loss, logs = model(batch, 0, generator(0))
    image = F.normalize(model.towers["image"](batch["image"]).pooled, dim=1)
    clinical = F.normalize(model.towers["clinical"](batch["clinical"]).pooled.flip(0), dim=1)
    score = image @ clinical.T / 0.01
    wanted = (F.cross_entropy(score, torch.arange(7)) + F.cross_entropy(score.T, torch.arange(7))) / 2
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    assert logs["chance"] == pytest.approx(math.log(7))
    assert logs["pairs"] == 7


@pytest.mark.proves("A5.3", "A.tests")
def test_a_patient_without_one_modality_trains_the_rest() -> None:
    model = small("random")
    whole = {"image": bags([0, 1, 2, 3]), "clinical": table([1, 3, 9])}
    model.start(whole)
    loss, logs = model(whole, 0, generator(0))
    assert logs["pairs"] == 2
    assert logs["chance"] == pytest.approx((math.log(3) + math.log(4)) / 2)  # the unpaired still are negatives
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    nobody, nothing = model({"image": bags([0, 1]), "clinical": table([2])}, 1, generator(0))
    assert float(nobody.detach()) == 0.0
    assert nothing["pairs"] == 0
    nobody.backward()
    alone, _ = model({"image": bags([0, 1])}, 2, generator(0))
    assert float(alone.detach()) == 0.0


@pytest.mark.proves("A5.3", "D23")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_two_and_three_patients_work_from_start_to_step(n: int) -> None:
    model = small("cca")
    batch = {"image": bags(list(range(n))), "clinical": table(list(range(n)))}
    model.start(batch)
    assert model.start_used == "random"
    assert "fewer than 8" in str(model.start_note)
    loss, _ = model(batch, 0, generator(0))
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.proves("A5.3")
def test_all_patients_are_asked_for_only_where_the_start_is_fitted_to_them() -> None:
    mlp = {"clinical": MlpConfig(hidden=[8], width=16).build(COLUMNS, generator(1)),
           "image": MlpConfig(hidden=[8], width=16).build(COLUMNS, generator(2))}  # fmt: skip
    assert not AlignConfig(temperature=0.1).build(dict(mlp)).fits_start
    assert (
        AlignConfig.model_validate({"temperature": {"relative": 0.1}, "similarity": "distance"}).build(mlp).fits_start
    )
    assert small("random").fits_start


def test_retrieval_beside_soft_targets_counts_the_nearest_patients_alone() -> None:
    """A kernel leaves no patient without some share of a target: any of them is not a hit."""
    batch = cohort(16)
    config = AlignConfig.model_validate({"similarity": "cosine", "temperature": 0.1, "kernel_bandwidth": 1.0})
    model = config.build(linear_towers(), "random")
    _, logs = model(batch, 0, generator(0))
    assert logs["retrieval_at_1"] < 0.7


def test_a_relative_rate_needs_weights_to_be_relative_to() -> None:
    towers = {
        "image": BagConfig(pool=MeanPoolConfig()).build(FEATURES, generator(0)),
        "clinical": linear_towers(FEATURES)["clinical"],
    }
    with pytest.raises(InputError, match="no weights"):
        AlignConfig().build(towers).learning_rate_scale()


def test_patients_with_identical_rows_are_each_others_positives_and_are_counted() -> None:
    batch = cohort(6)
    rows = batch["clinical"].value["table"]
    rows[1] = rows[4]
    model = small("random")
    model.start(batch)
    _, logs = model(batch, 0, generator(0))
    assert logs["identical_rows"] == 2


@pytest.mark.proves("A5.2")
def test_the_closed_form_start_gives_the_heads_of_the_regularised_cca() -> None:
    model, batch = small(), cohort()
    model.start(batch)
    assert model.start_used == "cca"
    assert model.start_note is None
    image, clinical = model.towers["image"], model.towers["clinical"]
    assert isinstance(image, BagTower)
    assert isinstance(clinical, LinearTower)
    sizes = batch["image"].offset.diff().tolist()  # type: ignore[union-attr]
    mean = np.stack([part.mean(0).numpy() for part in batch["image"].value["feature"].split(sizes)])
    centred = mean - mean.mean(0)
    centred = centred / np.sqrt((centred**2).mean())
    rows = batch["clinical"].value["table"].flip(0).numpy()
    found = cca(centred, rows, components=COLUMNS)
    vectors = image(batch["image"]).pooled.detach().numpy()
    np.testing.assert_allclose(vectors, centred @ found.wx, rtol=1e-3, atol=1e-4)
    own = clinical(batch["clinical"]).pooled.detach().flip(0).numpy()
    np.testing.assert_allclose(own, (rows - rows.mean(0)) @ found.wt, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(clinical.directions.numpy() * found.singular, found.wt, rtol=1e-4, atol=1e-6)
    expected = 0.1 * (vectors.astype(float) ** 2).sum(1).mean()
    assert model.temperature.number() == pytest.approx(expected, rel=1e-4)
    assert model.learning_rate_scale() == pytest.approx(float(np.sqrt((found.wx**2).mean())), rel=1e-4)
    _, logs = model(batch, 0, generator(0))
    assert logs["loss"] < 0.7 * logs["chance"]  # paired at once, before any step
    assert logs["retrieval_at_1"] > 0.5


@pytest.mark.proves("A5.2")
def test_fifty_steps_of_infonce_improve_on_the_start_and_a_random_start_begins_at_chance() -> None:
    batch = cohort()
    model = small()
    model.start(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03 * model.learning_rate_scale(), weight_decay=0.01)
    losses = []
    for step in range(50):
        loss, logs = model(batch, step, generator(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(logs["loss"])
    assert losses[-1] < losses[0]
    random = small("random")
    random.start(batch)
    _, logs = random(batch, 0, generator(0))
    assert random.start_used == "random"
    assert random.start_note is None  # it is what was asked for
    assert logs["loss"] > 0.7 * logs["chance"]


@pytest.mark.proves("A5.2", "A6.2")
def test_against_a_frozen_table_the_image_head_is_refitted_into_the_same_space() -> None:
    batch = cohort(40)
    full = small()
    full.start(batch)
    inner = small(seed=1)
    inner.towers["clinical"].load_state_dict(full.towers["clinical"].state_dict())
    inner.freeze("clinical")
    inner.start(batch)  # on the same patients the ridge identity gives the full alignment's own head
    assert inner.start_used == "cca"
    torch.testing.assert_close(
        inner.towers["image"](batch["image"]).pooled,
        full.towers["image"](batch["image"]).pooled,
        rtol=1e-3,
        atol=1e-4,
    )
    part = {"image": bags(list(range(40))[:30], 0, None), "clinical": batch["clinical"]}
    before = {name: tensor.clone() for name, tensor in inner.towers["clinical"].state_dict().items()}
    inner.start(part)
    inner.train()
    loss, _ = inner(part, 0, generator(0))
    loss.backward()
    assert all(parameter.grad is None for parameter in inner.towers["clinical"].parameters())
    assert all(parameter.grad is not None for parameter in inner.towers["image"].parameters())
    assert all(torch.equal(t, before[name]) for name, t in inner.towers["clinical"].state_dict().items())


@pytest.mark.proves("A5.2")
def test_a_frozen_tower_stays_in_evaluation_mode_and_without_directions_the_head_starts_at_random() -> None:
    towers: dict[str, Tower] = {
        "image": BagConfig(pool=MeanPoolConfig(), head=LinearHeadConfig()).build(
            FEATURES, generator(0), shared_width=8
        ),
        "clinical": MlpConfig(hidden=[8], width=8).build(COLUMNS, generator(1)),
    }
    model = AlignConfig().build(towers)
    model.freeze("clinical")
    assert not model.train().towers["clinical"].training
    assert model.towers["image"].training
    bare = small()
    bare.freeze("clinical")
    bare.start(cohort())
    assert bare.start_used == "random"
    assert "no closed-form start" in str(bare.start_note)


@pytest.mark.proves("A5.2")
def test_a_table_without_spread_falls_back_and_says_so() -> None:
    batch = cohort()
    batch["clinical"].value["table"][:] = 1.0
    model = small()
    model.start(batch)
    assert model.start_used == "random"
    assert "all patients are equal" in str(model.start_note)
    again = small()
    again.load_state_dict(model.state_dict())
    assert again.start_note == model.start_note  # a resumed run says the same


@pytest.mark.proves("D25", "D26", "A5.1")
@pytest.mark.parametrize(
    ("pool", "head", "tabular", "similarity"),
    list(
        itertools.product(
            (
                {"kind": "mean"},
                {"kind": "abmil", "hidden": 3},
                {"kind": "abmil", "hidden": 3, "pre_attention": [9, 7]},
            ),
            (None, {"kind": "linear", "width": 4}, {"kind": "projection", "hidden": 6, "width": 4}),
            (LinearConfig, MlpConfig),
            ("cosine", "distance"),
        )
    ),
)
def test_every_combination_of_parts_builds_steps_and_trains_every_parameter(
    pool: dict[str, Any],
    head: dict[str, Any] | None,
    tabular: type[LinearConfig | MlpConfig],
    similarity: str,
) -> None:
    image = BagConfig.model_validate({"pool": pool, "head": head}).build(FEATURES, generator(0))
    clinical = tabular().build(COLUMNS, generator(1), shared_width=image.width)
    config = AlignConfig.model_validate(
        {"similarity": similarity, "temperature": 0.5 if similarity == "distance" else "learnt"}
    )
    model = config.build({"image": image, "clinical": clinical}).train()
    batch = cohort(6)
    model.start(batch)
    loss, _ = model(batch, 0, generator(0))
    loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    model.after_step()


@pytest.mark.proves("A5.3")
def test_three_modalities_are_averaged_over_their_pairs() -> None:
    towers = linear_towers(4)
    towers["genes"] = LinearConfig().build(COLUMNS, generator(9), shared_width=4)
    model = AlignConfig(temperature=0.1).build(towers)
    batch = cohort(6) | {"genes": table([5, 2, 0], seed=8)}
    loss, _ = model(batch, 0, generator(0))
    pairs = []
    for one, two in itertools.combinations(batch, 2):
        only = AlignConfig(temperature=0.1).build({one: model.towers[one], two: model.towers[two]})  # type: ignore[dict-item]
        pairs.append(only({one: batch[one], two: batch[two]}, 0, generator(0))[0])
    torch.testing.assert_close(loss, torch.stack(pairs).mean())


@pytest.mark.proves("A.input", "D26")
def test_what_cannot_be_aligned_is_refused_before_anything_is_read() -> None:
    towers = linear_towers(4)
    with pytest.raises(InputError, match="image 4, clinical 3"):
        AlignConfig().build({**towers, "clinical": LinearConfig().build(COLUMNS, generator(0), shared_width=3)})
    mlp = MlpConfig(hidden=[4], width=4).build(COLUMNS, generator(0))
    with pytest.raises(InputError, match="one linear tower"):
        AlignConfig().build({**towers, "clinical": mlp}, "cca")
    with pytest.raises(InputError, match="5 directions"):
        AlignConfig().build(linear_towers(6), "cca")
    for wrong in ({"similarity": "distance"}, {"temperature": {"relative": 0.1}}, {"temperature": 0}):
        with pytest.raises(ValidationError):
            AlignConfig.model_validate(wrong)
    assert AlignConfig().shared_width(128, 2) == 2
    assert AlignConfig().shared_width(128, 40) == 8


class Slices(Tower):
    """Vectors of slices, one linear map of their pixels."""

    width = 4

    def __init__(self, name: str = "image", columns: int = 9) -> None:
        super().__init__()
        self.name = name
        self.map = torch.nn.Linear(columns, self.width)

    def forward(self, block: Block) -> Encoded:
        return Encoded(self.map(block.value[self.name].flatten(1)))


def slices_and_genes(drop: dict[str, float] | None = None) -> tuple[Align, dict[str, Block]]:
    """Six slices of patients 5, 2 and 8 and the genes of 2, 7 and 5: 8 has no genes, 7 no slice here."""
    torch.manual_seed(0)
    model = AlignConfig(drop=drop or {}).build({"image": Slices(), "genes": Slices("expression", 6)})
    random = generator(1)
    owner, item = torch.tensor([5, 5, 2, 5, 8, 2]), torch.arange(6)
    genes = torch.tensor([2, 7, 5])
    image = Block({"image": torch.rand(6, 1, 3, 3, generator=random)}, owner, item)
    return model, {"image": image, "genes": Block({"expression": torch.randn(3, 6, generator=random)}, genes, genes)}


def multi_positive_by_loop(a: torch.Tensor, b: torch.Tensor, pa: list[int], pb: list[int], tau: float) -> float:
    """Mean over rows of ``a`` with a partner of the mean over partners of -log softmax (Khosla 2020), in float64."""
    terms = []
    for i, owner in enumerate(pa):
        partners = [j for j, other in enumerate(pb) if other == owner]
        if partners:
            score = [float(F.cosine_similarity(a[i], b[j], dim=0)) / tau for j in range(len(pb))]
            whole = math.log(sum(math.exp(s) for s in score))
            terms.append(-sum(score[j] - whole for j in partners) / len(partners))
    return sum(terms) / len(terms)


def loss_by_loop(model: Align, batch: dict[str, Block]) -> float:
    image, genes = batch["image"], batch["genes"]
    a = model.towers["image"](image).pooled.detach().double()
    b = model.towers["genes"](genes).pooled.detach().double()
    owners = image.patient.tolist(), genes.patient.tolist()
    tau = model.temperature.number()
    one = multi_positive_by_loop(a, b, *owners, tau)
    return (one + multi_positive_by_loop(b, a, *owners[::-1], tau)) / 2


@pytest.mark.proves("G3.1", "G.tests")
def test_slices_of_one_patient_are_all_positives_of_its_one_gene_row() -> None:
    model, batch = slices_and_genes()
    loss, logs = model(batch, 0, generator(0))
    assert float(loss.detach()) == pytest.approx(loss_by_loop(model, batch), rel=1e-5)
    assert logs["pairs"] == 5 and logs["temperature"] == pytest.approx(0.07)
    # by chance: 3 gene rows for a slice, 6 slices for a gene row
    assert logs["chance"] == pytest.approx((math.log(3) + math.log(6)) / 2)


@pytest.mark.proves("G3.1", "G.tests")
def test_a_patient_without_genes_is_no_target_and_a_gene_only_patient_no_slice() -> None:
    model, batch = slices_and_genes()
    image, genes = batch["image"], batch["genes"]
    # a row that stands for nobody changes nothing: absent is absent, not zero
    expression = genes.value["expression"]
    padded = Block(
        {"expression": torch.cat([expression, torch.zeros(1, 6)])}, torch.tensor([2, 7, 5, 8]), torch.arange(4)
    )
    loss, absent = float(model(batch, 0, generator(0))[0].detach()), model(batch, 0, generator(0))[1]["pairs"]
    assert model({**batch, "genes": padded}, 0, generator(0))[1]["pairs"] == absent + 1
    # whoever has neither partner nor slice in the batch has no term of the loss
    nobody = {**batch, "image": image.take(torch.tensor([0, 1, 2, 3, 5]))}
    assert loss_by_loop(model, nobody) == pytest.approx(float(model(nobody, 0, generator(0))[0].detach()), rel=1e-5)
    assert loss != pytest.approx(float(model(nobody, 0, generator(0))[0].detach()))  # 8 still was a negative
    lonely = {**batch, "genes": genes.take(torch.tensor([1]))}
    found, logs = model(lonely, 0, generator(0))
    found.backward()
    assert float(found.detach()) == 0 and logs["pairs"] == 0
    assert [name for name, p in model.towers.named_parameters() if p.grad is None or float(p.grad.abs().sum())] == []


@pytest.mark.proves("G3.1")
def test_withheld_genes_are_as_if_the_patient_had_none() -> None:
    model, batch = slices_and_genes({"genes": 0.5})
    genes = batch["genes"]
    losses = {}
    for kept in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
        part = {**batch, "genes": genes.take(torch.tensor(kept, dtype=torch.long))}
        losses[kept] = loss_by_loop(model, part) if {0, 2} & set(kept) else 0.0
    seen = set()
    for step in range(40):
        draw = torch.rand(3, generator=generator(step)) >= 0.5
        loss, _ = model(batch, step, generator(step))
        kept = tuple(draw.nonzero()[:, 0].tolist())
        seen.add(kept)
        assert float(loss.detach()) == pytest.approx(losses[kept], rel=1e-5, abs=1e-7)
    assert len(seen) >= 6
    model.eval()
    assert float(model(batch, 0, generator(0))[0].detach()) == pytest.approx(losses[0, 1, 2], rel=1e-5)


@pytest.mark.proves("G3.2")
def test_slices_table_and_genes_with_any_subset_a_patient_are_three_pairs() -> None:
    torch.manual_seed(1)
    towers: dict[str, Tower] = {"image": Slices(), "genes": Slices("expression", 6), "clinical": Slices("table", 5)}
    model = AlignConfig().build(towers)
    _, batch = slices_and_genes()
    ids = torch.tensor([8, 7, 5])
    batch["clinical"] = Block({"table": torch.randn(3, 5, generator=generator(2))}, ids, ids)
    loss, logs = model(batch, 0, generator(0))
    pairs = []
    for one, two in itertools.combinations(["image", "genes", "clinical"], 2):
        a, b = (model.towers[name](batch[name]).pooled.detach().double() for name in (one, two))
        pa, pb = (batch[name].patient.tolist() for name in (one, two))
        pairs += [multi_positive_by_loop(a, b, pa, pb, 0.07), multi_positive_by_loop(b, a, pb, pa, 0.07)]
    assert float(loss.detach()) == pytest.approx(sum(pairs) / 6, rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in model.parameters())
    assert logs["pairs"] == 5 + 4 + 2


def test_what_may_be_withheld_is_named_among_the_towers() -> None:
    with pytest.raises(ValidationError, match="modalities beside it"):
        AlignConfig(drop={"image": 0.1})
    with pytest.raises(InputError, match="`drop` names gene, of which there is no tower"):
        slices_and_genes({"gene": 0.1})
