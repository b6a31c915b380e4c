"""Predicted beside true masks of a few test patients (`overlays.json`), by pseudonym; the pictures are PNG files."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medform.reporting.documents import read_document, write_document

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OverlayPatient", "Overlays", "data_address", "draw_overlay", "read_overlays", "write_overlays"]

TILE_PX = 160
TRUE, PREDICTED = (255, 190, 40), (90, 200, 255)
"""Colours of the outlines; each picture shows one of them and says in words which."""


@dataclass(frozen=True)
class OverlayPatient:
    """One test patient of the overlays.

    ``place``: best, median or worst Dice of the model's test patients. ``index``: the slice that is shown, the one
    with the most lesion; ``true`` and ``predicted``: its pictures, relative to the run folder.
    """

    pseudonym: str
    place: str
    dice: float
    index: int
    true: str
    predicted: str


@dataclass(frozen=True)
class Overlays:
    """Masks of ``model``; the patients were its test patients."""

    task: str
    model: str
    patients: tuple[OverlayPatient, ...]


def write_overlays(run: Path, overlays: Overlays) -> None:
    """Write ``RUN/overlays.json``."""
    write_document(run / "overlays.json", overlays)


def read_overlays(run: Path) -> Overlays | None:
    """Read ``RUN/overlays.json``; None where it is not there."""
    return read_document(run / "overlays.json", Overlays)


def draw_overlay(
    run: Path,
    pseudonym: str,
    image: NDArray[np.floating[Any]],
    window: tuple[float, float],
    true: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
) -> tuple[str, str]:
    """Write one slice (H, W) twice, with the outline of the true and of the predicted mask (H, W).

    Returns both pictures' paths relative to ``run``.
    """
    names = []
    for what, mask, colour in (("true", true, TRUE), ("predicted", predicted, PREDICTED)):
        name = f"figures/overlays/{pseudonym}-{what}.png"
        _write(run / name, image, window, mask, colour)
        names.append(name)
    return names[0], names[1]


def data_address(path: Path) -> str | None:
    """A PNG file as an address that holds it whole; None where it is not there."""
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _write(
    path: Path,
    image: NDArray[np.floating[Any]],
    window: tuple[float, float],
    mask: NDArray[np.bool_],
    colour: tuple[int, int, int],
) -> None:
    from PIL import Image
    from scipy.ndimage import binary_erosion

    low, high = window
    grey = np.clip((image - low) / max(high - low, 1e-6), 0.0, 1.0)
    height, width = image.shape
    scale = TILE_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    filtered = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    small = Image.fromarray((grey * 255).round().astype(np.uint8)).resize(size, filtered)
    inside = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
    pixels = np.repeat(np.asarray(small)[:, :, None], 3, axis=2)
    pixels[inside & ~binary_erosion(inside)] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, optimize=True)
