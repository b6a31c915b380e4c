"""Every format of expression gives the same matrix; every fault of one is told, all at once."""

from __future__ import annotations

import gzip
import importlib
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medform.cohort.cohort_file import CohortFile, parse_cohort_file
from medform.errors import ExtraMissing, InputError
from medform.ingestion.expression import Expression, expression_digest, read_expression

PATIENTS = ["TCGA-CS-0001", "TCGA-CS-0002", "TCGA-DU-0003", "TCGA-DU-0004"]
GENES = ["TP53", "NA", "nan", "SEPT2", "HLA-A"]
VALUES = np.array([[1.5, -2, 0.25, 3, 1e-3], [0, 1, 7, -4, 12.125], [5, 6, -7, 8, 0.1]], np.float32)  # 3 patients
SAMPLES = [f"{one}-01A-11R-1470-07" for one in PATIENTS[:3]]


def cohort(root: Path, **genes: Any) -> CohortFile:
    tree = {"name": "c", "licence": "CC0", "images": {}, "genes": {"path": "m.csv", "scale": "zscore", **genes}}
    return parse_cohort_file(tree, "cohort.yaml", root)


def read(root: Path, known: Iterable[str] = PATIENTS, **genes: Any) -> Expression:
    return read_expression(cohort(root, **genes), list(known))


def frame_of(expression: Expression) -> pd.DataFrame:
    record = expression.record
    return pd.DataFrame(record.values, index=list(record.patient_ids), columns=list(record.gene_ids))


def assert_whole(expression: Expression, values: np.ndarray = VALUES, genes: list[str] = GENES) -> None:
    found = frame_of(expression).loc[PATIENTS[:3], genes]
    np.testing.assert_array_equal(found.to_numpy(), values)
    assert expression.record.values.dtype == np.float32 and expression.counts["genes_matched"] == 3


def table(values: np.ndarray, rows: list[str], columns: list[str], corner: str = "", sep: str = ",") -> str:
    lines = [sep.join([corner, *columns])]
    lines += [sep.join([name, *map(repr, row.tolist())]) for name, row in zip(rows, values, strict=True)]
    return "\n".join(lines) + "\n"


@pytest.mark.proves("G1.1", "G.tests")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("orientation", ["auto", "declared"])
@pytest.mark.parametrize("sep", [",", "\t", ";"])
def test_wide_tables_in_both_orientations(tmp_path: Path, packed: bool, orientation: str, sep: str) -> None:
    texts = {
        "patients_in_rows": table(VALUES, PATIENTS[:3], GENES, "patient_id", sep),
        "genes_in_rows": table(VALUES.T, GENES, SAMPLES, "gene", sep),
    }
    for lies, text in texts.items():
        (tmp_path / "m.csv").write_bytes(gzip.compress(text.encode()) if packed else text.encode())
        assert_whole(read(tmp_path, orientation="auto" if orientation == "auto" else lies))


@pytest.mark.proves("G.input")
def test_rows_that_end_in_a_separator_are_not_taken_for_row_names(tmp_path: Path) -> None:
    header, *rows = table(VALUES, PATIENTS[:3], GENES, "patient_id").splitlines()
    (tmp_path / "m.csv").write_text("\n".join([header, *(row + "," for row in rows)]) + "\n")
    with pytest.raises(InputError, match="every row ends in a separator") as caught:
        read(tmp_path)
    assert "m.csv:2" in str(caught.value) and "remove the separator" in str(caught.value)


@pytest.mark.proves("G1.1", "G.tests")
def test_a_table_as_r_writes_it(tmp_path: Path) -> None:
    quoted = [f'"{one}"' for one in SAMPLES]
    body = table(VALUES.T, [f'"{one}"' for one in GENES], quoted, '""')
    (tmp_path / "m.csv").write_text(body)
    assert_whole(read(tmp_path))
    header, rest = body.split("\n", 1)
    points = header.replace("-", ".").removeprefix('"",')  # no corner, and names as R mends them
    (tmp_path / "m.csv").write_text(f"{points}\n{rest}")
    assert_whole(read(tmp_path))


@pytest.mark.proves("G1.1", "G.tests")
def test_the_id_column_may_stand_anywhere_and_others_be_ignored(tmp_path: Path) -> None:
    frame = pd.DataFrame(VALUES, columns=GENES).assign(centre=["a", "b", "a"], case=PATIENTS[:3])
    frame.to_csv(tmp_path / "m.csv")  # with row numbers in a nameless column
    assert_whole(read(tmp_path, patient_id="case", ignore=["centre"]))
    with pytest.raises(InputError) as caught:
        read(tmp_path, patient_id="case")
    assert "column 'centre': 'a': no cell of this column is a number" in str(caught.value)
    with pytest.raises(InputError, match="did you mean 'case'"):
        read(tmp_path, patient_id="cases")


@pytest.mark.proves("G1.1", "G1.2", "G.input")
@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_row_numbers_are_not_taken_for_patients_who_are_numbered(tmp_path: Path, name: str) -> None:
    patients = [str(one) for one in range(1, 6)]
    frame = pd.DataFrame(VALUES, columns=GENES).assign(case=[5, 4, 2]).rename_axis(name or None)
    frame.to_csv(tmp_path / "m.csv")
    with pytest.raises(InputError) as caught:
        read(tmp_path, patients)
    (problem,) = caught.value.problems
    assert "the first column may only number the rows: the patients' ids may stand in 'case'" in str(problem)
    assert f'Set genes.patient_id: case; if the first column does hold the ids, genes.patient_id: "{name}"' in str(
        problem
    )
    found = frame_of(read(tmp_path, patients, patient_id="case"))
    assert list(found.index) == ["5", "4", "2"] and list(found.columns) == GENES
    numbered = frame_of(read(tmp_path, patients, patient_id=name, ignore=["case"]))
    assert list(numbered.index) == ["1", "2"] and list(numbered.columns) == GENES
    frame.drop(columns="case").set_axis([1, 2, 3]).to_csv(tmp_path / "m.csv")  # patients who are numbered
    assert list(frame_of(read(tmp_path, patients)).index) == ["1", "2", "3"]


@pytest.mark.proves("G1.1", "G.input")
@pytest.mark.parametrize("late", [0, 300])
def test_a_matrix_with_patients_ids_both_ways_is_asked_about(tmp_path: Path, late: int) -> None:
    """Entrez ids are numbers, and so may patients be; the rows with patients may come late."""
    entrez = ["7157", "672", "1", "2", "9"]
    names = [f"S{at}" for at in range(late)] + ["1", "2", "4"]
    values = np.vstack([np.ones((late, 5)), VALUES]).astype(np.float32)
    for text in (table(values, names, entrez, "id"), table(values.T, entrez, names, "id")):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(InputError) as caught:
            read(tmp_path, ["1", "2", "3", "4"], id_kind="entrez")
        across, down = (2, 3) if text.startswith("id,7157") else (3, 2)
        said = f"{across} names of its header and {down} ids of its rows are patients'. Set genes.orientation"
        assert said in str(caught.value)
    turned = read(tmp_path, ["1", "2", "3", "4"], id_kind="entrez", orientation="genes_in_rows")
    np.testing.assert_array_equal(frame_of(turned).loc[["1", "2", "4"], entrez].to_numpy(), VALUES)


CBIOPORTAL = ["Hugo_Symbol", "Entrez_Gene_Id"]


@pytest.mark.proves("G1.1", "G.tests")
@pytest.mark.parametrize("name", ["data_mrna_seq_v2_rsem.txt", "data_mrna_seq_v2_rsem_zscores_ref_all_samples.txt"])
def test_cbioportal(tmp_path: Path, name: str) -> None:
    lines = ["\t".join([*CBIOPORTAL, *(one[:15] for one in SAMPLES), "TCGA-CS-0001-06"])]
    for place, (gene, row) in enumerate(zip(GENES, VALUES.T, strict=True)):
        lines.append("\t".join([gene, str(place + 100), *map(str, row.tolist()), "NA"]))
    lines.append("\t".join(["", "7157", "1", "2", "3", "4"]))
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "data_clinical_sample.txt").write_text(
        "#Patient\tSample\tType\n#p\ts\tt\n#STRING\tSTRING\tSTRING\n#1\t1\t1\nPATIENT_ID\tSAMPLE_ID\tSAMPLE_TYPE\n"
        + "".join(f"{one[:12]}\t{one[:15]}\tPrimary\n" for one in SAMPLES)
    )
    plain = read(tmp_path, path=name)
    assert_whole(plain)
    assert plain.record.facts["format"] == "cbioportal" and plain.counts["genes_ambiguous"] == 1
    assert list(plain.record.gene_ids) == [*GENES, "7157"]  # without a symbol: by its Entrez id
    sheeted = read(tmp_path, path=name, samples="data_clinical_sample.txt")
    assert_whole(sheeted)
    assert sheeted.counts["genes_orphan"] == 1  # the metastasis is not in the sheet
    entrez = read(tmp_path, path=name, id_kind="entrez", format="cbioportal")
    assert entrez.record.gene_ids == ("100", "101", "102", "103", "104", "7157")


@pytest.mark.proves("G1.1", "G.tests")
def test_xena(tmp_path: Path) -> None:
    genes = [f"ENSG0000000000{at}.{at}" for at in range(5)]
    rows = np.vstack([VALUES.T, [[9, 9, 9]]])
    text = table(rows, [*genes, "__no_feature"], [one[:16] for one in SAMPLES], "Ensembl_ID", "\t")
    (tmp_path / "m.tsv.gz").write_bytes(gzip.compress(text.encode()))
    found = read(tmp_path, path="m.tsv.gz", format="xena", id_kind="ensembl")
    assert_whole(found, genes=[one.split(".")[0] for one in genes])
    assert found.record.facts["dropped"] == [{"gene": "__no_feature", "reason": "a summary line of the counter"}]


@pytest.mark.proves("G1.1", "G.tests")
def test_gct_1_2_and_1_3(tmp_path: Path) -> None:
    rows = "".join("\t".join([f"ENSG{at:011d}.1", gene, *map(str, VALUES[:, at].tolist())]) + "\n"
                   for at, gene in enumerate(GENES))  # fmt: skip
    (tmp_path / "m.gct").write_text("#1.2\n5\t3\n" + "\t".join(["Name", "Description", *SAMPLES]) + "\n" + rows)
    assert_whole(read(tmp_path, path="m.gct"))
    by_name = read(tmp_path, path="m.gct", id_kind="ensembl")
    assert by_name.record.gene_ids[0] == "ENSG00000000000" and by_name.record.facts["format"] == "gct"
    rows = "".join("\t".join([gene, "chr1", *map(str, VALUES[:, at].tolist())]) + "\n" for at, gene in enumerate(GENES))
    head = "#1.3\n5\t3\t1\t2\n" + "\t".join(["id", "chromosome", *SAMPLES]) + "\n"
    (tmp_path / "n.gct").write_text(head + "sex\tna\tF\tM\tF\nage\tna\t1\t2\t3\n" + rows)
    assert_whole(read(tmp_path, path="n.gct"))
    (tmp_path / "n.gct").write_text(head + "sex\tna\tF\tM\tF\nage\tna\t1\t2\t3\n" + rows[:-60])
    with pytest.raises(InputError, match="the second line says 5 rows; there are"):
        read(tmp_path, path="n.gct")
    (tmp_path / "n.gct").write_text("#1.3\n5\t9\t1\t2\n" + head.split("\n", 2)[2] + rows)
    with pytest.raises(InputError, match="says 9 samples; the header names 3"):
        read(tmp_path, path="n.gct")


def write_gdc(folder: Path) -> None:
    """Four files: three tumours (one in the folder of its id), one normal tissue."""
    tissue = ["Primary Tumor"] * 3 + ["Solid Tissue Normal"]
    sheet = ["\t".join(["File ID", "File Name", "Data Type", "Case ID", "Sample ID", "Sample Type"])]
    for at, kind in enumerate(tissue):
        name, case = f"u{at}.rna_seq.augmented_star_gene_counts.tsv", PATIENTS[at % 3]
        sample = f"{case}-{'11A' if at == 3 else '01A'}"
        sheet.append("\t".join([f"id{at}", name, "Gene Expression Quantification", case, sample, kind]))
        lines = [
            "# gene-model: GENCODE v36",
            "gene_id\tgene_name\tgene_type\tunstranded\tstranded_first\ttpm_unstranded",
        ]
        lines += [f"N_{word}\t\t\t12\t12\t" for word in ("unmapped", "multimapping", "noFeature", "ambiguous")]
        lines += [f"ENSG{gene:011d}.{gene}\t{GENES[gene]}\tprotein_coding\t{10 * at + gene}\t0\t{at + gene / 8}"
                  for gene in range(5)]  # fmt: skip
        path = folder / (f"id{at}" if at == 1 else "") / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("\n".join(lines) + "\n")
    (folder.parent / "sheet.tsv").write_text("\n".join(sheet) + "\n")


@pytest.mark.proves("G1.1", "G.tests")
def test_a_folder_of_gdc_files(tmp_path: Path) -> None:
    write_gdc(tmp_path / "star")
    patient, gene = np.mgrid[:3, :5]
    counts = read(tmp_path, path="star", samples="sheet.tsv", scale="counts")
    assert_whole(counts, 10 * patient + gene)
    assert counts.counts["genes_orphan"] == 1 and counts.record.facts["format"] == "gdc"
    tpm = read(tmp_path, path="star", samples="sheet.tsv", scale="tpm", id_kind="ensembl")
    assert_whole(tpm, patient + gene / 8, [f"ENSG{gene:011d}" for gene in range(5)])
    with pytest.raises(InputError, match="named by UUIDs"):
        read(tmp_path, path="star", scale="counts")
    with pytest.raises(InputError, match="scale: counts or tpm"):
        read(tmp_path, path="star", samples="sheet.tsv", format="gdc")
    (tmp_path / "star/u2.rna_seq.augmented_star_gene_counts.tsv").unlink()
    with pytest.raises(InputError, match="1 of 3 files of the sample sheet are not there"):
        read(tmp_path, path="star", samples="sheet.tsv", scale="counts")


@pytest.mark.proves("G1.1")
def test_gdc_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    write_gdc(tmp_path / "star")
    sheet = (tmp_path / "sheet.tsv").read_text()
    for at in range(4):
        name, folder = f"u{at}.rna_seq.augmented_star_gene_counts.tsv", tmp_path / "star" / f"id{at}"
        folder.mkdir(exist_ok=True)
        (folder / name if at == 1 else tmp_path / "star" / name).rename(folder / "star_gene_counts.tsv")
        sheet = sheet.replace(name, "star_gene_counts.tsv")
    (tmp_path / "sheet.tsv").write_text(sheet)
    patient, gene = np.mgrid[:3, :5]
    assert_whole(read(tmp_path, path="star", samples="sheet.tsv", scale="counts"), 10 * patient + gene)


def test_gdc_files_with_other_genes_are_refused(tmp_path: Path) -> None:
    write_gdc(tmp_path / "star")
    path = tmp_path / "star/u2.rna_seq.augmented_star_gene_counts.tsv"
    path.write_text(path.read_text().replace("TP53", "TP73"))
    with pytest.raises(InputError, match=r"other genes than 'u0.rna_seq"):
        read(tmp_path, path="star", samples="sheet.tsv", scale="counts")


@pytest.mark.proves("G1.1", "G.tests")
@pytest.mark.parametrize("kind", ["dense", "csr_matrix", "csc_matrix"])
def test_h5ad(tmp_path: Path, kind: str) -> None:
    h5py = pytest.importorskip("h5py")
    import scipy.sparse

    values = np.vstack([VALUES, [[9] * 5], VALUES[:1]])  # a stranger, and a second sample of nobody
    with h5py.File(tmp_path / "m.h5ad", "w") as file:
        if kind == "dense":
            file["X"] = values
        else:
            sparse = getattr(scipy.sparse, kind)(values)
            group = file.create_group("X")
            group.attrs["encoding-type"], group.attrs["shape"] = kind, values.shape
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(sparse, name)
        for name, ids in (("obs", ["o1", "o2", "o3", "o4", "o5"]), ("var", GENES)):
            group = file.create_group(name)
            group.attrs["_index"] = "_index"
            group["_index"] = np.array(ids, dtype=h5py.string_dtype())
        donor = file["obs"].create_group("donor")
        donor["categories"] = np.array([*PATIENTS[:3], "TCGA-ZZ-0009"], dtype=h5py.string_dtype())
        donor["codes"] = np.array([0, 1, 2, 3, -1], np.int8)
    found = read(tmp_path, path="m.h5ad", patient_id="donor")
    assert_whole(found)
    assert found.counts["genes_orphan"] == 2 and found.record.facts["format"] == "h5ad"
    with pytest.raises(InputError, match="obs has no column 'patient'"):
        read(tmp_path, path="m.h5ad", patient_id="patient")
    with pytest.raises(InputError, match="no sample is a patient's"):
        read(tmp_path, path="m.h5ad")
    without = read(tmp_path, path="m.h5ad", patient_id="donor", ignore=["SEPT2"])
    assert list(without.record.gene_ids) == [one for one in GENES if one != "SEPT2"]


@pytest.mark.proves("G.input")
def test_a_broken_h5ad_and_a_missing_h5py_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.h5ad").write_bytes(b"\x89HDF\r\n\x1a\nnothing")
    with pytest.raises(InputError, match=r"not a readable .h5ad"):
        read(tmp_path, path="m.h5ad")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ExtraMissing) as caught:
        read(tmp_path, path="m.h5ad")
    assert caught.value.exit_code == 4 and "medform[genes]" in str(caught.value)


NAMES = st.text(
    st.characters(categories=("L", "N", "P", "S"), exclude_characters='",;\t|#'), min_size=1, max_size=8
).map("g{}".format)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.proves("G1.1", "G.tests", "R27")
@settings(max_examples=60)
@given(
    genes=st.lists(
        st.one_of(NAMES, st.sampled_from(["NA", "nan", "2-Sep", "44621"])), min_size=2, max_size=6, unique=True
    ),
    turned=st.booleans(),
    data=st.data(),
)
def test_what_is_written_is_read_back(scratch: Path, genes: list[str], turned: bool, data: Any) -> None:
    patients = [f"P{at}" for at in range(3)]
    floats = st.floats(-(2.0**99), 2.0**99, width=32)
    rows = data.draw(st.lists(st.lists(floats, min_size=len(genes), max_size=len(genes)), min_size=3, max_size=3))
    values = np.array([*rows], np.float32)
    values[0], values[1] = -1.0, 1.0  # so that the scale is plausible and no gene is constant
    text = table(values.T, genes, patients, "g") if turned else table(values, patients, genes, "p")
    (scratch / "m.csv").write_text(text, encoding="utf-8")
    found = frame_of(read(scratch, patients, scale="zscore"))
    np.testing.assert_array_equal(found.loc[patients, genes].to_numpy(), values)


@pytest.mark.proves("G1.1", "R27")
def test_suspected_damage_is_listed_and_kept(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(table(VALUES, PATIENTS[:3], ["2-Sep", "1-Mar", "44621", "NA", "SEPT2"], "id"))
    found = read(tmp_path)
    assert found.record.gene_ids == ("2-Sep", "1-Mar", "44621", "NA", "SEPT2")
    assert found.record.facts["suspected_damage"] == ["1-Mar", "2-Sep", "44621"]
    assert "3 names may have been changed by a spreadsheet" in "\n".join(found.notes)


@pytest.mark.proves("G.input", "G1.2")
def test_genes_without_a_value_are_dropped_and_constant_ones_kept_and_both_listed(tmp_path: Path) -> None:
    values = np.column_stack([VALUES[:, :2], [0, 0, 0], [2, 2, 2], [1, 2, 3]]).astype(np.float32)
    text = table(values, PATIENTS[:3], GENES, "id").replace("2.0,1.0\n", "2.0,\n")
    header, *rows = text.splitlines()
    (tmp_path / "m.csv").write_text("\n".join([f"{header},EMPTY", *(f"{row}," for row in rows)]) + "\n")
    found = read(tmp_path)
    assert list(found.record.gene_ids) == GENES
    assert found.record.facts["dropped"] == [{"gene": "EMPTY", "reason": "no value"}]
    assert found.record.facts["constant"] == [
        {"gene": "nan", "reason": "all zero"},
        {"gene": "SEPT2", "reason": "always 2"},
    ]
    assert found.counts["genes_kept"] == 5 and found.counts["genes_dropped"] == 1 and found.record.facts["missing"] == 4
    assert np.isnan(frame_of(found).loc[PATIENTS[0], "HLA-A"])
    notes = "\n".join(found.notes)
    assert "2 are the same in all patients (first: nan, SEPT2)" in notes and "(first: EMPTY)" in notes


@pytest.mark.proves("G.input")
@pytest.mark.parametrize(
    ("text", "genes", "parts"),
    [
        ("id,A,B\nQ1,1,-2\nQ2,3,4\n", {}, ["'Q1', 'Q2'", "'TCGA-CS-0001'", "genes.id_map"]),
        (table(VALUES.T, GENES, PATIENTS[:3]), {"orientation": "patients_in_rows"}, ["the other way", "genes_in_rows"]),
        (table(VALUES, PATIENTS[:3], GENES), {"orientation": "genes_in_rows"}, ["the other way", "patients_in_rows"]),
        ("id,A,B\n", {}, ["a header but no row"]),
        ("", {}, ["the file is empty"]),
        ("gene\nA\n", {}, ["the header is a single field"]),
        (f"id,A,\n{PATIENTS[0]},1,-2\n{PATIENTS[1]},1,2\n", {}, ["column 3 has no name"]),
        (f"id,A,B\n{PATIENTS[0]},1,-2\n{PATIENTS[0]},3,4\n", {}, ["stands 2 times (row 2, row 3)"]),
        (f"id,A,A\n{PATIENTS[0]},1,-2\n{PATIENTS[1]},3,4\n", {}, ["'A': this gene stands in columns 2, 3"]),
        (f"id,A,B\n{PATIENTS[0]},1,-2\n{PATIENTS[1]},3\n", {}, ["row 3: 2 fields for 3 columns"]),
        (f"id,A,B\n{PATIENTS[0]},1,-2\n{PATIENTS[1]},3,high\n", {}, ["m.csv, row 3, column 'B': 'high': not a number"]),
        (f"id,A,B\n{PATIENTS[0]},1,-2\n{PATIENTS[1]},3,inf\n", {}, ["row 3, column 'B': 'inf'"]),
        (f"id,A,B\n{PATIENTS[0]},1,-2\n{PATIENTS[1]},3,4\n", {"scale": "counts"}, ["'-2'", "negative"]),
    ],
)
def test_bad_input_gets_words(tmp_path: Path, text: str, genes: dict[str, Any], parts: list[str]) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read(tmp_path, **genes)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.proves("G.input")
def test_all_faults_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        f"id,A,B,A\n{PATIENTS[0]},1,-2,x\n{PATIENTS[0]},3,4\n{PATIENTS[1]},1.5,1,1\n{PATIENTS[2]},2,2,2\n"
    )
    with pytest.raises(InputError) as caught:
        read(tmp_path, scale="counts")
    text = str(caught.value)
    parts = ["this gene stands", "stands 2 times", "row 3: 3 fields", "'x': not a number", "negative", "not a whole"]
    assert all(part in text for part in parts), text
    assert text.startswith(f"{tmp_path / 'm.csv'}: 6 problems") and "Nothing was written" in text


@pytest.mark.proves("G1.1")
def test_sample_sheets_with_faults_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(table(VALUES, PATIENTS[:3], GENES, "id"))
    (tmp_path / "s.csv").write_text("sample_id,patient_id\nS1,P1\nS1,P2\nS2,\n")
    with pytest.raises(InputError) as caught:
        read(tmp_path, samples="s.csv")
    assert "stands in row 2 too" in str(caught.value) and "this cell is empty" in str(caught.value)
    (tmp_path / "s.csv").write_text("barcode,patient_id\nS1,P1\n")
    with pytest.raises(InputError, match="no such column"):
        read(tmp_path, samples="s.csv")


def test_values_of_strangers_are_not_kept(tmp_path: Path) -> None:
    values = np.vstack([VALUES, np.full((50, 5), 7)]).astype(np.float32)
    names = [*SAMPLES, *(f"TCGA-ZZ-{at:04d}-01A" for at in range(50))]
    for text in (table(values, names, GENES, "id"), table(values.T, GENES, names, "id")):
        (tmp_path / "m.csv").write_text(text)
        found = read(tmp_path)
        assert found.record.values.shape == (3, 5) and found.counts["genes_orphan"] == 50


def test_the_digest_follows_from_every_file(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id,A\nP,1\n")
    (tmp_path / "s.csv").write_text("sample_id,patient_id\nP,P\n")
    plain = cohort(tmp_path, samples="s.csv")
    before = expression_digest(plain)
    (tmp_path / "s.csv").write_text("sample_id,patient_id\nP,Q\n")
    assert expression_digest(plain) != before
    write_gdc(tmp_path / "star")
    folder = cohort(tmp_path, path="star", samples="sheet.tsv", scale="counts")
    before = expression_digest(folder)
    with (tmp_path / "star/u0.rna_seq.augmented_star_gene_counts.tsv").open("a") as file:
        file.write("more\n")
    assert expression_digest(folder) != before
    before = expression_digest(folder)
    path = tmp_path / "star/u0.rna_seq.augmented_star_gene_counts.tsv"
    size = path.stat().st_size
    path.write_text(path.read_text().replace("protein_coding\t3", "protein_coding\t8"))  # one count, the same size
    assert path.stat().st_size == size and expression_digest(folder) != before
    bare = parse_cohort_file({"name": "c", "licence": "CC0", "images": {}}, "c.yaml", tmp_path)
    assert expression_digest(bare) == ""


@pytest.mark.proves("G1.2", "G.speed")
@pytest.mark.parametrize("turned", [True, False])
def test_little_more_than_the_values_is_in_memory(tmp_path: Path, turned: bool) -> None:
    """Of 8 MB of text and 4.8 MB of values; so 20,000 genes x 10,000 patients (0.8 GB) take far less than 4 GB."""
    importlib.import_module("medform.ingestion.expression_kernel")  # compiled, and numba loaded, before
    names = [[f"G{at}" for at in range(3000)], [f"P{at}" for at in range(400)]]
    rows, columns = names if turned else names[::-1]
    drawn = np.random.default_rng(0).normal(size=(2, len(columns))).round(4)
    bodies = [",".join(map(str, row)) for row in drawn.tolist()]
    lines = [",".join(["id", *columns]), *(f"{name},{bodies[at % 2]}" for at, name in enumerate(rows))]
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode(), 1))
    file = cohort(tmp_path, path="m.csv.gz")
    tracemalloc.start()
    found = read_expression(file, names[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.record.values.shape == (400, 3000) and peak < 1.5 * found.record.values.nbytes + (2 << 20)
