"""The page that tools/soak.py writes: every test with its outcome and figures, and where and when it was run."""

from __future__ import annotations

import importlib.util
from datetime import date
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "soak.py"


@pytest.mark.proves("A.tests")
def test_the_page_names_date_machine_outcomes_and_figures_and_keeps_what_was_not_run_again() -> None:
    spec = importlib.util.spec_from_file_location("soak", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    place = ("soak/test_a.py", 1, "test_kills")
    good = pytest.TestReport(
        "soak/test_a.py::test_kills", place, {}, "passed", None, "call", user_properties=[("kills", 10)], duration=61.4
    )
    bad = pytest.TestReport("soak/test_b.py::test_a_null", place, {}, "failed", "why", "call", duration=2.0)
    text = tool.page([bad, good])
    today = date.today().isoformat()
    assert "cores, Python 3." in text and "- 1 of 2 tests passed" in text
    assert text.index("## a null") < text.index("## kills")
    assert f"passed, 61 s, {today}, commit " in text and "| kills | 10 |" in text
    assert f"failed, 2 s, {today}, commit " in text and "`soak/test_b.py::test_a_null`" in text
    mended = pytest.TestReport("soak/test_b.py::test_a_null", place, {}, "passed", None, "call", duration=3.0)
    after = tool.page([mended], text)
    assert "- 2 of 2 tests passed" in after and "| kills | 10 |" in after and "passed, 3 s" in after
    without = tool.page([], after, there={"soak/test_b.py::test_new"})
    assert "a null" not in without and "## kills" in without and "- 1 of 1 tests passed" in without
