"""DICOM: exact values through every encoding, the grey scale the right way round, refusals, no names."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fixtures.native_trees import CANARY, breast, write_dicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence

from scorebayes.data.pixels.dicom import dicom_bits, parse, read_dicom
from scorebayes.data.pixels.images import open_picture
from scorebayes.data.sources.mammograms import MAMMOGRAPHY
from scorebayes.errors import DataError

SYNTAXES = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
]


def dicom_tags(path):
    found = open_picture(path)
    return found.laterality, found.view


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_dicom(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    assert CANARY not in message and "DOE" not in message
    return message


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.keyword)
@pytest.mark.parametrize("bits", [8, 12, 14, 16])
def test_whole_numbers_of_every_depth_survive_every_lossless_encoding(tmp_path, syntax, bits) -> None:
    pixels = breast(bits=bits)
    path = write_dicom(tmp_path / "image.dcm", pixels.astype(np.uint8) if bits == 8 else pixels, bits, syntax)
    image = read_dicom(path, modalities=MAMMOGRAPHY)
    assert image.dtype == np.float32 and image.shape == pixels.shape
    np.testing.assert_array_equal(np.rint(image * (2**bits - 1)), pixels)
    assert dicom_bits(path) == bits


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_signed_values_use_their_whole_range_and_are_not_clipped(tmp_path, bits) -> None:
    low = -(2 ** (bits - 1))
    pixels = (breast(bits=bits).astype(np.int32) + low).astype(np.int8 if bits == 8 else np.int16)
    image = read_dicom(write_dicom(tmp_path / "image.dcm", pixels, bits))
    np.testing.assert_array_equal(np.rint(image * (2**bits - 1)), pixels.astype(np.int32) - low)


@pytest.mark.parametrize("slope", [2.5, -1.0])
def test_rescaling_is_exact_and_never_clips(tmp_path, slope) -> None:
    pixels = breast(bits=12)
    path = write_dicom(tmp_path / "image.dcm", pixels, 12, RescaleSlope=str(slope), RescaleIntercept="-1024")
    expected = pixels if slope > 0 else 4095 - pixels
    np.testing.assert_array_equal(np.rint(read_dicom(path) * 4095), expected)


def test_monochrome1_is_inverted_once(tmp_path) -> None:
    pixels = breast(bits=12)
    light = write_dicom(tmp_path / "a.dcm", 4095 - pixels, 12, PhotometricInterpretation="MONOCHROME1")
    dark = write_dicom(tmp_path / "b.dcm", pixels, 12)
    np.testing.assert_allclose(read_dicom(light), read_dicom(dark), atol=1e-6)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    both = [
        write_dicom(tmp_path / "c.dcm", 4095 - pixels, 12, PhotometricInterpretation="MONOCHROME1", **window),
        write_dicom(tmp_path / "d.dcm", pixels, 12, **window),
    ]
    np.testing.assert_allclose(read_dicom(both[0]), read_dicom(both[1]), atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_the_first_window_is_applied_as_the_standard_says(tmp_path, function) -> None:
    pixels = breast(bits=12)
    path = write_dicom(
        tmp_path / "image.dcm", pixels, 12, WindowCenter=[1500, 40], WindowWidth=[900, 80], RescaleSlope="2",
        RescaleIntercept="-100", **({"VOILUTFunction": function} if function else {}),
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    expected = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = -100, 2 * 4095 - 100  # where pydicom puts black and white
    np.testing.assert_allclose(read_dicom(path), (expected - low) / (high - low), atol=1e-6)
    np.testing.assert_array_equal(np.rint(read_dicom(path, window=False) * 4095), pixels)


def test_a_window_of_one_step_is_a_threshold(tmp_path) -> None:
    path = write_dicom(tmp_path / "image.dcm", breast(bits=12), 12, WindowCenter=1000, WindowWidth=1)
    np.testing.assert_array_equal(read_dicom(path), breast(bits=12) > 999.5)


def lut(entries: list[int], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = struct.pack(f"<{len(entries)}H", *entries)
    item["LUTData"].VR = "OW"
    item["LUTDescriptor"].VR = "US"
    return Sequence([item])


def test_lookup_tables_are_applied(tmp_path) -> None:
    pixels = (breast(bits=12) // 16).astype(np.uint8)
    table = list(range(0, 1024, 4))
    voi = write_dicom(tmp_path / "voi.dcm", pixels, 8, VOILUTSequence=lut(table, 0, 10))
    np.testing.assert_allclose(read_dicom(voi), np.array(table)[pixels] / 1023, atol=1e-6)
    rescaled = write_dicom(tmp_path / "modality.dcm", pixels, 8, ModalityLUTSequence=lut(table, 0, 16))
    np.testing.assert_allclose(read_dicom(rescaled), np.array(table)[pixels] / 1023, atol=1e-6)


@pytest.mark.parametrize("inverted", [False, True])
def test_padding_becomes_black_whatever_its_value(tmp_path, inverted) -> None:
    pixels = np.clip(breast(bits=12), 5, 4000)
    pixels[:8], pixels[8:12] = 4095, 4090
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    tags = {"PixelPaddingValue": 4095, "PhotometricInterpretation": photometric}
    image = read_dicom(write_dicom(tmp_path / "a.dcm", pixels, 12, **tags))
    assert (image[:8] == 0).all()
    assert np.allclose(image[8:12], 1 - 4090 / 4095 if inverted else 4090 / 4095, atol=1e-6)
    image = read_dicom(write_dicom(tmp_path / "b.dcm", pixels, 12, PixelPaddingRangeLimit=4090, **tags))
    assert (image[:12] == 0).all()


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"ImageLaterality": "R", "ViewPosition": "MLO"}, ("R", "MLO")),
        ({"Laterality": "L", "PatientOrientation": "CC"}, ("L", "CC")),
        ({"Laterality": "LEFT", "PatientOrientation": ["A", "FL"]}, ("L", "")),
        ({"Laterality": "B", "ViewPosition": CANARY}, ("", "")),
        ({}, ("", "")),
    ],
)
def test_side_and_view_are_given_out_and_nothing_else(tmp_path, tags, expected) -> None:
    assert dicom_tags(write_dicom(tmp_path / "image.dcm", breast(), **tags)) == expected


TWO_FRAMES = {"NumberOfFrames": 2, "PixelData": np.tile(breast(), (2, 1)).tobytes()}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (TWO_FRAMES, "holds 2 frames"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3"}, "tomosynthesis"),
        ({"PhotometricInterpretation": None}, "Photometric Interpretation (0028,0004) is missing"),
        (
            {"PhotometricInterpretation": "PALETTE COLOR"},
            "Red Palette Color Lookup Table Descriptor (0028,1101) is missing",
        ),
        ({"PixelData": None}, "no pixel data"),
        ({"Rows": None}, "Rows (0028,0010) is missing"),
        ({"BitsStored": 20}, "Bits Stored (0028,0101) is 20, expected a whole number from 1 to 16"),
        ({"Modality": "US"}, "modality 'US', expected MG"),
        ({"Modality": None}, "modality 'unknown'"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "Window Width (0028,1051) is 0"),
        ({"Rows": 65535, "Columns": 65535}, "at most 64000000"),
        ({"Rows": 960}, "is incomplete: it has 12288 of 122880 bytes"),
    ],
)
def test_what_is_no_single_grey_mammogram_is_refused_in_words(tmp_path, tags, words) -> None:
    assert words in refusal(write_dicom(tmp_path / "image.dcm", breast(), **tags), modalities=MAMMOGRAPHY)


@pytest.mark.parametrize("syntax", ["1.2.840.113619.5.2", uid.MPEG2MPML])
def test_an_encoding_that_is_not_read_is_named(tmp_path, syntax) -> None:
    path = write_dicom(tmp_path / "image.dcm", breast())
    data, plain = path.read_bytes(), uid.ExplicitVRLittleEndian.encode() + b"\0"
    at, length = data.index(plain), len(syntax) + len(syntax) % 2
    there = struct.pack("<H", length) + syntax.encode().ljust(length, b"\0")
    path.write_bytes(data[: at - 2] + there + data[at + len(plain) :])
    message = refusal(path)
    assert (
        uid.UID(syntax).name[:20] in message and "which is not read" in message and "uncompressed" in message
    )


def test_the_compressed_size_must_be_that_of_the_header(tmp_path) -> None:
    for syntax in (uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless):
        path = write_dicom(tmp_path / f"{syntax}.dcm", breast(bits=12), 12, syntax)
        dataset = pydicom.dcmread(path)
        dataset.Rows = 90
        dataset.save_as(path)
        assert "compressed image is 64 x 96, but the header says 64 x 90" in refusal(path)


@pytest.mark.parametrize("group_length", [None, "missing", 0, 7, 2**31, 2**32 - 1])
def test_a_deflate_bomb_is_refused_whatever_its_header_says_of_lengths(
    tmp_path, monkeypatch, group_length
) -> None:
    path = write_dicom(tmp_path / "image.dcm", breast(), 16, uid.DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    start = 144 + struct.unpack_from("<I", data, 140)[0]
    bomb = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    data = data[:start] + bomb.compress(bytes(300_000_000)) + bomb.flush()
    if group_length == "missing":
        data = data[:132] + data[144:]
    elif group_length is not None:
        data = data[:140] + struct.pack("<I", group_length) + data[144:]
    path.write_bytes(data)
    monkeypatch.setattr(parse, "MAX_BYTES", 10_000_000)
    tracemalloc.start()
    assert "unpacks to more than 10 MB" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("group_length", [0, 7, 2**31])
def test_a_deflated_image_is_read_whatever_its_header_says_of_lengths(tmp_path, group_length) -> None:
    path = write_dicom(tmp_path / "image.dcm", breast(), 16, uid.DeflatedExplicitVRLittleEndian)
    expected, data = read_dicom(path), path.read_bytes()
    path.write_bytes(data[:140] + struct.pack("<I", group_length) + data[144:])
    np.testing.assert_array_equal(read_dicom(path), expected)


def nested(depth: int) -> bytes:
    """A sequence in a sequence, ``depth`` times, explicit VR with undefined lengths."""
    start = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return start * depth + end * depth


@pytest.mark.parametrize(("depth", "fine"), [(50, True), (150, False), (5000, False)])
def test_sequences_nested_too_deep_are_refused(tmp_path, depth, fine) -> None:
    path = write_dicom(tmp_path / "image.dcm", breast())
    data = path.read_bytes()
    at = data.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW"))
    path.write_bytes(data[:at] + nested(depth) + data[at:])
    if fine:
        assert read_dicom(path).shape == (96, 64)
    else:
        assert "has sequences nested" in refusal(path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch) -> None:
    path = write_dicom(tmp_path / "image.dcm", breast())
    monkeypatch.setattr(parse, "MAX_BYTES", 1000)
    assert "at most 0 MB are read" in refusal(path)


def test_nothing_that_names_the_patient_comes_out_whatever_is_broken(
    tmp_path, caplog, recwarn, capfd
) -> None:
    path = write_dicom(
        tmp_path / "image.dcm", breast(), StudyInstanceUID=CANARY, WindowCenter=2048, WindowWidth=4096
    )
    data = path.read_bytes()
    for cut in (*range(200, 1200, 40), len(data) - 5):
        path.write_bytes(data[:cut])
        refusal(path)
    for at in range(300, 1000, 7):
        path.write_bytes(data[:at] + b"\xff\x7f" + data[at + 2 :])
        try:
            image, tags = read_dicom(path), dicom_tags(path)
            assert image.shape and CANARY not in repr(tags)
        except DataError as error:
            assert "DOE" not in str(error)
            assert error.__cause__ is None
    written = "".join(capfd.readouterr()) + caplog.text + "".join(str(w.message) for w in recwarn.list)
    assert "DOE" not in written


CORPUS = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.name)
def test_the_corpus_of_pydicom_is_read_or_refused_in_one_line(path) -> None:
    try:
        image = read_dicom(path)
    except DataError as error:
        assert "\n" not in str(error) and path.name in str(error)
    else:
        assert image.ndim == 2 or image.shape[2] == 3
        assert 0 <= image.min() <= image.max() <= 1
