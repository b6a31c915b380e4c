"""The one place where a recipe's strings meet classes: one `match` a family, the import inside the case.

A user's own part is written ``package.module:Name`` and needs no registration: the named class is a configuration model
(with ``build``, as the shipped ones) or, for an image tower, any ``torch.nn.Module`` that maps (M, 1, H, W) to (M, d).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from medform.config import Config, own_class
from medform.errors import nearest

__all__ = ["FAMILIES", "described", "part", "part_class"]

FAMILIES: dict[str, tuple[str, ...]] = {
    "objective": ("simclr", "align", "classify", "segment", "cox"),
    "tower": (
        "timm",
        "module",
        "hybrid",
        "vit",
        "unet",
        "bag",
        "linear",
        "mlp",
        "mamba",
        "gene_mlp",
        "gene_transformer",
    ),
    "input": ("slices", "patient_slices", "segmentation", "masks", "features", "clinical", "genes"),
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
        case "objective", "segment":
            from medform.objectives.segment import SegmentConfig as found
        case "objective", "cox":
            from medform.objectives.cox import CoxConfig as found
        case "tower", "timm":
            from medform.models.image import TimmConfig as found
        case "tower", "module":
            from medform.models.image import ModuleConfig as found
        case "tower", "hybrid":
            from medform.models.hybrid import HybridConfig as found
        case "tower", "vit":
            from medform.models.vit import VitConfig as found
        case "tower", "unet":
            from medform.models.unet import UnetConfig as found
        case "tower", "bag":
            from medform.models.bag import BagConfig as found
        case "tower", "linear":
            from medform.models.tabular import LinearConfig as found
        case "tower", "mlp":
            from medform.models.tabular import MlpConfig as found
        case "tower", "mamba":
            from medform.models.genes import MambaConfig as found
        case "tower", "gene_mlp":
            from medform.models.genes import GeneMlpConfig as found
        case "tower", "gene_transformer":
            from medform.models.genes import GeneTransformerConfig as found
        case "input", "slices":
            from medform.inputs.slices import SliceInputConfig as found
        case "input", "patient_slices":
            from medform.inputs.stacks import PatientSlicesConfig as found
        case "input", "segmentation":
            from medform.inputs.stacks import SegmentationInputConfig as found
        case "input", "masks":
            from medform.inputs.masks import MaskInputConfig as found
        case "input", "features":
            from medform.inputs.features import FeatureInputConfig as found
        case "input", "clinical":
            from medform.inputs.clinical import ClinicalInputConfig as found
        case "input", "genes":
            from medform.inputs.genes import GeneInputConfig as found
        case _:
            known = FAMILIES[family]
            close = nearest(kind, known)
            hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."
            raise ValueError(f"unknown {family} kind '{kind}'. {hint} Your own part is written 'package.module:Name'.")
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


def described(config: Config) -> dict[str, Any]:
    """The mapping that `part` makes into ``config`` again, also where a user's own class has no key ``kind``."""
    tree = config.model_dump(mode="json")
    own = type(config)
    return tree if "kind" in tree else {"kind": f"{own.__module__}:{own.__qualname__}", **tree}
