"""DICOM against pydicom: every real file at hand equals what pydicom's own steps give, or is refused in words.

The oracle is ``apply_modality_lut`` and ``apply_voi_lut`` (first window), scaled to [0, 1] by the same rule, MONOCHROME1
inverted, and ``pixel_array`` in RGB for colour; pydicom decodes through other libraries than we do. Files are listed, never
asked for: pydicom would fetch a missing one from the internet.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

from scorebayes.data.pixels.images import read_image
from scorebayes.errors import DataError

TOLERANCE = 2e-3
EXCEPTIONS = ("Error", "Exception", "Traceback", "NoneType", "object has no")
LEAST_RIGHT = {"pydicom": 45, "pydicom-data": 45, "field": 8, "cbis_ddsm_dicom_small": 8}
"""Files read right, as measured with the versions in constraints.txt."""


def files_of(name: str, request) -> list[Path]:
    if name == "pydicom":
        return sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm"))
    if name == "pydicom-data":
        found = importlib.util.find_spec("data_store")
        if found is None or found.origin is None:
            pytest.skip("the package pydicom-data is not installed (extra dev)")
        return sorted((Path(found.origin).parent / "data").glob("*.dcm"))
    root = request.getfixturevalue("data_root") / name
    if not root.is_dir():
        pytest.skip(f"real data absent: no folder {name}")
    return sorted(
        path for path in root.rglob("*") if path.is_file() and path.read_bytes()[128:132] == b"DICM"
    )


def of_frame(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """The functional groups of the one frame, laid beside the pixels, where pydicom looks."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in dataset.get(groups) or []:
            for macro in ("FrameVOILUTSequence", "PixelValueTransformationSequence"):
                for part in item.get(macro) or []:
                    dataset.update(part)
    return dataset


def needed_bits(item: pydicom.Dataset) -> int:
    """The scale of a table: the bits that its entries need (P11)."""
    data = item.LUTData
    entries = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    return min(item.LUTDescriptor[2], max(1, int(entries.max()).bit_length()))


def oracle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1] by pydicom, and which of them it can be asked about: not padding, of which it knows nothing (P8)."""
    dataset = of_frame(pydicom.dcmread(path))
    stored = dataset.pixel_array
    bits = dataset.BitsStored
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        big = dataset.file_meta.TransferSyntaxUID == uid.ExplicitVRBigEndian
        for channel in ("Red", "Green", "Blue"):  # pydicom takes words as those of this machine (3.0)
            data = dataset.get(f"{channel}PaletteColorLookupTableData")
            if big and data:
                dataset[f"{channel}PaletteColorLookupTableData"].value = (
                    np.frombuffer(data, ">u2").astype("<u2").tobytes()
                )
        colours = apply_color_lut(stored, dataset)
        return colours / (2.0 ** (8 * colours.itemsize) - 1), np.ones(stored.shape, bool)
    if dataset.SamplesPerPixel == 3:
        return stored / (2.0**bits - 1), np.ones(stored.shape[:2], bool)
    values = apply_modality_lut(stored, dataset)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
    if dataset.get("ModalityLUTSequence"):
        low, high = 0.0, 2.0 ** needed_bits(dataset.ModalityLUTSequence[0]) - 1
    else:
        low, high = sorted(float(v) for v in apply_modality_lut(np.array(ends), dataset))
    seen = apply_voi_lut(values, dataset)
    if dataset.get("VOILUTSequence"):
        low, high = 0.0, 2.0 ** needed_bits(dataset.VOILUTSequence[0]) - 1
    grey = (np.asarray(seen, float) - low) / (high - low)
    asked = np.ones(stored.shape, bool)
    if dataset.get("PixelPaddingValue") is not None:
        asked = (stored.astype(np.int64) & 0xFFFF) != (dataset.PixelPaddingValue & 0xFFFF)
    return (1 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey), asked


def kind_of(path: Path) -> tuple[str, ...]:
    """Encoding, colours, sign, depth and window: what the table has a row for."""
    dataset = of_frame(pydicom.dcmread(path, stop_before_pixels=True))
    window = (
        "VOI table"
        if dataset.get("VOILUTSequence")
        else "window"
        if dataset.get("WindowWidth") is not None
        else "none"
    )
    return (
        dataset.file_meta.get("TransferSyntaxUID", uid.UID("")).name,
        str(dataset.get("PhotometricInterpretation", "-")),
        {0: "unsigned", 1: "signed"}.get(dataset.get("PixelRepresentation"), "-"),
        f"{dataset.get('BitsStored', '-')} of {dataset.get('BitsAllocated', '-')}",
        window,
    )


def judged(path: Path) -> str:
    """Right, refused, wrong or unjudged, and why."""
    try:
        image = read_image(path)
    except DataError as error:
        message = str(error).replace(str(path), "")
        bad = any(word in message for word in EXCEPTIONS) or "\n" in message
        return (
            f"wrong: the words are no plain ones: {message}"
            if bad
            else f"refused: {message.strip(' :')[:70]}"
        )
    header = pydicom.dcmread(path, stop_before_pixels=True)
    if header.HighBit != header.BitsStored - 1:
        return "unjudged: pydicom takes the lowest bits, whatever High Bit says (P4)"
    if header.file_meta.TransferSyntaxUID == uid.JPEGExtended12Bit:
        return "unjudged: pydicom has no decoder for it"
    expected, asked = oracle(path)
    if image.shape != expected.shape:
        return f"wrong: shape {image.shape}, pydicom has {expected.shape}"
    difference = float(np.abs(image - expected)[asked].max(initial=0))
    return "right" if difference <= TOLERANCE else f"wrong: differs by {difference:.4f}"


@pytest.mark.parametrize("name", LEAST_RIGHT)
def test_real_files_equal_pydicom_or_are_refused_in_words(name, request, monkeypatch) -> None:
    """P1 to P12: right or refused, never wrong."""
    monkeypatch.setattr(logging.getLogger("pydicom"), "level", logging.CRITICAL + 1)
    table: Counter[tuple[str, ...]] = Counter()
    wrong = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in files_of(name, request):
            verdict = judged(path)
            try:
                kind = kind_of(path)
            except Exception:  # it is the verdict that counts
                kind = ("-",) * 5
            table[(*kind, verdict)] += 1
            if verdict.startswith("wrong"):
                wrong.append(f"{path.name}: {verdict}")
    text = "\n".join(f"{number:3} {' | '.join(row)}" for row, number in sorted(table.items()))
    logging.getLogger(__name__).info("%s\n%s", name, text)  # shown by pytest --log-cli-level=INFO
    assert not wrong, "\n".join([*wrong, text])
    right = sum(number for row, number in table.items() if row[-1] == "right")
    assert right >= LEAST_RIGHT[name], f"{right} files are read right\n{text}"


def test_jpeg_of_12_bits_equals_the_lossless_copy_of_the_same_image(request) -> None:
    """JPEG Extended: pydicom has no decoder for it without a GPL package; the same image is there in another encoding."""
    lossy = Path(pydicom.__file__).parent / "data" / "test_files" / "JPGExtended.dcm"
    exact = [path for path in files_of("pydicom-data", request) if path.name == "JPEG-LL.dcm"]
    seen, expected = read_image(lossy) * 4095, read_image(exact[0]) * 65535 - 32768
    assert np.abs(seen - expected).mean() < 3 and np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.98
