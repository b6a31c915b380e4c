"""Write requirements.lock (core) and requirements-dev.lock (extras, tests, docs, peers) from what is installed here.

The closure of pyproject's requirements is walked through the installed packages' own metadata, so the lock holds
exactly what was resolved together, with versions only: no index address, no path.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
HEADER = "# Made by `make lock` ({python}, {platform}); every version that was installed and run together.\n"


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """Name and version of every installed package that the requirements need, directly or not."""
    found: dict[str, str] = {}
    queue = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            distribution = metadata.distribution(name)
            found[name] = distribution.version
            for text in distribution.requires or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    queue.append(needed)
    return found


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = closure(project["dependencies"])
    rest = closure([text for texts in project["optional-dependencies"].values() for text in texts])
    header = HEADER.format(python=f"CPython {sys.version.split()[0]}", platform=sys.platform)
    for name, pins in (
        ("requirements.lock", core),
        ("requirements-dev.lock", {name: version for name, version in rest.items() if name not in core}),
    ):
        lines = "".join(f"{package}=={version}\n" for package, version in sorted(pins.items()))
        (ROOT / name).write_text(header + lines, encoding="utf-8")
        print(f"{name}: {len(pins)} packages")


if __name__ == "__main__":
    main()
