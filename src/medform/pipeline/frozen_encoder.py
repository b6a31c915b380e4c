"""The image encoder of a model folder: rebuilt strictly, and run on new images as the run that trained it did."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from medform.errors import InputError

if TYPE_CHECKING:
    from medform.cohort.store import Cohort
    from medform.ingestion.workers import Progress
    from medform.runs.model_folder import ModelFiles

__all__ = ["FrozenEncoder", "selftest_values"]


class FrozenEncoder:
    """Networks and fitted inputs that make vectors (d,) of slices; ``pair`` is None where no second stage was trained.

    ``files`` is the content of the model folder, ``tower`` the slice encoder.
    """

    def __init__(self, files: ModelFiles, tower: Any, pair: Any) -> None:
        self.files, self.tower, self.pair = files, tower, pair

    @classmethod
    def rebuild(cls, files: ModelFiles) -> Self:
        """From a model folder, weights loaded strictly; raises `InputError` with the keys that do not fit."""
        return cls(files, *_networks(files))

    def embed_cohort(
        self, cohort: Cohort, progress: Progress | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Patient -> vector (d,), and slice features (T, k) in the order of ``cohort.slices``.

        The window is the model's, whatever the store's is. Raises `InputError` for a store in another unit, and, of a
        model that saw none, for CT among images without a unit.
        """
        from medform.inputs.slices import working_slices
        from medform.pipeline.scans import refuse_another_unit
        from medform.training.infer import slice_features

        preprocess = self.files.preprocess
        refuse_another_unit(cohort, preprocess)
        low, high = preprocess["window"]
        cohort = replace(cohort, window=(float(low), float(high)))
        config = self.files.config["features"]
        told = None if progress is None else lambda done, total: progress(done, total, "embedding slices")
        store = working_slices(cohort, int(config["size"]))
        raw = slice_features(self.tower, store, config["layers"], progress=told)
        feature = self._feature_map().apply(raw, store.series)
        imaged = [one for one in store.patient_ids if (store.patient == store.codes([one])[0]).any()]
        vectors = self._vectors(feature, store.patient, store.codes(imaged), store.index, store.z_mm)
        return dict(zip(imaged, vectors, strict=True)), feature

    def embed_values(self, values: np.ndarray) -> np.ndarray:
        """Vector (d,) of one bag of slices (N, H, W) in the model's unit, through its own size and window."""
        from medform.inputs.slices import Scale, shrink

        low, high = (float(bound) for bound in self.files.preprocess["window"])
        size = int(self.files.preprocess["size"])
        small = np.stack([shrink(np.asarray(image, np.float32), size, low) for image in values])
        return self.embed_images(Scale(1.0, 0.0, (low, high)).unit(small))

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Vector (d,) of one bag of slices (N, size, size) in [0, 1]."""
        import torch

        config = self.files.config["features"]
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(images[:, None], dtype=np.float32))
            weight = next(self.tower.parameters(), batch)
            raw = self.tower.eval().slice_vector(batch.to(weight.device), config["layers"]).cpu().numpy()
        one = np.zeros(len(images), np.int64)
        feature = self._feature_map().apply(raw, one)
        index = np.arange(len(images), dtype=np.int64)
        return self._vectors(feature, one, np.zeros(1, np.int64), index, np.full(len(images), np.nan, np.float32))[0]

    def _inputs(self, prefix: str) -> dict[str, np.ndarray]:
        start = f"inputs.{prefix}."
        return {key.removeprefix(start): value for key, value in self.files.weights.items() if key.startswith(start)}

    def _feature_map(self) -> Any:
        from medform.inputs.features import FeatureMap

        return FeatureMap.from_arrays(self._inputs("feature_map"))

    def _vectors(
        self,
        feature: np.ndarray,
        patient: np.ndarray,
        wanted: np.ndarray,
        index: np.ndarray,
        z_mm: np.ndarray,
    ) -> np.ndarray:
        """Embeddings (n, d) of packed slice features, as the run made them."""
        from medform.inputs.bags import BagSource
        from medform.inputs.features import ImageOnly, Joined, mean_bags
        from medform.training.infer import bag_embeddings

        image_only = ImageOnly.from_arrays(self._inputs("image_only")).apply(mean_bags(feature, patient, wanted))
        if self.pair is None:
            return image_only.astype(np.float32)
        parts = {"image_only": image_only}
        parts["aligned"] = bag_embeddings(self.pair, BagSource(feature, patient, index, z_mm).block(wanted))[0]
        joined = Joined.from_arrays(self._inputs("joined"))
        return joined.apply([parts[name] for name in self.files.config["embedding"]])


def _networks(files: ModelFiles) -> tuple[Any, Any]:
    """Slice encoder and second stage (or None) of a model folder, with its weights; `InputError` as `rebuild`."""
    import torch

    from medform.compute.seed import generator
    from medform.recipes.catalog import part

    config = files.config
    tower_config: Any = part("tower", config["tower"])
    tower = tower_config.build(generator(0, "rebuild"))
    pair = None
    parts: list[tuple[str, Any]] = [("tower.", tower)]
    if config["pair"] is not None:
        width = len(files.weights["inputs.feature_map.mean"])
        if "inputs.feature_map.components" in files.weights:
            width = files.weights["inputs.feature_map.components"].shape[1]
        head = files.weights.get("pair.head.weight")
        shared = None if head is None else head.shape[0]
        pair_config: Any = part("tower", config["pair"])
        pair = pair_config.build(width, generator(0, "rebuild"), shared_width=shared)
        parts.append(("pair.", pair))
    for prefix, module in parts:
        given = {
            k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in files.weights.items() if k.startswith(prefix)
        }
        own = module.state_dict()
        odd = sorted(own.keys() ^ given.keys()) + [
            k for k in own.keys() & given.keys() if own[k].shape != given[k].shape
        ]
        if odd:
            raise InputError(
                f"the weights are of another architecture: {len(odd)} tensors do not fit ({', '.join(odd[:6])}).",
                where=f"model.safetensors, {prefix[:-1]}",
                consequence="Nothing was loaded.",
                fix="use a model folder as `medform export` wrote it, and an own encoder's code as it was in training.",
            )
        module.load_state_dict(given, strict=True)
        module.eval()
    return tower, pair


def selftest_values(window: tuple[float, float]) -> np.ndarray:
    """Input of every self-test, of no patient: three slices (3, H, W) of the phantom, greys spread over ``window``."""
    from medform.synthetic.hospital import make_stacks

    stack = make_stacks(2, 0)[0].stack
    middle = len(stack) // 2
    grey = np.clip((stack[middle - 1 : middle + 2] + 200.0) / 500.0, 0.0, 1.0)
    return (window[0] + grey * (window[1] - window[0])).astype(np.float32)
