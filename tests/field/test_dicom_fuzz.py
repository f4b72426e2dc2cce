"""DICOM: whatever is broken in a file, one line of plain words comes out, and nothing of the patient."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pydicom
import pytest
from fixtures.dicom_streams import jpeg_2000, one, ramp, with_stream
from fixtures.native_trees import CANARY, write_dicom
from pydicom import uid
from pydicom.sequence import Sequence

from scorebayes.data.pixels.dicom import dicom_bits, grey_depth
from scorebayes.data.pixels.images import open_picture
from scorebayes.errors import DataError

EXCEPTIONS = ("Error", "Exception", "Traceback", "NoneType", "object has no")
VALUES = {  # by value representation: what a careless program might write
    "US": (0, 1, 7, 40, 4095, 65535, [1, 2], [1, 2, 3]),
    "SS": (-1, -32768, [-5, 5]),
    "DS": ("0", "-1", "1e30", "1e-30", "1\\2\\3", "0.5"),
    "CS": ("MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL_422", "SIGMOID", "A\\B"),
    "LO": ("", "many", CANARY),
    "FD": (0.0, 1.5, float("nan"), float("inf"), -1e308),
    "OB": (b"\0", b"\1\2\3\4"),
    "UN": (b"\0\0", b"\xff" * 6),
    "SQ": (Sequence(), Sequence([pydicom.Dataset()])),
}
TAGS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "PixelData", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "ModalityLUTSequence", "VOILUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData", "Modality", "SOPClassUID",
    "SegmentedRedPaletteColorLookupTableData", "PatientOrientation", "ViewPosition", "Laterality",
)  # fmt: skip


def grey(path):
    return write_dicom(
        path, ramp(12), 12, WindowCenter="40", WindowWidth="400", RescaleSlope="1", RescaleIntercept="-1024",
        SharedFunctionalGroupsSequence=one(FrameVOILUTSequence=one(WindowCenter="40", WindowWidth="400")),
    )  # fmt: skip


def compressed(path):
    return with_stream(path, jpeg_2000(ramp(12)), uid.JPEG2000Lossless, 32, 48, 12)


def palette(path):
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for channel in ("Red", "Green", "Blue"):
        tags[f"{channel}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{channel}PaletteColorLookupTableData"] = np.arange(256, dtype="<u2").tobytes()
    return write_dicom(path, ramp(8).astype(np.uint8), 8, **tags)


def colour(path):
    pixels = np.stack([ramp(8)] * 3, -1).astype(np.uint8)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    return write_dicom(path, pixels, 8, uid.RLELossless, **tags)


def read(path) -> str:
    """What is refused, or "" for pixels in [0, 1]."""
    try:
        pixels = open_picture(path).pixels
        assert np.isfinite(pixels).all() and 0 <= pixels.min() <= pixels.max() <= 1
    except DataError as error:
        assert error.__cause__ is None
        return str(error)
    return ""


def judge(path, message: str) -> None:
    assert not any(word in message for word in EXCEPTIONS), message
    assert CANARY not in message and "DOE" not in message and "\n" not in message, message
    assert str(path) in message or not message


@pytest.mark.parametrize("make", [grey, compressed, palette, colour])
def test_tags_that_are_missing_or_of_the_wrong_kind(tmp_path, make, caplog) -> None:
    """T7: tags of the pixels removed, emptied, or given values of each kind."""
    path = make(tmp_path / "image.dcm")
    whole = path.read_bytes()
    draws = np.random.default_rng(0)
    refusals = 0
    for keyword in TAGS:
        for kind, values in {"": (None,), **VALUES}.items():
            for value in values:
                if draws.random() < 0.8:
                    continue  # a fifth of them take seconds
                dataset = pydicom.dcmread(io.BytesIO(whole))
                with warnings.catch_warnings(), pydicom.config.disable_value_validation():
                    warnings.simplefilter("ignore")
                    dataset.pop(keyword, None)
                    buffer = io.BytesIO()
                    try:
                        if kind:
                            dataset.add_new(keyword, kind, value)
                        dataset.save_as(buffer, enforce_file_format=True)
                    except (ValueError, TypeError, AttributeError, OSError):
                        continue  # the writer refuses too
                path.write_bytes(buffer.getvalue())
                message = read(path)
                judge(path, message)
                refusals += bool(message)
                for other in (dicom_bits, grey_depth):
                    try:
                        other(path)
                    except DataError as error:
                        judge(path, str(error))
    assert refusals > 40 and not caplog.text  # the log of the parser quotes tags


@pytest.mark.parametrize("make", [grey, compressed, palette, colour])
def test_bytes_that_are_changed_or_cut_off(tmp_path, make, caplog) -> None:
    """T7: damage of a disk or a download."""
    path = make(tmp_path / "image.dcm")
    whole = path.read_bytes()
    draws = np.random.default_rng(0)
    refusals = 0
    for _ in range(400):
        data = bytearray(whole)
        for at in draws.integers(128, len(data), draws.integers(1, 6)):
            data[at] = draws.integers(256)
        path.write_bytes(bytes(data)[: draws.integers(132, len(data)) if draws.random() < 0.3 else None])
        message = read(path)
        judge(path, message)
        refusals += bool(message)
    assert refusals > 80 and not caplog.text
