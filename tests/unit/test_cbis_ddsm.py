"""CBIS-DDSM from synthetic trees in each of its layouts."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures.native_trees import CBIS_BOX, CBIS_ROWS, SWAPPED, breast, cbis_ddsm, write_dicom

from scorebayes.data import open_source
from scorebayes.data.sources.cbis_ddsm import CbisDdsm
from scorebayes.data.split import split_patients
from scorebayes.errors import ConfigError, DataError

LAYOUTS = ("tables", "tcia", "uid", "jpeg")


@pytest.fixture(scope="module", params=LAYOUTS)
def tree(request, tmp_path_factory) -> Path:
    return cbis_ddsm(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return cbis_ddsm(tmp_path / "data")


def changed(root: Path, kind: str, split: str, old: str, new: str) -> None:
    path = root / f"{kind}_case_description_{split}_set.csv"
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


def reasons(source: CbisDdsm) -> dict[str, str]:
    return {entry.image_id: entry.reason for entry in source.rejected}


def test_every_layout_gives_the_same_images_and_labels(tree: Path) -> None:
    source = CbisDdsm(tree)
    records = source.records()
    assert [(r.image_id, r.label, r.split) for r in records] == [
        ("Mass-Training_P_00001_LEFT_CC", 1, "train"),  # one of two lesions is malignant
        ("Mass-Training_P_00001_LEFT_MLO", 0, "train"),
        ("Mass-Training_P_00002_RIGHT_CC", 1, "train"),  # malignant by the calcification table
        ("Mass-Test_P_00003_RIGHT_MLO", 1, "test"),
        ("Calc-Training_P_00004_LEFT_CC", 0, "train"),
        ("Calc-Test_P_00016_LEFT_CC", 1, "test"),
    ]
    first = records[0]
    assert (first.patient_id, first.laterality, first.view) == ("P_00001", "L", "CC")
    assert first.extra == {"breast": "P_00001_L", "density": "3", "lesion_type": "mass"}
    assert records[2].extra["lesion_type"] == "calc+mass"
    image = source.read(first)
    assert image.shape == (96, 64) and image[:, 60:].max() < 0.1 < image[40:50, :10].min()


def test_the_patient_on_both_sides_is_taken_out_of_one(small: Path) -> None:
    source = CbisDdsm(small)
    assert "P_00016" not in {r.patient_id for r in source.records() if r.split == "train"}
    assert reasons(source)["Mass-Training_P_00016_LEFT_CC_1"].startswith("leak: P_00016 is in train and test")
    other = CbisDdsm(small, leak_side="test").records()
    assert {r.split for r in other if r.patient_id == "P_00016"} == {"train"}
    split_patients(other)
    free = CbisDdsm(small, split="none").records()
    assert {r.split for r in free} == {None}
    assert "P_00016" in {r.patient_id for r in free}


def test_one_lesion_type_alone_has_no_leak_and_every_patient(small: Path) -> None:
    masses = CbisDdsm(small, lesions="mass")
    assert {r.patient_id for r in masses.records()} == {"P_00001", "P_00002", "P_00003", "P_00016"}
    assert masses.records()[2].label == 0 and masses.rejected == []


def test_a_view_in_both_tables_is_one_image(small: Path) -> None:
    source = CbisDdsm(small)
    source.records()
    reason = reasons(source)["Calc-Training_P_00002_RIGHT_CC"]
    assert reason == "duplicate: same view as Mass-Training_P_00002_RIGHT_CC; the labels are merged."


def test_crops_lie_around_the_mask_even_where_the_columns_are_swapped(tree: Path) -> None:
    source = CbisDdsm(tree, task="crop", margin=0.5)
    records = {r.image_id: r for r in source.records()}
    assert len(records) == 8
    left, top, right, bottom = CBIS_BOX
    half = bottom - top  # longer side, half of it plus the margin
    x, y = (left + right) // 2, (top + bottom) // 2
    for name in ("Mass-Training_P_00001_LEFT_CC_2", *SWAPPED):
        whole = CbisDdsm(tree).read(records[name])
        expected = whole[y - half : y + half, max(0, x - half) : x + half]
        picture = source.read(records[name])
        assert np.abs(np.array(picture.shape) - expected.shape).max() <= 2  # JPEG blurs the mask's edge
        if "jpeg" not in str(tree):
            np.testing.assert_array_equal(picture, expected)
    assert records["Mass-Training_P_00001_LEFT_CC_2"].label == 0
    assert records["Mass-Training_P_00001_LEFT_CC_2"].extra["margin"] == "0.5"


def test_the_published_crop_serves_where_mask_or_image_is_missing(small: Path) -> None:
    name = "Mass-Test_P_00003_RIGHT_MLO"
    record = next(r for r in CbisDdsm(small, task="crop").records() if r.image_id == f"{name}_1")
    left, top, right, bottom = CBIS_BOX
    lesion = CbisDdsm(small).read(record)[top:bottom, left:right]
    shutil.rmtree(small / name)
    source = CbisDdsm(small, task="crop")
    record = next(r for r in source.records() if r.image_id == f"{name}_1")
    np.testing.assert_array_equal(source.read(record), lesion)
    for path in (small / f"{name}_1").rglob("000000.dcm"):
        path.unlink()
    record = next(r for r in source.records() if r.image_id == f"{name}_1")
    with pytest.raises(DataError, match="neither the crop nor the mask"):
        source.read(record)
    shutil.rmtree(small / f"{name}_1")
    source.records()
    assert "neither the crop nor the mask" in reasons(source)[f"{name}_1"]


def test_a_mask_of_another_size_is_scaled_and_an_empty_one_refused(small: Path) -> None:
    source = CbisDdsm(small, task="crop", margin=0)
    record = next(r for r in source.records() if r.image_id == "Mass-Test_P_00003_RIGHT_MLO_1")
    before = source.read(record)
    (path,) = (small / record.image_id).rglob("000001.dcm")
    mask = np.zeros((98, 65), np.uint8)
    mask[41:61, 20:37] = 255
    write_dicom(path, mask, 8)
    after = source.read(record)
    assert np.abs(np.array(before.shape) - after.shape).max() <= 1
    write_dicom(path, mask * 0, 8)
    with pytest.raises(DataError, match="mask of the lesion is empty"):
        source.read(record)


def test_breasts_carry_the_label_of_their_worst_view(small: Path) -> None:
    labels = {r.image_id: (r.label, r.extra["breast"]) for r in CbisDdsm(small, task="breast").records()}
    assert labels["Mass-Training_P_00001_LEFT_MLO"] == (1, "P_00001_L")


def test_missing_and_unlisted_files_are_named(small: Path) -> None:
    shutil.rmtree(small / "Calc-Training_P_00004_LEFT_CC")
    write_dicom(small / "Mass-Training_P_09999_LEFT_CC" / "1" / "2" / "stranger.dcm", breast())
    source = CbisDdsm(small)
    assert len(source.records()) == 5
    assert reasons(source)["Calc-Training_P_00004_LEFT_CC"] == "missing: not in the data set."
    assert "no table row" in reasons(source)["stranger"]


def test_two_files_for_one_image_are_ambiguous_unless_one_is_a_jpeg_copy(small: Path) -> None:
    (path,) = (small / "Calc-Training_P_00004_LEFT_CC").rglob("*.dcm")
    shutil.copy(path, path.with_name("copy.jpg"))
    assert len(CbisDdsm(small).records()) == 6
    shutil.copy(path, path.with_name("copy.dcm"))
    source = CbisDdsm(small)
    assert len(source.records()) == 5
    assert reasons(source)["Calc-Training_P_00004_LEFT_CC"] == "ambiguous: 2 files match."


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("BENIGN,3", "PROBABLY,3", "unknown pathology 'PROBABLY'"),
        ("P_00004,3,LEFT", "P_00004,3,RIGHT", "contradicts the image path"),
        ("P_00004,3,LEFT", "P_00005,3,LEFT", "contradicts the image path"),
        (",Calc-Training_P_00004_LEFT_CC/", ",/etc/", "absolute or points outside"),
        (",Calc-Training_P_00004_LEFT_CC/", ",../", "absolute or points outside"),
    ],
)
def test_a_row_that_cannot_be_trusted_is_set_apart(small: Path, old: str, new: str, words: str) -> None:
    changed(small, "calc", "train", old, new)
    source = CbisDdsm(small)
    assert "P_00004" not in {r.patient_id for r in source.records()}
    assert any(words in reason for reason in reasons(source).values())


def test_contradicting_rows_take_their_image_out_and_repeated_ones_do_not(tmp_path: Path) -> None:
    rows = copy.deepcopy(CBIS_ROWS)
    rows["mass", "train"].append(("P_00001", "LEFT", "CC", 2, "MALIGNANT"))
    rows["mass", "test"].append(rows["mass", "test"][0])
    source = CbisDdsm(cbis_ddsm(tmp_path, rows=rows))
    names = [r.image_id for r in source.records()]
    assert "Mass-Training_P_00001_LEFT_CC" not in names and "Mass-Test_P_00003_RIGHT_MLO" in names
    found = [entry.reason for entry in source.rejected]
    assert "conflicting labels: BENIGN and MALIGNANT for lesion 2." in found
    assert "duplicate row: the lesion is listed twice." in found
    assert sum("another row of this image is wrong" in reason for reason in found) == 2


def test_it_opens_by_name_with_options_and_survives_pickling(small: Path) -> None:
    source = open_source(f"cbis-ddsm:{small}", task="crop", lesions="calc")
    assert len(pickle.loads(pickle.dumps(source)).records()) == 3


@pytest.mark.parametrize(
    "options",
    [{"task": "view"}, {"lesions": "masses"}, {"split": "own"}, {"leak_side": "val"}, {"margin": -1}],
)
def test_a_wrong_option_is_refused(small: Path, options: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is"):
        CbisDdsm(small, **options)


def test_counts_stand_beside_the_published_ones(small: Path) -> None:
    counts = {count.what: count[1:] for count in CbisDdsm(small).counts()}
    assert counts["mass train lesions"] == (5, 1318)
    assert counts["patients in train and test"] == (1, 31)
    assert len(CbisDdsm(small, lesions="calc").counts()) == 6
