"""TIFF files as they come: read right, or refused with the true reason."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from fixtures.picture_files import field_file, packed, same_pixels, write_tiff
from PIL import Image

from scorebayes.data.pixels.images import image_bits, read_image
from scorebayes.errors import DataError

RANDOM = np.random.default_rng(7)
GREY_16 = RANDOM.integers(0, 65536, (11, 14)).astype(np.uint16)
GREY_8 = (GREY_16 >> 8).astype(np.uint8)
JPEG_12 = imagecodecs.jpeg8_encode(GREY_16 >> 4, bitspersample=12)
LARGE_JPEG = imagecodecs.jpeg8_encode(np.zeros((40, 40), np.uint8))
RGB_16 = RANDOM.integers(0, 65536, (11, 14, 3)).astype(np.uint16)


def test_a_turned_uncompressed_tiff_of_the_field_is_upright(data_root: Path) -> None:
    """P2: uncompressed TIFF with Orientation 6 was scrambled."""
    path = field_file(data_root, "21-orientation6-uncompressed.tif")
    same_pixels(read_image(path), np.rot90(tifffile.imread(path), -1) / 255)
    assert read_image(path).shape == (48, 40)


def test_a_signed_8_bit_tiff_of_the_field_is_monotone(data_root: Path) -> None:
    """P6: signed 8-bit TIFF was read as unsigned."""
    path = field_file(data_root, "20-int8.tif")
    same_pixels(read_image(path), (tifffile.imread(path).astype(float) + 128) / 255)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("22-miniswhite-float.tif", lambda stored: 1 - stored),
        ("23-float64.tif", lambda stored: stored),
        ("28-uint16-alpha.tif", lambda stored: stored[..., 0] / 65535),
    ],
)
def test_float_and_alpha_tiffs_of_the_field(data_root: Path, name: str, expected: object) -> None:
    """P10, R3: WhiteIsZero in floating point, float64, 16 bits with alpha."""
    same_pixels(
        read_image(field_file(data_root, name)), expected(tifffile.imread(field_file(data_root, name)))
    )  # type: ignore[operator]
    assert image_bits(field_file(data_root, name)) == 16


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_a_tiff_is_scaled_by_its_own_depth(tmp_path: Path, bits: int, white_is_zero: bool) -> None:
    """P10: a 12-bit TIFF was divided by 65,535."""
    stored = GREY_16 >> (16 - bits)
    strip = stored.tobytes() if bits == 16 else packed(stored, bits)
    path = write_tiff(tmp_path / "a.tif", strip, 14, 11, BITS=bits, PHOTOMETRIC=int(not white_is_zero))
    top = 2**bits - 1
    same_pixels(read_image(path), (top - stored.astype(float) if white_is_zero else stored) / top)
    assert image_bits(path) == bits


@pytest.mark.parametrize("bits", [16, 10])
def test_the_given_depth_and_white_is_zero_go_together(tmp_path: Path, bits: int) -> None:
    """P10: the inversion of a 10-bit image in 16 bits refused everything but 0."""
    stored = GREY_16 >> (16 - bits)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    same_pixels(read_image(tmp_path / "a.tif", bits), (2**bits - 1 - stored.astype(float)) / (2**bits - 1))


def test_32_bit_numbers_that_would_be_one_grey_are_refused_unless_their_depth_is_given(
    tmp_path: Path,
) -> None:
    """P6: programs save 16-bit images as int32."""
    tifffile.imwrite(tmp_path / "a.tif", GREY_16.astype(np.int32))
    with pytest.raises(DataError, match=r"uses only the values \d+ to \d+ of 32 bits.*option bits"):
        read_image(tmp_path / "a.tif")
    same_pixels(read_image(tmp_path / "a.tif", 16), GREY_16 / 65535)
    with pytest.raises(DataError, match="needs more than 12 bits"):
        read_image(tmp_path / "a.tif", 12)


def test_hounsfield_units_are_mapped_over_the_range_of_16_signed_bits(tmp_path: Path) -> None:
    """P6: signed 16-bit TIFF."""
    stored = np.linspace(-1024, 3071, 154).reshape(11, 14).astype(np.int16)
    tifffile.imwrite(tmp_path / "a.tif", stored)
    same_pixels(read_image(tmp_path / "a.tif"), (stored.astype(float) + 32768) / 65535)
    with pytest.raises(DataError, match=r"from -1024 to 3071.*choose a window"):
        read_image(tmp_path / "a.tif", 12)


def test_a_reduced_copy_and_a_mask_are_no_second_image(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(GREY_8[:4, :4], subfiletype=1)
        tiff.write(GREY_8, subifds=1)
        tiff.write(GREY_8[::2, ::2], subfiletype=1)
        tiff.write(GREY_8 > 9, subfiletype=4)
    same_pixels(read_image(tmp_path / "a.tif"), GREY_8 / 255)


@pytest.mark.parametrize(
    "more",
    [
        {"imagej": True},
        {"photometric": "minisblack"},
        {"photometric": "minisblack", "volumetric": True, "tile": (16, 16, 16)},
    ],
)
def test_a_stack_behind_one_header_is_several_images(tmp_path: Path, more: dict) -> None:
    """P2 and L: ImageJ and tifffile write one header for all images of a stack."""
    stack = np.stack([GREY_8] * 3)
    tifffile.imwrite(tmp_path / "a.tif", stack, **({"truncate": True} if "tile" not in more else {}), **more)
    with pytest.raises(DataError, match="holds 3 images"):
        read_image(tmp_path / "a.tif")


def test_a_palette_tiff_has_its_colours(tmp_path: Path) -> None:
    colours = RANDOM.integers(0, 256, (3, 256)).astype(np.uint16)
    expected = np.moveaxis(colours[:, GREY_8], 0, -1) / 255
    for scale in (1, 256, 257):
        tifffile.imwrite(tmp_path / "a.tif", GREY_8, photometric="palette", colormap=colours * scale)
        same_pixels(read_image(tmp_path / "a.tif"), expected)
    bilevel = Image.fromarray(GREY_8 > 99).convert("P")
    bilevel.save(tmp_path / "p.tif")
    same_pixels(read_image(tmp_path / "p.tif"), np.asarray(bilevel.convert("RGB")) / 255)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000"])
@pytest.mark.parametrize("subsampling", [None, (2, 2)])
def test_a_tiff_of_jpeg_parts_is_in_rgb(tmp_path: Path, compression: str, subsampling: tuple | None) -> None:
    """R3: the colours of a JPEG-compressed TIFF are turned from YCbCr, as Pillow does."""
    smooth = np.add.outer(np.arange(48), np.arange(64))[..., None] * [1.0, 2.0, 0.5]
    rgb = smooth.clip(0, 255).astype(np.uint8)
    kwargs = {"subsampling": subsampling} if compression == "jpeg" and subsampling else {}
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb", compression=compression, **kwargs)
    assert np.abs(read_image(tmp_path / "a.tif") - rgb / 255).max() < 0.08
    if compression == "jpeg":
        with Image.open(tmp_path / "a.tif") as pillow:
            np.testing.assert_allclose(read_image(tmp_path / "a.tif"), np.asarray(pillow) / 255, atol=4 / 255)


def test_a_12_bit_jpeg_part_is_scaled_by_12_bits(tmp_path: Path) -> None:
    """P10: 12 bits in the header and in the JPEG part."""
    smooth = (np.add.outer(np.arange(48), np.arange(64)) * 36).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", smooth, compression="jpeg", bitspersample=12, compressionargs={"level": 99}
    )
    assert np.abs(read_image(tmp_path / "a.tif") - smooth / 4095).max() < 0.002
    assert image_bits(tmp_path / "a.tif") == 12


def _tiff(**kwargs: object):
    def write(path: Path) -> None:
        tifffile.imwrite(path, **kwargs)

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (_tiff(data=GREY_16.astype(np.complex64)), "holds complex numbers"),
        (_tiff(data=np.zeros((9, 9, 4), np.uint8), photometric="separated"), "is in CMYK"),
        (_tiff(data=np.zeros((9, 9, 3), np.uint8), photometric="cielab"), "is in CIELab"),
        (_tiff(data=np.zeros((9, 9, 3), np.uint8), photometric=6, compression="lzw"), "YCbCr without JPEG"),
        (_tiff(data=GREY_16, photometric="cfa"), "camera's raw file"),
        (_tiff(data=np.zeros((9, 9, 5), np.uint8), photometric="minisblack", planarconfig="contig"), "has 5 channels"),
        (_tiff(data=GREY_16.astype(np.float32)), r"has values from \d+ to \d+"),
        (_tiff(data=np.full((9, 9), np.nan, np.float32)), "holds NaN"),
        (_tiff(data=RGB_16.astype(np.uint8), compression="webp"), "is compressed by WEBP, which is not read"),
        (lambda p: write_tiff(p, bytes(154), 20_000, 20_000), "million pixels"),
        (lambda p: write_tiff(p, bytes(154), 14, 11, PHOTOMETRIC=None), "0 is black or white"),
        (lambda p: write_tiff(p, bytes(154), 14, 11, PHOTOMETRIC=99), "PhotometricInterpretation 99"),
        (lambda p: write_tiff(p, bytes(154), 14, 110), "ends before|cannot be decoded|failed to read"),
        (lambda p: write_tiff(p, bytes(154), 14, 11, BYTE_COUNTS=5000), "ends before its image does"),
        (lambda p: write_tiff(p, bytes(154), 14, 11, BYTE_COUNTS=0), "lacks a part"),
        (lambda p: write_tiff(p, bytes(154), 14, 11, ROWS_PER_STRIP=5), "has 1 of 3 parts"),
        (lambda p: write_tiff(p, bytes(154), 0, 11), "no width or height"),
        (lambda p: write_tiff(p, LARGE_JPEG, 14, 11, COMPRESSION=7), "has 40 x 40 pixels"),
        (lambda p: write_tiff(p, JPEG_12, 14, 11, COMPRESSION=7), "14 x 11 pixels of 12 bits, but its header says"),
        (_tiff(data=np.zeros((3, 16, 16), np.uint8), photometric=6, planarconfig="separate", compression="jpeg"), "YCbCr"),
        (lambda p: write_tiff(p, bytes(400), 14, 11, BITS=17), "cannot be decoded|bits"),
    ],
)  # fmt: skip
def test_a_tiff_that_could_come_out_wrong_is_refused_with_the_true_reason(
    tmp_path: Path, write: object, reason: str
) -> None:
    """P10, R3: refused in words."""
    write(tmp_path / "a.tif")  # type: ignore[operator]
    with pytest.raises(DataError, match=reason) as caught:
        read_image(tmp_path / "a.tif")
    assert str(tmp_path / "a.tif") in str(caught.value)
