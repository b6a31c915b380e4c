"""Which genes a number rests on: integrated gradients (Sundararajan 2017) along the way from the training mean.

Shapes: P patients, G genes, M slices, d channels of the shared space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

from medform.errors import ExtraMissing
from medform.interfaces import Block, Encoded, Tower
from medform.objectives.contrast import Similarity
from medform.objectives.segment import GENES, IMAGE, Segment
from medform.objectives.targets import partner_rows

__all__ = ["Score", "gene_attribution", "lesion_logit", "similarity_to"]

Score = Callable[[Encoded, Int[Tensor, " k"]], Float[Tensor, " k"]]
"""Encoded genes (k rows) and whose they are -> the number that is explained, a row each. A patient may come in many
rows, and no row may depend on another."""


def gene_attribution(
    tower: Tower, genes: Block, score: Score, *, steps: int = 64, batch: int = 512
) -> Float32[np.ndarray, "p g"]:
    """What each gene adds to the patient's score, in units of the score.

    The path runs from the training mean (0 in standardised values; genes that are not known stay unknown all along)
    to the patient's values, so that a row sums to score(patient) - score(patient at the training mean) up to the
    error of the quadrature of ``steps`` points (Gauss-Legendre). A gene that is not known gets 0.

    ``genes``: ``expression`` and ``known`` (P, G), as `medform.inputs.genes` encodes them. The tower is read in
    evaluation mode and left as it was; at most ``batch`` rows (a patient at a point of the way) are in memory at once.
    Raises `ExtraMissing` without captum.
    """
    captum = _captum()
    device = next((one.device for one in tower.parameters()), torch.device("cpu"))
    genes = genes.to(device)
    known, patient = genes.value["known"], genes.patient
    expression = genes.value["expression"].masked_fill(~known, 0.0)

    def forward(values: Tensor, there: Tensor, whose: Tensor) -> Tensor:
        return score(tower(Block({"expression": values, "known": there}, whose, whose)), whose)

    was_training = tower.training
    tower.eval()
    try:
        integrated, found = captum.IntegratedGradients(forward), []
        for first in range(0, len(genes), batch):  # captum takes all patients at once, however small its batch
            part = slice(first, first + batch)
            found.append(
                integrated.attribute(
                    expression[part],
                    baselines=torch.zeros_like(expression[part]),
                    additional_forward_args=(known[part], patient[part]),
                    n_steps=steps,
                    method="gausslegendre",
                    internal_batch_size=batch,
                ).detach()
            )
    finally:
        tower.train(was_training)
    return torch.cat(found).float().cpu().numpy()


def similarity_to(image: Float[Tensor, "p d"], patient: Int[Tensor, " p"], similarity: Similarity = "cosine") -> Score:
    """The similarity of a patient's gene vector to the same patient's image vector, as the alignment measures it.

    ``image``: rows of the shared space, ``patient``: whose they are. ``cosine``, or ``distance``: -|a - b|^2 / 2.
    The score raises ValueError for genes of a patient without an image vector.
    """

    def score(genes: Encoded, whose: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        rows = partner_rows(whose, patient.to(whose.device))
        if bool((rows < 0).any()):
            raise ValueError(f"patient {int(whose[rows < 0][0])} has genes and no image vector.")
        own = image.to(genes.pooled)[rows]
        if similarity == "cosine":
            return F.cosine_similarity(genes.pooled, own, dim=1)
        return -(genes.pooled - own).square().sum(1) / 2

    return score


def lesion_logit(objective: Segment, image: Block, lesion: Float[Tensor, "m 1 h w"]) -> tuple[Tower, Score]:
    """The gene tower of a segmentation, and the mean logit that it gives to the pixels of a patient's lesion.

    ``image``: slices as `Segment.predict` takes them, ``lesion`` >= 0: how much of each pixel is lesion. Of the weights
    that predict (the moving average where there is one), without the mirrored view. Raises ValueError for a
    segmentation that reads no genes; the score does for genes of a patient without a pixel of lesion.
    """
    if not objective.reads_genes:
        raise ValueError("this segmentation reads no genes: nothing of it can be laid on them.")
    network: Any = objective if objective.average is None else objective.average.module
    towers, decoder = network.get_submodule("towers"), network.get_submodule("decoder")
    device = next(decoder.parameters()).device
    image, lesion = image.to(device), lesion.to(device)
    training = objective.training
    objective.eval()
    try:
        with torch.no_grad():
            seen = towers[IMAGE](image)
    finally:
        objective.train(training)

    def score(genes: Encoded, whose: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        row, at = (whose[:, None] == image.patient).nonzero().unbind(1)  # every row of genes with its patient's slices
        shown = Encoded(
            seen.pooled[at],
            tokens=None if seen.tokens is None else seen.tokens[at],
            maps=None if seen.maps is None else [one[at] for one in seen.maps],
        )
        was = decoder.training
        decoder.eval()
        try:
            logit = decoder(shown, genes, row).float()
        finally:
            decoder.train(was)
        pixels = torch.zeros(len(whose), device=device).index_add(0, row, lesion[at].sum((1, 2, 3)))
        if bool((pixels == 0).any()):
            raise ValueError(f"patient {int(whose[pixels == 0][0])} has genes and no pixel of lesion.")
        return torch.zeros_like(pixels).index_add(0, row, (logit * lesion[at]).sum((1, 2, 3))) / pixels

    return towers[GENES], score


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise ExtraMissing(
            f"explanations need captum, which is not installed ({error}).",
            consequence="Nothing was explained.",
            fix='pip install "medform[explain]"',
        ) from None
    return captum.attr
