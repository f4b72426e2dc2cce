"""Every bad file ends in the quarantine with its reason; the good ones come out bit for bit the same."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.native_trees import CANARY, INBREAST_ROWS, breast, inbreast, write_dicom
from PIL import Image

from scorebayes.data.check import check
from scorebayes.data.load import load
from scorebayes.data.pixels.dicom import read_dicom
from scorebayes.data.pixels.files import require_file
from scorebayes.data.pixels.images import read_image
from scorebayes.data.prepare import Prepare
from scorebayes.data.sources.inbreast import InBreast
from scorebayes.errors import DataError

PREPARE = Prepare(size=32, bits=14)
VICTIM = "29990063"


def zero_bytes(path: Path) -> None:
    path.write_bytes(b"")


def truncated_pixels(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def truncated_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:400])


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def no_mark(path: Path) -> None:
    path.write_bytes(path.read_bytes()[132:])


def length_beyond_the_file(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"\xe0\x7f\x10\x00") + 4  # implicit VR: tag, then four bytes of length
    data[at : at + 4] = struct.pack("<I", 0x7FFFFFF0)
    path.write_bytes(bytes(data[: at + 4]))


def missing(path: Path) -> None:
    path.rename(path.with_suffix(".away"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def link_out_of_the_data(path: Path) -> None:
    outside = path.parents[3] / "outside.dcm"
    shutil.move(path, outside)
    path.symlink_to(outside)


def looping_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def other_modality(path: Path) -> None:
    write_dicom(path, breast(), Modality="CT")


def two_frames(path: Path) -> None:
    write_dicom(path, breast(), NumberOfFrames=2, PixelData=breast().tobytes() * 2)


def black(path: Path) -> None:
    write_dicom(path, breast() * 0)


def saturated(path: Path) -> None:
    write_dicom(path, np.maximum(breast(), 65535))


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (zero_bytes, "is empty (0 bytes)"),
    (truncated_pixels, "is incomplete:"),
    (truncated_header, "no pixel data"),
    (web_page, "a failed download"),
    (garbage, "is not DICOM"),
    (no_mark, "is not DICOM"),
    (length_beyond_the_file, "is incomplete:"),
    (missing, "missing"),
    (pipe, "a pipe, socket or device"),
    (link_to_a_device, "a pipe, socket or device"),
    (link_out_of_the_data, "a link that points outside"),
    (looping_link, "cannot be opened"),
    (other_modality, "modality 'CT', expected MG"),
    (two_frames, "holds 2 frames"),
    (black, "blank"),
    (saturated, "blank"),
]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    source = InBreast(inbreast(tmp_path_factory.mktemp("clean")))
    return load(source, source.records(), PREPARE)[0]


@pytest.mark.parametrize(("spoil", "words"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_bad_file_is_set_apart_and_the_others_are_bitwise_unchanged(tmp_path, clean, spoil, words) -> None:
    root = inbreast(tmp_path / "data")
    (path,) = root.rglob(f"{VICTIM}_*.dcm")
    spoil(path)
    source = InBreast(root)
    images, unreadable = load(source, source.records(), PREPARE)
    reasons = [entry.reason for entry in (*source.rejected, *unreadable)]
    assert len(reasons) == 1 and words in reasons[0]
    assert "\n" not in reasons[0] and CANARY not in reasons[0]
    kept = [row for row, key in enumerate(clean.keys) if key != VICTIM]
    assert images.keys == tuple(clean.keys[row] for row in kept)
    np.testing.assert_array_equal(images.images, clean.images[kept])


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch) -> None:
    path = write_dicom(tmp_path / "image.dcm", breast())
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, whom no permission stops
    with pytest.raises(DataError, match="permission denied"):
        read_dicom(path)


def test_a_folder_and_an_absent_file_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        require_file(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        require_file(tmp_path / "absent.dcm")


@pytest.mark.parametrize("name", ["zeile\numbruch.dcm", "Brust ü 乳.dcm", "\udcff.dcm", "-rf.dcm"])
def test_odd_file_names_are_read_and_reported_in_one_line(tmp_path, name) -> None:
    path = write_dicom(tmp_path / "image.dcm", breast()).rename(tmp_path / name)
    assert read_dicom(path).shape == (96, 64)
    source = InBreast(inbreast(tmp_path / "data"))
    record = source.records()[0]
    shutil.copy(path, record.path.with_name(name))
    good = replace(record, path=record.path.with_name(name))
    images, _ = load(source, [good], PREPARE, cache=tmp_path / "cache")
    assert len(images) == 1
    good.path.write_bytes(b"short")
    _, rejected = load(source, [good], PREPARE, cache=tmp_path / "cache")
    assert len(rejected[0].reason.splitlines()) == 1


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_png_bomb_and_a_cut_png_are_refused(tmp_path) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(60000, 60000, zlib.compress(bytes(1_000_000))))
    with pytest.raises(DataError, match=r"bomb\.png"):
        read_image(bomb)
    cut = tmp_path / "cut.png"
    Image.fromarray(breast()).save(cut)
    cut.write_bytes(cut.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"cut\.png"):
        read_image(cut)


def test_a_dicomdir_is_refused(tmp_path) -> None:
    path = write_dicom(tmp_path / "DICOMDIR", breast(), SOPClassUID="1.2.840.10008.1.3.10", PixelData=None)
    with pytest.raises(DataError, match="no pixel data"):
        read_dicom(path)


def test_equal_pixels_are_reported_and_across_splits_they_are_not_in_order(tmp_path) -> None:
    root = inbreast(tmp_path)
    first, second = (next(root.rglob(f"{row[0]}_*.dcm")) for row in (INBREAST_ROWS[1], INBREAST_ROWS[3]))
    shutil.copy(first, second)
    leakage = check(InBreast(root))["leakage"]
    found = leakage["same_pixels_across_splits"] + leakage["same_pixels_within_split"]
    assert found == [["29990037", "29990089"]]
