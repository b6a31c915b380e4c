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

HIDDEN = frozenset({names!r})


class Hidden:
    """A finder that has none of them."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {{name!r}} (hidden: not in requirements.lock)", name=name)
        return None


sys.meta_path.insert(0, Hidden())
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
