"""Tables as people save them: what is guessed is noted, what is ambiguous or broken stops with the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.native_trees import cbis_ddsm, vindr_mammo

from scorebayes.data.check import check
from scorebayes.data.sources import tables
from scorebayes.data.sources.cbis_ddsm import CbisDdsm
from scorebayes.data.sources.mammograms import find_table, is_plain_relative
from scorebayes.data.sources.tables import read_table
from scorebayes.data.sources.vindr_mammo import VindrMammo
from scorebayes.errors import DataError

COLUMNS = ("image id", "label")


def table(tmp_path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def test_cells_stay_text(tmp_path) -> None:
    rows = read_table(table(tmp_path, "image id,label\n007,NA\n1e5, nan \n"), COLUMNS).rows
    assert rows == ({"image id": "007", "label": "NA"}, {"image id": "1e5", "label": "nan"})


def test_only_the_columns_asked_for_are_kept(tmp_path) -> None:
    path = table(tmp_path, "image id,patient name,label,age\na,DOE,1,45\n")
    assert read_table(path, COLUMNS, optional=("density", "age")).rows == (
        {"image id": "a", "label": "1", "age": "45"},
    )


@pytest.mark.parametrize(
    "header", ["image_id,LABEL", " Image Id ,label ", "\ufeffimage id,label", "imageid,label"]
)
def test_column_names_match_whatever_their_case_blanks_and_underscores(tmp_path, header) -> None:
    assert read_table(table(tmp_path, f"{header}\na,1\n"), COLUMNS).rows[0]["image id"] == "a"


def test_a_column_may_go_by_several_names_and_rows_know_their_lines(tmp_path) -> None:
    found = read_table(table(tmp_path, 'File,class\n"a\nb",1\n\nc,0\n'), ("path|file|image", "label|class"))
    assert [row["label"] for row in found.rows] == ["1", "0"] and found.rows[1]["path"] == "c"
    assert found.lines == (3, 5)
    with pytest.raises(DataError, match=r"lacks the column 'path or file'\. It has name, class"):
        read_table(table(tmp_path, "name,class\na,1\n"), ("path|file", "class"))


def test_a_table_too_large_to_be_one_is_refused_unread(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tables, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="is larger than"):
        read_table(table(tmp_path, "image id,label\na,1\n"), COLUMNS)


def test_line_feeds_within_quotes_belong_to_the_cell(tmp_path) -> None:
    path = table(tmp_path, 'image id,label\r\n"a\n",1\r\n"b\n",0\r\n')
    assert [row["image id"] for row in read_table(path, COLUMNS).rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "encoding", "note"),
    [
        ("image id,label\nü,1\n", "utf-16", "UTF-16"),
        ("image id,label\nü,1\n", "cp1252", "Windows-1252"),
        ("image id;label\nü;1\n", "utf-8", "separated by semicolons"),
        ("image id\tlabel\nü\t1\n", "utf-8", "separated by tabs"),
    ],
)
def test_other_encodings_and_separators_are_detected_and_noted(tmp_path, text, encoding, note) -> None:
    found = read_table(table(tmp_path, text, encoding), COLUMNS)
    assert found.rows[0]["image id"] == "ü"
    assert len(found.notes) == 1 and note in found.notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image id,lable\na,1\n", "lacks the column 'label'"),
        ("", "is empty"),
        ("image id,label\n", "no rows"),
        ("image id,label\n\n , \n", "no rows"),
        ("image id,label\na,1\nb,1,extra\n", "line 3: 3 cells, but the header has 2"),
        ("image id,label\na,1\nb\n", "line 3: 1 cells"),
        ('image id,label\na,1\n"b,1\nc,1\n', "line 4: unexpected end of data"),
        ('image id,label\n"a"x,1\n', "line 2"),
        ("image id,label,Label\na,1,0\n", "has the column 'label' twice"),
        (b"\xff\xfeabc", "damaged UTF-16"),
        (b"image id,label\n\x00,1\n", "null bytes"),
        (b"image id,label\n\x81\x8d,1\n", "neither UTF-8 nor Windows-1252"),
    ],
)
def test_a_broken_table_stops_with_its_cause(tmp_path, text, words) -> None:
    with pytest.raises(DataError) as caught:
        read_table(table(tmp_path, text), COLUMNS)
    assert words in str(caught.value) and "table.csv" in str(caught.value)


def test_two_possible_separators_are_not_guessed_between(tmp_path) -> None:
    with pytest.raises(DataError, match="both comma and semicolon could separate"):
        read_table(table(tmp_path, "label;label,label\n1;2,3\n"), ("label",))
    assert len(read_table(table(tmp_path, "label\n1\n2\n"), ("label",)).rows) == 2


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("a/b.dcm", True),
        ("", False),
        ("/etc/passwd", False),
        ("a/../../b", False),
        ("..\\b", False),
        ("C:\\b", False),
    ],
)
def test_paths_that_lead_out_of_the_data_are_told_apart(text, fine) -> None:
    assert is_plain_relative(text) is fine


def test_tables_are_found_below_the_folder_unless_two_differ(tmp_path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        find_table(tmp_path / "absent", "t.csv")
    with pytest.raises(DataError, match=r"t\.csv is not in"):
        find_table(tmp_path, "t.csv")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.csv").write_text("same")
    assert find_table(tmp_path, "t.csv") == tmp_path / "a" / "t.csv"
    (tmp_path / "b" / "t.csv").write_text("other")
    with pytest.raises(DataError, match="several different tables"):
        find_table(tmp_path, "t.csv")


def test_a_table_in_another_encoding_is_read_and_noted_by_the_check(tmp_path) -> None:
    root = cbis_ddsm(tmp_path)
    path = root / "mass_case_description_train_set.csv"
    path.write_bytes(path.read_bytes().decode().encode("utf-16"))
    result = check(CbisDdsm(root))
    assert result["records"] == 6
    assert result["notes"] == ["mass_case_description_train_set.csv is encoded in UTF-16."]


def test_a_missing_table_stops(tmp_path) -> None:
    root = cbis_ddsm(tmp_path)
    (root / "calc_case_description_test_set.csv").unlink()
    with pytest.raises(DataError, match=r"calc_case_description_test_set\.csv is not in"):
        CbisDdsm(root).records()


def test_a_patient_in_two_official_splits_stops_the_division(tmp_path) -> None:
    root = vindr_mammo(tmp_path)
    (path,) = root.rglob("breast-level_annotations.csv")
    path.write_text(path.read_text().replace("training", "test", 1))
    result = check(VindrMammo(root), pixels=False)
    assert not result["ok"]
    assert any("more than one official split" in note for note in result["notes"])
