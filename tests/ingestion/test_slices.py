"""Plain pictures: grey values as stored; what is no grey picture is refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medform.ingestion.found_series import Refused, SliceSource
from medform.ingestion.nifti import read_nifti_header
from medform.ingestion.slices import picture_series, read_mask, read_picture, read_picture_size
from medform.ingestion.voxels import examine


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


def png(path: Path, samples: bytes, size: tuple[int, int], bits: int, colour: int) -> None:
    """A PNG of one piece written by hand: Pillow writes no 16-bit colour. ``samples`` are its rows, big endian."""
    columns, rows = size
    width = len(samples) // rows
    lines = b"".join(b"\0" + samples[at * width : (at + 1) * width] for at in range(rows))
    header = struct.pack(">IIBBBBB", columns, rows, bits, colour, 0, 0, 0)
    pieces = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in pieces
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_of_several_channels_are_not_cut_to_8(tmp_path: Path, colour: int, channels: int) -> None:
    png(tmp_path / "a.png", bytes(range(4 * channels)), (2, 1), 16, colour)
    for read in (read_picture, read_picture_size):
        with pytest.raises(Refused, match=r"a.png: a picture of 16 bits .* save it as grey"):
            read(tmp_path / "a.png", "a.png")


def test_a_deep_tiff_whose_zero_is_white_is_refused(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey.astype(np.uint16) * 100).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with pytest.raises(Refused, match=r"a.tif, PhotometricInterpretation: its zero is white"):
        read_picture_size(tmp_path / "a.tif", "a.tif")


@pytest.mark.parametrize(("bits", "content"), [(2, b"\x1b"), (4, b"\x01\x23")])
def test_labels_of_few_bits_are_as_stored(tmp_path: Path, bits: int, content: bytes) -> None:
    png(tmp_path / "mask.png", content, (4, 1), bits, 0)
    assert read_mask(tmp_path / "mask.png", "mask.png").tolist() == [[0, 1, 2, 3]]


def test_pictures_of_8_and_16_bits_are_no_series_and_display_ends_at_255(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey).save(tmp_path / "1.png")
    Image.fromarray(grey.astype(np.uint16) * 9).save(tmp_path / "2.png")
    sources = [SliceSource(name, name) for name in ("1.png", "2.png")]
    series = picture_series(tmp_path, "s", "p", sources, "display")
    assert series.codes == ["depth_changes"] and "2.png: values of type uint16" in series.details[0]
    deep = examine(tmp_path, picture_series(tmp_path, "s", "p", sources[1:], "display"))
    assert deep.codes[-1] == "beyond_display" and "images.unit: raw" in deep.details[-1]
    assert examine(tmp_path, picture_series(tmp_path, "s", "p", sources[1:], "raw")).codes == ["single_slice"]


@pytest.mark.proves("A3.1")
@pytest.mark.parametrize("greatest", [1.0, 1.5])
def test_float_pictures_that_8_bits_would_blacken_are_no_display_images(tmp_path: Path, greatest: float) -> None:
    values = [0.0, 0.25, 0.5, greatest]
    sources = []
    for at in range(2):
        Image.fromarray(np.array([values, values], np.float32)).save(tmp_path / f"{at}.tif")
        sources.append(SliceSource(f"{at}.tif", f"{at}.tif"))
    refused = examine(tmp_path, picture_series(tmp_path, "s", "p", sources, "display"))
    assert refused.codes == ["beyond_display"] and f"no value above {greatest:g}" in refused.details[0]
    assert "images.unit: raw" in refused.details[0] and not refused.usable
    assert examine(tmp_path, picture_series(tmp_path, "s", "p", sources, "raw")).usable


def test_bright_float_and_dark_8_bit_pictures_are_display_images(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "0.tif")  # one black slice among others
    Image.fromarray(np.full((4, 4), 200.5, np.float32)).save(tmp_path / "1.tif")
    sources = [SliceSource(name, name) for name in ("0.tif", "1.tif")]
    assert examine(tmp_path, picture_series(tmp_path, "s", "p", sources, "display")).codes == []
    Image.fromarray((grey > 99).astype(np.uint8)).save(tmp_path / "b.png")
    dark = picture_series(tmp_path, "s", "p", [SliceSource("b.png", "b.png")], "display")
    assert examine(tmp_path, dark).codes == ["single_slice"]


def test_a_volume_whose_rescale_makes_0_to_1_of_integers_is_no_display_image(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.eye(4))
    image.header.set_slope_inter(1 / 64, 0)
    nibabel.save(image, tmp_path / "a.nii")
    refused = examine(tmp_path, read_nifti_header(tmp_path / "a.nii", "a.nii", "display"))
    assert refused.codes == ["beyond_display"] and "in the whole series" in refused.details[0]
