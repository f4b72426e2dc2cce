"""DICOM in colour: every colour space comes out as RGB, or is refused in words."""

from __future__ import annotations

import csv

import imagecodecs
import numpy as np
import pydicom
import pytest
from fixtures.dicom_streams import jpeg_2000, with_stream
from fixtures.native_trees import write_dicom
from pydicom import uid
from pydicom.pixels import convert_color_space

from scorebayes.data import open_source
from scorebayes.data.pixels.dicom import grey_depth, read_dicom
from scorebayes.data.pixels.images import read_image
from scorebayes.data.prepare import Prepare
from scorebayes.data.sources.mammograms import read_mammogram
from scorebayes.errors import DataError

COLOUR = {
    "SamplesPerPixel": 3,
    "PhotometricInterpretation": "RGB",
    "PlanarConfiguration": 0,
    "Modality": "US",
}


def picture(bits: int = 8, rows: int = 32, columns: int = 48) -> np.ndarray:
    """Three different ramps, [rows, columns, 3]."""
    y, x = np.mgrid[:rows, :columns]
    parts = y / (rows - 1), x / (columns - 1), 1 - x * y / ((rows - 1) * (columns - 1))
    return np.rint(np.stack(parts, -1) * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def refused(path, words) -> None:
    with pytest.raises(DataError) as caught:
        read_dicom(path)
    assert words in str(caught.value), caught.value


@pytest.mark.parametrize(
    "syntax",
    [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_of_every_depth_and_order(tmp_path, syntax, bits) -> None:
    """Colour: samples by pixel or by plane; 16 bits are scaled by their depth."""
    pixels = picture(bits)
    image = read_dicom(write_dicom(tmp_path / "pixel.dcm", pixels, bits, syntax, **COLOUR))
    assert image.dtype == np.float32 and image.shape == pixels.shape
    np.testing.assert_allclose(image, pixels / (2**bits - 1), atol=1e-6)
    if syntax != uid.RLELossless:
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(96, 48)
        tags = COLOUR | {"PlanarConfiguration": 1, "Rows": 32}
        image = read_dicom(write_dicom(tmp_path / "plane.dcm", planes, bits, syntax, **tags))
        np.testing.assert_allclose(image, pixels / (2**bits - 1), atol=1e-6)


def test_ybr_full_is_converted(tmp_path) -> None:
    """Colour: YBR never comes out as if it were RGB."""
    ybr = convert_color_space(picture(), "RGB", "YBR_FULL")
    path = write_dicom(tmp_path / "image.dcm", ybr, 8, **COLOUR | {"PhotometricInterpretation": "YBR_FULL"})
    np.testing.assert_allclose(read_dicom(path), picture() / 255, atol=2 / 255)
    shared = ybr.astype(int).reshape(32, 24, 2, 3)
    data = np.concatenate([shared[..., 0], shared[..., 1:].mean(2)], -1).astype(np.uint8)  # Y1 Y2 Cb Cr
    path = write_dicom(
        tmp_path / "image.dcm",
        ybr,
        8,
        **COLOUR | {"PhotometricInterpretation": "YBR_FULL_422", "PixelData": data.tobytes()},
    )
    np.testing.assert_allclose(read_dicom(path), picture() / 255, atol=8 / 255)


@pytest.mark.parametrize("transformed", [True, False])
def test_colours_of_jpeg_2000_are_transformed_as_the_stream_says(tmp_path, transformed) -> None:
    """Colour: YBR_RCT is undone by the decoder; a header that contradicts the stream is refused."""
    stream = jpeg_2000(picture(), colours_transformed=transformed)
    for photometric, fits in (("RGB", True), ("YBR_RCT", transformed), ("YBR_FULL", not transformed)):
        tags = COLOUR | {"PhotometricInterpretation": photometric}
        path = with_stream(tmp_path / "image.dcm", stream, uid.JPEG2000Lossless, 32, 48, 8, **tags)
        if not fits:
            refused(
                path,
                f"Photometric Interpretation (0028,0004) is {photometric}, but the JPEG 2000 stream says",
            )
        elif photometric == "YBR_FULL":
            expected = convert_color_space(picture(), "YBR_FULL", "RGB")
            np.testing.assert_allclose(read_dicom(path), expected / 255, atol=1e-6)
        else:
            np.testing.assert_allclose(read_dicom(path), picture() / 255, atol=1e-6)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_a_jpeg_that_names_its_colours_is_followed(tmp_path, photometric) -> None:
    """Colour: a JFIF stream is YCbCr, whatever the header says, as every viewer takes it."""
    stream = imagecodecs.jpeg8_encode(picture(), level=98)
    tags = COLOUR | {"PhotometricInterpretation": photometric}
    path = with_stream(tmp_path / "image.dcm", stream, uid.JPEGBaseline8Bit, 32, 48, 8, **tags)
    np.testing.assert_allclose(read_dicom(path), picture() / 255, atol=12 / 255)


def test_a_jpeg_that_names_no_colours_is_what_the_header_says(tmp_path) -> None:
    """Colour: without a marker, the components are RGB or YBR by the header."""
    stream = imagecodecs.jpeg8_encode(picture(), level=98, colorspace="RGB", outcolorspace="RGB")
    at = stream.find(b"\xff\xee")
    assert at > 0 and b"JFIF" not in stream
    stream = stream[:at] + stream[at + 16 :]  # without the marker of Adobe
    sof = stream.find(b"\xff\xc0")
    for n in range(3):  # nor component names that say RGB
        stream = stream[: sof + 10 + 3 * n] + bytes([n + 1]) + stream[sof + 11 + 3 * n :]
    scan = stream.find(b"\xff\xda")
    for n in range(3):
        stream = stream[: scan + 5 + 2 * n] + bytes([n + 1]) + stream[scan + 6 + 2 * n :]
    path = with_stream(tmp_path / "image.dcm", stream, uid.JPEGBaseline8Bit, 32, 48, 8, **COLOUR)
    np.testing.assert_allclose(read_dicom(path), picture() / 255, atol=12 / 255)


def palette_tags(entries: np.ndarray, bits: int, kind: str = "words") -> dict:
    tags = {"PhotometricInterpretation": "PALETTE COLOR", "Modality": "US"}
    for n, channel in enumerate(("Red", "Green", "Blue")):
        column = entries[:, n]
        data = column.astype("<u2").tobytes() if kind == "words" else column.astype("u1").tobytes()
        tags[f"{channel}PaletteColorLookupTableDescriptor"] = [len(column), 0, bits]
        tags[f"{channel}PaletteColorLookupTableData"] = data
    return tags


@pytest.mark.parametrize(("bits", "kind"), [(8, "words"), (8, "packed"), (16, "words")])
def test_a_palette_gives_its_colours(tmp_path, bits, kind) -> None:
    """Colour, T7: PALETTE COLOR is read with its table."""
    n = np.arange(256)
    entries = np.stack([n, 255 - n, n ^ 170], -1) * (257 if bits == 16 else 1)
    values = (picture()[..., 0]).astype(np.uint8)
    path = write_dicom(tmp_path / "image.dcm", values, 8, **palette_tags(entries, bits, kind))
    np.testing.assert_allclose(read_dicom(path), entries[values] / (2**bits - 1), atol=1e-6)
    assert grey_depth(path) is None


def test_a_palette_of_8_bits_in_words_of_16_is_not_black(tmp_path) -> None:
    """Colour, P11: the descriptor says 16 bits, the entries end at 255."""
    entries = np.stack([np.arange(256)] * 3, -1)
    values = picture()[..., 0]
    path = write_dicom(tmp_path / "image.dcm", values, 8, **palette_tags(entries, 16))
    np.testing.assert_allclose(read_dicom(path), entries[values] / 255, atol=1e-6)


def test_a_palette_that_is_not_there_is_named(tmp_path) -> None:
    """T7: not "correct the header", but what is missing."""
    entries = np.stack([np.arange(256)] * 3, -1)
    for keyword in ("BluePaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"):
        tags = {k: v for k, v in palette_tags(entries, 16).items() if k != keyword}
        path = write_dicom(tmp_path / "image.dcm", picture()[..., 0], 8, **tags)
        refused(path, pydicom.datadict.dictionary_description(keyword))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PlanarConfiguration": None}, "Planar Configuration (0028,0006) is missing"),
        ({"PlanarConfiguration": 2}, "Planar Configuration (0028,0006) is 2"),
        ({"PhotometricInterpretation": "MONOCHROME2"}, "Samples per Pixel (0028,0002) is 3"),
        ({"SamplesPerPixel": 1}, "Samples per Pixel (0028,0002) is 1"),
        ({"PhotometricInterpretation": "CMYK"}, "Photometric Interpretation (0028,0004) is 'CMYK'"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "'YBR_PARTIAL_420', which is not read"),
        ({"PixelRepresentation": 1}, "Pixel Representation (0028,0103)"),
        ({"BitsStored": 6, "HighBit": 5}, "do not fit its 6 stored bits"),
    ],
)
def test_colour_that_contradicts_itself_is_refused(tmp_path, tags, words) -> None:
    """T7: by the name of the tag."""
    given = {keyword: value for keyword, value in (COLOUR | tags).items() if value is not None}
    refused(write_dicom(tmp_path / "image.dcm", picture(), 8, **given), words)


def test_a_folder_of_colour_dicom_is_a_colour_data_set(tmp_path) -> None:
    """Colour: the run decides on the channels; grey in three equal channels counts as grey."""
    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        for n in range(6):
            write_dicom(tmp_path / f"{n}.dcm", np.roll(picture(), n, 0), 8, **COLOUR)
            rows.writerow([f"{n}.dcm", "ab"[n % 2]])
    source = open_source(f"folder:{tmp_path}")
    assert source.info.channels == 3 and source.info.bits == 8
    pixels = source.read(source.records()[0])
    assert Prepare(32, channels=3)(pixels).shape == (3, 32, 32)
    with pytest.raises(DataError, match="in colour"):
        Prepare(32)(pixels)
    grey = np.repeat(picture()[..., :1], 3, -1)
    assert Prepare(32)(read_image(write_dicom(tmp_path / "g.dcm", grey, 8, **COLOUR))).shape == (1, 32, 32)


def test_a_mammogram_in_colour_is_refused_for_what_it_is(tmp_path) -> None:
    """Colour: the mammography data sets are grey."""
    path = write_dicom(tmp_path / "image.dcm", picture(), 8, **COLOUR | {"Modality": "MG"})
    with pytest.raises(DataError, match="in colour"):
        Prepare(32)(read_mammogram(path, tmp_path))
