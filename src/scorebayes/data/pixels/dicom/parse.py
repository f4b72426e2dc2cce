"""From the bytes of a file to its tags, within limits that keep a file from filling the memory or the stack."""

from __future__ import annotations

import os
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import filereader, uid

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
    try:
        dataset = _dataset(path, data)
        deep = _depth(dataset) > MAX_DEPTH
    except RecursionError:
        deep = True
    except (DataError, MemoryError):
        raise
    except Exception:  # the parser raises anything on damaged input
        raise DataError(
            f"{path} is damaged: its DICOM header cannot be read.",
            "Copy or download it again, or leave it out.",
        ) from None
    if deep:
        raise DataError(f"{path} has sequences nested more than {MAX_DEPTH} levels deep.", "Leave it out.")
    return Tags(path, dataset)


def _dataset(path: Path, data: bytes) -> pydicom.Dataset:
    """The parser inflates a deflated file at once, however large it becomes, so that this is done here."""
    file = BytesIO(data)
    preamble = filereader.read_preamble(file, force=False)
    meta = filereader._read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        return pydicom.dcmread(BytesIO(data))
    content = BytesIO(_inflate(path, data[file.tell() :]))
    dataset = filereader.read_dataset(content, is_implicit_VR=False, is_little_endian=True)
    return pydicom.FileDataset(path, dataset, preamble, meta, is_implicit_VR=False, is_little_endian=True)


def _inflate(path: Path, data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(data, MAX_BYTES + 1)
    except zlib.error:
        raise DataError(
            f"{path} is damaged: its compressed (deflated) content cannot be unpacked.",
            "Copy or download it again, or leave it out.",
        ) from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{path} unpacks to more than {MAX_BYTES / 1e6:.0f} MB.", "Leave it out.")
    if not inflater.eof:
        raise DataError(
            f"{path} is incomplete: its deflated content is cut off.", "Copy or download it again."
        )
    return content


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
