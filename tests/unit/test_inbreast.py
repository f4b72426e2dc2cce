"""INbreast from a synthetic tree in its native layout."""

from __future__ import annotations

import plistlib
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixtures.native_trees import INBREAST_ROWS, breast, inbreast

from scorebayes.data import open_source
from scorebayes.data.sources import inbreast as module
from scorebayes.data.sources.inbreast import InBreast, read_regions
from scorebayes.data.split import split_patients
from scorebayes.errors import ConfigError, DataError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return inbreast(tmp_path)


@pytest.fixture
def release(tree: Path) -> Path:
    return tree / "INbreast Release 1.0"


def rewrite(release: Path, old: str, new: str) -> None:
    text = (release / "INbreast.csv").read_text()
    assert old in text
    (release / "INbreast.csv").write_text(text.replace(old, new, 1))


def reasons(source: InBreast) -> dict[str, str]:
    return {entry.image_id: entry.reason for entry in source.rejected}


def test_images_labels_patients_and_views(tree: Path) -> None:
    source = open_source(f"inbreast:{tree}")
    records = source.records()
    assert [(r.image_id, r.label) for r in records] == [
        ("29990011", 0), ("29990037", 1), ("29990063", 1), ("29990089", 0), ("29990115", 1),
    ]  # fmt: skip
    second = records[1]
    assert (second.patient_id, second.laterality, second.view, second.split) == ("a" * 16, "L", "MLO", None)
    assert second.extra == {"breast": f"{'a' * 16}_L_201001", "density": "3", "birads": "4a"}
    assert records[2].extra["density"] == ""  # blank-padded in the table
    assert source.rejected == []
    pixels = source.read(second)
    np.testing.assert_array_equal(np.rint(pixels * 16383), breast(bits=14, side="L", seed=29990037))


@pytest.mark.parametrize(
    ("convention", "labels", "left_out"),
    [("1-3/4-6", [0, 1, 1, 0, 1], 0), ("1-2/4-6", [0, 1, 1, 1], 1), ("1-2/3-6", [0, 1, 1, 1, 1], 0)],
)
def test_conventions(tree: Path, convention: str, labels: list[int], left_out: int) -> None:
    source = InBreast(tree, convention=convention)
    assert [r.label for r in source.records()] == labels
    assert len(source.rejected) == left_out
    assert all("convention: BI-RADS 3" in reason for reason in reasons(source).values())


def test_no_patient_is_in_two_splits(tree: Path) -> None:
    records = InBreast(tree).records()
    splits = split_patients(records)
    assert splits["29990011"] == splits["29990037"] and splits["29990063"] == splits["29990089"]


def test_crops_follow_the_contours_with_all_their_misspelt_names(tree: Path) -> None:
    source = InBreast(tree, task="crop", margin=0)
    records = source.records()
    assert [(r.image_id, r.extra["findings"], r.extra["box"]) for r in records] == [
        ("29990037_1", "mass", "20.5,30.25,40,60.75"),
        ("29990063_1", "spiculated region", "10,10,18,17"),
        ("29990063_2", "calcification", "20,20,30,40"),  # all calcifications of the image together
    ]
    whole = InBreast(tree).read(records[0])
    np.testing.assert_array_equal(source.read(records[0]), whole[30:61, 15:46])


def test_breasts_carry_the_label_of_their_worst_view(tmp_path: Path) -> None:
    rows = [("29990011", "a" * 16, "L", "CC", "2", "2"), ("29990012", "a" * 16, "L", "MLO", "5", "2")]
    assert [r.label for r in InBreast(inbreast(tmp_path, rows), task="breast").records()] == [1, 1]


def test_the_folder_may_be_the_release_itself_or_the_images_beside_the_table(tree, release, tmp_path) -> None:
    assert len(InBreast(release).records()) == 5
    flat = tmp_path / "flat"
    shutil.copytree(release / "AllDICOMs", flat)
    shutil.copy(release / "INbreast.csv", flat)
    assert len(InBreast(flat).records()) == 5


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (";3;4a", ";3;4d", "unknown assessment '4d'"),
        (";3;4a", ";3;", "unknown assessment ''"),
        ("L;MLO;201001;29990037", "R;MLO;201001;29990037", "conflicting: the table says R MLO"),
        ("L;MLO;201001;29990037", "L;CC;201001;29990037", "the file name L MLO"),
    ],
)
def test_a_row_that_cannot_be_trusted_is_set_apart(tree, release, old, new, words) -> None:
    rewrite(release, old, new)
    source = InBreast(tree)
    assert "29990037" not in {r.image_id for r in source.records()}
    assert words in reasons(source)["29990037"]


def test_the_table_may_call_the_oblique_view_ml(tree, release) -> None:
    rewrite(release, "L;MLO;201001;29990037", "L;ML;201001;29990037")
    assert {r.image_id: r.view for r in InBreast(tree).records()}["29990037"] == "MLO"


def test_missing_double_contradicting_and_unlisted_images_are_named(tree, release) -> None:
    rewrite(release, "removed;removed;R;CC;201001;29990011;2;1\n", "")
    with (release / "INbreast.csv").open("a") as file:
        file.write("removed;removed;L;MLO;201001;29990037;3;4a\nremoved;removed;L;CC;201001;29990089;1;5\n")
    next((release / "AllDICOMs").glob("29990115*")).unlink()
    shutil.copy(
        next((release / "AllDICOMs").glob("29990063*")), release / f"29990063_{'d' * 16}_MG_R_ML_ANON.dcm"
    )
    source = InBreast(tree)
    assert [r.image_id for r in source.records()] == ["29990037", "29990063"]
    found = [(entry.image_id, entry.reason) for entry in source.rejected]
    assert ("29990011", "no table row names this file.") in found
    assert ("29990037", "duplicate row: the image is listed twice.") in found
    assert ("29990089", "conflicting labels: 2 rows differ.") in found
    assert ("29990115", "missing: not in the data set.") in found
    assert any(name == "29990063" and "same number" in reason for name, reason in found)


def test_counts_stand_beside_the_published_ones(tree: Path) -> None:
    counts = {count.what: count[1:] for count in InBreast(tree).counts()}
    assert counts["images in the table"] == (5, 410) and counts["patients"] == (3, 108)
    assert counts["images of BI-RADS 4"] == (1, 43)


def excel(monkeypatch, release: Path, frame: pd.DataFrame) -> None:
    (release / "INbreast.csv").unlink()
    (release / "INbreast.xls").write_bytes(b"old Excel")
    monkeypatch.setattr(module.pd, "read_excel", lambda *_, **__: frame)


def test_the_excel_table_serves_where_there_is_no_csv(tree, release, monkeypatch) -> None:
    names = ["Laterality", "View", "Acquisition date", "File name", "ACR", "Bi-Rads", "Mass "]
    rows = [[s, v, "201001", f"{n}.0", d, b, "X"] for n, _, s, v, b, d in INBREAST_ROWS]
    footer = [["", "", "", "", "", "", "115"], ["", "", "", "total", "", "", ""]]
    excel(monkeypatch, release, pd.DataFrame([*rows, *footer], columns=names))
    assert [r.label for r in InBreast(tree).records()] == [0, 1, 1, 0, 1]
    monkeypatch.setattr(module.pd, "read_excel", lambda *_, **__: pd.DataFrame({"View": ["CC"]}))
    with pytest.raises(DataError, match="lacks the column 'Laterality'"):
        InBreast(tree).records()


@pytest.mark.parametrize(("error", "words"), [(ImportError(), "Install xlrd"), (ValueError(), "is damaged")])
def test_an_excel_table_that_cannot_be_read_names_the_remedy(
    tree, release, monkeypatch, error, words
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    excel(monkeypatch, release, pd.DataFrame())
    monkeypatch.setattr(module.pd, "read_excel", fail)
    with pytest.raises(DataError, match=words):
        InBreast(tree).records()


def test_without_any_table_the_csv_is_asked_for(tree, release) -> None:
    (release / "INbreast.csv").unlink()
    with pytest.raises(DataError, match=r"INbreast\.csv is not in"):
        InBreast(tree).records()


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not found</html>",
        b"",
        b"<?xml version='1.0'?><plist><dict><key>Images</key>",
        plistlib.dumps({"Images": [{"ROIs": [{"Name": "Mass"}]}]}),
        plistlib.dumps(["no dict"]),
        b"<?xml version='1.0'?><!DOCTYPE p [<!ENTITY a 'aaaa'>]><plist><string>&a;</string></plist>",
    ],
)
def test_a_damaged_annotation_is_set_apart(tree, release, content) -> None:
    (release / "AllXML" / "29990037.xml").write_bytes(content)
    source = InBreast(tree, task="crop")
    assert [r.image_id for r in source.records()] == ["29990063_1", "29990063_2"]
    assert "29990037.xml" in reasons(source)["29990037"]


def test_regions_without_points_are_dropped(release) -> None:
    names = [name for name, _ in read_regions(release / "AllXML" / "29990063.xml")]
    assert names == ["calcification", "calcification", "spiculated region", ""]


def test_a_contour_outside_the_image_is_refused_when_read(tree, release) -> None:
    path = release / "AllXML" / "29990037.xml"
    path.write_text(re.sub(r"\((\d)", r"(9\1", path.read_text()))
    source = InBreast(tree, task="crop")
    with pytest.raises(DataError, match="outside the image"):
        source.read(source.records()[0])


@pytest.mark.parametrize("options", [{"task": "view"}, {"convention": "1/2"}, {"margin": 11}])
def test_a_wrong_option_is_refused(tree: Path, options: dict) -> None:
    with pytest.raises(ConfigError):
        InBreast(tree, **options)
