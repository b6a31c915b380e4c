"""The check that `.ci/run` makes of the finished demo: good figures pass, each broken promise is named."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "check_demo.py"
RECORD = {
    "spent": {"peak_memory_gb": 1.4},
    "collapsed": [],
    "tasks": [{"name": "other", "primary": False}, {"name": "malignant", "primary": True}],
}
GOOD = {
    "aligned": (0.91, 0.75, 1.0),
    "image_only": (0.88, 0.71, 1.0),
    "imagenet_encoder": (0.89, 0.72, 1.0),
    "random_encoder": (0.55, 0.28, 0.80),
    "shuffled_pairs": (0.91, 0.75, 1.0),
    "permuted_labels": (0.52, 0.25, 0.78),
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/check_demo.py as a module."""
    spec = importlib.util.spec_from_file_location("check_demo", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, record: dict[str, Any], aurocs: dict[str, tuple[float | None, ...]]) -> Path:
    """A run folder with these figures, and rows beside them that are not to be looked at."""
    plain = {"task": "malignant", "protocol": "cross_validation", "metric": "auroc", "readout": "logistic"}
    rows = [
        {**plain, "model": model, "value": value, "ci_low": low, "ci_high": high}
        for model, (value, low, high) in aurocs.items()
    ]
    others = [{**plain, "model": "aligned", "value": 0.1, "ci_low": 0.0, "ci_high": 0.2}] * 4
    apart = [{"task": "other"}, {"protocol": "few_shot"}, {"metric": "auprc"}, {"readout": "centroid"}]
    rows += [{**row, **change} for row, change in zip(others, apart, strict=True)]
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.mark.proves("U2", "A1.2")
def test_good_figures_pass_and_are_printed(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, RECORD, GOOD)  # type: ignore[arg-type]
    assert tool.main([str(run), "--seconds", "63"]) == 0
    assert "63 s, 1.4 GB; malignant: aligned AUROC 0.91 [0.75, 1.00]" in capsys.readouterr().out


@pytest.mark.proves("U2", "A1.2")
@pytest.mark.parametrize(
    ("seconds", "record", "scores", "words"),
    [
        (121, {}, {}, "took 121 s; at most 120 s"),
        (60, {"spent": {"peak_memory_gb": 2.6}}, {}, "peak memory 2.6 GB"),
        (60, {"spent": {"peak_memory_gb": 0.0}}, {}, "peak memory 0.0 GB"),
        (60, {"collapsed": [{"stage": "pretrain"}]}, {}, "collapsed: "),
        (60, {}, {"aligned": (0.74, 0.55, 0.9)}, "aligned: AUROC 0.74 [0.55, 0.90]; the planted lesion"),
        (60, {}, {"image_only": (0.88, 0.49, 1.0)}, "image_only: AUROC 0.88 [0.49, 1.00]; the planted lesion"),
        (60, {}, {"imagenet_encoder": (None, None, None)}, "imagenet_encoder: AUROC none [none, none]"),
        (60, {}, {"random_encoder": (0.85, 0.7, 1.0)}, "image_only: AUROC 0.88 [0.71, 1.00]; not 0.15 above"),
        (60, {}, {"permuted_labels": (0.70, 0.3, 0.9)}, "permuted_labels: AUROC 0.70"),
        (60, {}, {"permuted_labels": (0.55, 0.51, 0.9)}, "permuted_labels: AUROC 0.55"),
    ],
)
def test_each_broken_promise_is_named(
    seconds: int, record: dict[str, Any], scores: dict[str, Any], words: str, tool: ModuleType, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = write_run(tmp_path, {**RECORD, **record}, {**GOOD, **scores})
    assert tool.main([str(run), "--seconds", str(seconds)]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.proves("U2")
def test_a_row_that_is_missing_is_named(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, RECORD, {"aligned": GOOD["aligned"], "permuted_labels": GOOD["permuted_labels"]})
    assert tool.main([str(run)]) == 1
    assert "no AUROC of image_only, imagenet_encoder, random_encoder, shuffled_pairs" in capsys.readouterr().err
