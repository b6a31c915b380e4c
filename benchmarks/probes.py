"""Few-shot probes and bootstrap intervals beside scikit-learn, on one thread.

``probes``: 20 logistic probes (5 repeats x k of 1, 5, 10, 25 a class) of 400 x 768 features, fitted and
scored; the peer is a loop over ``LogisticRegression`` with its defaults, which are less exact.
``bootstrap``: 1,000 AUROCs of 300 patients with ties, resampling included; the peer calls ``roc_auc_score``
for each. CPU time of the process, variants interleaved, ratio = median of the rounds' ratios, low and high
their extremes.

    python benchmarks/probes.py [--json] [--rounds 7]

Exit code 1 where a ratio is below its bound or a result differs from the peer's.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rows import options, tell
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from medform.metrics.bootstrap import Resamples, auroc_resamples
from medform.metrics.linear_probe import fit_scaler, logistic_scores
from medform.metrics.ranking import stratified_auroc

Array = NDArray[np.float64]
BOUNDS = {"probes": 5.0, "bootstrap": 1000.0}
SHOTS, REPEATS, C = (1, 5, 10, 25), 5, 30.0
PATIENTS, RESAMPLES, PEER_RESAMPLES = 300, 1000, 100


def probe_data() -> tuple[Array, Array, dict[int, NDArray[np.intp]]]:
    """Features (400, 768), labels, and the supports of each k."""
    random = np.random.default_rng(0)
    y = (np.arange(400) % 2).astype(float)
    x = fit_scaler(random.normal(size=(400, 768)) + 0.1 * y[:, None], "norm").transform(
        random.normal(size=(400, 768)) + 0.1 * y[:, None]
    )
    supports = {
        k: np.stack([np.concatenate([random.choice(np.flatnonzero(y == c), k, replace=False) for c in (0, 1)])
                     for _ in range(REPEATS)])
        for k in SHOTS
    }  # fmt: skip
    return x, y, supports


def our_probes(x: Array, y: Array, supports: dict[int, NDArray[np.intp]]) -> list[Array]:
    """Log odds of all rows under every probe."""
    return [logistic_scores(x, x, chosen, y[chosen], C) for chosen in supports.values()]


def peer_probes(x: Array, y: Array, supports: dict[int, NDArray[np.intp]], **options: float) -> list[Array]:
    """The same by scikit-learn."""
    found = []
    for drawn in supports.values():
        probes = [LogisticRegression(C=C, max_iter=10_000, **options).fit(x[one], y[one]) for one in drawn]
        found.append(np.stack([probe.decision_function(x) for probe in probes]))
    return found


def bootstrap_data() -> tuple[Array, Array]:
    """Labels and scores with ties of 300 patients, half of them positive."""
    random = np.random.default_rng(1)
    y = (np.arange(PATIENTS) % 2).astype(float)
    return y, np.round(random.normal(size=PATIENTS) + 0.7 * y, 1)


def draws() -> tuple[NDArray[np.int64], Resamples]:
    """The same resamples twice: as patients (B, 300), positives first, and as multiplicities."""
    random = np.random.default_rng(2)
    size = PATIENTS // 2
    chosen = [random.integers(0, size, (RESAMPLES, size)) for _ in "pn"]
    counts = [np.stack([np.bincount(one, minlength=size) for one in drawn]).astype(float) for drawn in chosen]
    return np.concatenate([chosen[0], chosen[1] + size], axis=1), Resamples(counts[0], counts[1])


def our_bootstrap(y: Array, score: Array, counts: Resamples) -> Array:
    """AUROC of every resample."""
    return auroc_resamples(stratified_auroc(y, score, np.zeros(PATIENTS)), counts)


def peer_bootstrap(y: Array, score: Array, chosen: NDArray[np.int64]) -> Array:
    """The first hundred of them, one call each."""
    order = np.concatenate([np.flatnonzero(y == 1), np.flatnonzero(y == 0)])
    return np.array([roc_auc_score(y[order[one]], score[order[one]]) for one in chosen[:PEER_RESAMPLES]])


def seconds(job: Callable[[], object], least: float = 0.2) -> float:
    """CPU seconds of one call, repeated until the clock can tell."""
    job()
    count, started = 0, time.process_time()
    while time.process_time() - started < least:
        job()
        count += 1
    return (time.process_time() - started) / count


def row(item: str, rounds: int, ours: Callable[[], object], peer: Callable[[], object], share: float) -> dict:
    """One row of the result; ``share`` is how much of the work the peer is given."""
    ratios = [seconds(peer) / share / seconds(ours) for _ in range(rounds)]
    low, high = min(ratios), max(ratios)
    ratio = statistics.median(ratios)
    rounded = {name: round(value, 2) for name, value in (("ratio", ratio), ("low", low), ("high", high))}
    return {"item": item, "peer": "scikit-learn", **rounded, "bound": BOUNDS[item]}


def check() -> None:
    """Equal results first: speed of something else is no speed."""
    x, y, supports = probe_data()
    for ours, peer in zip(our_probes(x, y, supports), peer_probes(x, y, supports, tol=1e-8), strict=True):
        np.testing.assert_allclose(ours, peer, atol=1e-2)
    labels, score = bootstrap_data()
    chosen, counts = draws()
    ours = our_bootstrap(labels, score, counts)[:PEER_RESAMPLES]
    np.testing.assert_allclose(ours, peer_bootstrap(labels, score, chosen), atol=1e-12)


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, rounds=7).parse_args()
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()
        x, y, supports = probe_data()
        labels, score = bootstrap_data()
        chosen, counts = draws()
        rows = [
            row(
                "probes",
                asked.rounds,
                lambda: our_probes(x, y, supports),
                lambda: peer_probes(x, y, supports),
                share=1.0,
            ),
            row(
                "bootstrap",
                asked.rounds,
                lambda: our_bootstrap(labels, score, counts),
                lambda: peer_bootstrap(labels, score, chosen),
                share=PEER_RESAMPLES / RESAMPLES,
            ),
        ]
    return tell(rows, asked)


if __name__ == "__main__":
    sys.exit(main())
