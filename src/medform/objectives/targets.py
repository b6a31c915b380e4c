"""Which pairs of a batch belong together, and which count as different: the target W and the candidates of `contrast`.

Shapes: m and n items of two modalities, or of one with itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from medform.compute.ranks import gather
from medform.config import Config
from medform.errors import InputError
from medform.interfaces import Block

__all__ = [
    "Ids",
    "Negatives",
    "Pairs",
    "Positives",
    "across",
    "between_views",
    "identical_rows",
    "kernel",
    "partner_rows",
]

IDENTICAL = 1e-6
"""Encoded table rows nearer than this are the same row: which of them is whose cannot be learnt."""
MATCHED_HEIGHT = 0.1
"""Slices whose relative heights in their stacks differ by at most this are at a like position."""

Reach = int | Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?mm$")]
"""A distance between slices of one patient: a number of slices, or ``"10 mm"``."""


class Positives(Config):
    """What is a positive beside the other view of the same slice.

    ``same_patient_within``: slices of one patient this near to each other too (0: none; 3: slices; ``10
    mm``).
    """

    same_patient_within: Reach = 0


class Negatives(Config):
    """What is no negative.

    ``same_patient``: ``keep`` all slices of one patient as negatives of each other, take out ``neighbours``
    (within the key of that name: slices, or ``10 mm``), or ``none`` of them is a negative. ``position:
    matched`` keeps only negatives at a like relative height in their stacks, so that height alone tells no
    pair apart.
    """

    same_patient: Literal["keep", "neighbours", "none"] = "keep"
    neighbours: Reach = 2
    position: Literal["any", "matched"] = "any"


@dataclass(frozen=True)
class Ids:
    """What `Block` says of its items, of all ranks. ``height``: relative, in the stack, 0 to 1.

    ``series``: the scan of an item; without it all items of a patient are taken to be of one.
    """

    patient: Int[Tensor, " m"]
    item: Int[Tensor, " m"]
    z: Int[Tensor, " m"] | None = None
    z_mm: Float[Tensor, " m"] | None = None
    height: Float[Tensor, " m"] | None = None
    series: Int[Tensor, " m"] | None = None

    @classmethod
    def of(cls, block: Block) -> Ids:
        """The ids of a block, gathered over ranks. Positions of single slices are taken, not those inside bags."""
        whole = block.offset is None
        z = block.z if whole else None
        z_mm = block.z_mm if whole else None
        height, series = block.value.get("height"), block.value.get("series")
        return cls(
            gather(block.patient),
            gather(block.item),
            None if z is None else gather(z),
            None if z_mm is None else gather(z_mm),
            None if height is None else gather(height),
            None if series is None else gather(series),
        )


@dataclass(frozen=True)
class Pairs:
    """``target`` and ``candidate`` for `contrast`.

    ``kept``: the rule would have left nothing to be different from (a batch of one patient, no slice at a like height),
    so all others were kept as negatives.
    """

    target: Bool[Tensor, "m n"] | Float[Tensor, "m n"]
    candidate: Bool[Tensor, "m n"]
    kept: bool = False


def between_views(ids: Ids, positives: Positives, negatives: Negatives) -> Pairs:
    """Pairs within one modality: views of one item are positives, an item is never its own candidate (NT-Xent)."""
    self_pair = torch.eye(len(ids.patient), dtype=torch.bool, device=ids.patient.device)
    same_patient = ids.patient[:, None] == ids.patient
    target = ids.item[:, None] == ids.item
    if positives.same_patient_within:
        target = target | _near(ids, positives.same_patient_within)
    target = target & ~self_pair
    negative = everything = ~target & ~self_pair
    if negatives.position == "matched":
        negative = negative & _like_height(ids)
    if negatives.same_patient == "none":
        negative = negative & ~same_patient
    elif negatives.same_patient == "neighbours":
        negative = negative & ~_near(ids, negatives.neighbours)
    kept = bool(everything.any()) and not bool(negative.any())
    return Pairs(target, target | (everything if kept else negative), kept)


def _near(ids: Ids, reach: Reach) -> Bool[Tensor, "m m"]:
    """Slices of one scan within ``reach``. A slice of unknown position is near to none but itself."""
    same_scan = ids.patient[:, None] == ids.patient
    if ids.series is not None:
        same_scan = same_scan & (ids.series[:, None] == ids.series)
    if isinstance(reach, str):
        if ids.z_mm is None or bool(ids.z_mm.isnan().all()):
            raise _unknown(f"a distance of {reach} between slices", "positions in mm", "count in slices instead")
        return same_scan & ((ids.z_mm[:, None] - ids.z_mm).abs() <= float(reach.removesuffix("mm")))
    if ids.z is None:
        raise _unknown("a distance in slices", "slice index", "leave the rule about near slices out")
    return same_scan & ((ids.z[:, None] - ids.z).abs() <= reach)


def _like_height(ids: Ids) -> Bool[Tensor, "m m"]:
    if ids.height is None:
        raise _unknown("negatives at a matched position", "relative height", "set negatives.position to any")
    return (ids.height[:, None] - ids.height).abs() <= MATCHED_HEIGHT


def _unknown(rule: str, what: str, fix: str) -> InputError:
    return InputError(
        f"{rule} cannot be had: the slices come without their {what}.",
        where="objective",
        consequence="The stage was not trained.",
        fix=f"{fix}.",
    )


def identical_rows(table: Float[Tensor, "n q"]) -> Bool[Tensor, "n n"]:
    """Pairs of rows that are equal up to 1e-6 (each with itself too)."""
    return _distance(table) < IDENTICAL


def kernel(table: Float[Tensor, "n q"], bandwidth: float) -> Float[Tensor, "n n"]:
    """exp(-|ti - tj|^2 / (2 bandwidth^2)) of encoded rows: how much another patient's row counts as one's own."""
    return (_distance(table).square() / (-2 * bandwidth**2)).exp().float()


def _distance(table: Float[Tensor, "n q"]) -> Float[Tensor, "n n"]:
    # by differences and in float64: the faster way by products is off by 1e-3 for equal rows
    table = table.double()
    return torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist")


def across(
    a: Ids,
    b: Ids,
    alike_a: Bool[Tensor, "m m"] | Float[Tensor, "m m"] | None = None,
    alike_b: Bool[Tensor, "n n"] | Float[Tensor, "n n"] | None = None,
) -> Pairs:
    """Pairs of two modalities by patient: everything of one patient is positive (InfoNCE, multi-positive).

    ``alike_a`` and ``alike_b`` say which rows of a modality count as each other's, by `identical_rows` or
    `kernel`: a patient's image then also belongs to the rows that are like the patient's own. Every pair is
    a candidate.
    """
    target: Tensor = (a.patient[:, None] == b.patient).float()
    if alike_a is not None:
        target = alike_a.float() @ target
    if alike_b is not None:
        target = target @ alike_b.float()
    return Pairs(target, torch.ones_like(target, dtype=torch.bool))


def partner_rows(patient: Int[Tensor, " m"], others: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
    """For each patient the first row of ``others`` that is the same patient, -1 where none is."""
    if not len(others):
        return torch.full_like(patient, -1)
    same = patient[:, None] == others
    return torch.where(same.any(1), same.int().argmax(1), -1)
