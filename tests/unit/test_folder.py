"""One's own images: class folders and tables, with everything that real ones get wrong."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scorebayes.data.sources.folder import Folder
from scorebayes.errors import ConfigError, DataError


def _image(path: Path, value: int = 100, colour: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8, 3) if colour else (8, 8), dtype=np.uint8)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


def _table(root: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    for k in range(4):
        _image(root / f"{k}.png", k)
    (root / name).write_bytes(text.encode(encoding))
    return root


ROWS = "path,label,patient_id\n0.png,benign,007\n1.png,malignant,NA\n2.png,benign,7\n3.png,malignant,1e3\n"


def _reasons(source: Folder) -> dict[str, str]:
    return {rejected.image_id: rejected.reason for rejected in source.rejected}


# --- class folders -----------------------------------------------------------------------------------------


def test_class_folders_give_labels_and_no_patients(tmp_path: Path) -> None:
    for name in ("malignant/a.png", "malignant/deep/b.npy", "benign/a.jpg"):
        _image(tmp_path / name)
    source = Folder(tmp_path)
    assert source.info.classes == ("benign", "malignant")
    assert source.info.positive == 1
    assert [(r.image_id, r.label, r.patient_id, r.split) for r in source.records()] == [
        ("benign/a.jpg", 0, None, None),
        ("malignant/a.png", 1, None, None),
        ("malignant/deep/b.npy", 1, None, None),
    ]
    assert source.rejected == []


def test_split_folders_above_the_class_folders_are_official_splits(tmp_path: Path) -> None:
    for split in ("Train", "valid", "test"):
        for name in ("0", "1", "10"):
            _image(tmp_path / split / name / "a.png")
    source = Folder(tmp_path)
    assert source.info.classes == ("0", "1", "10")
    assert Counter(r.split for r in source.records()) == {"train": 3, "val": 3, "test": 3}


def test_split_folders_beside_others_are_refused(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "masks/1.png"):
        _image(tmp_path / name)
    with pytest.raises(DataError, match=r"\(train\) with others \(masks\)"):
        Folder(tmp_path)


def test_what_is_no_image_is_left_out_and_hidden_files_are_not_mentioned(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "b/.hidden.png", ".git/x.png", "loose.png"):
        _image(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("x")
    (tmp_path / "a/Thumbs.db").write_text("x")
    (tmp_path / "a/empty.png").touch()
    os.mkfifo(tmp_path / "a/pipe.png")
    source = Folder(tmp_path)
    reasons = _reasons(source)
    assert set(reasons) == {"loose.png", "a/notes.txt", "a/empty.png", "a/pipe.png"}
    assert "not in a class folder" in reasons["loose.png"]
    assert "pipe" in reasons["a/pipe.png"]
    assert len(source.records()) == 2


def test_links_out_of_the_folder_are_left_out(tmp_path: Path) -> None:
    outside = _image(tmp_path / "outside/secret.png")
    for name in ("a/1.png", "b/1.png"):
        _image(tmp_path / "data" / name)
    (tmp_path / "data/a/link.png").symlink_to(outside)
    (tmp_path / "data/c").symlink_to(outside.parent)
    source = Folder(tmp_path / "data")
    assert "points outside" in _reasons(source)["a/link.png"]
    assert source.info.classes == ("a", "b")


def test_a_file_name_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "b/häß\n.png"):
        _image(tmp_path / name)
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/a/\xff.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    source = Folder(tmp_path)
    assert [r.reason for r in source.rejected] == ["The file name is not valid UTF-8."]
    assert "b/häß\n.png" in {r.image_id for r in source.records()}


def test_patients_are_found_in_file_names(tmp_path: Path) -> None:
    for name in ("a/P1_L.png", "a/P1_R.png", "b/P2_L.png", "b/odd.png"):
        _image(tmp_path / name)
    source = Folder(tmp_path, patient_pattern=r"^P(\d+)_")
    assert [r.patient_id for r in source.records()] == ["1", "1", "2"]
    assert "patient" in _reasons(source)["b/odd.png"]


def test_patients_are_found_in_folders_by_a_pattern_with_a_slash(tmp_path: Path) -> None:
    for name in ("a/7/0.png", "a/7/1.png", "b/8/0.png"):
        _image(tmp_path / name)
    source = Folder(tmp_path, patient_pattern="/([^/]+)/[^/]+$")
    assert [r.patient_id for r in source.records()] == ["7", "7", "8"]


@pytest.mark.parametrize("pattern", ["P(", "P", "(a)(b)"])
def test_a_malformed_patient_pattern_is_refused(tmp_path: Path, pattern: str) -> None:
    for name in ("a/1.png", "b/1.png"):
        _image(tmp_path / name)
    with pytest.raises(ConfigError, match="patient_pattern"):
        Folder(tmp_path, patient_pattern=pattern)


@pytest.mark.parametrize("names", [[], ["a/1.png"], ["a/1.png", "a/2.png", "unknown/1.png"]])
def test_less_than_two_classes_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        _image(tmp_path / name)
    with pytest.raises(DataError, match=r"usable images of only [01] classes"):
        Folder(tmp_path)


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none"):
        Folder(tmp_path / "none")


# --- tables ------------------------------------------------------------------------------------------------


def test_patient_ids_stay_the_text_they_are(tmp_path: Path) -> None:
    source = Folder(_table(tmp_path, ROWS))
    assert [r.patient_id for r in source.records()] == ["007", "NA", "7", "1e3"]


def test_all_columns_are_used_whatever_their_synonym_and_case(tmp_path: Path) -> None:
    header = "Image,PATHOLOGY,Patient,Split,View,Laterality,Density,Patient Name\n"
    source = Folder(
        _table(
            tmp_path,
            header
            + "./0.png,malignant,p,training,cc,LEFT,C,Doe\n1.png,benign,q,Validation,mlo,r,A,Roe\n"
            + "\n2.png,benign,s,test,,?,,Poe\n3.png,benign,s,test,,,,Poe\n",
        )
    )
    first = source.records()[0]
    assert (first.image_id, first.label, first.patient_id, first.split) == ("0.png", 1, "p", "train")
    assert (first.view, first.laterality, first.extra) == ("CC", "L", {"density": "C"})
    assert "Doe" not in repr(source.records())


def test_the_path_of_a_table_may_be_given(tmp_path: Path) -> None:
    _table(tmp_path, ROWS, name="one.csv")
    _table(tmp_path, ROWS, name="two.csv")
    assert len(Folder(tmp_path / "two.csv").records()) == 4
    with pytest.raises(DataError, match=r"2 tables: one\.csv, two\.csv"):
        Folder(tmp_path)


@pytest.mark.parametrize(
    ("encoding", "separator", "warned"),
    [
        ("utf-8", ",", None),
        ("utf-8-sig", ",", None),
        ("utf-8", ";", "semicolons"),
        ("utf-8", "\t", "tabs"),
        ("utf-16", ",", "UTF-16"),
        ("cp1252", ",", "Windows-1252"),
    ],
)
def test_encoding_and_separator_are_found_and_warned_of(
    tmp_path: Path, encoding: str, separator: str, warned: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    text = ROWS.replace("benign", "gutartig ä").replace(",", separator)
    source = Folder(_table(tmp_path, text, encoding=encoding))
    assert source.info.classes == ("gutartig ä", "malignant")
    messages = [str(w.message) for w in recwarn]
    assert len(messages) == (warned is not None)
    assert warned is None or warned in messages[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROWS.encode("utf-16")[2:], "byte order mark"),
        (b"path,label\n0.png,\x81\x8d", "neither UTF-8 nor"),
        (b"", "empty"),
        (b"path,label\n", "no rows"),
        (
            b"path,diagnosis\n0.png,benign\n",
            r"lacks the column 'label or class or pathology'. It has path, diagnosis",
        ),
        (b"path,label,label\n0.png,a,b\n", "column 'label' twice"),
        (b"path,label\n0.png,benign\n1.png,malignant,x\n", "line 3: 3 cells"),
        (b'path,label\n0.png,benign\n"1.png,malignant\n', "line 3"),
        (b"path,label,split\n0.png,benign,trian\n", "line 2: split 'trian'"),
        (b"path,label\n0.png,Benign\n1.png,benign\n", "only in case"),
        (b"path,label\n0.png,benign\n1.png,benign\n", "1 classes"),
    ],
)
def test_a_doubtful_table_stops_with_file_and_cause(tmp_path: Path, content: bytes, message: str) -> None:
    _table(tmp_path, "")
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_rows_are_left_out_one_by_one(tmp_path: Path) -> None:
    _image(tmp_path / "outside.png")
    root = tmp_path / "data"
    text = (
        "path,label\n0.png,benign\n1.png,malignant\n../outside.png,benign\n/etc/hostname,benign\n"
        "C:\\x.png,benign\nabsent.png,benign\n2.png,?\nlink.png,benign\n"
    )
    _table(root, text)
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    source = Folder(root)
    reasons = _reasons(source)
    assert [(r.image_id, r.label) for r in source.records()] == [("0.png", 0), ("1.png", 1), ("2.png", None)]
    assert "points outside" in reasons["../outside.png"]
    assert "points outside" in reasons["/etc/hostname"]
    assert "points outside" in reasons["C:/x.png"]
    assert "does not exist" in reasons["absent.png"]
    assert "points outside" in reasons["link.png"]
    assert "no row" in reasons["3.png"]
    assert len(source.rejected) == 6


def test_rows_that_contradict_each_other_leave_the_image_out_and_equal_ones_count_once(
    tmp_path: Path,
) -> None:
    source = Folder(_table(tmp_path, ROWS + "0.png,malignant,007\n1.png,malignant,NA\n3.png,malignant,8\n"))
    reasons = _reasons(source)
    assert "label benign and malignant" in reasons["0.png"]
    assert "patient_id 1e3 and 8" in reasons["3.png"]
    assert [r.image_id for r in source.records()] == ["1.png", "2.png"]


def test_a_row_without_patient_stands_alone_where_others_have_one(tmp_path: Path) -> None:
    text = "path,label,patient\n0.png,benign,\n1.png,malignant,a\n2.png,benign,b\n3.png,benign,b\n"
    source = Folder(_table(tmp_path, text))
    assert [r.patient_id for r in source.records()] == [None, "a", "b", "b"] and source.rejected == []
    with pytest.raises(ConfigError, match="table already names the patients"):
        Folder(tmp_path, patient_pattern=r"(\d)")


def test_an_empty_patient_column_means_no_patients(tmp_path: Path) -> None:
    text = "path,label,patient\n0.png,benign,\n1.png,malignant,\n2.png,benign,\n3.png,benign,\n"
    assert {r.patient_id for r in Folder(_table(tmp_path, text)).records()} == {None}


def test_paths_with_backslashes_are_found(tmp_path: Path) -> None:
    _image(tmp_path / "a/0.png")
    _image(tmp_path / "b/1.png")
    (tmp_path / "labels.csv").write_text("path,label\na\\0.png,x\nb\\1.png,y\n")
    assert [r.image_id for r in Folder(tmp_path).records()] == ["a/0.png", "b/1.png"]


def test_given_classes_fix_the_order_and_leave_out_the_rest(tmp_path: Path) -> None:
    text = "path,label\n0.png,b\n1.png,a\n2.png,c\n3.png,a\n"
    source = Folder(_table(tmp_path, text), classes="b, a", positive="b")
    assert source.info.classes == ("b", "a")
    assert source.info.positive == 0
    assert [r.label for r in source.records()] == [0, 1, 1]
    assert "not one of b, a" in _reasons(source)["2.png"]
    with pytest.raises(ConfigError, match="positive"):
        Folder(tmp_path, positive="z")
    with pytest.raises(ConfigError, match="classes"):
        Folder(tmp_path, classes=["a", "a"])


# --- pixels ------------------------------------------------------------------------------------------------


def test_depth_is_that_of_the_files_or_the_one_given(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "1.npy", np.array([[0, 4095]], np.uint16))
    assert Folder(tmp_path).info.bits == 16
    source = Folder(tmp_path, bits=12)
    assert source.info.bits == 12
    np.testing.assert_array_equal(source.read(source.records()[0]), [[0, 1]])
    with pytest.raises(ConfigError, match="bits"):
        Folder(tmp_path, bits=17)


def test_colour_counts_only_if_all_images_have_it(tmp_path: Path) -> None:
    _image(tmp_path / "a/1.png", colour=True)
    _image(tmp_path / "b/1.png", colour=True)
    (tmp_path / "b/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert Folder(tmp_path).info.channels == 3
    _image(tmp_path / "b/2.png")
    assert Folder(tmp_path).info.channels == 1


def test_grey_saved_as_rgb_is_grey(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        Image.open(_image(tmp_path / name)).convert("RGB").save(tmp_path / name)
    assert Folder(tmp_path).info.channels == 1


def test_a_file_swapped_for_a_link_after_indexing_is_not_read(tmp_path: Path) -> None:
    outside = _image(tmp_path / "outside.png")
    for name in ("a/1.png", "b/1.png"):
        _image(tmp_path / "data" / name)
    source = Folder(tmp_path / "data")
    record = source.records()[0]
    record.path.unlink()
    record.path.symlink_to(outside)
    with pytest.raises(DataError, match="points outside"):
        source.read(record)
