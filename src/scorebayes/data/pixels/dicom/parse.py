"""From the bytes of a file to its tags, within limits that keep a file from filling the memory or the stack."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import uid

from scorebayes.data.pixels.dicom.tags import Tags
from scorebayes.errors import DataError

MAX_BYTES = 512_000_000  # of a file, or of its inflated content
MAX_DEPTH = 100  # of nested sequences


def parse(path: Path, file: BinaryIO) -> Tags:
    """The tags of a file that is open. DataError for what is no DICOM file, is damaged or goes beyond the limits."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise DataError(
            f"{path} has {size / 1e6:.0f} MB, but at most {MAX_BYTES / 1e6:.0f} MB are read.",
            "Leave it out.",
        )
    data = file.read()
    if data[128:132] != b"DICM":
        start = data[:256].lstrip().lower()
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise DataError(f"{path} is a web page, not DICOM: a failed download.", "Download it again.")
        raise DataError(f"{path} is not DICOM: the marker DICM at byte 128 is missing.", "Check the file.")
    _check_inflated_size(path, data)
    try:
        dataset = pydicom.dcmread(BytesIO(data))
        deep = _depth(dataset) > MAX_DEPTH
    except RecursionError:
        deep = True
    except Exception:  # the parser raises anything on damaged input
        raise DataError(
            f"{path} is damaged: its DICOM header cannot be read.",
            "Copy or download it again, or leave it out.",
        ) from None
    if deep:
        raise DataError(f"{path} has sequences nested more than {MAX_DEPTH} levels deep.", "Leave it out.")
    return Tags(path, dataset)


def _check_inflated_size(path: Path, data: bytes) -> None:
    """Inflate in pieces, keeping none, so that a small file cannot fill the memory: the parser inflates all
    at once.
    """
    if uid.DeflatedExplicitVRLittleEndian.encode() not in data[132:4096]:
        return
    if data[132:136] != b"\x02\0\0\0":
        raise DataError(
            f"{path} is compressed (deflated), but the length of its header is missing.", "Export it again."
        )
    group_length = struct.unpack_from("<I", data, 140)[0]  # value of (0002,0000), which begins group 2
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    rest = data[144 + group_length :]
    try:
        while rest and not inflate.eof:
            total += len(inflate.decompress(rest, 1 << 20))
            rest = inflate.unconsumed_tail
            if total > MAX_BYTES:
                raise DataError(f"{path} unpacks to more than {MAX_BYTES / 1e6:.0f} MB.", "Leave it out.")
    except zlib.error:
        raise DataError(
            f"{path} is damaged: its compressed (deflated) content cannot be unpacked.",
            "Copy or download it again, or leave it out.",
        ) from None


def _depth(dataset: pydicom.Dataset) -> int:
    """Levels of nested sequences. Only those that were parsed count: the others stay bytes, since nothing
    reads them.
    """
    deepest, level = 0, [dataset]
    while level:
        elements = [element for item in level for element in item.values() if element.VR == "SQ"]
        level = [
            item for element in elements if isinstance(element, pydicom.DataElement) for item in element.value
        ]
        deepest += bool(elements)
        if deepest > MAX_DEPTH:
            break
    return deepest
