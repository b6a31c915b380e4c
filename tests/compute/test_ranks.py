"""Two processes with unequal parts of a batch take the same step as one process with the whole."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medform.compute.ranks import close_process_group, gather, world_size

WORKER = Path(__file__).parent / "rank_worker.py"


@pytest.mark.proves("A.tests")
def test_two_ranks_have_the_losses_and_gradients_of_one_and_end_cleanly(tmp_path: Path) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=50)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    two = torch.load(tmp_path / "gradients.pt", weights_only=True)
    one = runpy.run_path(str(WORKER))["gradients"](0, 1)
    assert two.pop("order").tolist() == one.pop("order").tolist() == [0, 2, 3, 4, 5, 7]
    assert set(two) == set(one)
    assert any(gradient.abs().max() > 1e-3 for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_one_rank_alone_gathers_nothing() -> None:
    rows = torch.ones(3, 2)
    assert world_size() == 1
    assert gather(rows) is rows
    close_process_group()  # nothing is open: no error
