"""One rank of `test_ranks`: gradients of both contrastive objectives, averaged over ranks as DDP does.

Called as ``python rank_worker.py RANK WORLD FOLDER``; rank 0 writes the gradients into the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from medform.compute.ranks import close_process_group, gather
from medform.compute.seed import draws_from, generator
from medform.interfaces import Block, Encoded, Tower
from medform.models.bag import BagConfig
from medform.models.pooling import AbmilConfig
from medform.models.projection import LinearHeadConfig, ProjectionConfig
from medform.models.tabular import LinearConfig
from medform.objectives.align import AlignConfig
from medform.objectives.simclr import SimclrConfig

PATIENTS = 8
BEGIN = 3  # rank 0 holds 3 patients, rank 1 the other 5


class Flat(Tower):
    """The smallest image tower."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 6)

    def forward(self, block: Block) -> Encoded:
        return Encoded(self.layer(block.value["image"].flatten(1)))


def batch(rank: int, world: int) -> dict[str, Block]:
    """Bags of all patients, tables of all but two, two views of a slice each; the part of this rank."""
    random = generator(0)
    feature = torch.randn(2 * PATIENTS, 5, generator=random)
    rows = torch.randn(PATIENTS, 4, generator=random)
    image = torch.rand(2 * PATIENTS, 1, 4, 4, generator=random)
    mine = range(PATIENTS) if world == 1 else (range(BEGIN), range(BEGIN, PATIENTS))[rank]
    ids = torch.tensor(list(mine))
    slices = torch.cat([2 * ids, 2 * ids + 1]).sort().values
    with_table = ids[(ids != 1) & (ids != 6)]
    return {
        "image": Block({"feature": feature[slices]}, ids, ids, offset=2 * torch.arange(len(ids) + 1)),
        "clinical": Block({"table": rows[with_table]}, with_table, with_table),
        "views": Block({"image": image[slices]}, slices // 2, slices // 2),
    }


def gradients(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Gradients of the mean over ranks of both losses, and the losses."""
    head = BagConfig(pool=AbmilConfig(hidden=3, dropout=0.0), head=LinearHeadConfig())
    align = AlignConfig(similarity="distance", temperature=0.5).build(
        {
            "image": head.build(5, generator(1), shared_width=3, pool_start="random"),
            "clinical": LinearConfig().build(4, generator(2), shared_width=3),
        }
    )
    with draws_from(generator(3)):
        tower = Flat()
    simclr = SimclrConfig(projection=ProjectionConfig(hidden=5, width=4)).build({"image": tower}, generator(4))
    mine = batch(rank, world)
    found: dict[str, torch.Tensor] = {}
    for name, objective, given in (("align", align, mine), ("simclr", simclr, {"image": mine["views"]})):
        loss, _ = objective(given, 0, generator(5))
        loss.backward()
        found[f"{name}.loss"] = loss.detach()
        for key, parameter in objective.named_parameters():
            gradient = parameter.grad
            if gradient is None:
                raise AssertionError(f"{name}.{key} has no gradient")
            if world > 1:
                dist.all_reduce(gradient)
            found[f"{name}.{key}"] = gradient / world
    found["order"] = gather(mine["clinical"].patient)
    return found


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=world)
    result = gradients(rank, world)
    if rank == 0:
        torch.save(result, folder / "gradients.pt")
    close_process_group()
