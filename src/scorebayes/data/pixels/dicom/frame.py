"""From pixel data to the words as they are stored: uncompressed, run-length encoded or a compressed stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import generate_fragments, generate_frames
from pydicom.pixels import get_decoder

from scorebayes.data.pixels.dicom.header import UNCOMPRESSED, YBR_OF_JPEG_2000, Header
from scorebayes.data.pixels.dicom.stream import SIGNATURES, Stream, decode, stream_facts
from scorebayes.data.pixels.dicom.tags import Tags, named
from scorebayes.errors import DataError

_AGAIN = "Copy or download it again, or leave it out."


@dataclass(frozen=True)
class Words:
    """[H, W] or [H, W, 3] as stored: nothing is masked, shifted or converted, but for samples that several pixels share.

    ``precision``: bits that a word carries. ``stream``: what the compressed stream says; None for others.
    """

    words: NDArray
    precision: int
    stream: Stream | None = None


def read_words(tags: Tags, header: Header) -> Words:
    """The words of the one frame. DataError for pixel data that is incomplete, damaged or of another size."""
    data = tags.dataset.PixelData
    if header.syntax in UNCOMPRESSED:
        _require_length(tags, header, len(data))
        return Words(_by_pydicom(tags, header), header.allocated)
    with _damaged(tags):
        fragments = list(generate_fragments(data))[1:]  # the first is the table of offsets
    if header.syntax == uid.RLELossless:
        if len(fragments) > 1:
            raise _several(tags)
        return Words(_by_pydicom(tags, header), header.allocated)
    if sum(fragment.startswith(SIGNATURES) for fragment in fragments) > 1:
        raise _several(tags)
    with _damaged(tags):
        frame = next(generate_frames(data, number_of_frames=1))
    stream = stream_facts(frame)
    if stream is None:
        raise DataError(
            f"{tags.path} is damaged: it is encoded as {header.syntax.name}, but no such stream is found.", _AGAIN
        )  # fmt: skip
    _require_agreement(tags, header, stream)
    with _damaged(tags):
        words = decode(frame, stream)
        words = words.reshape(_shape(header))
    return Words(words, stream.precision, stream)


def _shape(header: Header) -> tuple[int, ...]:
    size = header.rows, header.columns
    return size if header.samples == 1 else (*size, header.samples)


def _by_pydicom(tags: Tags, header: Header) -> NDArray:
    """Bits Stored is given as Bits Allocated, so that pydicom masks nothing."""
    form: dict[str, Any] = {
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": header.samples,
        "number_of_frames": 1,
        "bits_allocated": header.allocated,
        "bits_stored": header.allocated,
        "pixel_representation": 0,
        "photometric_interpretation": header.photometric,
        "pixel_keyword": "PixelData",
        "pixel_vr": tags.dataset["PixelData"].VR,
    }
    if header.samples > 1:
        form["planar_configuration"] = tags.whole("PlanarConfiguration", 0, 1)
    with _damaged(tags):
        words, _ = get_decoder(header.syntax).as_array(tags.dataset.PixelData, index=0, raw=True, **form)
        return np.asarray(words).reshape(_shape(header))


def _require_length(tags: Tags, header: Header, there: int) -> None:
    bits = header.rows * header.columns * header.samples * header.allocated
    if header.photometric == "YBR_FULL_422":  # two pixels share their colour (C.7.6.3.1.2)
        if header.columns % 2:
            raise tags.wrong("Columns", f"is {header.columns}, but YBR_FULL_422 needs an even number")
        bits = bits * 2 // 3
    needed = (bits + 7) // 8
    if there < needed:
        raise DataError(
            f"{tags.path} is incomplete: it has {there} of {needed} bytes of pixels.",
            "Copy or download it again.",
        )
    if there >= 2 * needed and there > needed + 1:  # one byte may pad to an even length
        raise DataError(
            f"{tags.path} has {there} bytes of pixels, but its header asks for {needed}: more than one image, or a wrong "
            f"{named('Rows')}, {named('Columns')} or {named('BitsAllocated')}.",
            "Export one image per file, or correct the header.",
        )


def _require_agreement(tags: Tags, header: Header, stream: Stream) -> None:
    """The stream must be of the size, the number of samples and the colour space that the header says."""
    if (stream.rows, stream.columns) != (header.rows, header.columns):
        raise DataError(
            f"{tags.path}: the compressed image is {stream.columns} x {stream.rows}, but the header says "
            f"{header.columns} x {header.rows}.",
            "Export it again, or leave it out.",
        )
    if stream.samples != header.samples:
        raise tags.wrong(
            "SamplesPerPixel", f"is {header.samples}, but the compressed image has {stream.samples}"
        )
    if stream.precision > 16 or (stream.lossy and stream.precision < header.bits):
        # Such a JPEG was made of values that were scaled by an unknown factor.
        raise tags.wrong(
            "BitsStored", f"is {header.bits}, but the {stream.name} stream has {stream.precision} bits", "Export it again."
        )  # fmt: skip
    transformed = stream.colour == "transformed"  # of which there is one kind, that of JPEG 2000
    if (
        header.samples == 3
        and header.photometric != "RGB"
        and transformed != (header.photometric in YBR_OF_JPEG_2000)
    ):
        raise tags.wrong(
            "PhotometricInterpretation",
            f"is {header.photometric}, but the {stream.name} stream says that its colours were "
            f"{'' if transformed else 'not '}transformed",
            "Export it again.",
        )


def _several(tags: Tags) -> DataError:
    return DataError(f"{tags.path} holds more than one image.", "Export one image per file.")


@contextmanager
def _damaged(tags: Tags) -> Iterator[None]:
    """Decoders raise anything on damaged input; what they say may quote the content."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception:
        raise DataError(f"{tags.path} is damaged: its pixels cannot be decoded.", _AGAIN) from None
