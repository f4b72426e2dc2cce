"""What the mammography data sets share: the images of a folder by the name of each folder above them."""

from __future__ import annotations

from pathlib import Path

from scorebayes.data.sources.mammograms import files_by_folder


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_an_image_is_found_under_every_folder_above_it(tmp_path: Path) -> None:
    first, second = touch(tmp_path / "case" / "b" / "2.DCM"), touch(tmp_path / "case" / "a" / "1.png")
    touch(tmp_path / "case" / "notes.txt")
    assert files_by_folder(tmp_path) == {"case": [second, first], "a": [second], "b": [first]}


def test_what_a_file_manager_leaves_is_no_image(tmp_path: Path) -> None:
    """Copies from a Mac bring a second file of 4 KB, no DICOM, for every image."""
    image = touch(tmp_path / "case" / "1.dcm")
    touch(tmp_path / "case" / "._1.dcm")
    touch(tmp_path / "__MACOSX" / "case" / "1.dcm")
    assert files_by_folder(tmp_path) == {"case": [image]}
