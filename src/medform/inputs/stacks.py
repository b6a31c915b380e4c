"""A slice with its neighbours as channels, and its view with its mask: one row of parameters moves them all.

Numbers of the augmentation are those of the segmentation pilot (`StackAugmentConfig`). What another scan of the
same patient could look like is allowed, as for `medform.inputs.augment`, and the same kernel runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from jaxtyping import Float32, Int
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from medform.config import Config
from medform.inputs.augment import COLUMNS, Bounds, Share, augment, geometry_only, still_table, uniforms
from medform.inputs.slices import Side, SliceStore

if TYPE_CHECKING:
    from medform.inputs.masks import MaskStore

__all__ = [
    "PatientSlicesConfig",
    "SegmentationInputConfig",
    "StackAugmentConfig",
    "StackInputConfig",
    "mask_views",
    "plain_stacks",
    "stack_table",
    "stack_views",
]

_NOISE_SEEDS = 2**24  # whole numbers below it are exact in float32
_NOISE, _GAIN = COLUMNS.index("noise_seed"), COLUMNS.index("gain")
_FOREGROUND = 0.35  # where `intensity: scan` puts it on the unit scale: room above for fat and lesions


class StackAugmentConfig(Config):
    """How far a view may differ from its slice. A mask follows flip, rotation, scale, aspect and shift only."""

    flip: Share = 0.5  # chance of a left-right flip; 0 where the side matters
    rotate_deg: Annotated[float, Field(ge=0, le=45)] = 15.0
    scale: Bounds = (0.85, 1.15)  # how many times larger things look
    aspect: Bounds = (0.93, 1.07)  # width / height of the part that is seen
    shift: Annotated[float, Field(ge=0, le=0.25)] = 0.04  # of the side, each way
    contrast: Bounds = (0.82, 1.22)  # about mid grey
    gamma: Bounds = (0.70, 1.42)
    noise_sd: Annotated[float, Field(ge=0, le=0.5)] = 0.04  # largest, on the unit scale

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in ("scale", "aspect", "contrast"):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} must be above 0.")
        if self.scale[0] < 0.5 or self.scale[1] > 2:
            raise ValueError("scale must lie in [0.5, 2]: views would alias or blur.")
        if self.gamma[0] < 0.42 or self.gamma[1] > 2:
            raise ValueError("gamma must lie in [0.42, 2]: beyond it dark and bright would swap.")
        return self


class StackInputConfig(Config):
    """Single slices of ``size``, cut from slices of ``source``, each with its neighbours as ``channels``.

    ``augment: null`` gives plain views in training too. ``intensity: scan`` makes every scan equally bright (the
    median of its foreground, `SliceStore.brightness`, lies at one grey value): for MRI, whose numbers have no unit and
    whose scanners scale as they please. ``cohort`` sees all scans through the cohort's one window.
    """

    size: Side = 128
    source: Side = 256
    channels: int = 1  # 1, 3, 5 or 7; the slice itself is the middle one
    intensity: Literal["cohort", "scan"] = "cohort"
    augment: StackAugmentConfig | None = StackAugmentConfig()

    @model_serializer(mode="wrap")
    def _cohort_is_not_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Stages of before there was a choice stay the same stages."""
        tree = write(self)
        if self.intensity == "cohort":
            tree.pop("intensity", None)
        return tree

    @field_validator("channels")
    @classmethod
    def _odd(cls, channels: int) -> int:
        if channels not in (1, 3, 5, 7):
            raise ValueError("channels must be 1, 3, 5 or 7.")
        return channels

    @model_validator(mode="after")
    def _no_aliasing(self) -> Self:
        if not self.size <= self.source <= 2 * self.size:
            raise ValueError(f"source {self.source} must lie between size {self.size} and twice of it.")
        return self


class SegmentationInputConfig(StackInputConfig):
    """Slices to be segmented: a ``lesion_share`` of each batch shows a lesion, the rest is known to show none."""

    kind: Literal["segmentation"] = "segmentation"
    lesion_share: Annotated[float, Field(gt=0, le=1)] = 11 / 16


class PatientSlicesConfig(StackInputConfig):
    """``slices`` single slices of each patient of a batch, to be set beside the patient's genes or table.

    ``slices: 1`` is the strict mode: no two slices of a patient meet. A slice with a lesion is drawn
    ``lesion_weight`` times as often as one without (needs masks where it is not 1).
    """

    kind: Literal["patient_slices"] = "patient_slices"
    slices: Annotated[int, Field(ge=1)] = 2
    lesion_weight: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _slices_stand_alone(self) -> Self:
        # vectors of single slices are read and monitored without their neighbours, through the cohort's window
        if self.channels != 1:
            raise ValueError("channels: only a segmentation takes neighbouring slices as channels.")
        if self.intensity != "cohort":
            raise ValueError("intensity: only a segmentation takes scans at a brightness of their own.")
        return self


def stack_table(
    config: StackAugmentConfig | None,
    samples: Int[np.ndarray, " m"],
    views: Int[np.ndarray, " m"],
    epoch: Int[np.ndarray, " m"] | int,
    seed: int,
) -> Float32[np.ndarray, "m p"]:
    """One row of parameters a slice, in the order of `augment.COLUMNS`; still rows where ``config`` is None.

    As with `augment.parameter_table` a row depends on its (seed, epoch, sample, view) and the configuration only.
    """
    if config is None:
        return still_table(len(samples))
    # every parameter has its own number of the stream, used or not: switching one off leaves the others
    u = iter(uniforms(seed, epoch, samples, views, 10).T)

    def between_ratios(bounds: tuple[float, float]) -> np.ndarray:
        return bounds[0] * (bounds[1] / bounds[0]) ** next(u)

    mirrored = np.where(next(u) < config.flip, -1.0, 1.0)
    angle = np.deg2rad(config.rotate_deg) * (2 * next(u) - 1)
    scale, aspect = between_ratios(config.scale), np.sqrt(between_ratios(config.aspect))
    centre_x, centre_y = (0.5 + config.shift * (2 * next(u) - 1) for _ in range(2))
    gain, gamma = between_ratios(config.contrast), between_ratios(config.gamma)
    noise, noise_seed = config.noise_sd * next(u), np.floor(next(u) * _NOISE_SEEDS)
    table = still_table(len(samples)).astype(np.float64)
    given = {
        "centre_x": centre_x,
        "centre_y": centre_y,
        "extent_x": mirrored * aspect / scale,
        "extent_y": 1 / (aspect * scale),
        "cosine": np.cos(angle),
        "sine": np.sin(angle),
        "gain": gain,
        "bias": 0.5 - 0.5 * gain,
        "bend": 4 * (0.5**gamma - 0.5),
        "noise": noise,
        "noise_seed": noise_seed,
    }
    for name, values in given.items():
        table[:, COLUMNS.index(name)] = values
    return table.astype(np.float32)


def stack_views(
    store: SliceStore,
    rows: Int[np.ndarray, " m"],
    table: Float32[np.ndarray, "m p"],
    config: StackInputConfig,
    threads: int = 1,
) -> Float32[np.ndarray, "m channels size size"]:
    """Views in [0, 1] of ``rows`` with their neighbours, all channels moved by the slice's row of ``table``.

    Noise is independent between channels, as it is between slices of a scan.
    """
    channels, size = config.channels, config.size
    around = store.neighbours(rows, channels)
    tables = np.repeat(table, channels, axis=0)
    tables[:, _NOISE] = (tables[:, _NOISE] + np.tile(np.arange(channels), len(rows))) % _NOISE_SEEDS
    if config.intensity == "scan":
        tables[:, _GAIN] *= _FOREGROUND / store.brightness[around.ravel()]
    views = augment(store.pixels, around.ravel(), tables, store.scale.to_unit, size, threads)
    return views.reshape(len(rows), channels, size, size)


def mask_views(
    masks: MaskStore,
    rows: Int[np.ndarray, " m"],
    table: Float32[np.ndarray, "m p"],
    size: int,
    threads: int = 1,
) -> Float32[np.ndarray, "m 1 size size"]:
    """Soft masks in [0, 1] of ``rows``, moved by the very rows of ``table`` that moved their images."""
    return augment(masks.share, rows, geometry_only(table), (1 / 255, 0.0), size, threads)


def plain_stacks(
    store: SliceStore, rows: Int[np.ndarray, " m"], config: StackInputConfig, threads: int = 1
) -> Float32[np.ndarray, "m channels size size"]:
    """Slices as the network is to see them at inference, nothing random."""
    return stack_views(store, rows, still_table(len(rows)), config, threads)
