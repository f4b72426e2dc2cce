"""DICOM: stored values that header, stream and file do not agree on are read right or refused by the name of the tag."""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np
import pydicom
import pytest
from fixtures.dicom_streams import jpeg_2000, ramp, with_stream
from fixtures.native_trees import write_dicom
from pydicom import uid

from scorebayes.data.pixels.dicom import read_dicom
from scorebayes.data.pixels.images import read_image
from scorebayes.errors import DataError

ANY = {"Modality": "OT"}


@pytest.fixture
def field(data_root):
    if not (data_root / "field").is_dir():
        pytest.skip(f"real data absent: no folder field in {data_root}")
    return data_root / "field"


def refused(path, words) -> None:
    with pytest.raises(DataError) as caught:
        read_dicom(path)
    assert words in str(caught.value)


# -- what stands before the marker


@pytest.mark.parametrize(
    "signature", [b"II*\0", b"MM\0*", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\x93NUMPY\x01\0"]
)
def test_a_preamble_that_begins_like_another_format_is_dicom(tmp_path, signature) -> None:
    """P1: DICM at byte 128 decides, whatever stands before it."""
    path = write_dicom(tmp_path / "image.dcm", ramp(12), 12, WindowCenter=1000, WindowWidth=600)
    plain = read_image(path)
    path.write_bytes(signature.ljust(128, b"\0") + path.read_bytes()[128:])
    np.testing.assert_array_equal(read_image(path), plain)


@pytest.mark.real
def test_the_dual_file_of_the_field_equals_the_plain_one(field) -> None:
    """P1: 01 equals 00."""
    np.testing.assert_allclose(
        read_image(field / "01-tiff-preamble-silent.dcm"),
        read_image(field / "00-plain-reference.dcm"),
        atol=1e-6,
    )


# -- values beyond the stored bits


def with_words(path, words, bits, **tags):
    """Words of 16 bits with a header that says fewer."""
    return write_dicom(path, words.astype(np.uint16), 16, BitsStored=bits, HighBit=bits - 1, **tags)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless])
def test_values_beyond_bits_stored_do_not_wrap(tmp_path, syntax) -> None:
    """P3: 4096 at Bits Stored 12 would come out as 0."""
    words = ramp(12)
    words[3, 4] = 4096
    path = write_dicom(tmp_path / "image.dcm", words, 16, syntax)
    dataset = pydicom.dcmread(path)
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.save_as(path)
    refused(path, "values that do not fit its 12 stored bits (Bits Stored (0028,0101)")


@pytest.mark.parametrize("kind", ["jpeg", "jpeg-ls", "jpeg-2000"])
def test_values_beyond_bits_stored_do_not_wrap_in_a_compressed_stream(tmp_path, kind) -> None:
    """P3: the stream has 16 bits, the header 12."""
    words = ramp(12)
    stream, syntax = {
        "jpeg": (lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=16), uid.JPEGLosslessSV1),
        "jpeg-ls": (imagecodecs.jpegls_encode, uid.JPEGLSLossless),
        "jpeg-2000": (jpeg_2000, uid.JPEG2000Lossless),
    }[kind]
    path = tmp_path / "image.dcm"
    with_stream(path, stream(words), syntax, *words.shape, 12)
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 4095), words)
    words[3, 4] = 4096
    refused(with_stream(path, stream(words), syntax, *words.shape, 12), "do not fit its 12 stored bits")


@pytest.mark.real
def test_the_file_of_the_field_with_values_of_16_bits_is_refused(field) -> None:
    """P3: stored 2032 to 34320 at Bits Stored 12."""
    refused(field / "04-bitsstored12-values-of-16-bits.dcm", "do not fit its 12 stored bits")


def test_bits_of_an_old_overlay_are_no_part_of_the_values(tmp_path) -> None:
    """P3: overlays used to lie in the unused bits (C.9.2); their bit is named, others are not masked."""
    words = ramp(12)
    marked = words | np.where(np.eye(*words.shape, dtype=bool), 1 << 13, 0).astype(np.uint16)
    path = with_words(tmp_path / "image.dcm", marked, 12)
    refused(path, "do not fit its 12 stored bits")
    dataset = pydicom.dcmread(path)
    dataset.add_new((0x6000, 0x0100), "US", 16)
    dataset.add_new((0x6000, 0x0102), "US", 13)
    dataset.save_as(path)
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 4095), words)
    dataset.add_new((0x6000, 0x3000), "OW", b"\0" * 192)  # then the overlay is there, not among the pixels
    dataset.save_as(path)
    refused(path, "do not fit its 12 stored bits")


def test_a_sign_that_is_repeated_above_the_stored_bits_is_fine(tmp_path) -> None:
    """P3: -1 of 12 bits is stored as 0xFFFF."""
    values = ramp(12).astype(np.int32) - 2048
    path = with_words(tmp_path / "image.dcm", values & 0xFFFF, 12, PixelRepresentation=1)
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 4095) - 2048, values)


def test_signed_values_beyond_the_stored_bits_do_not_wrap(tmp_path) -> None:
    """P3: 2048 of 12 signed bits would come out as -2048."""
    path = with_words(tmp_path / "image.dcm", ramp(12), 12, PixelRepresentation=1)
    refused(path, "do not fit its 12 stored bits")


def test_padding_may_lie_beyond_the_stored_bits(tmp_path) -> None:
    """P3: pixels of the padding value show nothing, so that no value of the image is lost."""
    words = ramp(12)
    words[:4] = 0x8000
    path = with_words(tmp_path / "image.dcm", words, 12, PixelPaddingValue=0x8000)
    image = read_dicom(path)
    assert (image[:4] == 0).all()
    np.testing.assert_array_equal(np.rint(image[4:] * 4095), words[4:])
    refused(with_words(tmp_path / "other.dcm", words, 12, PixelPaddingValue=0x4000), "do not fit")


# -- where the bits lie


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("high_bit", [11, 13, 15])
def test_bits_that_lie_higher_up_are_shifted_down(tmp_path, high_bit, signed) -> None:
    """P4: High Bit says where the bits lie; 15 is left-aligned."""
    values = ramp(12).astype(np.int32) - 2048 * signed
    words = (values << (high_bit - 11)) & 0xFFFF
    path = write_dicom(
        tmp_path / "image.dcm", words.astype(np.uint16), 16, BitsStored=12, HighBit=high_bit, PixelRepresentation=signed
    )  # fmt: skip
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 4095), values + 2048 * signed)


def test_bits_below_the_stored_ones_are_not_dropped_in_silence(tmp_path) -> None:
    """P4: left-aligned by the header, but there is something below."""
    path = write_dicom(tmp_path / "image.dcm", ramp(16), 16, BitsStored=12, HighBit=15)
    refused(path, "do not fit its 12 stored bits")


@pytest.mark.real
def test_the_left_aligned_file_of_the_field_equals_the_plain_one(field) -> None:
    """P4: 05 equals 00."""
    np.testing.assert_allclose(
        read_image(field / "05-highbit15-bitsstored12.dcm"),
        read_image(field / "00-plain-reference.dcm"),
        atol=1e-6,
    )


# -- stream and header


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.HTJ2KLossless])
@pytest.mark.parametrize("signed_stream", [True, False])
def test_a_stream_of_the_other_sign_is_refused_where_it_matters(tmp_path, signed_stream, syntax) -> None:
    """P7: negative values would become white."""
    values = ramp(16).astype(np.int32) - 32768 * signed_stream
    pixels = values.astype(np.int16 if signed_stream else np.uint16)
    encode = jpeg_2000 if syntax == uid.JPEG2000Lossless else imagecodecs.htj2k_encode
    path, size = tmp_path / "image.dcm", pixels.shape
    with_stream(path, encode(pixels), syntax, *size, 16, PixelRepresentation=int(signed_stream))
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 65535) - 32768 * signed_stream, values)
    with_stream(path, encode(pixels), syntax, *size, 16, PixelRepresentation=int(not signed_stream))
    refused(path, "Pixel Representation (0028,0103) says that pixels are")
    harmless = (ramp(15)).astype(pixels.dtype)  # the same number by either sign
    with_stream(path, encode(harmless), syntax, *size, 16, PixelRepresentation=int(not signed_stream))
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 65535) - 32768 * (not signed_stream), harmless)


def test_a_stream_of_fewer_bits_keeps_its_values(tmp_path) -> None:
    """P7: a stream of 12 bits in a header of 16 holds the numbers as they are; its sign stays its own."""
    pixels = (ramp(12).astype(np.int32) - 2048).astype(np.int16)
    path = tmp_path / "image.dcm"
    with_stream(path, jpeg_2000(pixels, 12), uid.JPEG2000Lossless, *pixels.shape, 16, PixelRepresentation=1)
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 65535) - 32768, pixels)
    stream = imagecodecs.jpegls_encode(ramp(8).astype(np.uint8))  # says nothing of the sign
    with_stream(path, stream, uid.JPEGLSLossless, *pixels.shape, 16, PixelRepresentation=1)
    refused(path, "Bits Stored (0028,0101) is 16, but the stream has 8 bits: the sign is not known")


def test_a_lossy_jpeg_of_fewer_bits_is_refused(tmp_path) -> None:
    """P7: 8 bits of JPEG in a header of 12 were scaled by a factor that nobody knows."""
    stream = imagecodecs.jpeg8_encode(ramp(8).astype(np.uint8), level=95)
    path = with_stream(tmp_path / "image.dcm", stream, uid.JPEGBaseline8Bit, 32, 48, 12)
    refused(path, "Bits Stored (0028,0101) is 12, but the JPEG stream has 8 bits")


def test_jpeg_of_12_bits_is_read_by_the_core(tmp_path) -> None:
    """JPEG Extended of 12 bits needs no extra."""
    stream = imagecodecs.jpeg8_encode(ramp(12), level=100, bitspersample=12)
    path = with_stream(tmp_path / "image.dcm", stream, uid.JPEGExtended12Bit, 32, 48, 12)
    np.testing.assert_allclose(read_dicom(path) * 4095, ramp(12), atol=2)


# -- padding and rounding


@pytest.mark.parametrize(
    ("signed", "written", "stored"),
    [(1, 63536, -2000), (1, -2000, -2000), (0, -2000, 63536), (0, 63536, 63536)],
)
def test_padding_is_found_by_its_bits(tmp_path, signed, written, stored) -> None:
    """P8: 63536 is -2000 where pixels are signed, and the other way round."""
    values = ramp(10).astype(np.int32) + 100
    values[:4] = stored
    kind = "SS" if written < 0 else "US"
    path = write_dicom(tmp_path / "image.dcm", values.astype(np.int16 if signed else np.uint16), 16)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", kind, written)
    dataset.save_as(path)
    low = -32768 if signed else 0
    image = read_dicom(path)
    assert (image[:4] == 0).all()
    np.testing.assert_array_equal(np.rint(image[4:] * 65535) + low, values[4:])


def test_a_range_of_padding_is_found_by_its_bits(tmp_path) -> None:
    """P8: range limits likewise: 63536 to 65436 is -2000 to -100."""
    values = ramp(12).astype(np.int32) - 3000
    path = write_dicom(tmp_path / "image.dcm", values.astype(np.int16), 16)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.add_new("PixelPaddingRangeLimit", "US", 65436)
    dataset.save_as(path)
    image = read_dicom(path)
    empty = (values >= -2000) & (values <= -100)
    assert (image[empty] == 0).all() and empty.any() and not empty.all()
    np.testing.assert_array_equal(np.rint(image[~empty] * 65535) - 32768, values[~empty])


@pytest.mark.parametrize(
    ("slope", "intercept"), [("0.234543", "0"), ("3.774114", "0.000061"), ("-1e-7", "123456.7")]
)
@pytest.mark.parametrize("signed", [0, 1])
def test_rescaling_is_not_refused_for_its_rounding(tmp_path, slope, intercept, signed) -> None:
    """R1: the ends of the range, times a slope of PET, differ from the header's in the last digit of float32."""
    values = ramp(16).astype(np.int32) - 32768 * signed
    pixels = values.astype(np.int16 if signed else np.uint16)
    path = write_dicom(tmp_path / "image.dcm", pixels, 16, RescaleSlope=slope, RescaleIntercept=intercept)
    expected = ramp(16) if float(slope) > 0 else 65535 - ramp(16)
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 65535), expected)


@pytest.mark.real
def test_the_pet_of_the_field_is_read(field) -> None:
    """R1: 03, values 0 to 7685.24 of -7685.47 to 7685.24."""
    path = field / "03-pet-refused-GH184.dcm"
    stored = pydicom.dcmread(path).pixel_array
    np.testing.assert_allclose(read_dicom(path), (stored + 32768.0) / 65535, atol=1e-6)


def test_twice_the_pixels_that_the_header_asks_for_are_refused(tmp_path) -> None:
    """P3's kind: 16 bits in a header of 8, or a second image, would be half an image of stripes."""
    path = write_dicom(tmp_path / "image.dcm", ramp(16), 16, BitsAllocated=8, BitsStored=8, HighBit=7)
    refused(path, "has 3072 bytes of pixels, but its header asks for 1536")


def test_two_frames_without_their_number_are_refused(tmp_path) -> None:
    """P3's kind: the second of two compressed frames would be left out in silence."""
    stream = jpeg_2000(ramp(12))
    path = with_stream(tmp_path / "image.dcm", stream, uid.JPEG2000Lossless, 32, 48, 16)
    data = path.read_bytes()
    at = data.index(struct.pack("<HHI", 0xFFFE, 0xE000, len(stream) + len(stream) % 2))
    end = data.index(struct.pack("<HH", 0xFFFE, 0xE0DD))
    path.write_bytes(data[:end] + data[at:end] + data[end:])
    refused(path, "holds more than one image")
