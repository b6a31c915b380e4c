"""The frozen pass: slice vectors, bag embeddings, attention, masks. Nothing here changes a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int
from torch import Tensor, nn

from medform.config import digest
from medform.inputs.loader import Source
from medform.inputs.slices import SliceStore, placement
from medform.interfaces import Block, Objective, Tower
from medform.metrics.representation import effective_rank
from medform.models.monai_parts import sliding_window
from medform.runs.arrays import read_arrays, write_arrays

__all__ = [
    "RankMonitor",
    "Segmenter",
    "SliceEncoder",
    "bag_embeddings",
    "embeddings",
    "segment_slices",
    "shrunk",
    "slice_features",
    "weights_digest",
]

Layers = Sequence[int | Literal["head"]]


class SliceEncoder(Protocol):
    """An image tower that can show its inner layers."""

    def slice_vector(self, image: Tensor, layers: Layers) -> Tensor:
        """Pooled maps of ``layers``, concatenated: (M, C, H, W) in [0, 1] to (M, d)."""
        ...


class Segmenter(Protocol):
    """An objective that draws masks (`medform.objectives.segment.Segment`)."""

    def logits(self, image: Block, genes: Block | None = None, *, use_ema: bool = True, flip: bool = True) -> Tensor:
        """Logits (M, 1, H, W) of slices, with their patients' genes where ``genes`` has them."""
        ...


Pictures = Callable[[Int[np.ndarray, " n"]], Float32[np.ndarray, "n c h w"]]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients; the mode the module was in comes back afterwards."""
    was_training = module.training
    module.eval()
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode():
            yield device
    finally:
        module.train(was_training)


def weights_digest(module: nn.Module) -> str:
    """16 hex digits that change with any weight or buffer of ``module``."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        hashed.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]


def slice_features(
    tower: nn.Module,
    store: SliceStore,
    layers: Layers,
    *,
    batch: int = 32,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float32[np.ndarray, "t d"]:
    """Raw vectors (T, d) of every slice of ``store`` from a frozen tower, in the store's order.

    With ``cache`` (a folder) they are read from there if they were made by the same network (its settings and
    weights: how it pools is no weight), layers and pixels. A network that is normalised by batch statistics in
    training is not here, so a slice's vector is its own alone.
    """
    path = None
    if cache is not None:
        config = getattr(tower, "config", None)
        settings = None if config is None else config.model_dump(mode="json")
        name = digest([weights_digest(tower), settings, [str(layer) for layer in layers], store.digest])
        path = cache / f"features-{name}.safetensors"
        if path.is_file():
            return read_arrays(path)[0]["features"]
    parts = []
    with _frozen(tower) as device:
        encoder: Any = tower
        for first in range(0, len(store), batch):
            rows = np.arange(first, min(first + batch, len(store)))
            image = torch.from_numpy(store.images(rows)).to(device, memory_format=torch.channels_last)
            parts.append(encoder.slice_vector(image, layers).float().cpu().numpy())
            if progress is not None:
                progress(int(rows[-1]) + 1, len(store))
    features = np.concatenate(parts)
    if path is not None:
        write_arrays(path, {"features": features})
    return features


def embeddings(tower: Tower, block: Block) -> Float32[np.ndarray, "m d"]:
    """Pooled vectors of a block's items (encoded table rows, slices, bags)."""
    with _frozen(tower) as device:
        return tower(block.to(device)).pooled.float().cpu().numpy()


def bag_embeddings(tower: Tower, block: Block) -> tuple[Float32[np.ndarray, "m d"], Float32[np.ndarray, " t"] | None]:
    """Vectors of the bags, and every slice's attention, which sums to 1 over a bag (mean of the heads)."""
    with _frozen(tower) as device:
        encoded = tower(block.to(device))
    weight = encoded.weight
    if weight is not None:
        weight = weight.float().cpu().numpy()
        weight = weight.mean(axis=1) if weight.ndim == 2 else weight
    return encoded.pooled.float().cpu().numpy(), weight


def segment_slices(
    objective: Segmenter,
    store: SliceStore,
    rows: Int[np.ndarray, " n"],
    genes: Source | None = None,
    *,
    images: Pictures | None = None,
    side: int | None = None,
    scan: tuple[int, int] | None = None,
    window: int | None = None,
    batch: int = 32,
    use_ema: bool = True,
    flip: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Float16[np.ndarray, "n height width"]:
    """Probability of lesion at every pixel of some slices of ``store``, in the order of ``rows``.

    ``images`` makes the network's input of rows where that is not the slice alone (neighbours as channels).
    ``side``: enlarge or shrink the masks to this many pixels, logits first; or ``scan``, height and width of the
    scan: they come on its pixels, without what was added to make it square. ``window``: the size that was
    trained on; slices larger than it are gone over by windows of that size that overlap by half (needs the
    extra ``seg``), smaller ones are taken whole. Patients are taken one after another, since all slices of
    one share its genes.
    """
    images = images or store.images
    height, width = scan or (side or store.size,) * 2
    lies = placement(height, width, store.size)
    found = np.empty((len(rows), height, width), np.float16)
    network: Any = objective
    done = 0
    with _frozen(network) as device:
        for patient in dict.fromkeys(store.patient[rows].tolist()):
            places = np.flatnonzero(store.patient[rows] == patient)
            own = None if genes is None else genes.block(np.array([patient])).to(device)
            for first in range(0, len(places), batch):
                part = places[first : first + batch]
                image = torch.from_numpy(images(rows[part])).to(device, memory_format=torch.channels_last)
                logit = _mask_logits(objective, image, patient, own, window, batch, use_ema=use_ema, flip=flip)
                # the margins go first, so that the way back is that of `shrink`, rounded once
                logit = logit[..., lies.top : lies.top + lies.rows, lies.left : lies.left + lies.columns]
                if logit.shape[-2:] != (height, width):
                    logit = torch.nn.functional.interpolate(logit, (height, width), mode="bilinear", antialias=True)
                found[part] = logit.sigmoid()[:, 0].half().cpu().numpy()
                done += len(part)
                if progress is not None:
                    progress(done, len(rows))
    return found


def _mask_logits(
    objective: Segmenter,
    image: Tensor,
    patient: int,
    genes: Block | None,
    window: int | None,
    batch: int,
    *,
    use_ema: bool,
    flip: bool,
) -> Tensor:
    """Logits (M, 1, H, W) of slices (M, C, H, W) of one patient, by windows where they are larger than one."""

    def whole(part: Tensor) -> Tensor:
        ids = torch.full((len(part),), patient, device=part.device)
        block = Block({"image": part}, ids, torch.arange(len(part), device=part.device))
        return objective.logits(block, genes, use_ema=use_ema, flip=flip)

    if window is None or max(image.shape[-2:]) <= window:
        return whole(image)
    return sliding_window(window, batch)(image, whole)


def shrunk(image: Tensor, tower: nn.Module, side: int) -> Tensor:
    """Slices (M, C, H, W) averaged down to about ``side`` pixels, for a look at them during training.

    A network that cuts them into patches gets whole ones; one that may take a single size gets them as they are.
    """
    config = getattr(tower, "config", None)
    patch = getattr(getattr(getattr(tower, "encoder", None), "patch_embed", None), "patch_size", None)
    if patch is not None:
        side = max(side // patch[0], 1) * patch[0]
    if image.shape[-1] <= side or getattr(config, "kind", None) == "module":
        return image
    return torch.nn.functional.adaptive_avg_pool2d(image, side)


@dataclass(frozen=True)
class RankMonitor:
    """Centred effective rank of the image tower's vectors of a few fixed slices: a tower that collapses shows here.

    Slices larger than ``side`` are averaged down to it: a collapse shows there as well, in a fraction of the
    time. Fewer than ``least`` slices cannot tell one and give no figure.
    """

    store: SliceStore
    rows: Int[np.ndarray, " n"]
    modality: str = "image"
    side = 96
    least = 8

    @classmethod
    def over(
        cls, store: SliceStore, rows: Int[np.ndarray, " n"], count: int = 64, modality: str = "image"
    ) -> RankMonitor:
        """``count`` of ``rows``, evenly spread."""
        places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        return cls(store, rows[places], modality)

    def __call__(self, objective: Objective) -> Mapping[str, float]:
        """``effective_rank`` for `fit`'s log."""
        if len(self.rows) < self.least:
            return {}
        patient = torch.from_numpy(self.store.patient[self.rows])
        tower: Any = objective.towers[self.modality]
        image = shrunk(torch.from_numpy(self.store.images(self.rows)), tower, self.side)
        block = Block({"image": image}, patient, torch.from_numpy(self.rows))
        return {"effective_rank": effective_rank(embeddings(tower, block))}
