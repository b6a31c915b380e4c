"""Expression through `ingest`: into the store and back, resumed like the rest, nothing written for bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medform.cohort.cohort_file import CohortFile, parse_cohort_file, read_cohort_file
from medform.cohort.genes import Genes, read_facts
from medform.cohort.store import Cohort
from medform.config import read_yaml
from medform.errors import InputError
from medform.ingestion import ingest as ingest_module
from medform.ingestion.draft import draft_cohort_file
from medform.ingestion.expression import read_expression
from medform.ingestion.ingest import ingest
from medform.inputs.genes import GeneEncoder
from medform.synthetic.genes import GENES, draw_expression
from medform.synthetic.hospital import write_hospital
from medform.synthetic.options import HospitalOptions
from medform.synthetic.planting import plant

COHORTS = Path(__file__).resolve().parents[2] / "cohorts"


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """Four patients with two slices each; P3 has no expression, and P4 neither images nor a row."""
    root = tmp_path / "clinic"
    rows = ["patient_id,slice_index,image"]
    for patient in ("P1", "P2", "P3", "P5"):
        (root / "images" / patient).mkdir(parents=True)
        for at in range(2):
            pixels = np.random.default_rng(at).integers(0, 255, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"images/{patient}/{at}.png")
            rows.append(f"{patient},{at},images/{patient}/{at}.png")
    (root / "slices.csv").write_text("\n".join(rows) + "\n")
    (root / "genes.csv").write_text("id,TP53,NA,ZERO\nP4,1,2,3\nP2,-1.5,0.25,0\nP1,2,,0\nP5,3,1,0\n")
    return root


def cohort_file(root: Path, **genes: Any) -> CohortFile:
    tree = {
        "name": "clinic",
        "licence": "CC0",
        "images": {"layout": "slices", "index": "slices.csv", "unit": "display"},
        "genes": {"path": "genes.csv", "scale": "zscore", "tails": {"clip": 10}, **genes},
    }
    return parse_cohort_file(tree, "cohort.yaml", root)


def content(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def join_report(cohort: Cohort) -> list[dict[str, str]]:
    with (cohort.root / "genes_join.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.proves("G1.1", "G1.2", "G.input")
def test_expression_comes_into_the_store_with_its_report(clinic: Path, tmp_path: Path) -> None:
    cohort = ingest(cohort_file(clinic), tmp_path / "store")
    genes = cohort.genes()
    assert genes is not None and genes.gene_ids == ("TP53", "NA", "ZERO")
    found = dict(zip(genes.patient_ids, np.asarray(genes.values).tolist(), strict=True))
    assert found["P2"] == [-1.5, 0.25, 0] and found["P1"][0] == 2.0 and np.isnan(found["P1"][1])
    assert set(cohort.patient_ids) == {"P1", "P2", "P3", "P5"}
    report = {(row["status"], row["patient_id"], row["sample_id"]) for row in join_report(cohort)}
    assert report == {
        *(("matched", one, one) for one in ("P1", "P2", "P5")), ("orphan", "P3", ""), ("orphan", "", "P4"),
    }  # fmt: skip
    assert all(row["reason"] for row in join_report(cohort))
    counts = {key: count for key, count in cohort.counts.items() if "genes" in key}
    assert counts == {
        "genes_samples": 4, "genes_matched": 3, "genes_ambiguous": 0, "genes_orphan": 1, "genes_kept": 3,
        "genes_dropped": 0, "patients_with_genes": 3,
    }  # fmt: skip
    notes = json.loads((cohort.root / "columns.json").read_text())["notes"]
    assert "3 genes of 3 patients, 1 patients without (see genes_join.csv)" in "\n".join(notes)
    assert not any(one in "\n".join(notes) for one in ("P1", "P4"))  # a log names no person
    facts = read_facts(cohort.root)
    assert facts["dropped"] == [] and facts["constant"] == [{"gene": "ZERO", "reason": "all zero"}]


@pytest.mark.proves("G1.2", "G2.1", "G.input")
@pytest.mark.parametrize("scale", ["log2p1", "counts"])
def test_a_gene_that_is_the_same_in_all_patients_of_another_cohort_is_encoded_as_it_is(
    clinic: Path, tmp_path: Path, scale: str
) -> None:
    """A model of women and men, for a clinic of men: XIST is 0 in all of them, not unknown."""
    random = np.random.default_rng(0)
    names, ids = ("XIST", "TP53", "IDH1"), tuple(f"T{at}" for at in range(20))
    values = random.integers(5, 15, (20, 3)).astype(np.float32)
    values[::2, 0] = 0
    encoder = GeneEncoder.fit(Genes(ids, names, values, scale), ids)
    (clinic / "genes.csv").write_text("id,XIST,TP53,IDH1\nP1,0,7,9\nP2,0,11,6\nP5,0,8,8\n")
    genes = ingest(cohort_file(clinic, scale=scale), tmp_path / "store").genes()
    assert genes is not None
    found = encoder.encode(genes)
    low = -encoder.mean[0] / encoder.spread[0]
    np.testing.assert_allclose(found.expression[:, 0], low, rtol=1e-5)
    assert found.known.all() and low < -0.5 and not found.degradations
    alone = encoder.encode(genes.select(["P2"]))  # whoever else is in the cohort
    np.testing.assert_array_equal(alone.expression[0], found.expression[found.patient_ids.index("P2")])


@pytest.mark.proves("A3.3", "G1.1")
def test_a_finished_store_is_taken_as_it_is_and_other_expression_refused(
    clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ingest(cohort_file(clinic), tmp_path / "store")
    before = content(first.root)
    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, "read_expression", lambda *_: pytest.fail("read again"))
        assert ingest(cohort_file(clinic), tmp_path / "store").digest == first.digest
    with pytest.raises(InputError, match="made from other files or another cohort file"):
        ingest(cohort_file(clinic, tails="rank"), tmp_path / "store")
    (clinic / "genes.csv").write_text("id,TP53,NA\nP2,-1.5,0.25\nP1,2,1\n")
    with pytest.raises(InputError, match="made from other files or another cohort file"):
        ingest(cohort_file(clinic), tmp_path / "store")
    assert content(first.root) == before
    (clinic / "genes.csv").write_text("id,TP53,NA\nP2,-1.5,zwei\nP1,2,1\n")
    with pytest.raises(InputError, match="'zwei'"):
        ingest(cohort_file(clinic), tmp_path / "store", overwrite=True)
    assert content(first.root) == before  # the fault was found before anything was replaced


@pytest.mark.proves("A3.3", "G.input")
def test_bad_expression_leaves_nothing_behind_and_a_stopped_ingest_goes_on(
    clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(ingest(cohort_file(clinic), tmp_path / "whole").root)
    with pytest.raises(InputError, match=r"negative under genes.scale: counts"):
        ingest(cohort_file(clinic, scale="counts"), tmp_path / "store")
    assert not (tmp_path / "store").exists()

    def killed(*_: Any) -> dict[str, str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("medform.cohort.writer.write_genes", killed)
        ingest(cohort_file(clinic), tmp_path / "store")
    assert not (tmp_path / "store/cohort.json").exists()
    assert content(ingest(cohort_file(clinic), tmp_path / "store").root) == whole


@pytest.mark.proves("G1.1", "G.input")
def test_missing_counts_are_refused_where_they_would_inflate_the_others_and_else_reported(
    clinic: Path, tmp_path: Path
) -> None:
    (clinic / "genes.csv").write_text("id,A,B,C\nP1,900,80,20\nP2,920,,15\nP5,850,75,30\n")
    with pytest.raises(InputError, match=r"patient 'P2': 1 genes without a count have 8% of the reads"):
        ingest(cohort_file(clinic, scale="counts"), tmp_path / "store")
    assert not (tmp_path / "store").exists()
    (clinic / "genes.csv").write_text("id,A,B,C\nP1,900,80,20\nP2,920,70,\nP5,850,75,30\n")
    cohort = ingest(cohort_file(clinic, scale="counts"), tmp_path / "store")
    reasons = {row["patient_id"]: row["reason"] for row in join_report(cohort) if row["status"] == "matched"}
    assert reasons["P1"] == "equal ids." and "Genes without a count: 2.55% of the reads." in reasons["P2"]
    notes = "\n".join(json.loads((cohort.root / "columns.json").read_text())["notes"])
    assert "1 patients lack counts that have up to 2.55% of the reads of the others" in notes and "P2" not in notes


def test_a_store_without_genes_is_made_from_the_same_inputs_as_before(clinic: Path, tmp_path: Path) -> None:
    plain = cohort_file(clinic).model_copy(update={"genes": None})
    cohort = ingest(plain, tmp_path / "store")
    assert cohort.genes() is None and not list(cohort.root.glob("genes*"))
    assert not [key for key in cohort.counts if "genes" in key]


@pytest.mark.proves("G.input")
def test_a_patient_whose_images_turn_out_unusable_has_no_expression(clinic: Path, tmp_path: Path) -> None:
    path = clinic / "images/P2/1.png"
    path.write_bytes(path.read_bytes()[:60])
    cohort = ingest(cohort_file(clinic), tmp_path / "store")
    genes = cohort.genes()
    assert genes is not None and set(genes.patient_ids) == {"P1", "P5"} and cohort.counts["patients_with_genes"] == 2
    (row,) = [row for row in join_report(cohort) if row["sample_id"] == "P2"]
    assert row["status"] == "orphan"


@pytest.mark.proves("G1.1", "A2.2")
def test_the_phantoms_expression_reads_back_equal_to_what_was_planted(tmp_path: Path) -> None:
    options = HospitalOptions(size=32, localizers=0, second_kernels=0, follow_ups=0, genes_missing=0.4, defects=False)
    truth = write_hospital(tmp_path / "phantom", patients=4, seed=4, options=options)
    cohort = ingest(read_cohort_file(tmp_path / "phantom/cohort.yaml"), tmp_path / "store")
    genes = cohort.genes()
    assert genes is not None and genes.gene_ids == GENES and genes.scale == "log2"
    known = {one.patient_id for one in truth.patients if one.has_genes}
    assert set(genes.patient_ids) == known and set(cohort.patient_ids) - known
    planted = {one.patient_id: one for one in plant(4, 4, options)}
    drawn = draw_expression([planted[one] for one in genes.patient_ids], 4, options)
    np.testing.assert_allclose(genes.values, drawn, atol=5.1e-5)


@pytest.mark.proves("A1.4")
def test_init_mentions_a_matrix_and_the_draft_still_reads(clinic: Path) -> None:
    wide = "gene," + ",".join(f"S{at}" for at in range(30)) + "\nTP53," + ",".join(map(str, range(30))) + "\n"
    (clinic / "expression.csv").write_text(wide)
    (clinic / "gene_notes.csv").write_text("gene,note\nTP53,none\n")
    text = draft_cohort_file(clinic, None, clinic)
    assert '# genes: {path: "expression.csv", scale: tpm}' in text
    assert parse_cohort_file(read_yaml(text), "draft.yaml", clinic).genes is None
    uncommented = text.replace("# genes:", "genes:")
    drafted = parse_cohort_file(read_yaml(uncommented), "draft.yaml", clinic).genes
    assert drafted is not None and drafted.path == "expression.csv"


@pytest.mark.shared
@pytest.mark.proves("G1.1", "G1.2")
def test_the_cohort_file_of_tcga_lgg_ingests(shared_data: Path, tmp_path: Path) -> None:
    """With two slices a patient, the first and that with most tumour; all 1,366 take some seconds more."""
    index = pd.read_csv(shared_data / "tcga_lgg/slices.csv")
    kept = index.loc[[*index.groupby("patient_id")["tumour_px"].idxmax(), *index.groupby("patient_id").head(1).index]]
    kept.drop_duplicates().to_csv(tmp_path / "slices.csv", index=False)
    file = read_cohort_file(COHORTS / "tcga_lgg.yaml", shared_data / "tcga_lgg")
    file = file.model_copy(update={"images": file.images.model_copy(update={"index": str(tmp_path / "slices.csv")})})
    assert file.survival is not None and (file.survival.time, file.survival.event) == ("os_months", "os_event")
    assert [task.name for task in file.tasks] == ["idh_mutant", "codel_1p19q", "grade"]
    assert file.licence == "CC BY-NC-SA 4.0" and file.genes is not None and file.genes.upstream_transductive
    cohort = ingest(file, tmp_path / "store")
    assert (cohort.counts["patients"], cohort.counts["slices"]) == (82, len(kept.drop_duplicates()))
    assert set(cohort.features()) == {
        "age", "sex", "race", "ethnicity", "karnofsky", "laterality", "tumor_site", "seizure_history",
        "headache_history", "first_symptom",
    }  # fmt: skip
    assert len(cohort.split().folds) == 5 and cohort.split().settings["stratify"] == ["idh_mutant"]
    assert all(cohort.masks(series) is not None for series in cohort.series["series_id"])
    _assert_equal_to_pandas(cohort, shared_data / "tcga_lgg/expression.csv.gz", 78, 1544)
    assert set(cohort.patient_ids) - set(cohort.genes().patient_ids) == {  # pyright: ignore[reportOptionalMemberAccess]
        "TCGA-DU-7014", "TCGA-FG-7637", "TCGA-FG-A4MT", "TCGA-HT-A61A",
    }  # fmt: skip


@pytest.mark.shared
@pytest.mark.proves("G1.1")
def test_the_expression_of_nsclc_ct_ingests(shared_data: Path, tmp_path: Path) -> None:
    plain = read_cohort_file(COHORTS / "nsclc_ct.yaml", shared_data / "nsclc_ct")
    tree = plain.portable() | {"genes": {"path": "expression.csv.gz", "scale": "zscore", "upstream_transductive": True}}
    file = parse_cohort_file(tree, "nsclc_ct.yaml", shared_data / "nsclc_ct")
    patients = pd.read_csv(shared_data / "nsclc_ct/clinical.csv", dtype=str)["patient_id"].tolist()
    found = read_expression(file, patients)
    assert found.counts["genes_matched"] == 76 and found.record.facts["dropped"] == []
    raw = pd.read_csv(shared_data / "nsclc_ct/expression.csv.gz", index_col=0, na_values=[""], keep_default_na=False)
    order = list(found.record.patient_ids)
    np.testing.assert_array_equal(found.record.values, raw.loc[order].to_numpy(np.float32))
    assert found.record.gene_ids == tuple(raw.columns) and 0.03 < np.isnan(found.record.values).mean() < 0.04


def _assert_equal_to_pandas(cohort: Cohort, path: Path, patients: int, columns: int) -> None:
    """Every gene is there with pandas' values, or dropped since it has none."""
    genes = cohort.genes()
    raw = pd.read_csv(path, index_col=0, na_values=[""], keep_default_na=False)
    assert genes is not None and raw.shape == (patients, columns) and len(genes.patient_ids) == patients
    dropped = {one["gene"] for one in read_facts(cohort.root)["dropped"]}
    assert set(raw.columns) == {*genes.gene_ids, *dropped} and len(genes.gene_ids) + len(dropped) == columns
    assert raw[sorted(dropped)].isna().to_numpy().all()
    expected = raw.loc[list(genes.patient_ids), list(genes.gene_ids)].to_numpy(np.float32)
    np.testing.assert_array_equal(genes.values, expected)
