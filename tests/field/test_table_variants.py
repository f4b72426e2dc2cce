"""Tables as spreadsheets and scripts write them: read as meant, or refused in words."""

from __future__ import annotations

import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scorebayes.data.check import as_text, check
from scorebayes.data.names import class_key, near_doubles
from scorebayes.data.sources.folder import Folder
from scorebayes.data.sources.tables import read_table
from scorebayes.errors import ConfigError, DataError

ROWS = [("0.png", "benign"), ("1.png", "malignant"), ("2.png", "benign"), ("3.png", "malignant")]
PLAIN = "path,label\n" + "".join(f"{name},{label}\n" for name, label in ROWS)


def folder(root: Path, text: str | bytes, **options) -> Folder:
    for k in range(6):
        root.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{k}.png")
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Folder(root, **options)


def labels(source: Folder) -> dict[str, str | None]:
    classes = source.info.classes
    return {r.image_id: None if r.label is None else classes[r.label] for r in source.records()}


def field_input(data_root: Path, name: str) -> Path:
    path = data_root / "field" / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


# --- T1 and L3: how a table is written ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PLAIN.replace("\n", "\r"), id="CR line ends"),
        pytest.param(PLAIN.replace("\n", "\r\n"), id="CR LF line ends"),
        pytest.param(PLAIN.replace("\n", "\r\r\n"), id="line ends converted twice"),
        pytest.param(PLAIN.replace("1.png,malignant\n", "1.png,malignant\r"), id="mixed line ends"),
        pytest.param("\ufeff" + PLAIN, id="byte order mark"),
        pytest.param("sep=;\r\n" + PLAIN.replace(",", ";"), id="Excel's first line"),
        pytest.param('"sep=,"\n' + PLAIN, id="Excel's first line, quoted"),
        pytest.param("sep=\t\n" + PLAIN.replace(",", "\t"), id="Excel's first line, tab"),
        pytest.param(PLAIN.replace(",", "\t"), id="tabs in a .csv"),
        pytest.param(PLAIN.replace(",", ", "), id="blanks after the separator"),
        pytest.param(
            "\n".join(f'"{a}", "{b}"' for a, b in [("path", "label"), *ROWS]), id="quotes after blanks"
        ),
        pytest.param(PLAIN.replace("\n", ",\n"), id="a separator at the end of every line"),
        pytest.param(
            PLAIN.replace("label\n", "label,,,\n"), id="empty columns at the end of the header only"
        ),
        pytest.param(PLAIN.replace("benign\n", "benign,,\n"), id="empty cells at the end of some rows"),
        pytest.param("# made by a script\n# on Monday\n" + PLAIN, id="comments above"),
        pytest.param("#" + PLAIN, id="header that begins like a comment"),
        pytest.param(PLAIN + "# end of the table\n", id="comment below"),
        pytest.param("\n\n" + PLAIN + "\n,\n", id="blank lines"),
        pytest.param(PLAIN + PLAIN, id="two tables, one after the other"),
        pytest.param(PLAIN.replace("benign", '="benign"'), id="Excel's formula for text"),
        pytest.param(PLAIN.replace("benign", '"=""benign"""'), id="Excel's formula for text, quoted"),
        pytest.param(PLAIN.replace("benign", "benign\u200b"), id="invisible characters"),
        pytest.param(PLAIN.replace("benign\n2", "benign\u00a0\n2"), id="no-break blanks"),
        pytest.param(PLAIN.replace("benign", '"benign\n"'), id="a line end within quotes"),
    ],
)
def test_a_table_is_read_however_it_is_written(tmp_path, text) -> None:
    """T1: CR line ends; L3: sep= lines, blanks, quotes, comments, trailing separators and what else comes."""
    source = folder(tmp_path, text)
    assert labels(source) == dict(ROWS) and source.info.classes == ("benign", "malignant")


def test_the_real_table_with_cr_line_ends_is_read(data_root) -> None:
    """T1: as found."""
    assert labels(Folder(field_input(data_root, "40-cr-only"))) == {
        "i00.png": "benign",
        "i01.png": "malignant",
    }


def test_the_real_table_with_a_separator_line_is_read(data_root) -> None:
    """L3: as found, written by a German Excel."""
    source = Folder(field_input(data_root, "44-excel-sep-line"))
    assert len(source.records()) == 12 and source.info.classes == ("benign", "malignant")
    assert source.notes == []


def test_lines_are_counted_from_the_top_of_the_file(tmp_path) -> None:
    """L3: what stands above the header does not shift the line of an error."""
    with pytest.raises(DataError, match="line 5: 3 cells"):
        folder(tmp_path, "sep=,\n# a comment\npath,label\n0.png,a\n1.png,b,c\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04" + bytes(40), "is a workbook"),
        ("path,label\n".encode("utf-32"), "UTF-32"),
        (b"path,label\n0.png,a\n1.png,1,234\n", "line 3: 3 cells, but the header has 2"),
        (b"path,label,patient_id,patient_id\n0.png,a,1,2\n", "has the column 'patient_id' twice"),
    ],
)
def test_what_cannot_be_read_as_meant_is_refused(tmp_path, content, says) -> None:
    """L3: workbooks, thousands separators, a column twice."""
    with pytest.raises(DataError, match=says):
        folder(tmp_path, content)


def test_ids_keep_their_zeros_in_excels_formula(tmp_path) -> None:
    """L3: ="007" is 007."""
    path = tmp_path / "t.csv"
    path.write_text('path,patient_id\na.png,="007"\n')
    assert read_table(path, ("path", "patient_id")).rows[0]["patient_id"] == "007"


# --- L3: spellings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "classes", "expected"),
    [
        (["0", "1", "0.0", "1.0"], ("0", "1"), [0, 1, 0, 1]),
        (["0.0", "1.0", "0.0", "1.0"], ("0.0", "1.0"), [0, 1, 0, 1]),
        (["2", "10", "2.00", "1e1"], ("2", "10"), [0, 1, 0, 1]),
        (["01", "2", "1", "02"], ("1", "2"), [0, 1, 0, 1]),
        (["tumör", "x", unicodedata.normalize("NFD", "tumör"), "x"], ("tumör", "x"), [0, 1, 0, 1]),
        (["no  mass", "mass", "no mass", " mass"], ("mass", "no mass"), [1, 0, 1, 0]),
        (["4a", "4b", "4a", "4b"], ("4a", "4b"), [0, 1, 0, 1]),
    ],
)
def test_spellings_of_one_class_are_one_class(tmp_path, written, classes, expected) -> None:
    """L3: equal numbers, NFC and NFD, and blanks make no new class."""
    text = "path,label\n" + "".join(f"{k}.png,{label}\n" for k, label in enumerate(written))
    source = folder(tmp_path, text)
    assert source.info.classes == classes
    assert [record.label for record in source.records()] == expected


def test_decimal_commas_are_numbers_and_thousands_are_not(tmp_path) -> None:
    """L3: 0,0 in a table with semicolons is 0; 1,000 could be one or a thousand and stays what it is."""
    source = folder(tmp_path, "path;label\n0.png;0,0\n1.png;1,0\n2.png;0\n3.png;1\n")
    assert source.info.classes == ("0", "1")
    assert class_key("1,000") != class_key("1")


def test_the_real_table_with_numbers_of_two_spellings_has_two_classes(data_root) -> None:
    """L3: as found; what was merged is told."""
    source = Folder(field_input(data_root, "44-mixed-int-float"))
    assert source.info.classes == ("0", "1") and [r.label for r in source.records()] == [0, 1] * 6
    assert source.notes == [
        "The labels 0 and 0.0 are one class, 0.",
        "The labels 1 and 1.0 are one class, 1.",
    ]
    assert source.notes[0] in as_text(check(source))


def test_classes_that_are_asked_for_are_found_in_any_spelling(tmp_path) -> None:
    """L3: classes = "0,1" and labels 0.0 and 1.0."""
    source = folder(tmp_path, "path,label\n0.png,0.0\n1.png,1.0\n2.png,2.0\n", classes="1,0")
    assert [record.label for record in source.records()] == [1, 0]
    with pytest.raises(ConfigError, match="two or more different"):
        folder(tmp_path, PLAIN, classes="0,0.0")


def test_class_folders_in_two_forms_of_unicode_are_one_class(tmp_path) -> None:
    """L3: a Mac writes the umlaut in two characters."""
    names = [unicodedata.normalize(form, "tumör") for form in ("NFC", "NFD")]
    for k, name in enumerate([*names, "normal"]):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), k, np.uint8)).save(tmp_path / name / f"{k}.png")
    assert Folder(tmp_path).info.classes == ("normal", "tumör")


def test_a_row_finds_its_file_in_the_other_form_of_unicode(tmp_path) -> None:
    """L3: the table in NFC, the disk in NFD."""
    source = folder(tmp_path, PLAIN)
    on_disk = tmp_path / unicodedata.normalize("NFD", "ö.png")
    (tmp_path / "0.png").rename(on_disk)
    source = folder(tmp_path, PLAIN.replace("0.png", "ö.png"))
    assert on_disk in [record.path for record in source.records()]


def test_labels_that_differ_only_in_spelling_do_not_contradict_each_other(tmp_path) -> None:
    """L3: one image, listed as 0 and as 0.0."""
    source = folder(tmp_path, "path,label\n0.png,0\n0.png,0.0\n1.png,1\n")
    assert [record.image_id for record in source.records()] == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("a", "b"),
    [("benign", "bening"), ("malignant", "malignent"), ("cyst", "cysts"), ("mass", "masses"), ("no_mass", "no mass"),
     ("non-mass", "nonmass"), ("carcinoma", "carcinomaa"), ("grade 1", "grade1")],
)  # fmt: skip
def test_a_near_double_of_a_class_is_doubted(tmp_path, a, b) -> None:
    """L3: one letter off, a plural, blanks or underscores."""
    assert near_doubles((a, "other", b)) == [(a, b)]
    source = folder(tmp_path, f"path,label,patient_id\n0.png,{a},1\n1.png,{b},2\n2.png,{a},3\n3.png,{b},4\n")
    assert any("nearly the same name" in text for text in check(source)["warnings"])


@pytest.mark.parametrize(
    ("a", "b"),
    [("benign", "malignant"), ("grade 1", "grade 2"), ("A", "B"), ("4a", "4b"), ("typical", "atypical"),
     ("typea", "typeb"), ("1-2", "12"), ("left", "right"), ("stage I", "stage II"), ("0", "1")],
)  # fmt: skip
def test_different_classes_are_not_doubted(a, b) -> None:
    """L3: a warning that is always there is read by nobody."""
    assert near_doubles((a, b)) == []


# --- paths -------------------------------------------------------------------------------------------------


def test_absolute_paths_below_the_folder_are_read(tmp_path) -> None:
    """L3: a script wrote where the images are."""
    source = folder(
        tmp_path, "path,label\n" + "".join(f"{tmp_path / name},{label}\n" for name, label in ROWS)
    )
    assert labels(source) == dict(ROWS) and source.notes == []


@pytest.mark.parametrize("before", ["/home/reader/data", "C:\\Users\\reader\\data"])
def test_absolute_paths_of_another_computer_are_found_below_the_folder(tmp_path, before) -> None:
    """L3: the folder was copied, and its table still names the old place."""
    sign = "\\" if "\\" in before else "/"
    source = folder(
        tmp_path, "path,label\n" + "".join(f"{before}{sign}{name},{label}\n" for name, label in ROWS)
    )
    assert labels(source) == dict(ROWS)
    assert "which is not on this computer" in source.notes[0]


def test_the_real_table_with_absolute_paths_is_read(data_root) -> None:
    """L3: as found."""
    with pytest.warns(UserWarning, match="the paths begin with /home/reader/data"):
        source = Folder(field_input(data_root, "44-abs-inside"))
    assert len(source.records()) == 12 and source.rejected == []


def test_absolute_paths_that_are_elsewhere_on_this_computer_are_not_replaced(tmp_path) -> None:
    """L3: the files that the table means are there, though outside the folder."""
    folder(tmp_path / "elsewhere", PLAIN)
    text = "path,label\n" + "".join(f"{tmp_path / 'elsewhere' / name},{label}\n" for name, label in ROWS)
    with pytest.raises(DataError, match="points outside the data folder"):
        folder(tmp_path / "data", text)


# --- R2: no label ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["", "?", "NaN", "nan", "N/A", "unknown", "-1", "<NA>", "null"])
def test_a_row_without_label_is_kept_without_one(tmp_path, word) -> None:
    """R2: empty, ? and what programs write for a missing value."""
    source = folder(tmp_path, PLAIN + f"4.png,{word}\n")
    assert labels(source) == {**dict(ROWS), "4.png": None}
    assert "4.png" not in [entry.image_id for entry in source.rejected]


def test_the_real_table_with_unlabelled_rows_keeps_them(data_root) -> None:
    """R2: as found; told by the check."""
    source = Folder(field_input(data_root, "41-unlabelled"))
    assert [record.label for record in source.records()] == [0, 1, 0, 1, None, None, None, None]
    assert "4 images have no label. They serve a label-free start only." in check(source)["notes"]
