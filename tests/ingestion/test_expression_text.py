"""Text matrices: every cell as Python reads it, whatever the blocks, quotes and line ends."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medform.errors import InputError
from medform.ingestion import expression_text
from medform.ingestion.expression_text import Faults, TextMatrix, cell_value, first_lines, split_line

MISSING = ("", "NA", "NaN")
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e6, 1e6).map("{:.4f}".format),
    st.integers(-(10**20), 10**20).map(str),
    st.decimals(-1000, 1000, places=12).map(str),
)
CELLS = st.one_of(
    NUMBERS,
    st.sampled_from(["", "NA", "NaN", "nan", "inf", "1e5", "1E-300", "1e400", "-", "+", ".", "1.", ".5", "1_0", "0x1"]),
    st.sampled_from([" 1.5 ", '"2.5"', '"NA"', "1e", "1e+", "2-Sep", "<0.1", "--1", "1,5", "00012", "9" * 25]),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def matrix(path: Path, width: int, point: str = ".", separator: str = "\t", skip: int = 0) -> TextMatrix:
    """One text field, then ``width`` values."""
    roles = np.array([-2, *range(width)], np.int64)
    return TextMatrix(path, separator, tuple(f"c{at}" for at in range(width + 1)), roles, skip, MISSING, point)


def read(source: TextMatrix) -> tuple[list[str], np.ndarray, Faults, list[int]]:
    faults = Faults("m.tsv", source.names)
    blocks = list(source.blocks(faults))
    ids = [one for block in blocks for one in block.texts[0]]
    lines = [line for block in blocks for line in block.lines.tolist()]
    return ids, np.concatenate([block.values for block in blocks]), faults, lines


@pytest.mark.proves("G1.1", "G1.2")
@settings(max_examples=100)
@given(cells=st.lists(CELLS, min_size=1, max_size=12), point=st.sampled_from([".", ","]))
def test_the_compiled_pass_reads_every_cell_as_its_plain_twin(scratch: Path, cells: list[str], point: str) -> None:
    path = scratch / "m.tsv"
    path.write_text("\t".join(["G", *cells]) + "\n", newline="")
    _, values, faults, _ = read(matrix(path, len(cells), point))
    expected = [cell_value(cell, MISSING, point) for cell in cells]
    np.testing.assert_array_equal(values[0], [np.nan if one is None else one for one in expected])
    assert faults.by_field == {at + 1: 1 for at, one in enumerate(expected) if one is None}


@settings(max_examples=100)
@given(NUMBERS)
def test_the_plain_twin_is_pythons_float(text: str) -> None:
    with np.errstate(over="ignore"):
        wanted = np.float32(float(text))
    got = cell_value(text, MISSING)
    assert got is None if np.isinf(wanted) else np.float32(got) == wanted


@pytest.mark.proves("G1.2", "G.input")
@pytest.mark.parametrize(("size", "cells"), [(16, 1 << 18), (64, 3), (1 << 20, 7)])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [True, False])
def test_blocks_of_any_size_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, cells: int, end: str, packed: bool
) -> None:
    monkeypatch.setattr(expression_text, "BYTES", size)
    monkeypatch.setattr(expression_text, "CELLS", cells)
    table = np.random.default_rng(0).normal(size=(23, 3)).round(3)
    rows = [f'"gene {at}"\t' + "\t".join(map(str, row)) for at, row in enumerate(table)]
    text = end.join(["# a comment", "gene\ta\tb\tc", *rows[:9], "", *rows[9:]])  # a blank line, no end of the last
    path = tmp_path / "m.csv"
    content = text.encode()
    path.write_bytes(gzip.compress(content[:200]) + gzip.compress(content[200:]) if packed else content)
    ids, values, faults, lines = read(matrix(path, 3, skip=2))
    assert ids == [f"gene {at}" for at in range(23)] and not faults.problems()
    np.testing.assert_array_equal(values, table.astype(np.float32))
    assert lines == [3 + at + (at >= 9) for at in range(23)]


@pytest.mark.proves("G.input")
def test_ragged_rows_and_text_cells_are_named_by_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"
    path.write_text("A\t1\t2\nB\t3\nC\tx\t4\t5\nD\t6\tlow\n")
    ids, values, faults, _ = read(matrix(path, 2))
    text = "\n".join(map(str, faults.problems()))
    assert ids == ["A", "B", "C", "D"] and np.isnan(values[1:3]).all()
    for part in (
        "row 2: 2 fields for 3 columns",
        "row 3: 4 fields",
        "row 3, column 'c1': 'x'",
        "row 4, column 'c2': 'low'",
    ):
        assert part in text


def test_a_column_of_text_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"
    path.write_text("".join(f"P{at}\t1.5\tfemale\n" for at in range(300)))
    *_, faults, _ = read(matrix(path, 2))
    (problem,) = faults.problems()
    assert problem.column == "c2" and "genes.ignore" in str(problem)


def test_many_faults_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"
    path.write_text("".join(f"P{at}\t{'x' if at else 1}\n" for at in range(20_000)))
    *_, faults, _ = read(matrix(path, 1))
    problems = faults.problems()
    assert len(problems) == 41 and "19959 more cells" in str(problems[-1])


@pytest.mark.proves("G.input")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04....", "a workbook or zip archive"),
        (b"\xff\xfea\x00", "UTF-16"),
        (b"g\xe9ne\t1\n", "not UTF-8"),
        (gzip.compress(b"gene\tA\n" * 4000, 0)[:3000], "damaged or cut short"),
    ],
)
def test_files_that_are_no_text_table_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.tsv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        first_lines(path, 10_000)


def test_a_gz_stream_that_is_cut_short_is_refused_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv.gz"
    rows = "".join(f"G{at}\t{at}\n" for at in range(100_000))
    path.write_bytes(gzip.compress(rows.encode())[:-40_000])
    with pytest.raises(InputError, match="damaged or cut short"):
        read(matrix(path, 1))


def test_names_of_a_header_lose_quotes_and_blanks() -> None:
    assert split_line('"","a, b" ,c') == (["", "a, b", "c"], ",")
    assert split_line("gene;x;y") == (["gene", "x", "y"], ";")


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"\xef\xbb\xbfgene,A\nNA,1\n")
    assert first_lines(path, 2) == ["gene,A", "NA,1"]
