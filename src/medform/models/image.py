"""The image tower: any timm backbone on slices in [0, 1], with its normalisation inside.

Starting weights (ImageNet, a user's file) are in `medform.models.weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import timm
import torch
import yaml
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from medform.compute.seed import draws_from
from medform.config import Config, own_class
from medform.errors import InputError, nearest
from medform.interfaces import Block, Encoded, Tower

__all__ = ["ImageConfig", "ImageTower", "Layer", "MapTower", "ModuleConfig", "TimmConfig", "check_model_name"]

Layer = int | Literal["head"]
"""A stage of a backbone by its number, or ``head``: the pooled output of the whole backbone."""

STAGE_NAMES = ("blocks.{}", "layer{}", "stages.{}")
"""Where timm keeps numbered stages: EfficientNets and ViTs, ResNets, ConvNeXts. Only families whose maps are
(M, c, h, w) or tokens (M, L, c) are listed, so that the pooled axes are right."""


def check_model_name(model: str) -> None:
    """Raise `InputError` with the nearest names where timm has no model of this name. Touches no network."""
    if timm.is_model(model):
        return
    close = nearest(model, timm.list_models(), count=5)
    raise InputError(
        f"timm {timm.__version__} has no model '{model}'.",
        where="towers.image.model",
        consequence="Nothing was started.",
        fix=f"use one of {', '.join(close)}." if close else "choose a name from timm.list_models().",
    )


class ImageConfig(Config):
    """What all image towers share.

    ``trainable``: names of backbone modules (``blocks.5``, ``layer4``) that learn, each with all that is
    below it; None: all. ``batch_norm: frozen`` keeps the running statistics of every batch norm, also in
    training (small batches). ``mean`` and ``std``: the normalisation that the weights expect; 0.5 and 0.5
    are those of the ImageNet start.
    """

    trainable: list[str] | None = None
    batch_norm: Literal["train", "frozen"] = "train"
    mean: float = 0.5
    std: float = Field(default=0.5, gt=0)


class TimmConfig(ImageConfig):
    """A timm backbone.

    ``model``: a timm name; ``in_channels``: 1 for CT, more for registered series. ``pool`` makes the pooled
    vector of the last map: mean, maximum, or a ViT's class token.
    """

    kind: Literal["timm"] = "timm"
    model: str
    in_channels: int = Field(default=1, ge=1)
    pool: Literal["avg", "max", "token"] = "avg"

    def build(self, random: torch.Generator) -> ImageTower:
        """The tower with initial weights drawn from ``random``; raises `InputError` for names timm does not know."""
        check_model_name(self.model)
        with draws_from(random):
            encoder = _create(self.model, self.in_channels, self.pool)
        return ImageTower(encoder, self, self.model)


class ModuleConfig(ImageConfig):
    """A user's own encoder: ``module`` is ``package.module:Name``, other keys are arguments of its constructor.

    Any ``torch.nn.Module`` that maps (M, C, H, W) to (M, d) will do; d is its attribute ``width`` or
    ``num_features``, else it is found by encoding one empty slice of 64 x 64 pixels. Its code goes into no
    model folder: whoever uses one needs the module as well.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: Literal["module"] = "module"
    module: str

    def build(self, random: torch.Generator) -> ImageTower:
        """The tower with initial weights drawn from ``random``. Arguments are converted as YAML: ``3`` is a number.

        Raises `InputError` for a class that cannot be found, that cannot be made with the arguments, that is no module,
        or that does not give vectors (M, d).
        """
        own = own_class(self.module)
        arguments = {
            key: yaml.safe_load(value) if isinstance(value, str) else value
            for key, value in (self.model_extra or {}).items()
        }
        try:
            with draws_from(random):
                encoder = own(**arguments)
        except TypeError as error:
            raise _unusable(self.module, f"cannot be made with these arguments ({error})") from error
        if not isinstance(encoder, nn.Module):
            raise _unusable(self.module, "is no torch.nn.Module")
        return ImageTower(encoder, self, self.module)


def _create(model: str, in_channels: int, pool: str) -> nn.Module:
    """The backbone without a classifier; a ViT takes any image size that its patches divide."""
    options: dict[str, Any] = {"in_chans": in_channels, "num_classes": 0, "global_pool": pool}
    pretrained = timm.get_pretrained_cfg(model)
    if pretrained is not None and pretrained.fixed_input_size:
        try:
            return timm.create_model(model, **options, dynamic_img_size=True)
        except TypeError:  # a fixed-size family without that option: its own image size is the only one
            pass
    return timm.create_model(model, **options)


def _unusable(model: str, why: str) -> InputError:
    return InputError(
        f"the encoder {why}.",
        where=f"towers.image, {model}",
        consequence="No slice can be encoded.",
        fix="an own encoder is a torch.nn.Module that maps slices (M, C, H, W) to vectors (M, d).",
    )


def _width(encoder: nn.Module, model: str) -> int:
    for name in ("width", "head_hidden_size", "num_features"):
        if isinstance(found := getattr(encoder, name, None), int):
            return found
    channels = next((p.shape[1] for p in encoder.parameters() if p.ndim == 4), 1)
    training = encoder.training
    try:
        with torch.no_grad():
            made = encoder.eval()(torch.zeros(1, channels, 64, 64))
    except Exception as error:  # it is not our code, and may raise anything
        why = f"has no attribute `width` and cannot encode an empty slice of 64 x 64 pixels ({error})"
        raise _unusable(model, why) from error
    finally:
        encoder.train(training)
    if _shape(made) is None or made.ndim != 2 or len(made) != 1:
        raise _unusable(model, f"makes {_shape(made) or type(made).__name__} of 1 slice, not (1, d)")
    return made.shape[1]


def _shape(made: Any) -> tuple[int, ...] | None:
    return tuple(made.shape) if isinstance(made, Tensor) else None


class ImageTower(Tower):
    """Slices (M, C, H, W) in [0, 1] -> pooled vectors (M, ``width``).

    ``encoder`` is the plain module of the name ``model``, usable without medform.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, config: ImageConfig, model: str, width: int | None = None) -> None:
        super().__init__()
        self.model, self.config = model, config
        # channels last is 1.2 to 1.7 times faster on the CPU for convolutions, with the same results
        self.encoder: Any = encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.width = _width(encoder, model) if width is None else width
        self.register_buffer("mean", torch.tensor(config.mean))
        self.register_buffer("std", torch.tensor(config.std))
        if config.trainable is not None:
            self._freeze_all_but(config.trainable)
        self._still = self._kept_in_eval_mode(all_batch_norm=config.batch_norm == "frozen")
        self.train(self.training)

    def _freeze_all_but(self, names: Sequence[str]) -> None:
        modules = [name for name, module in self.encoder.named_modules() if name and [*module.parameters()]]
        unknown = [name for name in names if name not in modules]
        if unknown:
            close = {name: nearest(name, modules) for name in unknown}
            raise InputError(
                "; ".join(f"the backbone has no module '{name}'" for name in unknown) + ".",
                where="towers.image.trainable",
                consequence="Nothing was started.",
                fix="; ".join(f"for '{name}' use {', '.join(found or modules[:8])}" for name, found in close.items()),
            )
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(any(name.startswith(f"{kept}.") for kept in names))

    def _kept_in_eval_mode(self, *, all_batch_norm: bool) -> tuple[nn.Module, ...]:
        """Modules whose statistics and dropout never move: the frozen ones, and every batch norm if asked."""

        def still(module: nn.Module) -> bool:
            parameters = list(module.parameters())
            frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
            norm = isinstance(module, nn.modules.batchnorm._BatchNorm)  # timm's subclasses have no other base
            return frozen or (all_batch_norm and norm)

        return tuple(module for module in self.encoder.modules() if still(module))

    def train(self, mode: bool = True) -> ImageTower:  # noqa: FBT001, FBT002 - as nn.Module
        """As `nn.Module.train`, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in getattr(self, "_still", ()):
            module.eval()
        return self

    def normalise(self, image: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
        """What the backbone sees. Before its first padding, so borders are as in the original network."""
        return (image - self.mean) / self.std

    def forward(self, block: Block) -> Encoded:
        """Pooled vectors of ``block.value["image"]``."""
        return Encoded(self.pooled(block.value["image"]))

    def pooled(self, image: Float[Tensor, "m c h w"]) -> Float[Tensor, "m d"]:
        """The vectors that `forward` gives, of slices in [0, 1]; `InputError` where the encoder gives others."""
        made = self.encoder(self.normalise(image))
        if (shape := _shape(made)) != (len(image), self.width):
            what = f"makes {shape or type(made).__name__} of {len(image)} slices, not ({len(image)}, {self.width})"
            raise _unusable(self.model, what)
        return made

    def slice_vector(
        self, image: Float[Tensor, "m c h w"], layers: Sequence[Layer] = (2, 4, 6, "head")
    ) -> Float[Tensor, "m d"]:
        """Feature maps of several depths, each averaged over the slice, side by side: (M, sum of channels).

        A number is the timm stage of that number: ``blocks.<i>`` in an EfficientNet (from 0) or a ViT,
        ``layer<i>`` in a ResNet (from 1), ``stages.<i>`` in a ConvNeXt. ``head`` is the pooled vector that
        `forward` gives. The default is EfficientNet-Lite0's 40 + 112 + 320 + 1280 = 1,752 numbers. Raises
        `InputError` for a stage that is not there.
        """
        names = {layer: self._stage(layer) for layer in layers if layer != "head"}
        found: dict[Layer, Tensor] = {}
        hooks = [
            self.encoder.get_submodule(name).register_forward_hook(self._keep_pooled(found, layer))
            for layer, name in names.items()
        ]
        try:
            found["head"] = self.pooled(image)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([found[layer].float() for layer in layers], dim=1)

    def _stage(self, layer: Layer) -> str:
        modules = dict(self.encoder.named_modules())
        for pattern in STAGE_NAMES:
            if pattern.format(layer) in modules:
                return pattern.format(layer)
        known = [
            str(number) for number in range(100) if any(pattern.format(number) in modules for pattern in STAGE_NAMES)
        ]
        raise InputError(
            f"the backbone has no stage {layer}.",
            where="inputs.layers",
            consequence="No slice vector can be made.",
            fix=f"use of {', '.join([*known, 'head'])}.",
        )

    def _keep_pooled(self, found: dict[Layer, Tensor], layer: Layer) -> Callable[..., None]:
        prefix = int(getattr(self.encoder, "num_prefix_tokens", 0))

        def keep(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
            if output.ndim == 4:  # (M, c, h, w)
                found[layer] = output.mean((2, 3))
            else:  # a ViT's tokens (M, L, c), class and register tokens first
                found[layer] = output[:, prefix:].mean(1)

        return keep


class MapTower(ImageTower):
    """An image tower that keeps the place of things, for a decoder.

    ``Encoded.maps`` run from the finest to the coarsest; ``channels`` and ``strides`` (pixels of the slice a
    pixel of the map) say what they are. A map of stride 1 may be the normalised slice itself.
    ``token_width``: channels of ``Encoded.tokens``, which lie on the grid of the coarsest map, row by row.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    token_width: int

    def encode(self, image: Float[Tensor, "m c h w"]) -> Encoded:
        """Vectors, tokens and maps of slices in [0, 1]."""
        raise NotImplementedError  # abstract: every such tower says how

    def forward(self, block: Block) -> Encoded:
        """Vectors, tokens and maps of ``block.value["image"]``."""
        return self.encode(block.value["image"])

    def pooled(self, image: Float[Tensor, "m c h w"]) -> Float[Tensor, "m d"]:
        """The vectors of slices in [0, 1]."""
        return self.encode(image).pooled

    def left_out(self) -> frozenset[str]:
        """Names of the whole backbone's tensors that this tower was built without; a weights file may hold them."""
        return frozenset()
