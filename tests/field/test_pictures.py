"""PNG, JPEG and NPY files as they come: read right, or refused with the true reason."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from fixtures.picture_files import field_file, packed, same_pixels, write_png
from PIL import Image

from scorebayes.data.pixels.images import image_bits, read_image
from scorebayes.errors import DataError

RANDOM = np.random.default_rng(7)
GREY_16 = RANDOM.integers(0, 65536, (11, 14)).astype(np.uint16)
GREY_8 = (GREY_16 >> 8).astype(np.uint8)
RGB_16 = RANDOM.integers(0, 65536, (11, 14, 3)).astype(np.uint16)


# PNG


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_png_is_scaled_by_its_own_depth(tmp_path: Path, bits: int) -> None:
    """P10: full depth."""
    stored = GREY_16 >> (16 - bits)
    path = write_png(tmp_path / "a.png", packed(stored, bits), 14, 11, bits, 0)
    same_pixels(read_image(path), stored / (2**bits - 1))
    assert image_bits(path) == bits


@pytest.mark.parametrize(
    ("colour", "channels", "kept"), [(2, 3, 3), (6, 4, 3), (4, 2, 1)], ids=["RGB", "RGBA", "LA"]
)
@pytest.mark.parametrize("bits", [8, 16])
def test_colour_and_alpha_in_png_keep_their_depth(
    tmp_path: Path, colour: int, channels: int, kept: int, bits: int
) -> None:
    """P10: 16-bit colour, and 16-bit grey with alpha, were read at 8 bits."""
    stored = RANDOM.integers(0, 2**bits, (11, 14, channels)).astype(np.uint16)
    path = write_png(
        tmp_path / "a.png", stored.astype(">u2" if bits == 16 else "u1").tobytes(), 14, 11, bits, colour
    )
    expected = stored[..., :kept] / (2**bits - 1)
    same_pixels(read_image(path), expected if kept == 3 else expected[..., 0])
    assert image_bits(path) == bits


@pytest.mark.parametrize("colour", [0, 2])
def test_a_transparent_colour_and_gamma_change_no_16_bit_png(tmp_path: Path, colour: int) -> None:
    stored = GREY_16 if colour == 0 else RGB_16
    keyed = stored[0, 0].astype(">u2").tobytes()
    more = [
        (b"gAMA", (45455).to_bytes(4)),
        (b"sBIT", bytes([12] * (1 if colour == 0 else 3))),
        (b"tRNS", keyed),
    ]
    path = write_png(tmp_path / "a.png", stored.astype(">u2").tobytes(), 14, 11, 16, colour, *more)
    same_pixels(read_image(path), stored / 65535)


def test_a_palette_png_has_its_colours(tmp_path: Path) -> None:
    colours = RANDOM.integers(0, 256, (16, 3)).astype(np.uint8)
    more = [(b"PLTE", colours.tobytes()), (b"tRNS", bytes([0, 128]))]
    path = write_png(tmp_path / "a.png", packed(GREY_8 >> 4, 4), 14, 11, 4, 3, *more)
    same_pixels(read_image(path), colours[GREY_8 >> 4] / 255)
    assert image_bits(path) == 8


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY_8), Image.fromarray(255 - GREY_8)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animation of 2 images"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_cut_png_is_refused_at_every_depth(tmp_path: Path, bits: int) -> None:
    path = write_png(tmp_path / "a.png", RGB_16.tobytes()[: 11 * 14 * 3 * bits // 8], 14, 11, bits, 2)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="truncated"):
        read_image(path)


# JPEG


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_turned_by_its_exif_tag(tmp_path: Path, orientation: int) -> None:
    quarters = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 24), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quarters).save(tmp_path / "a.jpg", exif=exif, quality=95)
    turns = [lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, np.transpose, lambda a: np.rot90(a, -1),
             lambda a: np.rot90(a, 2).T, np.rot90]  # fmt: skip
    expected = turns[orientation - 1](quarters) / 255
    pixels = read_image(tmp_path / "a.jpg")
    assert pixels.shape == expected.shape and np.abs(pixels - expected).max() < 0.02


def test_a_12_bit_and_a_lossless_jpeg_are_scaled_by_their_own_depth(tmp_path: Path) -> None:
    """P10: depth from the frame header."""
    smooth = (np.add.outer(np.arange(48), np.arange(64)) * 36).astype(np.uint16)
    (tmp_path / "12.jpg").write_bytes(imagecodecs.jpeg8_encode(smooth, level=99, bitspersample=12))
    assert np.abs(read_image(tmp_path / "12.jpg") - smooth / 4095).max() < 0.002
    assert image_bits(tmp_path / "12.jpg") == 12
    (tmp_path / "16.jpg").write_bytes(imagecodecs.ljpeg_encode(GREY_16))
    same_pixels(read_image(tmp_path / "16.jpg"), GREY_16 / 65535)
    assert image_bits(tmp_path / "16.jpg") == 16


@pytest.mark.parametrize("bits", [8, 12])
def test_a_cut_jpeg_is_refused_at_every_depth(tmp_path: Path, bits: int) -> None:
    """libjpeg fills what is missing with grey."""
    stored = GREY_8 if bits == 8 else GREY_16 >> 4
    stream = imagecodecs.jpeg8_encode(np.kron(stored, np.ones((8, 8), stored.dtype)), bitspersample=bits)
    (tmp_path / "a.jpg").write_bytes(stream[: len(stream) // 2])
    with pytest.raises(DataError, match="cut off"):
        read_image(tmp_path / "a.jpg")


def test_a_jpeg_that_does_not_say_its_height_is_refused(tmp_path: Path) -> None:
    """The height may follow behind the image, which no decoder here reads."""
    stream = bytearray(imagecodecs.jpeg8_encode(GREY_16 >> 4, bitspersample=12))
    frame = stream.index(b"\xff\xc1")
    stream[frame + 5 : frame + 7] = b"\0\0"
    (tmp_path / "a.jpg").write_bytes(stream)
    with pytest.raises(DataError, match=r"no pixels|cannot be decoded"):
        read_image(tmp_path / "a.jpg")


def test_printing_inks_are_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (9, 99, 0, 40)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="is in CMYK"):
        read_image(tmp_path / "a.jpg")


# Others


@pytest.mark.parametrize(
    ("format", "name"),
    [("GIF", "GIF"), ("BMP", "BMP"), ("WEBP", "WebP"), ("JPEG2000", "JPEG 2000"), ("PPM", "PNM"), ("PDF", "PDF"),
     ("AVIF", "AVIF"), ("DDS", "DirectDraw"), ("EPS", "PostScript")],
)  # fmt: skip
def test_another_kind_of_file_is_called_by_its_name(tmp_path: Path, format: str, name: str) -> None:
    """R3: what is refused names the true reason."""
    Image.fromarray(RGB_16.astype(np.uint8)).save(tmp_path / "a.png", format=format)
    with pytest.raises(DataError, match=rf"is an? {name}.*, which is not read. Save i"):
        read_image(tmp_path / "a.png")


def test_an_npz_file_is_pointed_to_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GREY_8)
    with pytest.raises(DataError, match=r"ZIP archive.*arrays:PATH"):
        read_image(tmp_path / "a.npz")


# NPY


def test_arrays_of_the_field(data_root: Path) -> None:
    """R3: big-endian arrays, and values of 1.0000001."""
    name = field_file(data_root, "25-uint16-big-endian.npy")
    same_pixels(read_image(name), np.load(name).astype(float) / 65535)
    name = field_file(data_root, "26-float-1.0000001.npy")
    same_pixels(read_image(name), np.minimum(np.load(name), 1))


@pytest.mark.parametrize(
    "stored",
    [GREY_16.astype(">u2"), (GREY_16 / 65535).astype(">f8"), (GREY_16 / 65535).astype(">f4")],
    ids=["u2", "f8", "f4"],
)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_any_byte_order_and_version_of_npy(
    tmp_path: Path, stored: np.ndarray, order: str, version: tuple
) -> None:
    """R3: big-endian arrays."""
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, np.asarray(stored, order=order), version)
    same_pixels(read_image(tmp_path / "a.npy"), GREY_16 / 65535)


@pytest.mark.parametrize(
    ("low", "high", "fits"), [(-5e-7, 1 + 5e-7, True), (-1e-5, 1, False), (0, 1 + 1e-5, False)]
)
def test_rounding_is_forgiven_and_nothing_else(tmp_path: Path, low: float, high: float, fits: bool) -> None:
    """R3: values of 1.0000001."""
    values = np.linspace(low, high, 100).reshape(10, 10)
    np.save(tmp_path / "a.npy", values)
    if fits:
        same_pixels(read_image(tmp_path / "a.npy"), values.clip(0, 1))
        return
    with pytest.raises(DataError, match="Scale all images alike"):
        read_image(tmp_path / "a.npy")


def test_signed_bytes_are_monotone(tmp_path: Path) -> None:
    """P6: int8 in NPY."""
    stored = np.arange(-128, 128, dtype=np.int8).reshape(16, 16)
    np.save(tmp_path / "a.npy", stored)
    same_pixels(read_image(tmp_path / "a.npy"), np.arange(256).reshape(16, 16) / 255)


@pytest.mark.parametrize("dtype", ["i2", "i4", "i8", "u4", "u8"])
def test_whole_numbers_of_unknown_depth_need_the_option_bits(tmp_path: Path, dtype: str) -> None:
    """R6: int64 may mean 8 or 16 bits; nobody guesses file by file."""
    np.save(tmp_path / "a.npy", (GREY_16 >> 4).astype(dtype))
    with pytest.raises(DataError, match=r"do not tell how many bits white has.*option bits"):
        read_image(tmp_path / "a.npy")
    same_pixels(read_image(tmp_path / "a.npy", 12), (GREY_16 >> 4) / 4095)
    with pytest.raises(DataError, match="needs more than 8 bits"):
        read_image(tmp_path / "a.npy", 8)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (GREY_16.astype(complex), "complex numbers"),
        (np.array([["a", "b"]]), "holds text"),
        (np.zeros((9, 9), [("x", "u1"), ("y", "u1")]), "records with the fields x, y"),
        (np.zeros((9, 9, 2), np.uint8), r"has shape \(9, 9, 2\)"),
        (np.zeros((3, 9, 3), np.uint8), r"has shape \(3, 9, 3\)"),
        (np.zeros((5, 9, 9), np.uint8), r"has shape \(5, 9, 9\)"),
        (np.zeros((0, 9), np.uint8), r"has shape \(0, 9\)"),
        (np.zeros(9, np.uint8), r"has shape \(9,\)"),
        (np.uint8(3), r"has shape \(\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_array_that_is_no_image_is_refused_with_the_true_reason(
    tmp_path: Path, array: np.ndarray, reason: str
) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, np.asarray(array), (3, 0))
    with pytest.raises(DataError, match=reason):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("axes", "shape"),
    [("1HW", (11, 14)), ("HW1", (11, 14)), ("3HW", (11, 14, 3)), ("HW3", (11, 14, 3)), ("11HW", (11, 14)),
     ("1HW1", (11, 14)), ("13HW", (11, 14, 3)), ("1HW3", (11, 14, 3))],
)  # fmt: skip
def test_an_axis_of_channels_may_stand_first_or_last(tmp_path: Path, axes: str, shape: tuple) -> None:
    """R6: [1, H, W] and [H, W, 1] in a file."""
    image = GREY_8 if "3" not in axes else RGB_16.astype(np.uint8)
    array = image if image.ndim == 2 or axes.endswith("3") else np.moveaxis(image, 2, 0)
    for position, letter in enumerate(axes):
        if letter == "1":
            array = np.expand_dims(array, position)
    np.save(tmp_path / "a.npy", array)
    same_pixels(read_image(tmp_path / "a.npy"), image / 255)
    assert image.shape == shape
