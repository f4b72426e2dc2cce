"""DICOM: windows, rescaling and look-up tables are used as the standard says, or refused by the name of the tag."""

from __future__ import annotations

import copy
import struct

import numpy as np
import pydicom
import pytest
from fixtures.dicom_streams import one, ramp
from fixtures.native_trees import CANARY, write_dicom
from pydicom import uid
from pydicom.sequence import Sequence

from scorebayes.data.pixels.dicom import grey_depth, read_dicom
from scorebayes.data.pixels.images import read_image
from scorebayes.errors import DataError

PIXELS = ramp(12)


@pytest.fixture
def field(data_root):
    if not (data_root / "field").is_dir():
        pytest.skip(f"real data absent: no folder field in {data_root}")
    return data_root / "field"


def refused(path, *words) -> None:
    with pytest.raises(DataError) as caught:
        read_dicom(path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "Error" not in message and CANARY not in message and "\n" not in message


def written(tmp_path, **tags):
    return write_dicom(tmp_path / "image.dcm", PIXELS, 12, **tags)


def as_text(tmp_path, **texts):
    """Tags of numbers that hold any text, which the writing library refuses to write."""
    path = written(tmp_path, **{keyword: "1" * len(text) for keyword, text in texts.items()})
    data = path.read_bytes()
    for keyword, text in texts.items():
        tag = pydicom.tag.Tag(keyword)
        at = data.index(struct.pack("<HH2s", tag.group, tag.element, b"DS")) + 8
        data = data[:at] + text.encode() + data[at + len(text) :]
    path.write_bytes(data)
    return path


def windowed(center: float, width: float, values=PIXELS):
    """C.11.2.1.2.1, in the words of the standard."""
    inside = ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    return np.where(
        values <= center - 0.5 - (width - 1) / 2,
        0,
        np.where(values > center - 0.5 + (width - 1) / 2, 1, inside),
    )


# -- windows and rescaling


@pytest.mark.parametrize("text", ["600,5", "AUTO", "nan", "inf", "-inf", "6 00", "600;1600"])
@pytest.mark.parametrize("keyword", ["WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"])
def test_a_number_that_is_none_is_refused_by_its_tag(tmp_path, keyword, text) -> None:
    """P9: never passed over in silence."""
    numbers = {"WindowCenter": "600", "WindowWidth": "1600", "RescaleSlope": "1", "RescaleIntercept": "0"}
    tag = pydicom.tag.Tag(keyword)
    refused(
        as_text(tmp_path, **numbers | {keyword: text}), f"({tag.group:04X},{tag.element:04X})", "not a number"
    )


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"WindowCenter": "600"}, "Window Width (0028,1051) is missing"),
        ({"WindowWidth": "600"}, "Window Center (0028,1050) is missing"),
        ({"WindowCenter": "600", "WindowWidth": ""}, "Window Width (0028,1051) is missing"),
        ({"WindowCenter": "600", "WindowWidth": "0"}, "Window Width (0028,1051) is 0"),
        (
            {"WindowCenter": "600", "WindowWidth": "-5", "VOILUTFunction": "SIGMOID"},
            "Window Width (0028,1051) is -5",
        ),
        (
            {"WindowCenter": "6", "WindowWidth": "9", "VOILUTFunction": "CUBIC"},
            "VOI LUT Function (0028,1056) is 'CUBIC'",
        ),
        ({"RescaleSlope": "2"}, "Rescale Intercept (0028,1052) is missing"),
        ({"RescaleIntercept": "-1024"}, "Rescale Slope (0028,1053) is missing"),
        (
            {"RescaleSlope": ["1", "2"], "RescaleIntercept": "1"},
            "Rescale Slope (0028,1053) is 1, 2, expected one",
        ),
        ({"RescaleSlope": "0", "RescaleIntercept": "1"}, "Rescale Slope (0028,1053) is 0"),
        ({"RescaleSlope": "1e-300", "RescaleIntercept": "1"}, "Rescale Slope (0028,1053) is 1e-300"),
    ],
)
def test_half_a_window_or_rescaling_is_refused_by_its_tag(tmp_path, tags, words) -> None:
    """P9: what is missing or impossible is named."""
    refused(written(tmp_path, **tags), words)


def test_the_first_of_several_windows_is_used(tmp_path) -> None:
    """P9: several values are several windows."""
    path = written(tmp_path, WindowCenter=["1000", "40"], WindowWidth=["901", "80"])
    np.testing.assert_allclose(read_dicom(path), windowed(1000, 901), atol=1e-6)


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_window_and_slope_of_functional_groups_are_used(tmp_path, groups) -> None:
    """P9: an enhanced object of one frame keeps them in its functional groups (C.7.6.16)."""
    macros = one(
        FrameVOILUTSequence=one(WindowCenter="1000", WindowWidth="901"),
        PixelValueTransformationSequence=one(RescaleSlope="2", RescaleIntercept="-500", RescaleType="US"),
    )
    path = written(tmp_path, NumberOfFrames="1", **{groups: macros})
    np.testing.assert_allclose(read_dicom(path), windowed(1000, 901, PIXELS * 2.0 - 500), atol=1e-6)
    beside = {"WindowCenter": "1000", "WindowWidth": "901", groups: one(FrameVOILUTSequence=one())}
    np.testing.assert_allclose(read_dicom(written(tmp_path, **beside)), windowed(1000, 901), atol=1e-6)
    bad = one(FrameVOILUTSequence=one(WindowCenter="1000"))
    refused(
        written(tmp_path, **{groups: bad}),
        "Window Width (0028,1051) in Frame VOI LUT Sequence (0028,9132) is missing",
    )


def test_the_functional_groups_of_several_frames_are_refused(tmp_path) -> None:
    """P9: which of two windows is that of the image?"""
    items = [one(FrameVOILUTSequence=one(WindowCenter=str(c), WindowWidth="80"))[0] for c in (40, 1000)]
    refused(
        written(tmp_path, PerFrameFunctionalGroupsSequence=Sequence(items)),
        "Frame VOI LUT Sequence (0028,9132)",
    )


@pytest.mark.real
def test_windows_of_the_field(field) -> None:
    """P9: 08 is refused by its tag, 10 uses the window and slope of its functional groups."""
    refused(field / "08-window-decimal-comma.dcm", "Window Center (0028,1050) is '600,5'")
    path = field / "10-enhanced-single-frame-window-in-functional-groups.dcm"
    dataset = pydicom.dcmread(path)
    groups = dataset.SharedFunctionalGroupsSequence[0]
    voi = groups.FrameVOILUTSequence[0]
    values = dataset.pixel_array.astype(float)
    if "PixelValueTransformationSequence" in groups:
        rescale = groups.PixelValueTransformationSequence[0]
        values = values * rescale.RescaleSlope + rescale.RescaleIntercept
    expected = windowed(float(voi.WindowCenter), float(voi.WindowWidth), values)
    np.testing.assert_allclose(read_image(path), expected, atol=1e-6)


# -- tables


def table(entries, first, bits, kind="OW", descriptor="US"):
    """A sequence with one look-up table as a file holds it."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", descriptor, [len(entries) % 65536, first, bits])
    if kind == "packed":
        item.add_new("LUTData", "OW", bytes(entries) + b"\0" * (len(entries) % 2))
    elif kind == "OW":
        item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    else:
        item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return Sequence([item])


@pytest.mark.parametrize("kind", ["OW", "US"])
@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
def test_the_range_of_a_table_is_what_its_entries_need(tmp_path, sequence, kind) -> None:
    """P11: a table of 16 bits whose entries end at 1023 gives 0 to 1023."""
    entries = np.arange(4096) // 4
    path = written(
        tmp_path, PhotometricInterpretation="MONOCHROME1", **{sequence: table(entries, 0, 16, kind)}
    )
    np.testing.assert_allclose(read_dicom(path), 1 - entries[PIXELS] / 1023, atol=1e-6)


@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_a_table_that_uses_its_bits_is_scaled_by_them(tmp_path, sequence, bits) -> None:
    """P11: entries from a tenth to nine tenths of the range stay there."""
    entries = np.linspace(0.1, 0.9, 4096) * (2**bits - 1) // 1
    path = written(tmp_path, **{sequence: table(entries.astype(int), 0, bits)})
    np.testing.assert_allclose(read_dicom(path), entries[PIXELS] / (2**bits - 1), atol=1e-6)


def test_entries_of_8_bits_may_be_packed_two_to_a_word(tmp_path) -> None:
    """P11: a quirk of the descriptor: 8 bits in OW."""
    entries = [255 - n // 2 for n in range(401)]
    path = written(tmp_path, VOILUTSequence=table(entries, 100, 8, "packed"))
    expected = np.array(entries)[np.clip(PIXELS.astype(int) - 100, 0, 400)] / 255
    np.testing.assert_allclose(read_dicom(path), expected, atol=1e-6)


def test_no_entries_stand_for_65536(tmp_path) -> None:
    """P11: a quirk of the descriptor: 16 bits cannot hold 65536."""
    entries = np.arange(65536)[::-1]
    path = write_dicom(tmp_path / "image.dcm", ramp(16), 16, ModalityLUTSequence=table(entries, 0, 16))
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 65535), 65535 - ramp(16))


@pytest.mark.parametrize("first", [-2048, 63488])
def test_the_first_value_of_a_table_has_the_sign_of_the_pixels(tmp_path, first) -> None:
    """P11: a quirk of the descriptor: -2048 is written 63488 by those who declare it unsigned."""
    entries = np.arange(4096)
    values = PIXELS.astype(np.int32) - 2048
    tags = {"ModalityLUTSequence": table(entries, first, 12, descriptor="SS" if first < 0 else "US")}
    path = write_dicom(tmp_path / "image.dcm", values.astype(np.int16), 12, **tags)
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 4095), PIXELS)
    tags = {"VOILUTSequence": tags["ModalityLUTSequence"], "RescaleSlope": "1", "RescaleIntercept": "-2048"}
    np.testing.assert_array_equal(np.rint(read_dicom(written(tmp_path, **tags)) * 4095), PIXELS)


def test_tables_of_big_endian_files(tmp_path) -> None:
    """P11: words of a table are in the order of the file."""
    entries = np.arange(4096)[::-1]
    tags = {"VOILUTSequence": table(entries, 0, 12, "US")}
    path = write_dicom(tmp_path / "image.dcm", PIXELS, 12, uid.ExplicitVRBigEndian, **tags)
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 4095), 4095 - PIXELS)
    tags["VOILUTSequence"][0].add_new("LUTData", "OW", entries.astype(">u2").tobytes())
    path = write_dicom(tmp_path / "image.dcm", PIXELS, 12, uid.ExplicitVRBigEndian, **tags)
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 4095), 4095 - PIXELS)


def test_tables_that_contradict_themselves_are_refused_by_their_tag(tmp_path) -> None:
    """P11, T7: the tag, and the table it is of."""
    good = table(np.arange(4096), 0, 12)
    for sequence, name in (
        ("ModalityLUTSequence", "Modality LUT Sequence"),
        ("VOILUTSequence", "VOI LUT Sequence"),
    ):
        for change, words in (
            ({"LUTDescriptor": None}, "LUT Descriptor (0028,3002)"),
            ({"LUTData": None}, "LUT Data (0028,3006)"),
            ({"LUTDescriptor": [4096, 0]}, "LUT Descriptor (0028,3002)"),
            ({"LUTDescriptor": [4096, 0, 40]}, "LUT Descriptor (0028,3002)"),
            ({"LUTDescriptor": [4096, 0, 8]}, "LUT Descriptor (0028,3002)"),
            ({"LUTDescriptor": [4000, 0, 12]}, "LUT Data (0028,3006)"),
            ({"LUTData": b"\1\2"}, "LUT Data (0028,3006)"),
        ):
            items = copy.deepcopy(good)
            for keyword, value in change.items():
                if value is None:
                    del items[0][keyword]
                else:
                    items[0].add_new(keyword, "OW" if keyword == "LUTData" else "US", value)
            refused(written(tmp_path, **{sequence: items}), words, name)
        refused(
            written(tmp_path, **{sequence: Sequence([pydicom.Dataset()])}), "LUT Descriptor (0028,3002)", name
        )


@pytest.mark.real
def test_faults_of_the_field_are_named(field) -> None:
    """T7: modality LUT without descriptor, Pixel Representation missing, VOI LUT with an empty item."""
    for name, words in (
        (
            "11-modality-lut-without-descriptor.dcm",
            "LUT Descriptor (0028,3002) in Modality LUT Sequence (0028,3000)",
        ),
        ("12-pixelrepresentation-missing.dcm", "Pixel Representation (0028,0103)"),
        ("13-voilut-empty-item.dcm", "LUT Descriptor (0028,3002) in VOI LUT Sequence (0028,3010)"),
    ):
        refused(field / name, f"{words} is missing", "Correct the header, or leave the file out.")


@pytest.mark.parametrize(
    "keyword",
    [
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "PixelRepresentation",
        "SamplesPerPixel",
        "PhotometricInterpretation",
    ],
)
def test_every_tag_that_must_be_there_is_named(tmp_path, keyword) -> None:
    """T7: missing, empty, of the wrong type, several: the tag is named."""
    tag = pydicom.tag.Tag(keyword)
    name = f"{pydicom.datadict.dictionary_description(tag)} ({tag.group:04X},{tag.element:04X})"
    for kind, value in (
        ("", None),
        ("LO", ""),
        ("LO", "many"),
        ("FD", 1.5),
        ("US", [64, 64]),
        ("OB", b"\1\2\3\4"),
    ):
        path = written(tmp_path)
        dataset = pydicom.dcmread(path)
        del dataset[keyword]
        if kind:
            dataset.add_new(keyword, kind, value)
        dataset.save_as(path)
        refused(path, name)


# -- depth


def test_the_depth_that_makes_the_greys_is_told(tmp_path) -> None:
    """P12: without a window, the same value is another grey at another depth; with one, it isn't."""
    pixels = ramp(12)
    for bits in (12, 14, 16):
        path = write_dicom(tmp_path / "image.dcm", pixels, bits)
        assert grey_depth(path) == bits
        np.testing.assert_allclose(read_dicom(path), pixels / (2**bits - 1), atol=1e-6)
        path = write_dicom(tmp_path / "image.dcm", pixels, bits, WindowCenter="1000", WindowWidth="901")
        assert grey_depth(path) is None
        np.testing.assert_allclose(read_dicom(path), windowed(1000, 901), atol=1e-6)
    assert grey_depth(written(tmp_path, ModalityLUTSequence=table(np.arange(4096) // 4, 0, 16))) == 10
    assert grey_depth(written(tmp_path, VOILUTSequence=table(np.arange(4096) // 4, 0, 16))) is None
