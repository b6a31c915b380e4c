"""The catalog: each kind has its own configuration, and a wrong part is refused with the name that was meant."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from medform.config import Config, own_class
from medform.errors import InputError
from medform.recipes.catalog import FAMILIES, described, part, part_class

KINDS = [(family, kind) for family, kinds in FAMILIES.items() for kind in kinds]


class OwnConfig(Config):
    """A part as a user would write it: the keys are its own, there is no ``kind``."""

    width: int


class NotAConfig:
    """A class that is no configuration model."""


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> str:
    """The import path of a user's module."""
    module = ModuleType("own_parts")
    vars(module).update(OwnConfig=OwnConfig, NotAConfig=NotAConfig)
    monkeypatch.setitem(sys.modules, "own_parts", module)
    return "own_parts"


@pytest.mark.proves("A1.5")
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_every_kind_has_a_buildable_configuration_of_that_kind(family: str, kind: str) -> None:
    found = part_class(family, kind)
    assert issubclass(found, Config)
    assert found.model_fields["kind"].default == kind
    assert family == "input" or callable(getattr(found, "build", None))


@pytest.mark.proves("A1.5")
def test_no_two_kinds_share_a_configuration() -> None:
    assert len({part_class(family, kind) for family, kind in KINDS}) == len(KINDS)


@pytest.mark.proves("A.input")
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_a_misspelt_kind_shows_the_kind_that_was_meant(family: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"unknown {family} kind '{kind}s'. Did you mean '{kind}'"):
        part(family, {"kind": f"{kind}s"})


@pytest.mark.proves("A.input")
@pytest.mark.parametrize("value", [None, "simclr", {"temperature": 0.1}])
def test_a_part_without_a_kind_shows_the_known_kinds(value: Any) -> None:
    with pytest.raises(ValueError, match=r"a mapping with a `kind`. Known kinds: simclr, align, classify"):
        part("objective", value)


@pytest.mark.proves("A.input")
def test_all_faults_of_a_part_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="unknown key") as caught:
        part("input", {"kind": "slices", "sise": 128, "size": -1})
    assert "sise: unknown key, did you mean 'size'?" in str(caught.value)
    assert "size: Input should be greater than" in str(caught.value)


@pytest.mark.proves("A1.5")
def test_an_own_configuration_needs_no_registration(own_module: str) -> None:
    assert part("objective", {"kind": f"{own_module}:OwnConfig", "width": 3}) == OwnConfig(width=3)
    with pytest.raises(ValueError, match="is not a configuration model"):
        part("objective", {"kind": f"{own_module}:NotAConfig"})


@pytest.mark.proves("A.input")
def test_an_own_part_that_is_not_found_says_which_half_is_wrong(own_module: str) -> None:
    with pytest.raises(InputError, match=r"has no class 'OwnConfg'. Did you mean 'OwnConfig'"):
        own_class(f"{own_module}:OwnConfg")
    with pytest.raises(InputError, match="module 'own_part_s' cannot be imported"):
        own_class("own_part_s:OwnConfig")
    with pytest.raises(InputError, match="module '' cannot be imported"):
        own_class(":OwnConfig")


@pytest.mark.proves("U15", "A8.2")
def test_an_own_configuration_is_written_so_that_it_can_be_read_back(own_module: str) -> None:
    """Also where it has no key ``kind`` of its own: a run's recipe.yaml and a model's config.json name the class."""
    vars(sys.modules[own_module])["OwnConfig"].__module__ = own_module
    try:
        written = described(part("objective", {"kind": f"{own_module}:OwnConfig", "width": 3}))
        assert written == {"kind": "own_parts:OwnConfig", "width": 3} and part("objective", written) == OwnConfig(
            width=3
        )
    finally:
        OwnConfig.__module__ = __name__
    assert described(part("tower", {"kind": "linear"}))["kind"] == "linear"
