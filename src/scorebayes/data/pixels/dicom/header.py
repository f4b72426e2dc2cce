"""Is a file one image that can be read, and of what form are its pixels (C.7.6.3, image pixel module)?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pydicom import uid

from scorebayes.data.pixels.dicom.tags import Tags, named, shown
from scorebayes.errors import DataError

MAX_PIXELS = 64_000_000  # rows x columns; the largest detectors have about 25 million

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
YBR = ("YBR_FULL", "YBR_FULL_422")
YBR_OF_JPEG_2000 = ("YBR_RCT", "YBR_ICT")
COLOUR = ("RGB", *YBR, *YBR_OF_JPEG_2000)

UNCOMPRESSED = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
STREAMS = (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes)
"""Compressed as JPEG, JPEG-LS, JPEG 2000 or High-Throughput JPEG 2000."""

_TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"


@dataclass(frozen=True)
class Header:
    """The form of the pixels. ``bits`` is Bits Stored, ``allocated`` Bits Allocated."""

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    bits: int
    high_bit: int
    signed: bool
    syntax: uid.UID

    @property
    def lowest(self) -> int:
        """The lowest value that the stored bits can hold."""
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        return self.lowest + 2**self.bits - 1


def read_header(tags: Tags, modalities: Collection[str] = ()) -> Header:
    """DataError, in words, for all that is not one image of an accepted modality (all where empty)."""
    path = tags.path
    _require_pixels(tags)
    modality = tags.hint("Modality")
    if modalities and modality not in modalities:
        raise DataError(
            f"{path} has modality {shown(modality or 'unknown')}, expected {' or '.join(modalities)}."
        )
    if tags.value("SOPClassUID") == _TOMOSYNTHESIS:
        raise DataError(
            f"{path} is a tomosynthesis image, which is not supported.",
            "Give the 2-D or synthetic 2-D image.",
        )
    frames = tags.whole("NumberOfFrames", 0, 2**31, default=1)
    if frames > 1:
        raise DataError(f"{path} holds {frames} frames, expected one image.", "Export single frames.")
    samples = tags.whole("SamplesPerPixel", 1, 65535)
    photometric = _photometric(tags, samples)
    rows, columns = (tags.whole(keyword, 1, 65535) for keyword in ("Rows", "Columns"))
    if rows * columns > MAX_PIXELS:
        raise DataError(
            f"{path} has {columns} x {rows} pixels, but at most {MAX_PIXELS} are read.", "Leave it out."
        )
    allocated, bits, high_bit = _depth(tags)
    return Header(
        rows, columns, samples, photometric, allocated, bits, high_bit,
        signed=tags.whole("PixelRepresentation", 0, 1) == 1, syntax=_syntax(tags),
    )  # fmt: skip


def _require_pixels(tags: Tags) -> None:
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in tags.dataset:
            raise DataError(
                f"{tags.path} holds floating-point pixels ({named(keyword)}), which are not read.",
                "Export it with whole numbers of at most 16 bits.",
            )
    if "PixelData" not in tags.dataset:
        raise DataError(
            f"{tags.path} holds no image (no pixel data).",
            "Leave it out, or copy it again if it was cut off.",
        )
    data = tags.value("PixelData")
    if data is None:
        raise DataError(f"{tags.path} is incomplete: its pixel data is empty.", "Copy or download it again.")
    if not isinstance(data, bytes):
        raise tags.wrong("PixelData", "is not declared as bytes (OB or OW)", "Export the file again.")


def _photometric(tags: Tags, samples: int) -> str:
    """Photometric Interpretation and Samples per Pixel must agree on grey or colour."""
    known = {1: (*GREY, PALETTE), 3: COLOUR}
    photometric = tags.word("PhotometricInterpretation")
    if not photometric:
        raise tags.wrong("PhotometricInterpretation", "is missing, so that it is not known which end is dark")
    if photometric not in (*known[1], *known[3]):
        raise tags.wrong(
            "PhotometricInterpretation", f"is {shown(photometric)}, which is not read",
            f"Export it as one of {', '.join((*known[1], *known[3]))}.",
        )  # fmt: skip
    if photometric not in known.get(samples, ()):
        raise tags.wrong(
            "SamplesPerPixel", f"is {samples}, which does not fit {named('PhotometricInterpretation')} {photometric}"
        )  # fmt: skip
    return photometric


def _depth(tags: Tags) -> tuple[int, int, int]:
    """Bits Allocated, Bits Stored and High Bit (C.7.6.3.1.1 and PS3.5, 8.1.1)."""
    allocated = tags.whole("BitsAllocated", 1, 64)
    if allocated not in (1, 8, 16):
        raise tags.wrong(
            "BitsAllocated", f"is {allocated}; read are 8 and 16 (and 1, for masks)",
            "Export it with whole numbers of at most 16 bits.",
        )  # fmt: skip
    bits = tags.whole("BitsStored", 1, allocated)
    return allocated, bits, tags.whole("HighBit", bits - 1, allocated - 1, default=bits - 1)


def _syntax(tags: Tags) -> uid.UID:
    syntax = tags.dataset.file_meta.get("TransferSyntaxUID")
    if not isinstance(syntax, uid.UID) or not syntax:
        raise tags.wrong(
            "TransferSyntaxUID", "is missing, so that it is not known how the pixels are encoded", "Export the file again."
        )  # fmt: skip
    if syntax not in (*UNCOMPRESSED, uid.RLELossless, *STREAMS):
        raise DataError(
            f"{tags.path} is encoded as {syntax.name[:60]}, which is not read.",
            "Store it uncompressed, for example with gdcmconv --raw or dcmdjpeg.",
        )
    return syntax
