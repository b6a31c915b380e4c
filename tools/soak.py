"""Runs the soak tests and writes what they found to docs/soak.md: `python tools/soak.py [pytest arguments]`.

A test says its figures with pytest's ``record_property``; here they stand beside its outcome, time and date. Where only
some tests are run, as in `python tools/soak.py tests/soak -k kill`, the others keep what an earlier run found.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Collection, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "soak.md"
PACKAGES = ("medform", "torch", "numpy", "pandas", "scikit-learn", "timm")


class Recorder:
    """A pytest plugin that keeps the report of every test's call, and which tests there are."""

    def __init__(self) -> None:
        self.reports: list[pytest.TestReport] = []
        self.there: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the ids of all tests of the files at hand, before any is left out."""
        self.there = {item.nodeid for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep calls, and whatever failed or was skipped before one."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            self.reports.append(report)


def commit() -> str:
    """The commit of this checkout, marked where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + (" with uncommitted changes" if changed.stdout.strip() else "")


def section(report: pytest.TestReport) -> str:
    """A test's part of the page: outcome, time, date and commit, then its figures."""
    said = f"{report.outcome}, {report.duration:.0f} s, {date.today().isoformat()}, commit {commit()}"
    lines = [said, "", f"`{report.nodeid}`"]
    if report.user_properties:
        lines += ["", "| figure | value |", "| --- | --- |"]
        lines += [f"| {key} | {value} |" for key, value in report.user_properties]
    return "\n".join(lines)


def sections(text: str) -> dict[str, str]:
    """Heading and text of every test on a page."""
    parts = text.split("\n## ")[1:]
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in parts}


def gone(text: str, there: Collection[str]) -> bool:
    """Whether a section is of a test that its file, which was read, no longer has."""
    test = text.split("`")[1]
    return test not in there and test.split("::")[0] in {one.split("::")[0] for one in there}


def page(reports: Sequence[pytest.TestReport], before: str = "", there: Collection[str] = ()) -> str:
    """The page after these tests; sections of ``before`` that were not run again stay, if the test is still there."""
    found = {name: text for name, text in sections(before).items() if not gone(text, there)}
    for report in reports:
        name = report.nodeid.split("::", 1)[1].removeprefix("test_").replace("_", " ")
        found[name] = section(report)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    passed = sum(text.startswith("passed") for text in found.values())
    head = [
        "---",
        "orphan: true",
        "---",
        "",
        "# Soak tests",
        "",
        "What needs training or long loops to show. Written by `python tools/soak.py`; not edited by hand.",
        "",
        f"- {passed} of {len(found)} tests passed",
        f"- machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {versions}",
    ]
    body = [f"\n## {name}\n\n{found[name]}" for name in sorted(found)]
    return "\n".join([*head, *body]) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run the tests marked soak (or those that ``arguments`` choose) and write the page; pytest's exit code."""
    os.chdir(ROOT)
    recorder = Recorder()
    code = pytest.main(["-m", "soak", "--timeout", "5400", *arguments], plugins=[recorder])
    if recorder.reports:
        before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        PAGE.write_text(page(recorder.reports, before, recorder.there), encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
