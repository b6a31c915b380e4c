"""Plain pictures: grey values as stored; what is no grey picture is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medform.ingestion.found_series import Refused, SliceSource
from medform.ingestion.slices import picture_series, read_mask, read_picture, read_picture_size


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (9, 11)).astype(np.uint8)


@pytest.mark.proves("A3.1")
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_values_are_kept(tmp_path: Path, grey: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(grey).save(path)
    assert read_picture_size(path, path.name) == (9, 11, "uint8")
    np.testing.assert_array_equal(read_picture(path, path.name), grey)


def test_16_bits_stay_16_bits(tmp_path: Path) -> None:
    deep = np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    found = read_picture(tmp_path / "deep.png", "deep.png")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, deep)


def test_three_equal_channels_are_grey_and_colours_are_refused(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "grey.png", "grey.png"), grey)
    Image.fromarray(np.stack([grey, grey, 255 - grey], -1)).save(tmp_path / "colour.png")
    with pytest.raises(Refused, match=r"colour.png.*save it as grey"):
        read_picture(tmp_path / "colour.png", "colour.png")
    Image.fromarray(np.stack([grey, grey, grey, grey], -1)).save(tmp_path / "see.png")
    with pytest.raises(Refused, match=r"see.png.*transparent"):
        read_picture(tmp_path / "see.png", "see.png")


def test_masks_keep_their_labels_and_pages_are_refused(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey > 128).save(tmp_path / "binary.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "binary.png", "binary.png"), grey > 128)
    Image.fromarray(grey % 4).save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "labels.png", "labels.png"), grey % 4)
    for name, options in (("mask.jpg", {}), ("mask.tif", {"compression": "jpeg"})):
        Image.fromarray((grey > 128).astype(np.uint8) * 255).save(tmp_path / name, **options)
        with pytest.raises(Refused, match=rf"{name}: a mask in a lossy format .*export it as PNG"):
            read_mask(tmp_path / name, name)
    page = Image.fromarray(grey)
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    with pytest.raises(Refused, match=r"pages.tif: 2 frames"):
        read_picture(tmp_path / "pages.tif", "pages.tif")


def test_pictures_of_two_sizes_are_no_series(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey).save(tmp_path / "1.png")
    Image.fromarray(grey[:5]).save(tmp_path / "2.png")
    sources = [SliceSource(name, name) for name in ("1.png", "2.png")]
    series = picture_series(tmp_path, "s", "p", sources, "display")
    assert series.codes == ["matrix_changes"] and "2.png" in series.details[0]
