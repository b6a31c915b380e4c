"""`medform segment`: a scan's lesion by a frozen model, on the voxels of its source, with genes or without."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import medform
from medform.cli.main import invoke
from medform.cohort.store import Cohort
from medform.errors import InputError, MedformError
from medform.ingestion.ingest import ingest_scan
from medform.pipeline.export import export
from medform.pipeline.frozen_segmentation import FrozenSegmenter, load_segmenter
from medform.pipeline.phantom import phantom
from medform.pipeline.segment import segment
from medform.runs.arrays import read_arrays

HOSPITAL = {"size": 48, "defects": False, "follow_ups": 0, "second_kernels": 0, "localizers": 0}
LEVEL = 0.5503
"""What the stand-in for a network calls lesion: window values above it."""
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def model(segmenting_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a threshold in the middle of its probabilities: masks are neither empty nor full."""
    path = export(segmenting_run, tmp_path_factory.mktemp("segment") / "model", fold=0)
    config = json.loads((path / "config.json").read_text())
    middle = float(np.median(read_arrays(path / "selftest.safetensors")[0]["lesion"].astype(np.float32)))
    config["segmentation"]["objective"]["threshold"] = middle
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def segmenter(model: Path) -> FrozenSegmenter:
    return load_segmenter(model)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DICOM of two patients, a folder each."""
    root = tmp_path_factory.mktemp("hospital")
    phantom(root / "h", patients=2, seed=3, options=HOSPITAL)
    return root / "h" / "images"


@pytest.fixture(scope="module")
def scan(images: Path) -> Path:
    return sorted(path for path in images.iterdir() if path.is_dir())[0]


@pytest.fixture
def loaded(segmenter: FrozenSegmenter, monkeypatch: pytest.MonkeyPatch) -> FrozenSegmenter:
    """The model is read once, not by every call."""
    monkeypatch.setattr("medform.pipeline.frozen_segmentation.load_segmenter", lambda _: segmenter)
    return segmenter


@pytest.fixture
def bright(loaded: FrozenSegmenter, monkeypatch: pytest.MonkeyPatch) -> FrozenSegmenter:
    """What is brighter than `LEVEL` in the place of what a network finds, so that every voxel of a mask is known."""
    from medform.objectives.segment import Segment

    def by_brightness(self: Any, image: Any, *_: Any, **__: Any) -> Any:
        middle = image.value["image"].shape[1] // 2
        return torch.where(image.value["image"][:, middle : middle + 1] > LEVEL, 20.0, -20.0)

    monkeypatch.setattr(Segment, "logits", by_brightness)
    return loaded


@pytest.fixture
def loud(segmenter: FrozenSegmenter, monkeypatch: pytest.MonkeyPatch) -> FrozenSegmenter:
    """The model with a gene path as strong as after a long training; it begins at nothing."""
    objective = copy.deepcopy(segmenter.objective)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in objective.decoder.fusion.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random))
    made = dataclasses.replace(segmenter, objective=objective)
    monkeypatch.setattr("medform.pipeline.frozen_segmentation.load_segmenter", lambda _: made)
    return made


def expected(volume: np.ndarray, segmenter: FrozenSegmenter) -> np.ndarray:
    low, high = segmenter.window
    return (volume - low) / (high - low) > LEVEL


def row_of(segmenter: FrozenSegmenter, seed: int = 0) -> dict[str, float]:
    assert segmenter.genes is not None
    random = np.random.default_rng(seed)
    values = segmenter.genes.mean + segmenter.genes.spread * random.normal(size=len(segmenter.genes.gene_ids))
    return {gene: float(value) for gene, value in zip(segmenter.genes.gene_ids, values, strict=True)}


def as_csv(path: Path, row: dict[str, Any]) -> Path:
    pd.DataFrame([row]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def volume(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """HU (N, H, W) and affine of the scan, as the store has them."""
    cohort = ingest_scan(scan, tmp_path_factory.mktemp("v") / "store")
    series = cohort.open(str(cohort.series["series_id"].iloc[0]))
    assert series.affine_lps is not None
    return np.stack([series.slice(index) for index in range(len(series))]), series.affine_lps


def sample(labels: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values of the voxels (i, j, k) that lie nearest to points (K, 3), which must be less than half a voxel away."""
    places = nibabel.affines.apply_affine(np.linalg.inv(affine), points)
    assert np.abs(places - np.rint(places)).max() < 0.5
    return labels[tuple(np.rint(places).astype(int).T)]


@pytest.mark.proves("G4.2", "G.tests", "U16")
def test_every_format_of_a_dicom_scan_lies_on_its_voxels(
    model: Path, scan: Path, volume: Any, bright: FrozenSegmenter, tmp_path: Path
) -> None:
    import highdicom
    import SimpleITK

    hu, affine = volume
    result = segment(scan, model, out=tmp_path / "o", formats="nifti,nrrd,dicomseg,png", device="cpu")
    (one,) = result.series
    by_suffix = {"".join(file.suffixes[-2:]): file for file in one.files}
    wanted = expected(hu, bright)
    points = nibabel.affines.apply_affine(affine, np.argwhere(np.ones(hu.shape))[:, ::-1])
    flat = wanted[tuple(np.argwhere(np.ones(hu.shape)).T)]
    assert 0.01 < flat.mean() < 0.9

    nifti = nibabel.load(by_suffix[".nii.gz"])
    assert (sample(np.asarray(nifti.dataobj), RAS @ nifti.affine, points) == flat).all()

    image = SimpleITK.ReadImage(str(by_suffix[".seg.nrrd"]))
    own = np.eye(4)
    own[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    own[:3, 3] = image.GetOrigin()
    assert (sample(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), own, points) == flat).all()

    seg = highdicom.seg.segread(next(file for file in one.files if file.suffix == ".dcm"))
    assert seg.number_of_segments == 1 and int(seg.NumberOfFrames) == len(hu)
    placed = seg.get_volume(combine_segments=True)
    assert (sample(placed.array, placed.affine, points) == flat).all()
    assert len([file for file in one.files if file.suffix == ".png"]) == len(hu)


@pytest.mark.proves("G4.2", "G.tests")
def test_a_nifti_scan_gets_its_mask_on_its_own_grid(
    model: Path, volume: Any, bright: FrozenSegmenter, tmp_path: Path
) -> None:
    hu, affine = volume
    stored = nibabel.Nifti1Image(hu.transpose(2, 1, 0).astype(np.int16), RAS @ affine)
    turned = nibabel.as_closest_canonical(stored).slicer[::-1, :, ::-1]
    nibabel.save(turned, tmp_path / "ct.nii.gz")
    result = segment(tmp_path / "ct.nii.gz", model, out=tmp_path / "o", device="cpu")
    mask = nibabel.load(result.files[0])
    assert result.files[0].name == "ct_mask.nii.gz" and mask.shape == turned.shape
    np.testing.assert_allclose(mask.affine, turned.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected(np.asarray(turned.dataobj), bright))
    (one,) = result.series
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    assert one.lesion_ml == pytest.approx(one.lesion_voxels * voxel, rel=1e-4)
    assert result.lines()[-1] == "research use only, not a medical device"


@pytest.mark.proves("G4.2", "G.tests", "G2.1")
def test_genes_are_read_by_name_whatever_their_order_and_what_is_missing_is_said(
    model: Path, scan: Path, loud: FrozenSegmenter, tmp_path: Path
) -> None:
    row = row_of(loud)
    backwards: dict[str, Any] = {"id": "somebody", **dict(reversed(row.items())), "UNHEARD_OF": 1.0}
    fewer = dict(list(row.items())[5:])

    def drawn(name: str, genes: dict[str, Any] | None) -> tuple[bytes, Any]:
        path = None if genes is None else as_csv(tmp_path / f"{name}.csv", genes)
        result = segment(scan, model, genes=path, out=tmp_path / name, device="cpu")
        return result.files[0].read_bytes(), result

    first, said = drawn("first", row)
    again, noted = drawn("again", backwards)
    other, _ = drawn("other", row_of(loud, seed=1))
    assert first == again != other and said.notes == () and said.series[0].genes
    assert any("row 'somebody' was taken for patient" in one for one in noted.notes)
    assert any("UNHEARD_OF" in one and "ignored" in one for one in noted.notes)
    _, less = drawn("fewer", fewer)
    assert any("are not in the matrix; they count as not known" in one for one in less.notes)
    without, none = drawn("none", None)
    assert (
        without != first
        and none.notes == ("no genes were given: their learnt stand-in was used",)
        and not none.series[0].genes
    )


@pytest.mark.proves("G4.1", "G.tests")
def test_without_genes_the_mask_is_that_of_the_run_s_stand_in_for_genes(
    segmenting_run: Path, gene_store: Cohort, segmenter: FrozenSegmenter
) -> None:
    """The frozen model draws what the run kept, with the patients' genes and without."""
    kept, notes = read_arrays(segmenting_run / "folds" / "0" / "masks" / "mgi.0.safetensors")
    null, _ = read_arrays(segmenting_run / "folds" / "0" / "masks" / "mgi_null_genes.0.safetensors")
    plain = load_segmenter(segmenting_run)
    store = plain.slices(gene_store)
    genes = gene_store.genes()
    assert plain.genes is not None and genes is not None
    encoded = plain.genes.encode(genes)
    for key, shape in list(notes["shapes"].items())[:2]:
        series = int(key.partition(".")[2])
        for arrays, given in ((kept, encoded), (null, None)):
            drawn = plain.draw(gene_store, store, series, given)
            assert drawn.shape == tuple(shape)
            assert np.array_equal(np.packbits(drawn), arrays[key])


@pytest.mark.proves("G4.2", "G.input")
def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_written(
    model: Path, volume: Any, loaded: FrozenSegmenter, tmp_path: Path
) -> None:
    hu, _ = volume
    nowhere = nibabel.Nifti1Image(hu.transpose(2, 1, 0).astype(np.int16), None)
    nibabel.save(nowhere, tmp_path / "ct.nii")
    row: dict[str, Any] = row_of(loaded)
    row[next(iter(row))] = "high"
    with pytest.raises(InputError) as refused:
        segment(
            tmp_path / "ct.nii",
            model,
            genes=as_csv(tmp_path / "row.csv", row),
            out=tmp_path / "o",
            formats="niffti,nifti,nrrd,dicomseg",
            device="cpu",
        )
    text = str(refused.value)
    assert "'niffti': no such format. Did you mean 'nifti'?" in text
    assert "'nrrd': nothing is known of where its slices lie. Ask for png" in text
    assert "'dicomseg': a DICOM segmentation refers to DICOM slices, and this scan is a nifti file." in text
    assert "row.csv, row 2, column 'GENE" in text and "'high': not a number" in text
    assert not (tmp_path / "o").exists() and not list(tmp_path.glob(".o.*"))


@pytest.mark.proves("G.input")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda row: {f"ENSG{number:011d}": value for number, value in enumerate(row.values())},
            "no gene of the model",
        ),
        (lambda row: {gene: 8 + value for gene, value in row.items()}, "are no z-scores|standard deviations"),
        (lambda row: {gene: 30 * value for gene, value in row.items()}, "is not zscore as in training"),
        (lambda row: {"gene": list(row), "value": list(row.values())}, "lies the other way"),
    ],
)
def test_genes_that_cannot_be_the_model_s_are_refused(
    model: Path, scan: Path, loaded: FrozenSegmenter, change: Any, said: str, tmp_path: Path
) -> None:
    changed = change(row_of(loaded))
    frame = pd.DataFrame(changed) if "gene" in changed else pd.DataFrame([changed])
    frame.to_csv(tmp_path / "row.csv", index=False)
    with pytest.raises(InputError, match=said):
        segment(scan, model, genes=tmp_path / "row.csv", out=tmp_path / "o", device="cpu")
    assert not (tmp_path / "o").exists()


@pytest.mark.proves("G4.2", "G.input")
def test_patients_of_a_folder_get_their_own_rows_and_nobody_another_s(
    model: Path, images: Path, loaded: FrozenSegmenter, tmp_path: Path
) -> None:
    patients = sorted(
        set(segment(images, model, out=tmp_path / "all", device="cpu").series), key=lambda one: one.patient_id
    )
    assert len(patients) == 2 and len({file.name for one in patients for file in one.files}) == 2
    as_csv(tmp_path / "row.csv", {"id": patients[1].patient_id, **row_of(loaded)})
    result = segment(images, model, genes=tmp_path / "row.csv", out=tmp_path / "one", device="cpu")
    assert {one.patient_id: one.genes for one in result.series} == {
        patients[0].patient_id: False,
        patients[1].patient_id: True,
    }
    assert any("1 patients have no genes" in one for one in result.notes)
    as_csv(tmp_path / "stranger.csv", {"id": "X-77", **row_of(loaded)})
    with pytest.raises(InputError, match="no patient id of the table is one of the images"):
        segment(images, model, genes=tmp_path / "stranger.csv", out=tmp_path / "no", device="cpu")
    as_csv(tmp_path / "plain.csv", row_of(loaded))
    with pytest.raises(InputError, match="1 rows without ids for 2 patients"):
        segment(images, model, genes=tmp_path / "plain.csv", out=tmp_path / "no", device="cpu")
    assert not (tmp_path / "no").exists()


@pytest.mark.proves("G4.2", "G.input")
def test_a_mask_that_cannot_be_written_leaves_nothing(
    model: Path, scan: Path, loaded: FrozenSegmenter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise InputError("the headers of these files cannot be referred to.")

    monkeypatch.setattr("medform.runs.mask_files.write_dicom_seg", refused)
    with pytest.raises(InputError, match="cannot be referred to"):
        segment(scan, model, out=tmp_path / "o", formats=["nifti", "png", "dicomseg"], device="cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.proves("G.input")
def test_too_little_memory_takes_fewer_slices_and_then_says_what_to_lower(
    segmenter: FrozenSegmenter, gene_store: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def greedy(*_: Any, batch: int, **__: Any) -> np.ndarray:
        tried.append(batch)
        if batch > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return np.ones((1, 2, 2), bool)

    monkeypatch.setattr("medform.pipeline.segmentation.draw_lesion", greedy)
    store = segmenter.slices(gene_store.select(gene_store.patient_ids[:1]))
    limit = 8
    assert segmenter.draw(gene_store, store, 0, None).all() and tried == [32, 8]
    limit = 0
    with pytest.raises(MedformError, match=r"not enough memory for \d+ slices of 48 x 48 pixels"):
        segmenter.draw(gene_store, store, 0, None)


@pytest.mark.proves("G4.2", "A8.2")
def test_a_model_is_checked_by_the_map_of_the_phantom_and_one_without_masks_is_refused(
    model: Path, scan: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    changed = Path(shutil.copytree(model, tmp_path / "model"))
    test = load_file(changed / "selftest.safetensors")
    assert {"lesion", "lesion_with_genes", "genes", "vector", "images"} == set(test)
    save_file(
        {**test, "lesion_with_genes": test["lesion_with_genes"] + np.float16(0.1)}, changed / "selftest.safetensors"
    )
    with pytest.raises(InputError, match=r"the self-test fails: a probability of lesion is off by 0.1"):
        load_segmenter(changed)
    weights = load_file(changed / "model.safetensors")
    key = next(name for name in weights if name.startswith("segment.decoder."))
    save_file({name: value for name, value in weights.items() if name != key}, changed / "model.safetensors")
    with pytest.raises(InputError, match="another architecture: 1 tensors do not fit"):
        load_segmenter(changed)
    with pytest.raises(InputError, match="this model draws no masks"):
        segment(scan, Path(__file__).parents[1] / "fixtures" / "model_v1", out=tmp_path / "o")
    medform.Model.load(model)  # prediction goes on as it did beside a segmentation


@pytest.mark.proves("G4.2", "A1.4")
def test_exit_codes_and_output_of_the_verb(
    model: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["segment", str(scan), "--model", str(model), "--device", "cpu"]
    assert invoke([*asked, "-o", str(tmp_path / "o"), "--format", "png,nifti", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["note"] == "research use only, not a medical device" and tree["series"][0]["lesion_voxels"] > 0
    assert all(Path(file).is_file() for file in tree["series"][0]["files"])
    assert invoke([*asked, "-o", str(tmp_path / "p"), "--format", "tiff"]) == 2
    assert "'tiff': no such format" in capsys.readouterr().err
    assert invoke([*asked, "-o", str(scan / "masks")]) == 2
    assert "lies in the scan's own folder" in capsys.readouterr().err
    assert not (scan / "masks").exists()


@pytest.mark.proves("G4.2", "A7")
def test_the_report_shows_masks_of_best_median_and_worst_by_pseudonym(segmenting_run: Path, gene_store: Cohort) -> None:
    run = segmenting_run
    tree = json.loads((run / "overlays.json").read_text())
    assert tree["model"] == "mgi" and [one["place"] for one in tree["patients"]] == ["best", "median", "worst"]
    dice = [one["dice"] for one in tree["patients"]]
    assert dice == sorted(dice, reverse=True)
    assert {one["pseudonym"] for one in tree["patients"]} <= set(gene_store.patients["pseudonym"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Masks of test patients" in page and page.count(", predicted mask") == 3
    assert medform.report(run, images=False).read_text(encoding="utf-8").count("data:image/png") == 0


@pytest.mark.proves("G4.2", "A.input")
@pytest.mark.usefixtures("loaded")
def test_a_scan_that_is_not_known_to_be_hu_says_so_and_a_picture_is_refused(model: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1500, (24, 24, 2)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "mr.nii.gz")
    result = segment(tmp_path / "mr.nii.gz", model, out=tmp_path / "o", device="cpu")
    assert any(note.startswith("patient mr: unit_assumed") for note in result.notes)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / "pictures" / "1.png")
    with pytest.raises(InputError, match="grey values of a picture are not HU"):
        segment(tmp_path / "pictures", model, out=tmp_path / "p", formats="png", device="cpu")


@pytest.mark.usefixtures("loaded")
def test_ct_is_refused_by_a_model_of_arbitrary_numbers_or_noted_where_its_training_is_not_known(
    model: Path, scan: Path, tmp_path: Path
) -> None:
    preprocess = json.loads((model / "preprocess.json").read_text()) | {"unit": "raw"}
    for modalities in (["MR"], [""], ["CT"]):
        folder = Path(shutil.copytree(model, tmp_path / "_".join(["model", *modalities])))
        (folder / "preprocess.json").write_text(json.dumps(preprocess | {"modalities": modalities}))
        if modalities == ["MR"]:
            with pytest.raises(InputError, match="none of the 1 series can be used") as caught:
                segment(scan, folder, out=tmp_path / "refused", device="cpu")
            assert "its values are HU (modality CT), and the model was trained on MR." in str(caught.value)
            assert not (tmp_path / "refused").exists()
            values = np.random.default_rng(0).integers(0, 1500, (24, 24, 2)).astype(np.int16)
            shutil.copytree(scan, tmp_path / "both" / "ct")
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "both" / "mr.nii.gz")
            result = segment(tmp_path / "both", folder, out=tmp_path / "masks", device="cpu")
            assert [one.patient_id for one in result.series] == ["mr"] and result.exclusions == 1
            assert "its values are HU" in result.set_aside[0]
            continue
        notes = segment(scan, folder, out=tmp_path / "masks", device="cpu").notes
        assert any("unit_assumed" in note and "values are HU" in note for note in notes) == (modalities == [""])
