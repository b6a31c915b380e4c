"""Write docs/proofs.md: every promise of the issues, what proves it, and first what nothing proves yet.

Promises stand in docs/promises.toml. Proofs are tests marked ``@pytest.mark.proves("A4.2", ...)`` (read from the
source, nothing is imported), result files under docs/results/ with a ``proves`` list, benchmark rows there, and steps
of .ci/run under a comment ``# proves: A1.3``, which every landing passes. A promise whose ``open`` text is not empty
stays open whatever proves a part of it.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "proofs.md"
BENCHMARKS = {"scan": "G.speed", "expression": "G.speed"}
"""Files of benchmark rows and the promise that they are about."""


def marked(path: Path) -> Iterator[tuple[str, str]]:
    """(promise, test) of every ``proves`` marker of one test file: on a function, a class or the whole module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = path.relative_to(ROOT).as_posix()

    def lines(node: ast.expr) -> list[str]:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "proves"):
            return []
        return [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                yield from ((line, f"{name}::{node.name}") for line in lines(decorator))
        elif isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets
        ):
            values = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
            for value in values:
                yield from ((line, name) for line in lines(value))


def measured() -> Iterator[tuple[str, Path]]:
    """Promises that benchmark rows and result files prove."""
    results = ROOT / "docs" / "results"
    for name, promise in BENCHMARKS.items():
        if (path := results / "benchmarks" / f"{name}.json").is_file():
            yield promise, path
    for path in sorted(results.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            yield from ((line, path) for line in content.get("proves", []))


def collect() -> dict[str, list[str]]:
    """Promise -> what proves it, sorted."""
    proofs: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for line, where in marked(path):
            proofs[line].add(where)
    for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines():
        if line.startswith("# proves: "):
            for promise in line.removeprefix("# proves: ").split(", "):
                proofs[promise].add(".ci/run")
    for line, path in measured():
        proofs[line].add(path.relative_to(ROOT).as_posix())
    return {line: sorted(found) for line, found in proofs.items()}


def page() -> str:
    promises = tomllib.loads((ROOT / "docs" / "promises.toml").read_text(encoding="utf-8"))
    proofs = collect()
    text = [
        "# What is shown, and by what",
        "",
        "Made by `make proofs`. A promise is *open* while nothing proves it or a part of it is not shown yet.",
    ]
    for issue in promises.values():
        entries = issue["promise"]
        still = [p for p in entries if not proofs.get(p["id"]) or p.get("open")]
        text += ["", f"## {issue['title']}", "", f"### Open ({len(still)} of {len(entries)})", ""]
        text += [f"- open **{p['id']}** {p['what']}: {p.get('open') or 'nothing proves it yet'}" for p in still]
        text += ["", "### Shown", ""]
        for p in entries:
            found = proofs.get(p["id"], [])
            if found:
                shown = ", ".join(f"`{where.removeprefix('tests/')}`" for where in found[:6])
                more = f" and {len(found) - 6} more" if len(found) > 6 else ""
                text.append(f"- **{p['id']}** {p['what']}: {shown}{more}")
    known = {p["id"] for issue in promises.values() for p in issue["promise"]}
    others = sorted(set(proofs) - known)
    text += ["", "## Findings and behaviours of the reference pages", ""]
    text += [
        f"- **{line}**: " + ", ".join(f"`{where.removeprefix('tests/')}`" for where in proofs[line][:4])
        for line in others
    ]
    return "\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if docs/proofs.md is not up to date")
    check = parser.parse_args().check
    made = page()
    if check:
        current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        if current != made:
            print("docs/proofs.md is not up to date: run `make proofs`", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
