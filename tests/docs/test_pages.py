"""The pages: they build without a warning, and what they list is what there is."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def named(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower()


@pytest.mark.proves("A1.1")
def test_every_dependency_has_a_row_with_reason_and_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = {named(requirement) for group in groups for requirement in group}
    rows = {}
    for line in (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and cells[0] not in ("package", "---"):
            rows[cells[0]] = cells[1:]
    assert needed - set(rows) == set()
    assert all(reason and licence for reason, licence in rows.values())


@pytest.mark.proves("A1.1")
def test_pages_that_a_stranger_needs_are_there() -> None:
    for name in ("LICENSE", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        assert (ROOT / name).stat().st_size > 500, name
    for name in ("index", "decisions", "dependencies", "glossary", "architecture"):
        assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").startswith("# "), name
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 70  # one page


@pytest.mark.proves("A1.1")
def test_layers_of_the_architecture_page_are_those_that_are_enforced() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = [set(re.findall(r"\w+", layer)) for layer in contracts["contracts"][0]["layers"]]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    said = [set(re.findall(r"`(\w+)`", line.split("|")[2])) for line in page.splitlines() if re.match(r"\| \d+ ", line)]
    shown = [layer for group in said for layer in ([group] if group in layers else [{one} for one in group])]
    assert sorted(map(sorted, shown)) == sorted(map(sorted, layers))


@pytest.mark.proves("A1.1")
def test_documentation_builds_offline_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    command += [str(ROOT / "docs"), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "glossary.html").is_file()
