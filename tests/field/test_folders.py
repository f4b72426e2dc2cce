"""Folders as they come from archives, disks and file managers: the content decides, and whatever is left out is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scorebayes.data.check import as_text, check
from scorebayes.data.doubts import depth_words
from scorebayes.data.listing import left_out_words, list_images
from scorebayes.data.sources.folder import Folder
from scorebayes.errors import DataError
from scorebayes.stages.predict import image_files


def picture(path: Path, seed: int = 0, depth: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if depth == 8 else np.uint16
    pixels = np.random.default_rng(seed).integers(0, 2**depth, (16, 16), dtype=kind)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def dicom(path: Path, media: bytes = b"1.2.840.10008.5.1.4.1.1.2") -> Path:
    """As far as a listing reads it: the preamble, and the class of what is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = b"\x02\x00\x02\x00UI" + len(media).to_bytes(2, "little") + media
    path.write_bytes(bytes(128) + b"DICM" + head)
    return path


def two_classes(root: Path) -> Path:
    for k in range(2):
        picture(root / "benign" / f"{k}.png", k)
        picture(root / "malignant" / f"{k}.png", k + 10)
    return root


def reasons(source: Folder) -> dict[str, str]:
    return {entry.image_id: entry.reason for entry in source.rejected}


# --- L1: names say nothing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["1.2.840.113619.2.5.1", "IM0001", "slice.IMA", "scan.dc3", "a.1", "a.dicom", "x.txt"]
)
def test_a_dicom_file_is_found_whatever_its_name(tmp_path, name) -> None:
    """L1: files named by their UID, .IMA, .dc3, .1 or nothing are images if DICM stands at byte 128."""
    path = dicom(tmp_path / "in" / name)
    assert image_files([tmp_path / "in"]) == [(path, tmp_path / "in")]


@pytest.mark.parametrize("name", ["picture", "picture.img", "picture.0001"])
def test_a_picture_is_found_whatever_its_name(tmp_path, name) -> None:
    """L1: a known signature makes a picture."""
    for k, label in enumerate("ab"):
        picture(tmp_path / label / name, k)
    assert [record.image_id for record in Folder(tmp_path).records()] == [f"a/{name}", f"b/{name}"]


def test_real_files_named_by_their_uid_are_classes_and_predictions(data_root) -> None:
    """L1: real DICOM files whose names end in a number, in class folders and for predict."""
    root = data_root / "field" / "45-uid-names"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    source = Folder(root)
    assert [record.label for record in source.records()] == [0, 0, 1, 1] and source.rejected == []
    assert len(image_files([root])) == 4


def test_what_predict_leaves_out_is_counted_in_words(tmp_path) -> None:
    """L1: notes, an index, a mask and hidden files are counted by kind and named."""
    root = tmp_path / "in"
    picture(root / "a.png")
    picture(root / "a_mask.png", 1)
    (root / "notes.txt").write_text("no image")
    (root / ".DS_Store").write_text("x")
    (root / ".secret.png").write_text("x")
    (root / "._a.png").write_text("x")
    dicom(root / "INDEX", b"1.2.840.10008.1.3.10")
    picture(root / "@eaDir" / "a.png")
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="left out") as caught:
        assert image_files([root]) == [(root / "a.png", root)]
    said = str(caught[0].message)
    assert "8 files or folders left out: 1 is no image (notes.txt)" in said
    assert (
        "1 is a mask beside its image (a_mask.png)" in said
        and "1 is an index of a DICOM disc (INDEX)" in said
    )
    assert "1 is hidden (.secret.png)" in said and "1 is a link to a folder (link)" in said
    assert "3 belong to the system (.DS_Store, ._a.png, @eaDir)" in said


def test_what_cannot_be_read_but_is_called_an_image_is_a_row_of_its_own(tmp_path) -> None:
    """L1: an empty .png, a .bmp and an unreadable file stay in the list, so that each gets its reason."""
    (tmp_path / "empty.png").touch()
    (tmp_path / "old.bmp").write_bytes(b"BM")
    (tmp_path / "volume.nii").write_bytes(b"x")
    assert [path.name for path in list_images(tmp_path).images] == ["empty.png", "old.bmp", "volume.nii"]
    assert left_out_words({}) == ""


# --- L4: what is no class, and no image of a patient -------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir",
        "$RECYCLE.BIN",
        "__MACOSX",
        ".ipynb_checkpoints",
        "lost+found",
        "System Volume Information",
        "#recycle",
    ],
)
def test_a_folder_of_the_system_is_no_class_and_is_noted(tmp_path, name) -> None:
    """L4: thumbnails and recycled files are left out and counted."""
    picture(two_classes(tmp_path) / name / "x.png", 99)
    source = Folder(tmp_path)
    assert source.info.classes == ("benign", "malignant") and len(source.records()) == 4
    assert source.notes == [f"1 file or folder left out: 1 belongs to the system ({name})."]
    text = as_text(check(source))
    assert name in text and "Everything is in order" not in text


def test_a_folder_of_the_system_does_not_upset_split_folders(tmp_path) -> None:
    """L4: train/ and test/ beside @eaDir/."""
    for split in ("train", "test"):
        two_classes(tmp_path / split)
    picture(tmp_path / "@eaDir" / "x.png")
    assert {record.split for record in Folder(tmp_path).records()} == {"train", "test"}


@pytest.mark.parametrize(
    "mask",
    ["benign (1)_mask.png", "benign (1)_mask_1.png", "benign (1)_seg.png", "benign (1)_label.png", "benign (1)_gt.tif",
     "benign (1)-Mask.PNG", "mask_benign (1).png", "benign (1)_ground_truth.png"],
)  # fmt: skip
def test_a_mask_beside_its_image_is_left_out_and_listed(tmp_path, mask) -> None:
    """L4: masks as BUSI and others name them."""
    two_classes(tmp_path)
    picture(tmp_path / "benign" / "benign (1).png", 5)
    picture(tmp_path / "benign" / mask, 6)
    source = Folder(tmp_path)
    assert len(source.records()) == 5
    assert reasons(source) == {f"benign/{mask}": "left out: a mask beside its image."}
    assert len(check(source)["left_out"]["left out"]) == 1


@pytest.mark.parametrize("mask", ["benign/masks/0.png", "benign/Masks/0_mask.png", "masks/0.png", "gt/0.png"])
def test_a_mask_in_a_folder_of_masks_is_left_out_and_listed(tmp_path, mask) -> None:
    """L4: masks in a folder beside the images, with the names of these."""
    picture(two_classes(tmp_path) / mask, 6)
    source = Folder(tmp_path)
    assert len(source.records()) == 4 and source.info.classes == ("benign", "malignant")
    assert reasons(source) == {mask: "left out: a mask beside its image."}


def test_a_mask_without_its_image_is_an_image(tmp_path) -> None:
    """L4: only where the image itself is there."""
    two_classes(tmp_path)
    picture(tmp_path / "benign" / "lonely_mask.png", 7)
    picture(tmp_path / "benign" / "unmasked.png", 8)
    assert len(Folder(tmp_path).records()) == 6


def test_masks_that_a_table_names_are_kept_with_a_warning_and_others_are_left_out(tmp_path) -> None:
    """L4: a row is the user's word, but a doubtful one."""
    for k, name in enumerate(("a.png", "a_mask.png", "b.png", "b_mask.png")):
        picture(tmp_path / name, k)
    (tmp_path / "labels.csv").write_text("path,label,patient_id\na.png,x,1\na_mask.png,x,1\nb.png,y,2\n")
    source = Folder(tmp_path)
    assert reasons(source) == {"b_mask.png": "left out: a mask beside its image."}
    assert (
        "1 images have names of masks beside their images, for example a_mask.png"
        in check(source)["warnings"][0]
    )


def test_a_folder_of_masks_beside_the_classes_is_doubted(tmp_path) -> None:
    """L4: masks/ is a class by its place, hardly by its meaning."""
    picture(two_classes(tmp_path) / "masks" / "of another.png", 77)
    assert any("may be a folder of masks" in text for text in check(Folder(tmp_path))["warnings"])


# --- the check ---------------------------------------------------------------------------------------------


def table_of(root: Path, text: str) -> Folder:
    for k in range(8):
        picture(root / f"{k}.png", k)
    (root / "labels.csv").write_text(text)
    return Folder(root)


PATIENTS = "path,label,patient_id\n" + "".join(f"{k}.png,{'ab'[k % 2]},p{k}\n" for k in range(8))


def test_everything_is_in_order_only_without_a_warning(tmp_path) -> None:
    """L6: a warning and "in order" exclude each other, in words and in JSON."""
    fine = check(table_of(tmp_path / "fine", PATIENTS))
    assert fine["ok"] and fine["warnings"] == [] and as_text(fine).endswith("Everything is in order.")
    doubtful = check(table_of(tmp_path / "doubtful", PATIENTS.replace(",p3", ",")))
    assert not doubtful["ok"] and "1 of 8 images name no patient" in doubtful["warnings"][0]
    assert "in order" not in as_text(doubtful) and doubtful["warnings"][0] in as_text(doubtful)
    assert json.loads(json.dumps(doubtful))["warnings"] == doubtful["warnings"]
    with pytest.warns(UserWarning, match="semicolons"):
        noted = table_of(tmp_path / "noted", PATIENTS.replace(",", ";"))
    assert as_text(check(noted)).endswith("Nothing is wrong. See the notes above.")


def test_one_picture_under_two_labels_is_doubted(tmp_path) -> None:
    """L3: copies in two class folders contradict each other."""
    two_classes(tmp_path)
    shutil.copy(tmp_path / "benign" / "0.png", tmp_path / "malignant" / "same.png")
    warned = check(Folder(tmp_path))["warnings"]
    assert any(
        "1 image occurs under two labels, for example benign/0.png = malignant/same.png" in w for w in warned
    )


# --- P12: depth --------------------------------------------------------------------------------------------


def test_mixed_depths_are_counted_by_class_and_a_shortcut_is_named(tmp_path) -> None:
    """P12: benign of 8 bits and malignant of 16 are told apart by their depth alone."""
    for k in range(3):
        picture(tmp_path / "benign" / f"{k}.png", k)
        picture(tmp_path / "malignant" / f"{k}.png", k, depth=16)
    (warning,) = [text for text in check(Folder(tmp_path))["warnings"] if "depth" in text]
    assert "8 bits: 3 benign; 16 bits: 3 malignant" in warning and "learn the depth" in warning


def test_the_depth_of_a_set_is_not_that_of_its_first_files(tmp_path) -> None:
    """P12: twenty files of 8 bits come first by name, and the rest must not be cut to 8."""
    for k in range(20):
        picture(tmp_path / "a" / f"{k}.png", k)
        picture(tmp_path / "b" / f"{k}.png", k, depth=16)
    assert Folder(tmp_path).info.bits == 16


def test_mixed_depths_in_each_class_are_no_shortcut_but_told(tmp_path) -> None:
    """P12: mixed, but alike in both classes."""
    for k in range(4):
        for label in ("a", "b"):
            picture(tmp_path / label / f"{k}.png", k, depth=8 if k % 2 else 16)
    source = Folder(tmp_path)
    said = depth_words(source.records(), source.info.classes)
    assert "8 bits: 2 a, 2 b; 16 bits: 2 a, 2 b" in said and "learn the depth" not in said
    assert depth_words(source.records()[::2], source.info.classes, headers=1) == ""


def test_links_to_class_folders_are_told_where_no_class_is_left(tmp_path) -> None:
    """L1: links to folders are not followed, and the error says so."""
    two_classes(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for name in ("benign", "malignant"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "real" / name)
    with pytest.raises(DataError, match=r"0 classes\. 2 files or folders left out: 2 are links to folders"):
        Folder(tmp_path / "linked")
