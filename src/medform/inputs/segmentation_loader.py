"""Batches for a segmentation: so many slices with a lesion, so many without, each a pure function of (seed, step).

Lesion slices are drawn patient by patient, so that a patient with three of them is seen as often as one with
fifteen: the mean Dice over patients is lost on small tumours.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int

from medform.compute.seed import derive, numpy_generator
from medform.errors import InputError
from medform.inputs.augment import still_table
from medform.inputs.loader import PairedSource, mismatched, slice_block
from medform.inputs.masks import MaskStore
from medform.inputs.slices import SliceStore
from medform.inputs.stacks import SegmentationInputConfig, mask_views, stack_table, stack_views
from medform.interfaces import Batch

__all__ = ["SegmentationLoader"]

Codes = Int[np.ndarray, " n"]


class SegmentationLoader:
    """Batches of slices with their lesion masks and their patients' gene expression.

    Blocks "image" (value "image" (M, C, S, S) in [0, 1]), "mask" (value "mask" (M, 1, S, S), soft) of the same slices
    in the same order, and "genes": one row for each patient of the batch who has one.

    Lesion slices come first: one random one a patient, patients in a new order each time all have come. The rest
    are slices known to show none, each as often as any other. Of ``rows``, those without a mask are left out.
    ``pairing="shuffled"`` gives the genes to other training patients, the control of the fusion.
    Raises `InputError` where no slice shows a lesion, ValueError where masks and slices are of different size.
    """

    def __init__(
        self,
        store: SliceStore,
        masks: MaskStore,
        rows: Int[np.ndarray, " n"],
        config: SegmentationInputConfig,
        batch: int,
        seed: int,
        *,
        threads: int = 1,
        genes: PairedSource | None = None,
        pairing: Literal["matched", "shuffled"] = "matched",
    ) -> None:
        if masks.share.shape != store.pixels.shape:
            raise ValueError(f"masks {masks.share.shape} are not those of slices {store.pixels.shape}.")
        self.store, self.masks, self.config, self.threads = store, masks, config, threads
        self.seed, self.views = seed, derive(seed, "views")
        self.rows = rows[masks.present[rows]]
        lesion = masks.lesion_pixels[self.rows] > 0
        owner = store.patient[self.rows]
        self.empty = self.rows[~lesion]
        self.lesions = [self.rows[lesion & (owner == one)] for one in np.unique(owner[lesion])]
        if not self.lesions:
            raise InputError(
                "no training slice shows a lesion.",
                where="inputs.mask",
                consequence="A segmentation cannot be learnt from these patients.",
                fix="check the masks of the fold's training patients and the mask input's `values`.",
            )
        if batch < 1:
            raise InputError(f"a batch of {batch} holds no slice.", where="batch", fix="use a batch of 1 or more.")
        self.drawn = max(1, round(batch * config.lesion_share)) if len(self.empty) else batch
        self.rest = batch - self.drawn
        self.genes = genes
        if pairing == "shuffled" and genes is not None:
            self.genes = mismatched(genes, np.unique(owner), seed)

    def _cycled(self, name: str, n: int, start: int, count: int) -> Codes:
        """Items ``start`` to ``start + count`` of an endless row of permutations of 0 to n - 1."""
        cycle, place = np.divmod(np.arange(start, start + count), n)
        orders = {one: numpy_generator(self.seed, name, one).permutation(n) for one in np.unique(cycle).tolist()}
        return np.array([orders[int(a)][b] for a, b in zip(cycle, place, strict=True)], np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that draw as many slices as there are; some come more often, some not at all."""
        return math.ceil(len(self.rows) / (self.drawn + self.rest))

    def slices(self, step: int) -> Codes:
        """Rows of the store that meet at ``step``, those with a lesion first."""
        random = numpy_generator(self.seed, "lesion", step)
        patients = self._cycled("patients", len(self.lesions), step * self.drawn, self.drawn)
        lesion = [random.choice(self.lesions[one]) for one in patients]
        if self.rest == 0:
            return np.array(lesion, np.int64)
        empty = self._cycled("empty", len(self.empty), step * self.rest, self.rest)
        return np.concatenate([np.array(lesion, np.int64), self.empty[empty]])

    def batch(self, step: int) -> Batch:
        """The slices of ``step``, augmented; a slice that comes twice has two views."""
        rows = self.slices(step)
        # how often the slice has come already in this batch numbers its view
        view = np.array([np.count_nonzero(rows[:place] == row) for place, row in enumerate(rows)], np.int64)
        return self._blocks(rows, stack_table(self.config.augment, self.store.key[rows], view, step, self.views))

    def whole(self) -> Batch:
        """Every training slice that has a mask once, as it is seen at inference."""
        return self._blocks(self.rows, still_table(len(self.rows)))

    def _blocks(self, rows: Codes, table: Float32[np.ndarray, "m p"]) -> Batch:
        image = stack_views(self.store, rows, table, self.config, self.threads)
        mask = mask_views(self.masks, rows, table, self.config.size, self.threads)
        found = {
            "image": slice_block(self.store, rows, {"image": image}),
            "mask": slice_block(self.store, rows, {"mask": mask}),
        }
        if self.genes is not None:
            genes = self.genes.block(np.unique(self.store.patient[rows]))
            found |= {"genes": genes} if len(genes) else {}
        return found
