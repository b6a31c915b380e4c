"""What is fitted, on training patients, between an encoder's slice vectors and the heads and probes.

Slice vector -> mean with its neighbours -> standardised, clipped -> principal components (alignment-pilot.md
2, 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from pydantic import Field

from medform.config import Config
from medform.metrics.linear_maps import pca

__all__ = ["FeatureInputConfig", "FeatureMap", "ImageOnly", "Joined", "mean_bags", "smooth_neighbours"]

CLIP = 6.0  # standard deviations at which a standardised slice feature is cut off
Arrays = dict[str, np.ndarray]


class FeatureInputConfig(Config):
    """Slice features of an earlier stage.

    ``size``: side of the slices the encoder reads; ``layers``: whose pooled maps; ``smooth``: mean with the
    neighbours in the series or not; ``pca``: components kept, null for all columns.
    """

    kind: Literal["features"] = "features"
    of: str
    size: Annotated[int, Field(ge=16, le=1024)] = 192
    layers: Annotated[list[int | Literal["head"]], Field(min_length=1)] = [2, 4, 6, "head"]
    smooth: Literal["neighbours", "none"] = "neighbours"
    pca: Annotated[int, Field(ge=1)] | None = 128


def smooth_neighbours(raw: Float32[np.ndarray, "t d"], series: Int[np.ndarray, " t"]) -> Float32[np.ndarray, "t d"]:
    """(previous + 2 own + next) / 4 along each series; (2 own + other) / 3 at an end.

    Rows of a series lie together, in the order of the slices.
    """
    beside = series[1:] == series[:-1]
    total, weight = 2 * raw, np.full(len(raw), 2, np.float32)
    total[1:][beside] += raw[:-1][beside]
    total[:-1][beside] += raw[1:][beside]
    weight[1:] += beside
    weight[:-1] += beside
    return total / weight[:, None]


def mean_bags(
    feature: Float[np.ndarray, "t d"], patient: Int[np.ndarray, " t"], wanted: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n d"]:
    """Mean of each wanted patient's rows in float64; raises ValueError for a patient without a row."""
    bags = np.empty((len(wanted), feature.shape[1]))
    for place, code in enumerate(wanted):
        rows = feature[patient == code]
        if not len(rows):
            raise ValueError(f"patient number {code} has no slice")
        bags[place] = rows.mean(axis=0, dtype=np.float64)
    return bags


def _principal(rows: Float[np.ndarray, "n d"], count: int) -> tuple[Float[np.ndarray, "d k"], Float[np.ndarray, " k"]]:
    """Components and their standard deviations; one null component where the rows do not differ at all."""
    fitted = pca(rows, count)
    if not fitted.sd.size:
        return np.zeros((rows.shape[1], 1)), np.ones(1)
    return fitted.components, fitted.sd


@dataclass(frozen=True)
class FeatureMap:
    """Raw slice vectors (T, D) to slice features (T, k), fitted on the slices of training patients."""

    smooth: bool
    mean: Float[np.ndarray, " d"]
    spread: Float[np.ndarray, " d"]
    components: Float[np.ndarray, "d k"] | None

    @classmethod
    def fit(
        cls,
        raw: Float32[np.ndarray, "t d"],
        series: Int[np.ndarray, " t"],
        training: Bool[np.ndarray, " t"],
        config: FeatureInputConfig,
    ) -> Self:
        """Fit on the rows that ``training`` marks and look at no other. Raises ValueError without any."""
        if not training.any():
            raise ValueError("there is no training slice to fit on")
        seen = raw[training]
        if config.smooth == "neighbours":
            seen = smooth_neighbours(seen, series[training])
        mean, spread = seen.mean(axis=0, dtype=np.float64), seen.std(axis=0, dtype=np.float64)
        spread = np.where(spread > 1e-12 * np.maximum(1, abs(mean)), spread, 1.0)
        unfinished = cls(config.smooth == "neighbours", mean, spread, None)
        if config.pca is None:
            return unfinished
        components, _ = _principal(unfinished._standard(seen), config.pca)
        return cls(unfinished.smooth, mean, spread, components)

    def _standard(self, rows: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "t d"]:
        return ((rows - self.mean) / self.spread).clip(-CLIP, CLIP)

    def apply(self, raw: Float32[np.ndarray, "t d"], series: Int[np.ndarray, " t"]) -> Float32[np.ndarray, "t k"]:
        """Features of any slices, not centred again after clipping: bags are centred where they are used."""
        rows = self._standard(smooth_neighbours(raw, series) if self.smooth else raw)
        return (rows if self.components is None else rows @ self.components).astype(np.float32)

    def arrays(self) -> Arrays:
        """What was fitted, for `runs.arrays.write_arrays`."""
        kept = {"smooth": np.array(self.smooth), "mean": self.mean, "spread": self.spread}
        return kept if self.components is None else {**kept, "components": self.components}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The map that `arrays` described."""
        return cls(bool(arrays["smooth"]), arrays["mean"], arrays["spread"], arrays.get("components"))


@dataclass(frozen=True)
class ImageOnly:
    """Mean bags (n, k) to image-only vectors: principal components of training patients, each / sd^power."""

    mean: Float[np.ndarray, " k"]
    maps: Float[np.ndarray, "k p"]

    @classmethod
    def fit(cls, bags: Float[np.ndarray, "n k"], count: int | None = 32, power: float = 0.5) -> Self:
        """Fit on the training patients' bags; ``count`` None keeps every component. Never more than n - 1."""
        components, sd = _principal(bags, count or bags.shape[1])
        return cls(bags.mean(axis=0), components / sd**power)

    def apply(self, bags: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n p"]:
        """Vectors of any patients' bags."""
        return (bags - self.mean) @ self.maps

    def arrays(self) -> Arrays:
        """What was fitted."""
        return {"mean": self.mean, "maps": self.maps}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The map that `arrays` described."""
        return cls(arrays["mean"], arrays["maps"])


@dataclass(frozen=True)
class Joined:
    """Parts of an embedding side by side, each centred, at mean squared norm 1 on the training patients."""

    mean: tuple[Float[np.ndarray, " d"], ...]
    scale: tuple[float, ...]

    @classmethod
    def fit(cls, parts: Sequence[Float[np.ndarray, "n d"]]) -> Self:
        """Fit on the training patients' parts. A part in which they do not differ stays 0."""
        means = tuple(np.asarray(part, np.float64).mean(axis=0) for part in parts)
        norms = [np.square(part - mean).sum(axis=1).mean() for part, mean in zip(parts, means, strict=True)]
        return cls(means, tuple(float(1 / np.sqrt(norm)) if norm > 1e-24 else 0.0 for norm in norms))

    def apply(self, parts: Sequence[Float[np.ndarray, "n d"]]) -> Float32[np.ndarray, "n e"]:
        """The embedding of any patients, (n, sum of widths)."""
        moved = zip(parts, self.mean, self.scale, strict=True)
        return np.concatenate([(part - mean) * scale for part, mean, scale in moved], axis=1).astype(np.float32)

    def arrays(self) -> Arrays:
        """What was fitted."""
        means = {f"mean.{place}": mean for place, mean in enumerate(self.mean)}
        return {**means, "scale": np.array(self.scale)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The join that `arrays` described."""
        scale = tuple(float(value) for value in arrays["scale"])
        return cls(tuple(arrays[f"mean.{place}"] for place in range(len(scale))), scale)
