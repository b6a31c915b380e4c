"""A hostile file costs one file: bounded memory and time, a reason, never a traceback."""

from __future__ import annotations

import gzip
import resource
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from medform.ingestion.dicom_file import NotAnImage
from medform.ingestion.dicom_header import read_header
from medform.ingestion.dicom_pixels import DicomPixels
from medform.ingestion.found_series import Refused
from medform.ingestion.nifti import read_nifti_header, read_nifti_slices
from medform.ingestion.plan import ReadSettings, plan_folder
from medform.ingestion.slices import read_picture
from medform.ingestion.voxels import examine


def head_and_body(kit: Any, folder: Path, syntax: str) -> tuple[bytes, bytes]:
    """Meta header with another transfer syntax, and the data set, of a small CT."""
    kit.write(folder, kit.stack(1))
    raw = (folder / "a000").read_bytes()
    (folder / "a000").unlink()
    old, new = ExplicitVRLittleEndian.encode() + b"\0", syntax.encode() + b"\0" * (len(syntax) % 2)
    at, end = raw.index(old), 144 + int.from_bytes(raw[140:144], "little")
    head = raw[: at - 2] + struct.pack("<H", len(new)) + new + raw[at + len(old) : end]
    return head[:140] + struct.pack("<I", len(head) - 144) + head[144:], raw[end:]


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.proves("R15")
def test_a_deflate_bomb_is_stopped(tmp_path: Path, kit: Any) -> None:
    head, body = head_and_body(kit, tmp_path, DeflatedExplicitVRLittleEndian)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    at = body.index(b"\xe0\x7f\x10\x00OW")
    content = packer.compress(body[:at] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", 300 << 20))
    content += b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    path = tmp_path / "bomb.dcm"
    path.write_bytes(head + content)
    before, start = peak_mb(), time.perf_counter()
    with pytest.raises(Refused, match=r"bomb.dcm.*inflate to more than"):
        read_header(path, "bomb.dcm")
    assert peak_mb() - before < 500 and time.perf_counter() - start < 5


def test_a_deflated_file_of_usual_size_is_read(tmp_path: Path, kit: Any) -> None:
    head, body = head_and_body(kit, tmp_path, DeflatedExplicitVRLittleEndian)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    (tmp_path / "a000").write_bytes(head + packer.compress(body) + packer.flush())
    (series,) = kit.series(tmp_path)
    np.testing.assert_allclose(kit.hu(tmp_path, series), kit.expected(series), atol=1.0)


@pytest.mark.proves("R16")
@pytest.mark.parametrize(
    "tags",
    [{"Rows": 65535, "Columns": 65535, "NumberOfFrames": "9999"}, {"Rows": 4000}, {"Rows": 0}],
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path: Path, kit: Any, tags: dict[str, Any]) -> None:
    kit.write(tmp_path, kit.stack(1, tags=tags))
    before = peak_mb()
    (series,) = kit.series(tmp_path)
    assert not examine(tmp_path, series).usable and peak_mb() - before < 50


@pytest.mark.proves("R16")
def test_a_claimed_length_of_4_gb_is_a_cut_file(tmp_path: Path, kit: Any) -> None:
    head, body = head_and_body(kit, tmp_path, ExplicitVRLittleEndian)
    at = body.index(b"\xe0\x7f\x10\x00OW")
    claim = b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", 0xFFFFFFF0) + bytes(64)
    (tmp_path / "a000").write_bytes(head + body[:at] + claim)
    (series,) = kit.series(tmp_path)
    assert series.codes == ["truncated", "single_slice"]


@pytest.mark.proves("R17")
def test_sequences_nested_20000_deep_are_refused(tmp_path: Path, kit: Any) -> None:
    head, body = head_and_body(kit, tmp_path, ExplicitVRLittleEndian)
    opening = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    (tmp_path / "deep.dcm").write_bytes(head + opening * 20000 + closing * 20000 + body)
    with pytest.raises(Refused, match=r"deep.dcm"):
        read_header(tmp_path / "deep.dcm", "deep.dcm")


@pytest.mark.proves("R19")
def test_200_damaged_files_end_in_a_verdict(tmp_path: Path, kit: Any) -> None:
    """Bytes changed at random places, and cuts: a header and pixels, or a finding that names the file."""
    kit.write(tmp_path, kit.stack(1))
    raw = np.frombuffer((tmp_path / "a000").read_bytes(), np.uint8)
    path = tmp_path / "fuzz.dcm"
    outcomes = set()
    for seed in range(200):
        random = np.random.default_rng(seed)
        damaged = raw.copy()
        places = random.integers(132, len(raw) - 384, random.integers(1, 20))
        damaged[places] = random.integers(0, 256, len(places))
        path.write_bytes(damaged[: random.integers(140, len(raw) + 1) if seed % 3 == 0 else None].tobytes())
        try:
            image = read_header(path, "fuzz.dcm")[0]
            if not any(finding.effect == "quarantine" for finding in image.findings):
                DicomPixels(tmp_path).frame("fuzz.dcm", 0)
            outcomes.add("read")
        except NotAnImage:
            outcomes.add("other")
        except Refused as refused:
            assert "fuzz.dcm" in str(refused)
            outcomes.add("refused")
    assert outcomes >= {"read", "refused"}


@pytest.mark.proves("R20")
def test_a_preamble_like_a_program_is_flagged(tmp_path: Path, kit: Any) -> None:
    kit.write(tmp_path, kit.stack(1))
    raw = (tmp_path / "a000").read_bytes()
    (tmp_path / "a000").write_bytes(b"MZ" + b"HARMLESS".ljust(126, b"\0") + raw[128:])
    (series,) = kit.series(tmp_path)
    assert series.usable and "executable_preamble" in series.codes


def nifti_bytes(shape: tuple[int, ...]) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *([1] * (7 - len(shape))))
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    header[344:348] = b"n+1\0"
    return bytes(header)


@pytest.mark.proves("R15", "R16", "R21")
@pytest.mark.parametrize(
    ("name", "code"), [("bomb.nii.gz", "bomb"), ("absurd.nii.gz", "too_large"), ("cut.nii", "truncated")]
)
def test_nifti_bombs_and_claims_are_refused_by_their_header(tmp_path: Path, name: str, code: str) -> None:
    path = tmp_path / name
    if code == "bomb":
        with gzip.open(path, "wb", 9) as file:
            file.write(nifti_bytes((1024, 1024, 200)))
            for _ in range(100):
                file.write(bytes(1 << 20))
    elif code == "too_large":
        path.write_bytes(gzip.compress(nifti_bytes((32767, 32767, 32767))))
    else:
        path.write_bytes(nifti_bytes((8, 8, 8)) + bytes(1000))
    before, start = peak_mb(), time.perf_counter()
    with pytest.raises(Refused) as refused:
        read_nifti_header(path, name, "HU")
    assert refused.value.finding.code == code and name in str(refused.value)
    assert peak_mb() - before < 50 and time.perf_counter() - start < 1


@pytest.mark.proves("R21")
def test_a_gzip_cut_in_half_never_gives_a_zero_tail(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = gzip.compress(nifti_bytes((16, 16, 16)) + random.integers(0, 999, 4096).astype("<i2").tobytes())
    path = tmp_path / "half.nii.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refused, match=r"half.nii.gz.*cut or damaged"):
        list(read_nifti_slices(path, "half.nii.gz"))


@pytest.mark.proves("R21")
def test_a_picture_bomb_and_a_cut_picture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(Refused, match=r"bomb.png.*more than a slice has"):
        read_picture(path, "bomb.png")
    cut = tmp_path / "cut.jpg"
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(Refused, match=r"cut.jpg"):
        read_picture(cut, "cut.jpg")


@pytest.mark.shared
@pytest.mark.proves("A3.1", "R14", "R19", "A9")
def test_the_robustness_set_gives_pixels_or_a_reason_that_names_the_file(shared_data: Path) -> None:
    """Every file is counted once; whatever is used agrees with the reference readers, and nothing is
    zero-filled."""
    import csv

    root = shared_data / "robustness"
    start = time.perf_counter()
    plan = plan_folder(root, ReadSettings())
    found = [examine(plan.root, one) for one in plan.series]
    assert time.perf_counter() - start < 20
    counts = plan.counts
    assert counts["found"] == counts["image"] + counts["other"] + counts["unreadable"] == 123
    listed = [file for one in plan.series for file in one.files]
    assert len(listed) == len(set(listed)) == counts["image"]
    with (root / "index.csv").open() as lines:
        reference = {row["file"]: row["reference_reader_result"] for row in csv.DictReader(lines)}
    for one in found:
        for file in one.files:
            if one.usable:
                assert reference[file].startswith("ok"), file
            else:
                assert one.details and one.codes
    assert sum(one.usable for one in found) >= 20
    for file in plan.files:
        assert file.kind not in ("other", "unreadable") or file.reason
