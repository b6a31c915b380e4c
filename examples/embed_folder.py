"""One vector a scan, and each scan's nearest neighbour: python embed_folder.py SCANS [MODEL]."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import medform


def nearest_scans(scans: Path, model: Path | None = None) -> pd.DataFrame:
    """For every series of ``scans`` the most similar other one: patient_id, series_id, nearest, cosine (-1 to 1)."""
    rows = medform.embed(scans, model=model)
    series = rows[rows["level"] == "series"].reset_index(drop=True)
    vectors = np.stack(series["vector"].to_list())
    vectors = vectors - vectors.mean(axis=0)  # what all scans share says nothing about which are alike
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    best = cosine.argmax(axis=1)
    found = series[["patient_id", "series_id"]].copy()
    found["nearest"] = series["series_id"].to_numpy()[best]
    found["cosine"] = cosine[np.arange(len(best)), best]
    return found


if __name__ == "__main__":
    print(nearest_scans(*map(Path, sys.argv[1:])).to_string(index=False))
