"""TCGA barcodes: whose, which tissue, which of several."""

from __future__ import annotations

import pytest

from medform.ingestion.barcodes import Barcode, is_wanted_tissue, parse_barcode


@pytest.mark.proves("G1.1", "G.tests")
def test_a_barcode_is_read_as_far_as_it_was_written() -> None:
    whole = parse_barcode("TCGA-CS-4943-01A-11R-1470-07")
    assert whole == Barcode("TCGA-CS-4943", 1, "A", "11", "R", "1470", "07")
    assert whole.tissue == "primary solid tumour"
    assert parse_barcode("TCGA-CS-4943") == Barcode("TCGA-CS-4943")
    assert parse_barcode("TCGA-CS-4943-11") == Barcode("TCGA-CS-4943", 11)
    assert parse_barcode("TCGA.CS.4943.02B") == Barcode("TCGA-CS-4943", 2, "B")  # as R writes column names


@pytest.mark.parametrize("text", ["TCGA-CS-494", "TCGA-CS-49433", "R01-013", "TCGA-CS-4943-1", "", "TCGA-CS-4943-01A-"])
def test_other_ids_are_no_barcodes(text: str) -> None:
    assert parse_barcode(text) is None


@pytest.mark.proves("G1.1", "G.tests")
def test_tumours_are_01_to_09() -> None:
    codes = [code for code in range(30) if is_wanted_tissue(Barcode("TCGA-CS-4943", code), "tumour")]
    assert codes == list(range(1, 10))
    assert [code for code in range(30) if is_wanted_tissue(Barcode("x", code), "normal")] == list(range(10, 20))
    assert is_wanted_tissue(Barcode("x", 20), "any") and is_wanted_tissue(Barcode("x"), "tumour")


@pytest.mark.proves("G1.1", "G.tests")
def test_the_lowest_sample_vial_portion_and_plate_counts() -> None:
    texts = [
        "TCGA-CS-4943-01A-11R-1470-07",
        "TCGA-CS-4943-01A-11R-1896-13",
        "TCGA-CS-4943-01A-21R-1234-07",
        "TCGA-CS-4943-01B-11R-0001-07",
        "TCGA-CS-4943-02A-11R-0001-07",
    ]
    barcodes = [parse_barcode(text) for text in texts]
    backwards = barcodes[::-1]
    assert sorted(backwards, key=lambda one: one.rank) == barcodes
