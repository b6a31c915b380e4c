"""Gene expression as numbers, fitted on training patients: which genes, in which order, standardised, tails cut.

Genes are matched by id, never by place. A gene without a value is not filled in: it is 0 and marked as not known, and
the tower has a learnt value for it. The whole matrix is only read in pieces, so that it may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from pydantic import Field, model_validator

from medform.cohort.genes import Genes
from medform.cohort.genes_spec import MOST_UNREAD, ClippedTails, Tails
from medform.config import Config
from medform.errors import InputError
from medform.inputs.clinical import Degradation
from medform.inputs.gene_matrix import (
    differing,
    moments,
    normal_scores,
    pieces,
    raw_values,
    read_shares,
    refuse_repeated,
    some,
)
from medform.inputs.gene_order import cluster_order, position_order
from medform.interfaces import Block
from medform.metrics.linear_maps import pca

__all__ = ["EncodedGenes", "GeneEncoder", "GeneInputConfig", "GeneSource", "TopVariance"]

Arrays = dict[str, np.ndarray]
Codes = Int[np.ndarray, " n"]

DEFAULT_TAILS = ClippedTails(clip=4)
QUANTILES = 101  # of a gene's training values, for `tails: rank`
CONSTANT = 1e-12  # a standard deviation below this share of the mean (at least of 1) is rounding noise
_SHOWN = 3


class TopVariance(Config):
    """The genes that vary most among training patients (after the logarithm)."""

    top_variance: Annotated[int, Field(ge=1)]


class GeneInputConfig(Config):
    """Which genes, and how their values become numbers.

    ``select``: all genes that vary among training patients, or the most variable. ``tails``, after standardising: cut
    at so many standard deviations, ``rank`` (normal scores of the place among training patients) or ``none``; left
    out, the cohort file's rule where it has one, else a clip at 4. ``order``: as in the matrix, by correlation
    ``cluster``, or by ``position`` in the annotation ``gtf``. ``pca``: so many principal components instead of genes.
    """

    kind: Literal["genes"] = "genes"
    select: Literal["all"] | TopVariance = TopVariance(top_variance=2048)
    tails: Tails | None = None
    order: Literal["given", "cluster", "position"] = "given"
    gtf: Path | None = None
    pca: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _positions_have_a_source(self) -> Self:
        if (self.order == "position") != (self.gtf is not None):
            raise ValueError("order: position and gtf (the annotation that holds the positions) go together.")
        return self


@dataclass(frozen=True, eq=False)
class EncodedGenes:
    """Encoded rows: ``expression`` (n, G) in the fitted order, 0 where not ``known``.

    A patient without a value in any of the genes has no row. With principal components G is their number, and the
    ``gene_ids`` are their names.
    """

    patient_ids: tuple[str, ...]
    gene_ids: tuple[str, ...]
    expression: Float32[np.ndarray, "n g"]
    known: Bool[np.ndarray, "n g"]
    degradations: tuple[Degradation, ...] = ()


@dataclass(frozen=True, eq=False)
class GeneEncoder:
    """Expression to standardised numbers, as training patients showed it.

    ``gene_ids``: the genes taken, in their order; ``mean`` and ``spread`` (G,) of the training values. ``clip`` in
    standard deviations, or ``quantiles`` of the training values, or neither. ``centre`` and ``components``: of the
    standardised training values. ``constant``: genes that did not vary in training and were dropped; ``left_out``:
    those that varied too little to be selected; ``unplaced``: those taken without a position, which come last.
    ``reads``: share of each of all genes of training, sorted by id, in its reads; of counts only.
    """

    gene_ids: tuple[str, ...]
    scale: str
    mean: Float[np.ndarray, " g"]
    spread: Float[np.ndarray, " g"]
    clip: float | None = None
    quantiles: Float[np.ndarray, "q g"] | None = None
    centre: Float[np.ndarray, " g"] | None = None
    components: Float[np.ndarray, "g k"] | None = None
    constant: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    unplaced: tuple[str, ...] = ()
    reads: Float[np.ndarray, " all"] | None = None

    @classmethod
    def fit(cls, genes: Genes, train: Sequence[str], config: GeneInputConfig | None = None) -> Self:
        """Fit on the rows of ``train`` and look at no other. Training patients without expression do not count.

        Raises `InputError` where no training patient has expression, no gene varies among them, a gene stands twice,
        a count is negative, or the annotation does not fit.
        """
        config = config or GeneInputConfig()
        refuse_repeated(genes)
        wanted = set(train)
        having = {one: row for row, one in enumerate(genes.patient_ids) if one in wanted}
        if not having:
            raise InputError(
                "no training patient has gene expression.",
                consequence="There is nothing to fit on.",
                fix="check the join report of the expression matrix, or leave the genes out.",
            )
        rows = np.array([having[one] for one in sorted(having)], np.int64)  # in an order that no file changes
        mean, spread = moments(genes, rows)
        varies = spread > CONSTANT * np.maximum(1.0, np.abs(mean))
        if genes.scale == "counts":
            varies &= differing(genes, rows)  # one count in everybody would only tell how deeply each was sequenced
        if not varies.any():
            raise InputError(
                f"none of {len(genes.gene_ids)} genes varies among {len(rows)} training patients.",
                consequence="There is nothing to learn from.",
                fix="check the expression matrix and the split.",
            )
        places = _selected(genes.gene_ids, spread, varies, config.select)
        names = np.array(genes.gene_ids, object)
        tails = _tails(config, genes)
        encoder = cls(
            gene_ids=tuple(names[places]),
            scale=genes.scale,
            mean=mean[places],
            spread=spread[places],
            clip=tails.clip if isinstance(tails, ClippedTails) else None,
            constant=tuple(sorted(names[~varies])),
            left_out=tuple(sorted(set(names[varies]) - set(names[places]))),
            reads=read_shares(genes, rows)[np.argsort(names)] if genes.scale == "counts" else None,
        )
        if tails != "rank" and config.pca is None and config.order != "cluster":
            return encoder._along(config.gtf)
        raw = np.concatenate([raw_values(genes, piece, places) for piece in pieces(rows, len(genes.gene_ids))])
        return encoder._fit_rest(raw, by_rank=tails == "rank", config=config)

    def _fit_rest(self, raw: Float[np.ndarray, "n g"], *, by_rank: bool, config: GeneInputConfig) -> Self:
        """With what needs all training values at once: quantiles, the order by cluster, components."""
        encoder = self
        if by_rank:
            shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
            encoder = replace(encoder, quantiles=np.nanquantile(raw, shares, axis=0))
        standard = encoder._standard(raw)[0]
        if config.order == "cluster":
            order = cluster_order(standard, encoder.gene_ids)
            encoder, standard = encoder._reordered(order), standard[:, order]
        if config.pca is not None:
            found = pca(standard, config.pca)
            # all divided by one number, so that components keep their proportions and an entry is about 1
            size = np.sqrt(np.square(found.sd).mean())
            encoder = replace(encoder, centre=found.mean, components=found.components / size)
        return encoder._along(config.gtf)

    def _along(self, gtf: Path | None) -> Self:
        """Along the chromosomes, where there is an annotation."""
        if gtf is None:
            return self
        order, unplaced = position_order(self.gene_ids, gtf)
        return replace(self._reordered(order), unplaced=unplaced)

    def _reordered(self, order: Int[np.ndarray, " g"]) -> Self:
        """The same genes in another order."""
        return replace(
            self,
            gene_ids=tuple(self.gene_ids[place] for place in order),
            mean=self.mean[order],
            spread=self.spread[order],
            quantiles=None if self.quantiles is None else self.quantiles[:, order],
            centre=None if self.centre is None else self.centre[order],
            components=None if self.components is None else self.components[order],
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the encoded columns: genes, or components."""
        if self.components is None:
            return self.gene_ids
        return tuple(f"component {number}" for number in range(1, self.components.shape[1] + 1))

    def encode(self, genes: Genes) -> EncodedGenes:
        """Encode any patients; each row depends on itself alone. Genes are found by id, whatever their order.

        Genes that training did not have are ignored, genes that are missing are not known; both are counted in the
        degradations. Counts are taken a million reads of the genes of training, selected or not; a patient whose genes
        without a count, those that the matrix lacks among them, had more than 5 % of the reads in training counts as
        one without genes. Raises `InputError` for another scale than in training, where no gene is known, and where
        the matrix lacks genes that had more than 5 % of the reads in training.
        """
        self._refuse_other(genes)
        here = np.isin(self.gene_ids, genes.gene_ids)
        n = len(genes.patient_ids)
        expression = np.zeros((n, len(self.names)), np.float32)
        known = np.zeros(expression.shape, bool)
        count = np.zeros(n, np.int64)
        unread = self._unread_of_patients(genes)
        for piece in pieces(np.arange(n), len(genes.gene_ids)):
            standard, there = self._standard(self.unscaled(genes, piece))
            count[piece] = there.sum(axis=1)
            if self.components is None:
                expression[piece], known[piece] = standard, there
            else:
                expression[piece] = (standard - self.centre) @ self.components
                known[piece] = there.any(axis=1, keepdims=True)
        kept = (count > 0) & (unread <= MOST_UNREAD)
        if not kept.all():
            expression, known = expression[kept], known[kept]
        ids = tuple(one for one, there in zip(genes.patient_ids, kept, strict=True) if there)
        return EncodedGenes(ids, self.names, expression, known, self._degradations(genes, here, count, unread, kept))

    def unscaled(self, genes: Genes, rows: Codes) -> Float[np.ndarray, "n g"]:
        """Values (n, G) of patients ``rows`` as they are before they are standardised, NaN where missing."""
        place = {one: column for column, one in enumerate(genes.gene_ids)}
        columns = np.array([place.get(one, -1) for one in self.gene_ids], np.int64)
        summed = np.array([place[one] for one in self._trained if one in place], np.int64)
        raw = np.full((len(rows), len(self.gene_ids)), np.nan)
        raw[:, columns >= 0] = raw_values(genes, rows, columns[columns >= 0], summed)
        return raw

    def _standard(self, raw: Float[np.ndarray, "n g"]) -> tuple[Float[np.ndarray, "n g"], Bool[np.ndarray, "n g"]]:
        """Standardised values, 0 where missing, and where there was a value."""
        known = np.isfinite(raw)
        if self.quantiles is not None:
            standard = normal_scores(raw, self.quantiles)
        else:
            standard = (raw - self.mean) / self.spread
            if self.clip is not None:
                standard = standard.clip(-self.clip, self.clip)
        return np.where(known, standard, 0.0), known

    @property
    def _trained(self) -> list[str]:
        """Every gene of the training matrix, sorted."""
        return sorted({*self.gene_ids, *self.left_out, *self.constant})

    @property
    def _read_in_training(self) -> dict[str, float]:
        """Every gene of the training matrix that had reads there, and its share of them; of counts only.

        In an encoder that was saved without the shares every gene counts the same.
        """
        if self.scale != "counts":
            return {}
        trained = self._trained
        shares = np.full(len(trained), 1 / len(trained)) if self.reads is None else self.reads
        return {one: float(share) for one, share in zip(trained, shares, strict=True) if share > 0}

    def _unread(self, genes: Genes) -> tuple[list[str], float]:
        """Genes that the matrix lacks and that had reads in training, and their share of those reads."""
        there = set(genes.gene_ids)
        lacking = {one: share for one, share in self._read_in_training.items() if one not in there}
        return list(lacking), float(sum(lacking.values()))

    def _unread_of_patients(self, genes: Genes) -> Float[np.ndarray, " n"]:
        """Share of the reads in training of each patient's genes without a count, those that the matrix lacks too.

        Their sum, by which all counts are divided, is as much too small.
        """
        unread = np.full(len(genes.patient_ids), self._unread(genes)[1])
        place = {one: column for column, one in enumerate(genes.gene_ids)}
        there = [(place[one], share) for one, share in self._read_in_training.items() if one in place]
        if not there:
            return unread
        columns, weights = np.array([one for one, _ in there], np.int64), np.array([one for _, one in there])
        for piece in pieces(np.arange(len(unread)), len(genes.gene_ids)):
            unread[piece] += np.isnan(np.asarray(genes.values[piece])[:, columns]) @ weights
        return unread

    def matrix(self, patient_ids: Sequence[str], values: Float[np.ndarray, "n g"]) -> Genes:
        """Values (n, G) of the model's genes, not standardised, as a matrix that `encode` takes.

        Of counts all other genes of training are there too, with no reads.
        """
        others = sorted({*self.left_out, *self.constant}) if self.scale == "counts" else []
        filled = np.hstack([values, np.zeros((len(values), len(others)))]).astype(np.float32)
        return Genes(tuple(patient_ids), (*self.gene_ids, *others), filled, self.scale)

    def _refuse_other(self, genes: Genes) -> None:
        """Refuse another scale than in training, a gene that stands twice, and a matrix that lacks (too many) genes."""
        if genes.scale != self.scale:
            raise InputError(
                f"the expression is {genes.scale}, the model was trained on {self.scale}.",
                where="genes.scale",
                consequence="Nothing was encoded: the same number would mean something else.",
                fix=f"give the values as {self.scale}, or correct the declared scale.",
            )
        refuse_repeated(genes)
        if set(self.gene_ids).isdisjoint(genes.gene_ids):
            ours, theirs = (", ".join(ids[:_SHOWN]) for ids in (self.gene_ids, genes.gene_ids))
            raise InputError(
                f"no gene of the model is in the matrix: the model has {ours}, the matrix {theirs}.",
                consequence="Nothing was encoded.",
                fix="name genes as in training (symbols, Ensembl or Entrez ids).",
            )
        lacking, share = self._unread(genes)
        if share > MOST_UNREAD:
            raise InputError(
                f"{some(lacking)} of the {len(self._trained)} genes that the model was trained with are not in the "
                f"matrix; they had {share:.0%} of the reads.",
                where="genes",
                consequence="Nothing was encoded: a count a million would mean something else for every gene.",
                fix="give the counts of all genes as in training; a gene without reads is 0.",
            )

    def _degradations(
        self,
        genes: Genes,
        here: Bool[np.ndarray, " g"],
        count: Int[np.ndarray, " n"],
        unread: Float[np.ndarray, " n"],
        kept: Bool[np.ndarray, " n"],
    ) -> tuple[Degradation, ...]:
        """What of the matrix, then what of each patient is not as in training."""
        found: list[Degradation] = []
        absent = [one for one, there in zip(self.gene_ids, here, strict=True) if not there]
        if absent:
            text = f"genes: {some(absent)} of the model's {len(self.gene_ids)} are not in the matrix"
            found.append(Degradation(None, "genes", "missing_column", f"{text}; they count as not known"))
        lacking, share = self._unread(genes)
        if lacking:
            text = f"genes: {some(lacking)} of training's {len(self._trained)} are not in the matrix"
            text += f"; they had {share:.2%} of the reads there, so that all counts a million are a little too high"
            found.append(Degradation(None, "genes", "missing_column", text))
        strange = sorted(set(genes.gene_ids).difference(self.gene_ids, self.left_out, self.constant))
        if strange:
            text = f"genes: {some(strange)} were not in the training matrix and are ignored"
            found.append(Degradation(None, "genes", "unseen_category", text))
        whole, lost = int(here.sum()), "the patient counts as one without genes"
        for one, values, own, stays in zip(genes.patient_ids, count, unread, kept, strict=True):
            texts = []
            if values < whole and (stays or not values):
                text = f"genes: {whole - values} of {whole} have no value"
                texts.append(f"{text}; {'they count as not known' if stays else lost}")
            if own > share and values:
                text = f"genes: those without a count{' or not in the matrix' if lacking else ''} had {own:.2%} of the "
                does = "all counts a million are as much too high" if stays else lost
                texts.append(f"{text}reads in training; {does}")
            found += [Degradation(one, "genes", "missing_value", text) for text in texts]
        return tuple(found)

    def arrays(self) -> Arrays:
        """The fitted numbers, for `runs.arrays.write_arrays`; `to_json` holds the rest."""
        found = {name: getattr(self, name) for name in ("mean", "spread", "quantiles", "centre", "components", "reads")}
        return {name: array for name, array in found.items() if array is not None}

    def to_json(self) -> dict[str, Any]:
        """The genes in their order and what else is no array, as a JSON-able tree."""
        lists = {name: list(getattr(self, name)) for name in ("gene_ids", "constant", "left_out", "unplaced")}
        return {"scale": self.scale, "clip": self.clip, **lists}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """The encoder that `to_json` and `arrays` described."""
        lists = {name: tuple(tree[name]) for name in ("gene_ids", "constant", "left_out", "unplaced")}
        numbers: dict[str, Any] = {name: arrays.get(name) for name in ("quantiles", "centre", "components", "reads")}
        return cls(
            scale=tree["scale"], clip=tree["clip"], mean=arrays["mean"], spread=arrays["spread"], **lists, **numbers
        )


@dataclass(frozen=True, eq=False)
class GeneSource:
    """Encoded genes of patients ``codes`` (n,), for the loaders: `medform.inputs.loader.Source`."""

    expression: Float32[np.ndarray, "n g"]
    known: Bool[np.ndarray, "n g"]
    codes: Codes

    @classmethod
    def of(cls, encoded: EncodedGenes, code: Mapping[str, int]) -> Self:
        """The rows of those patients that have a ``code``."""
        rows = [row for row, one in enumerate(encoded.patient_ids) if one in code]
        codes = np.array([code[encoded.patient_ids[row]] for row in rows], np.int64)
        if len(rows) == len(encoded.patient_ids):
            return cls(encoded.expression, encoded.known, codes)
        return cls(encoded.expression[rows], encoded.known[rows], codes)

    def block(self, patients: Codes) -> Block:
        """Rows of those of ``patients`` that have genes, in the order given."""
        place = {int(code): row for row, code in enumerate(self.codes)}
        found = [int(code) for code in patients if int(code) in place]
        code = torch.tensor(found, dtype=torch.int64)
        rows = np.array([place[code] for code in found], np.int64)
        value = {"expression": torch.from_numpy(self.expression[rows]), "known": torch.from_numpy(self.known[rows])}
        return Block(value=value, patient=code, item=code, cohort=torch.zeros_like(code))

    def reassigned(self, owner: Mapping[int, int]) -> Self:
        """The same rows in other hands: patient p gets the row of ``owner[p]``, else keeps its own."""
        inverse = {old: new for new, old in owner.items()}
        codes = np.array([inverse.get(int(code), int(code)) for code in self.codes], np.int64)
        return replace(self, codes=codes)


def _tails(config: GeneInputConfig, genes: Genes) -> Tails:
    """The recipe's rule; without one the cohort file's; without that the default."""
    if config.tails is not None:
        return config.tails
    return DEFAULT_TAILS if genes.tails == "none" else genes.tails


def _selected(
    gene_ids: Sequence[str],
    spread: Float[np.ndarray, " g"],
    varies: Bool[np.ndarray, " g"],
    select: Literal["all"] | TopVariance,
) -> Int[np.ndarray, " k"]:
    """Places of the genes taken, in the order of the matrix; of genes that vary alike those first by id."""
    places = np.flatnonzero(varies)
    if select == "all" or len(places) <= select.top_variance:
        return places
    ranked = sorted(places, key=lambda place: (-spread[place], gene_ids[int(place)]))
    return np.array(sorted(ranked[: select.top_variance]), np.int64)
