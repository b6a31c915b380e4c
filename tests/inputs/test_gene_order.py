"""The order of genes: by cluster, or along the chromosomes of an annotation; what is no annotation is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from medform.cohort.genes import Genes
from medform.errors import InputError
from medform.inputs.gene_order import cluster_order, position_order
from medform.inputs.genes import GeneEncoder, GeneInputConfig

NAMES = ("TP53", "EGFR", "IDH1", "SEPT2", "NA", "PTEN", "ATRX", "NF1")


def test_cluster_order_of_few_equal_or_too_many_genes() -> None:
    rows = np.zeros((5, 4))
    assert sorted(cluster_order(rows, ["d", "c", "b", "a"]).tolist()) == [0, 1, 2, 3]
    assert cluster_order(rows[:, :2], ["b", "a"]).tolist() == [1, 0]
    with pytest.raises(InputError, match="too many to be clustered"):
        cluster_order(np.zeros((1, 10_001)), [str(number) for number in range(10_001)])


def gtf_line(chromosome: str, feature: str, start: int, attributes: str) -> str:
    return "\t".join([chromosome, "HAVANA", feature, str(start), str(start + 99), ".", "+", ".", attributes])


ANNOTATION = "\n".join(
    [
        "##description: a few genes",
        gtf_line("chr17", "gene", 7_661_779, 'gene_id "ENSG00000141510.18"; gene_name "TP53";'),
        gtf_line("chr17", "transcript", 5, 'gene_id "ENSG00000141510.18"; gene_name "TP53";'),
        gtf_line("chr7", "gene", 55_019_017, 'gene_id "ENSG00000146648.19"; gene_name "EGFR";'),
        gtf_line("chrX", "gene", 77_504_880, 'gene_id "ENSG00000085224.23"; gene_name "ATRX";'),
        gtf_line("chr2", "gene", 208_236_227, 'gene_id "ENSG00000138413.14"; gene_name "IDH1";'),
        gtf_line("chr10", "gene", 87_862_638, 'gene_id "ENSG00000171862.12"; gene_name "PTEN"; db_xref "GeneID:5728";'),
        gtf_line("chrM", "gene", 1, 'gene_id "ENSG00000198888.2"; gene_name "MT-ND1";'),
        gtf_line("GL000220.1", "gene", 1, 'gene_id "ENSG00000000001.1"; gene_name "NF1";'),
        "",
    ]
)


@pytest.mark.proves("G2.1")
@pytest.mark.parametrize("packed", [False, True])
def test_genes_follow_the_chromosomes_of_an_annotation(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "annotation"
    path.write_bytes(gzip.compress(ANNOTATION.encode()) if packed else ANNOTATION.encode())
    patients = ("P1", "P2", "P3")
    genes = Genes(patients, NAMES, np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32), "zscore")
    encoder = GeneEncoder.fit(genes, patients, GeneInputConfig(order="position", gtf=path))
    assert encoder.gene_ids[:6] == ("IDH1", "EGFR", "PTEN", "TP53", "ATRX", "NF1")
    assert encoder.gene_ids[6:] == encoder.unplaced == ("NA", "SEPT2")
    whole = GeneEncoder.fit(genes, patients).encode(genes)
    turned = [whole.gene_ids.index(name) for name in encoder.gene_ids]
    assert np.array_equal(encoder.encode(genes).expression, whole.expression[:, turned])


@pytest.mark.proves("G2.1")
def test_genes_are_found_by_ensembl_id_of_another_version_and_by_entrez_id(tmp_path: Path) -> None:
    path = tmp_path / "genes.gtf"
    path.write_text(ANNOTATION)
    names = ("ENSG00000141510.99", "5728", "ENSG00000138413", "nowhere")
    order, unplaced = position_order(names, path)
    assert [names[place] for place in order] == ["ENSG00000138413", "5728", "ENSG00000141510.99", "nowhere"]
    assert unplaced == ("nowhere",)


@pytest.mark.proves("G.input")
def test_what_is_no_annotation_is_refused_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "genes.gtf"

    def refusal(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            position_order(NAMES, path)
        return str(error.value)

    assert "row 2: 'TP53,17,7661779': 1 columns, a GTF line has 9." in refusal(b"#\nTP53,17,7661779\n")
    assert "the start is not a number" in refusal(gtf_line("1", "gene", 1, "").replace("\t1\t", "\tone\t").encode())
    assert "it has ENSMUSG01, Trp53; the matrix has TP53" in refusal(
        gtf_line("11", "gene", 1, 'gene_id "ENSMUSG01"; gene_name "Trp53";').encode()
    )
    assert "cannot be read" in refusal(gzip.compress(ANNOTATION.encode())[:60])
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        position_order(NAMES, path)


@pytest.mark.proves("G2.1")
def test_an_annotation_without_lines_of_genes_is_read_by_its_other_lines(tmp_path: Path) -> None:
    path = tmp_path / "exons.gtf"
    lines = [gtf_line("2", "exon", start, f'gene_id "x"; gene_name "{name}";') for name, start in (("B", 9), ("A", 70))]
    path.write_text("\n".join([*lines, gtf_line("1", "exon", 500, 'gene "C";'), gtf_line("2", "exon", 3, 'gene "A";')]))
    order, _ = position_order(("A", "B", "C"), path)
    assert order.tolist() == [2, 0, 1]  # a gene stands where its first exon does
