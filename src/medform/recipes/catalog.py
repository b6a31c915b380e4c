"""The one place where a recipe's strings meet classes: one `match` a family, the import inside the case.

A user's own part is written ``package.module:Name`` and needs no registration: the named class is a configuration model
(with ``build``, as the shipped ones) or, for an image tower, any ``torch.nn.Module`` that maps (M, 1, H, W) to (M, d).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from medform.config import Config
from medform.errors import InputError, nearest

__all__ = ["FAMILIES", "own_class", "part", "part_class"]

FAMILIES: dict[str, tuple[str, ...]] = {
    "objective": ("simclr", "align", "classify"),
    "tower": ("timm", "module", "bag", "linear", "mlp"),
    "input": ("slices", "features", "clinical"),
}
"""The kinds of each family that medform ships; the contract tests run over all of them."""


def part_class(family: str, kind: str) -> type[Config]:
    """The configuration class of one kind; raises ValueError with the nearest names for an unknown one."""
    match family, kind:
        case "objective", "simclr":
            from medform.objectives.simclr import SimclrConfig as found
        case "objective", "align":
            from medform.objectives.align import AlignConfig as found
        case "objective", "classify":
            from medform.objectives.classify import ClassifyConfig as found
        case "tower", "timm":
            from medform.models.image import TimmConfig as found
        case "tower", "module":
            from medform.models.image import ModuleConfig as found
        case "tower", "bag":
            from medform.models.bag import BagConfig as found
        case "tower", "linear":
            from medform.models.tabular import LinearConfig as found
        case "tower", "mlp":
            from medform.models.tabular import MlpConfig as found
        case "input", "slices":
            from medform.inputs.slices import SliceInputConfig as found
        case "input", "features":
            from medform.inputs.features import FeatureInputConfig as found
        case "input", "clinical":
            from medform.inputs.clinical import ClinicalInputConfig as found
        case _:
            known = FAMILIES[family]
            close = nearest(kind, known)
            hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."
            raise ValueError(f"unknown {family} kind '{kind}'. {hint} Your own part is written 'package.module:Name'.")
    return found


def own_class(path: str) -> type:
    """The class that ``package.module:Name`` names; raises `InputError` saying which half could not be found."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"module '{module_name}' cannot be imported ({error}).",
            where=path,
            fix="use `python -m medform` from the folder that holds it, or install it into this environment.",
        ) from None
    if not isinstance(found := getattr(module, name, None), type):
        close = nearest(name, [key for key, value in vars(module).items() if isinstance(value, type)])
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise InputError(f"module '{module_name}' has no class '{name}'.{hint}", where=path)
    return found


def part(family: str, value: Any) -> Config:
    """Build the configuration of one part from its mapping (``kind`` and the kind's own keys).

    Raises ValueError, as pydantic expects of a validator, with every fault of the part in one line each.
    """
    if isinstance(value, Config):
        return value
    if not isinstance(value, Mapping) or "kind" not in value:
        raise ValueError(f"a {family} is a mapping with a `kind`. Known kinds: {', '.join(FAMILIES[family])}.")
    kind = str(value["kind"])
    if ":" in kind:
        own = own_class(kind)
        if issubclass(own, Config):
            return own.model_validate({key: item for key, item in value.items() if key != "kind"})
        if family != "tower":
            raise ValueError(f"'{kind}' is not a configuration model (a subclass of medform.config.Config).")
        keywords = {key: item for key, item in value.items() if key != "kind"}
        return part_class("tower", "module").model_validate({"module": kind, **keywords})
    found = part_class(family, kind)
    try:
        return found.model_validate(dict(value))
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            key = ".".join(str(step) for step in fault["loc"])
            if fault["type"] == "extra_forbidden":
                close = nearest(str(fault["loc"][-1]), sorted(found.model_fields))
                hint = (
                    f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(sorted(found.model_fields))}"
                )
                faults.append(f"{key}: unknown key, {hint}")
            else:
                faults.append(f"{key}: {fault['msg'].removeprefix('Value error, ')}")
        raise ValueError("; ".join(faults)) from None
