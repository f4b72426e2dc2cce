"""Small files that would cost hours or gigabytes are refused before the work, within 10 s and 2 GB, in one line."""

from __future__ import annotations

import datetime
import io
import plistlib
import struct
import time
import zipfile
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from fixtures.native_trees import inbreast

from scorebayes.data import open_source, parse_options, read_image
from scorebayes.data.pixels.images import image_bits
from scorebayes.data.pixels.npy import read_npz
from scorebayes.data.sources.inbreast import InBreast, read_regions
from scorebayes.data.sources.tables import read_table
from scorebayes.errors import DataError

SECONDS = 10


@pytest.fixture(autouse=True)
def in_time():
    start = time.process_time()  # of this process; a box has its own limit
    yield
    assert time.process_time() - start < SECONDS


def refusal(work, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        work(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- pictures and arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("subfile", [0, 1, 4])
def test_a_tiff_of_very_many_directories(tmp_path, subfile) -> None:
    """A walk over all of them took 93 s; also where all are copies of reduced size or masks."""
    tags = [
        (254, 4, 1, subfile),
        (256, 4, 1, 8),
        (257, 4, 1, 8),
        (258, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
    ]
    tags += [(277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64)]
    size, start = 2 + 12 * len(tags) + 4, 72
    packed = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    n = 150_000
    directories = b"".join(
        packed + struct.pack("<I", start + (k + 1) * size if k + 1 < n else 0) for k in range(n)
    )
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + bytes(64) + directories)
    assert "more than 100 directories" in refusal(read_image, path)
    assert "more than 100 directories" in refusal(image_bits, path)


HEADERS = {
    "open": "(" * 9000,
    "four": "((((",
    "minus": "-" * 9000 + "1",
    "lambda": "lambda: " * 1000,
    "dots": "{'descr': '<u1', 'fortran_order': False, 'shape': (" + "1," * 4000 + "), }",
    "negative": "{'descr': '<u1', 'fortran_order': False, 'shape': (-4, 4), }",
    "huge": "{'descr': '<u1', 'fortran_order': False, 'shape': (99999999999999, 999999999999), }",
    "words": "{'descr': '<f4', 'fortran_order': 1, 'shape': 'a', }",
    "nul": "\0" * 99,
    "unended": "'''",
    "type": "{'descr': [('a', '<u1', (9999999999,))], 'fortran_order': False, 'shape': (4, 4), }",
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_npy_header_of_nonsense_is_one_line(tmp_path, name, version) -> None:
    text = HEADERS[name].encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    npy = b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(64)
    (tmp_path / "a.npy").write_bytes(npy)
    for work in (read_image, image_bits):
        told = refusal(work, tmp_path / "a.npy")
        assert "EOF" not in told and "Error" not in told
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", npy)
    refusal(read_npz, tmp_path / "a.npz", ["images"])


def deflated(path: Path, megabytes: int) -> Path:
    """A small npz file with a large array of zeros."""
    header = io.BytesIO()
    shape = (megabytes, 1024, 1024)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(2**20 * megabytes))
    return path


def test_an_npz_that_unpacks_to_far_more_than_it_is(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("scorebayes.data.pixels.npy.SAFE_NPZ_BYTES", 2**26)
    path = deflated(tmp_path / "a.npz", 100)
    assert "times its size" in refusal(read_npz, path, ["images"])
    for kind in ("arrays", "medmnist", "ddsm64"):
        assert "times its size" in refusal(lambda kind=kind: open_source(f"{kind}:{path}").records())


def test_an_npz_by_a_method_that_takes_any_memory(tmp_path) -> None:
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
            archive.writestr("images.npy", b"")
        assert "a method other than NumPy's" in refusal(read_npz, tmp_path / "a.npz", ["images"])


def test_an_array_that_is_not_as_large_as_it_says(tmp_path) -> None:
    for shape in ((10**6, 10**6), (3,), (5,)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("images.npy", header.getvalue() + b"1234")
        assert "has 4 bytes" in refusal(read_npz, tmp_path / "a.npz", ["images"])


@pytest.mark.parametrize("label", [10**6, 2**62, 2**64 - 1, 1e300, np.inf, 1001])
def test_labels_that_would_be_a_million_classes(tmp_path, label) -> None:
    images, labels = np.zeros((2, 8, 8), np.uint8), np.array([0, label])
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    refusal(open_source, f"arrays:{tmp_path / 'a.npz'}")
    if labels.dtype.kind in "iu":
        parts = {f"{s}_images": images for s in ("train", "val", "test")} | {
            f"{s}_labels": labels for s in ("train", "val", "test")
        }
        np.savez(tmp_path / "b.npz", **parts)
        assert "at most 1000 are possible" in refusal(open_source, f"medmnist:{tmp_path / 'b.npz'}")


def test_values_beyond_the_declared_bits_are_refused(tmp_path) -> None:
    """They were read as pixels above 1."""
    stream = imagecodecs.ljpeg_encode(
        np.arange(0, 4096, 4, dtype=np.uint16).reshape(32, 32), bitspersample=12
    )
    path = tmp_path / "a.jpg"
    path.write_bytes(stream)
    assert read_image(path).max() <= 1
    at = stream.index(b"\xff\xc3") + 4
    path.write_bytes(stream[:at] + b"\x0a" + stream[at + 1 :])
    assert "says that they have 10 bits" in refusal(read_image, path)


# --- tables -------------------------------------------------------------------------------------------------

TABLES = {
    "blank lines": "\n" * 2_000_000,
    "comments": "# nothing\n" * 500_000,
    "one line": "a" * 5_000_000,
    "columns": "a," * 2_000_000,
    "a cell without end": '"' + "a" * 1_000_000,
    "cells without end": '"\n' * 500_000,
    "quotes": '"' * 1_000_001,
    "marks in the header": "a" + "\u0315\u0300" * 60_000 + ",path,label\n1,2,3\n",
    "marks in a cell": "path,label\na" + "\u0315\u0300" * 60_000 + ",1\n",
    "marks in cells": "path,label\n" + ("a" + "\u0315\u0300" * 2_000 + ",1\n") * 200,
    "classes": "path,label\n" + "".join(f"{k}.png,x{k}\n" for k in range(3_000)),
    "near classes": "path,label\n" + "".join(f"{k}.png,benign{k}x\n" for k in range(3_000)),
    "deep paths": "path,label\n" + f"/{'a/' * 2000}b.png,1\n" * 300,
    "separators": "sep=\n" + "a;,|\t" * 500_000,
    "carriage returns": "\r" * 2_000_000,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_would_take_for_ever(tmp_path, name) -> None:
    (tmp_path / "table.csv").write_text(TABLES[name], encoding="utf-8", newline="")
    refusal(open_source, f"folder:{tmp_path}")


def test_words_of_real_languages_pass(tmp_path) -> None:
    names = ["Mädchen", "مَرْحَبًا", "נִקּוּד", "สวัสดี", "Việt Nam", "한국어", "a\u0301"]
    (tmp_path / "table.csv").write_text(
        "path,label\n" + "".join(f"{name},1\n" for name in names), encoding="utf-8"
    )
    assert len(read_table(tmp_path / "table.csv", ("path", "label")).rows) == len(names)


def test_options_that_are_no_toml_stay_text() -> None:
    deep, long = "[" * 5000, "1" * 5000
    assert parse_options([f"a={deep}", f"b={long}"]) == {"a": deep, "b": long}


# --- annotations --------------------------------------------------------------------------------------------

POINTS = "<plist><dict><key>Images</key><array><dict><key>ROIs</key><array><dict><key>Name</key><string>Mass</string>"
POINTS += "<key>Point_px</key><array><string>{}</string></array></dict></array></dict></array></dict></plist>"


def shared(levels: int, width: int = 10) -> bytes:
    """A binary list of lists that share their items: written out it has width ** levels items."""
    objects = [b"\x51a"] + [bytes([0xA0 | width]) + bytes([k] * width) for k in range(levels)]
    offsets, data = [], b"bplist00"
    for item in objects:
        offsets.append(len(data))
        data += item
    table = len(data)
    return data + bytes(offsets) + struct.pack(">6xBBQQQ", 1, 1, len(objects), levels, table)


ANNOTATIONS = {
    "shared": shared(12),
    "binary": plistlib.dumps({"Images": []}, fmt=plistlib.FMT_BINARY),
    "dots": POINTS.format("(1.2.3, 4)").encode(),
    "sign": POINTS.format("(3-1, 4)").encode(),
    "nowhere": POINTS.format("(1e999, 4)").encode(),
    "encoding": b'<?xml version="1.0" encoding="x-none"?>' + POINTS.format("(1, 2)").encode(),
    "utf-7": b'<?xml version="1.0" encoding="utf-7"?>' + POINTS.format("(1, 2)").encode(),
    "nested": b"<plist>" + b"<array>" * 30_000,
    "digits": b"<plist><integer>" + b"9" * 1_000_000 + b"</integer></plist>",
    "date": b"<plist><date>99999999999-99-99T99:99:99Z</date></plist>",
    "data": b"<plist><data>!</data></plist>",
    "name": POINTS.format("(1, 2)").replace("<string>Mass</string>", "<array>" * 5000 + "</array>" * 5000).encode(),
    "laughs": b'<!DOCTYPE p [<!ENTITY a "aa">' + b"".join(
        b'<!ENTITY %c "&%c;&%c;">' % (98 + k, 97 + k, 97 + k) for k in range(24)
    ) + b"]><plist><string>&y;</string></plist>",
    "dates": plistlib.dumps({"Images": datetime.datetime(2020, 1, 1)}),
    "large": b"<plist>" + b" " * 11_000_000 + b"</plist>",
}  # fmt: skip


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_an_annotation_that_is_none_costs_its_image_only(tmp_path, name) -> None:
    root = inbreast(tmp_path)
    (path,) = root.rglob("29990037.xml")
    path.write_bytes(ANNOTATIONS[name])
    refusal(read_regions, path)
    source = InBreast(root, task="crop")
    assert [record.image_id for record in source.records()] == ["29990063_1", "29990063_2"]
    assert any("29990037.xml" in entry.reason for entry in source.rejected)
