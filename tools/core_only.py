"""Print a module that hides every installed package which requirements.lock does not name.

Imported at the start of an interpreter (a line of a .pth file), it makes an environment that borrows another one's
packages behave as one that was made from the lock of the core alone.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = '''"""Hides packages that only extras, tests and documentation bring."""
import sys
from importlib.machinery import PathFinder

HIDDEN = frozenset({names!r})


class Visible(PathFinder):
    """Finds what PathFinder does, except what is hidden: not there, for whoever only asks too."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Visible
'''


def hidden() -> list[str]:
    """Top-level modules whose every distribution is outside of the core lock, medform itself aside."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    core = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    core |= {"medform", "pip", "setuptools"}
    owners = metadata.packages_distributions()
    return sorted(name for name, found in owners.items() if not {canonicalize_name(one) for one in found} & core)


if __name__ == "__main__":
    print(TEMPLATE.format(names=hidden()), end="")
