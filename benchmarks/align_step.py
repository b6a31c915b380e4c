"""One alignment step at MEDFORM's published width, on one thread: packed bags beside resampled and padded ones.

The step: image side 2048 -> (Linear, LayerNorm, GELU) x 2 -> gated attention 768 -> bag, symmetric InfoNCE
with a clinical MLP, backward, AdamW. Peers get the same weights: ``resampled`` draws 2,048 slices a patient
with replacement (the published code's default), ``padded`` fills every bag to the longest and masks. CPU
time of the process, variants interleaved, ratio = median of the rounds' ratios, low and high their
extremes.

    python benchmarks/align_step.py [--json] [--rounds 5]

Exit code 1 where a ratio is below its bound.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rows import options, tell
from torch import Tensor

from medform.compute.seed import generator
from medform.interfaces import Block
from medform.models.bag import BagConfig
from medform.models.pooling import AbmilConfig, GatedAttentionPool
from medform.models.tabular import MlpConfig
from medform.objectives.align import Align, AlignConfig
from medform.objectives.contrast import contrast

SLICES = (80, 110, 137, 200)  # of four patients: 527, so resampling to 2,048 means 15.5 times as many
PATIENTS, COLUMNS, WIDTH = len(SLICES), 25, 2048
RESAMPLED = 2048
BOUNDS = {"resampled": 12.0, "padded": 1.3}


@dataclass(frozen=True)
class Cohort:
    """One batch: slice features of every patient, and table rows."""

    bags: list[Tensor]
    table: Tensor

    @classmethod
    def drawn(cls, seed: int) -> Cohort:
        """Random content."""
        random = generator(seed)
        bags = [torch.randn(size, WIDTH, generator=random) for size in SLICES]
        return cls(bags, torch.randn(PATIENTS, COLUMNS, generator=random))

    def batch(self) -> dict[str, Block]:
        """As medform's loader packs it."""
        ids = torch.arange(PATIENTS)
        offset = torch.tensor([0, *torch.tensor([len(bag) for bag in self.bags]).cumsum(0).tolist()])
        return {
            "image": Block({"feature": torch.cat(self.bags)}, ids, ids, offset=offset),
            "clinical": Block({"table": self.table}, ids, ids),
        }


def objective() -> Align:
    """Stage 2 of `recipes/medform-paper.yaml`."""
    pool = AbmilConfig(hidden=768, dropout=0.25, pre_attention=[2048, 2048], pre_dropout=0.1)
    towers = {
        "image": BagConfig(pool=pool).build(WIDTH, generator(0), pool_start="random"),
        "clinical": MlpConfig(hidden=["columns", "columns"], width=WIDTH).build(COLUMNS, generator(1)),
    }
    return AlignConfig(temperature=0.01).build(towers).train()


def dense_bags(pool: GatedAttentionPool, feature: Tensor, real: Tensor | None) -> Tensor:
    """The same pool over (M, N, d), where ``real`` (M, N) says which rows are slices and not filling."""
    hidden = pool.pre_attention(feature)
    tanh = pool.dropout(pool.tanh_gate(hidden).tanh())
    sigmoid = pool.dropout(pool.sigmoid_gate(hidden).sigmoid())
    score = pool.score(tanh * sigmoid).squeeze(2)
    if real is not None:
        score = score.masked_fill(~real, -torch.inf)
    return torch.einsum("mn,mnd->md", score.softmax(1), hidden)


def resampled(bags: list[Tensor], number: int) -> tuple[Tensor, None]:
    """2,048 slices of every patient, with replacement."""
    random = generator(number, "resample")
    drawn = [bag[torch.randint(len(bag), (RESAMPLED,), generator=random)] for bag in bags]
    return torch.stack(drawn), None


def padded(bags: list[Tensor], number: int) -> tuple[Tensor, Tensor]:
    """Every bag filled with zeros to the longest."""
    sizes = torch.tensor([len(bag) for bag in bags])
    return torch.nn.utils.rnn.pad_sequence(bags, batch_first=True), torch.arange(int(sizes.max())) < sizes[:, None]


def peer_loss(model: Align, cohort: Cohort, dense: tuple[Tensor, Tensor | None]) -> Tensor:
    """The loss of `model` with its pool run over dense bags."""
    pool: Any = model.towers["image"].pool
    image = dense_bags(pool, *dense)
    table = model.towers["clinical"](cohort.batch()["clinical"]).pooled
    target = torch.eye(PATIENTS, dtype=torch.bool)
    return (contrast(image, table, target, 0.01) + contrast(table, image, target, 0.01)) / 2


def seconds(model: Align, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> float:
    """CPU seconds of one whole step."""
    started = time.process_time()
    loss = loss_of()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.process_time() - started


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row a peer."""
    model = objective()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    times: list[dict[str, float]] = []
    for number in range(rounds + 1):
        cohort = Cohort.drawn(number)
        batch = cohort.batch()
        variants: dict[str, Callable[[], Tensor]] = {
            "medform": lambda batch=batch: model(batch, 0, generator(0))[0],
            "padded": lambda c=cohort, n=number: peer_loss(model, c, padded(c.bags, n)),
            "resampled": lambda c=cohort, n=number: peer_loss(model, c, resampled(c.bags, n)),
        }
        taken = {name: seconds(model, optimizer, loss_of) for name, loss_of in variants.items()}
        if number:  # the first round pays for loading kernels and memory
            times.append(taken)
    rows = []
    for peer, bound in BOUNDS.items():
        ratios = [taken[peer] / taken["medform"] for taken in times]
        rows.append(
            {
                "item": "align_step",
                "peer": peer,
                "ratio": round(statistics.median(ratios), 2),
                "low": round(min(ratios), 2),
                "high": round(max(ratios), 2),
                "bound": bound,
            }
        )
    return rows


def main() -> int:
    """Measure, print, and compare with the bounds."""
    asked = options(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = measure(asked.rounds)
    return tell(rows, asked)


if __name__ == "__main__":
    sys.exit(main())
