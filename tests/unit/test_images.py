"""Decoding: exact grey values for every format, one clear line for every bad file."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fixtures.native_trees import breast, write_dicom
from PIL import Image

from scorebayes.data import read_image as open_image
from scorebayes.data.pixels.images import Picture, image_bits, open_picture, read_image
from scorebayes.data.pixels.npy import read_npz
from scorebayes.errors import DataError

GREY_16 = np.random.default_rng(0).integers(0, 65536, (12, 9)).astype(np.uint16)
GREY_8 = (GREY_16 >> 8).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy", "without_suffix"])
@pytest.mark.parametrize("stored", [GREY_8, GREY_16])
def test_grey_values_are_exact(tmp_path: Path, name: str, stored: np.ndarray) -> None:
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, stored)
    else:
        Image.fromarray(stored).save(path, format="TIFF" if name.endswith("tif") else "PNG")
    bits = 8 * stored.itemsize
    pixels = read_image(path)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(np.round(pixels.astype(np.float64) * (2**bits - 1)), stored)
    assert image_bits(path) == bits


def test_dicom_is_known_by_its_content(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", breast(bits=14), 14, ImageLaterality="L", ViewPosition="CC")
    found = open_picture(path)
    assert isinstance(found, Picture) and (found.laterality, found.view) == ("L", "CC")
    np.testing.assert_array_equal(np.rint(open_image(path) * (2**14 - 1)), breast(bits=14))
    assert image_bits(path) == 14


def test_jpeg_is_read_near_enough(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg") - smooth / 255).max() < 0.03


def test_twelve_bits_in_sixteen_use_the_given_depth(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY_16 >> 4)
    np.testing.assert_allclose(read_image(tmp_path / "a.npy", 12), (GREY_16 >> 4) / 4095, atol=1e-7)
    with pytest.raises(DataError, match="more than 10 bits"):
        read_image(tmp_path / "a.npy", 10)


def test_white_is_zero_in_a_16_bit_tiff_is_turned(tmp_path: Path) -> None:
    Image.fromarray(GREY_16).save(tmp_path / "a.tif", tiffinfo={262: 0})
    np.testing.assert_allclose(read_image(tmp_path / "a.tif"), 1 - GREY_16 / 65535, atol=1e-7)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    Image.fromarray(GREY_8).convert("LA").save(tmp_path / "la.png")
    np.testing.assert_allclose(read_image(tmp_path / "la.png"), GREY_8 / 255, atol=1e-7)
    rgba = np.dstack([GREY_8, 255 - GREY_8, GREY_8, GREY_8])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.save(tmp_path / "rgba.npy", rgba)
    for name in ("rgba.png", "rgba.npy"):
        np.testing.assert_allclose(read_image(tmp_path / name), rgba[..., :3] / 255, atol=1e-7)


def test_black_and_white_and_floating_point_images_are_read(tmp_path: Path) -> None:
    Image.fromarray(GREY_8 > 99).save(tmp_path / "bw.png")
    np.save(tmp_path / "bw.npy", GREY_8 > 99)
    Image.fromarray((GREY_16 / 65535).astype(np.float32)).save(tmp_path / "f.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "bw.png"), GREY_8 > 99)
    np.testing.assert_array_equal(read_image(tmp_path / "bw.npy"), GREY_8 > 99)
    np.testing.assert_allclose(read_image(tmp_path / "f.tif"), GREY_16 / 65535, atol=1e-7)


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _saved(path: Path, array: np.ndarray) -> None:
    np.save(path, array, allow_pickle=True)


def _save_sparse(path: Path) -> None:
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10_001, 10_000)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 10_001 * 10_000)


def _save_two_frames(path: Path) -> None:
    frame = Image.fromarray(GREY_8)
    frame.save(path, format="TIFF", save_all=True, append_images=[frame])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.png", lambda p: p.write_bytes(b""), "empty"),
        ("a.png", lambda p: p.mkdir(), "folder"),
        ("a.png", lambda p: os.mkfifo(p), "pipe"),
        ("a.png", lambda p: None, "does not exist"),
        ("a.dcm", lambda p: p.write_bytes(b"\n <!DOCTYPE html><p>404"), "web page"),
        ("a.dcm", lambda p: p.write_bytes(b"not DICOM" * 50), "DICOM"),
        (
            "a.png",
            lambda p: p.write_bytes(b"GIF89a" * 99),
            "is a GIF picture, which is not read. Save it as PNG",
        ),
        ("a.png", lambda p: p.write_bytes(b"no picture" * 99), "known image format"),
        ("a.png", lambda p: p.write_bytes(_png(40, 40)), "truncated"),
        ("a.png", lambda p: p.write_bytes(_png(12_000, 12_000)), "144 million pixels"),
        ("a.png", lambda p: p.write_bytes(_png(60_000, 60_000)), "million pixels"),
        ("a.tif", _save_two_frames, "2 images"),
        ("a.npy", _save_sparse, "100 million"),
        ("a.npy", lambda p: _saved(p, np.array([object()])), "holds Python objects"),
        ("a.npy", lambda p: p.write_bytes(b"\x93NUMPY\x01"), "NPY header cannot be read"),
        ("a.npy", lambda p: _saved(p, np.array([[0.5, np.nan]])), "NaN"),
        ("a.npy", lambda p: _saved(p, np.array([[0.5, 7.0]])), "0.5 to 7"),
        ("a.npy", lambda p: _saved(p, np.array([[1, 2]])), "int64"),
        ("a.npy", lambda p: _saved(p, np.zeros((2, 3, 4, 5))), "shape"),
        ("a.npy", lambda p: _saved(p, np.zeros((0, 3), np.uint8)), "shape|cannot be decoded"),
        (
            "a.tif",
            lambda p: Image.fromarray(GREY_16.astype(np.int32) - 50_000).save(p),
            "uses only the values -\\d+ to",
        ),
    ],
)
def test_a_bad_file_is_one_line_with_its_name(tmp_path: Path, name: str, write: object, message: str) -> None:
    path = tmp_path / name
    write(path)  # type: ignore[operator]
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_npz_that_would_unpack_beyond_all_bounds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros(10**6))
    monkeypatch.setattr("scorebayes.data.pixels.npy.MAX_NPZ_BYTES", 10**6)
    with pytest.raises(DataError, match="would unpack"):
        read_npz(tmp_path / "a.npz", ["images"])
