"""NPY and NPZ files: arrays that NumPy saved. Pickles are never opened."""

from __future__ import annotations

import contextlib
import math
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.pixels.decoding import check_size, decoding
from scorebayes.data.pixels.files import require_file
from scorebayes.data.pixels.numbers import Stored, as_image, described
from scorebayes.errors import DataError

MAX_NPZ_BYTES = 16 * 2**30
SAFE_NPZ_BYTES, MAX_RATIO = (
    2**30,
    50,
)  # beyond the one, no file may unpack to so many times its size: images don't
_NO_OBJECTS = "Save numbers, or text by array.astype(str)."

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (
        3,
        0,
    ): np.lib.format.read_array_header_2_0,  # differs in the encoding of field names, and records are refused
}


def read_npy(path: Path, file: BinaryIO) -> Stored:
    """One image, [H, W] or [H, W, 3], still in the file."""
    mapped = _mapped(path, file)
    check_size(path, mapped.size)
    return Stored(as_image(mapped, path))


def npy_bits(path: Path, file: BinaryIO) -> int:
    """8 or 16."""
    return 8 if _mapped(path, file).dtype.itemsize == 1 else 16


def _mapped(path: Path, file: BinaryIO) -> NDArray:
    """The array of an NPY file, of which nothing is read yet."""
    shape, fortran, dtype = _header(path, file)
    if dtype.hasobject or dtype.names or dtype.kind not in "biuf":
        raise DataError(f"{path} holds {described(dtype)}, not grey values.", _NO_OBJECTS)
    if 0 in shape:
        return np.empty(shape, dtype)
    with decoding(path):
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _header(name: Path | str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type that an array was saved with. The header is a Python expression, which is taken apart by
    Python's parser; that raises anything on nonsense."""
    version = None
    with contextlib.suppress(Exception):
        version = np.lib.format.read_magic(file)
        if version in _HEADERS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _HEADERS[version](file)
    if version is not None and version not in _HEADERS:
        raise DataError(f"{name} is NPY version {version}, which is not read.", "Save it by numpy.save.")
    raise DataError(f"{name} is damaged: its NPY header cannot be read.", "Save it again by numpy.save.")


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in an npz file. DataError if it is none, or would unpack beyond all bounds."""
    size = require_file(path).st_size
    with decoding(path, "is not a readable npz file"), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_NPZ_BYTES or (unpacked > SAFE_NPZ_BYTES and unpacked > MAX_RATIO * size):
        raise DataError(
            f"{path} would unpack to {unpacked / 2**30:.0f} GiB, {unpacked / size:.0f} times its size, which is too much.",
            "Leave it out.",
        )
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise DataError(
            f"{path} is compressed by a method other than NumPy's.",
            "Save it again by numpy.savez_compressed.",
        )
    return sorted(entry.filename.removesuffix(".npy") for entry in entries)


def read_npz(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray]:
    """The named arrays of an npz file, and those of the optional ones that are there. DataError if one is missing, holds
    Python objects, or the file is no npz.
    """
    found = npz_names(path)
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{path} has no array {', '.join(missing)}. It has {', '.join(found) or 'none'}.")
    wanted = [*names, *(set(optional) & set(found))]
    with decoding(path, "is not a readable npz file"), np.load(path, allow_pickle=False) as archive:
        for name in wanted:
            _check_entry(path, archive.zip, name)
        try:
            return {name: archive[name] for name in wanted}
        except MemoryError:
            raise DataError(f"{path} holds more than fits into memory.", "Use fewer images.") from None


def _check_entry(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    """DataError where an array holds Python objects, or more or fewer bytes than its header says."""
    entry = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    with archive.open(entry) as file:
        shape, _, dtype = _header(f"{path}: {name}", file)
        there = entry.file_size - file.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: {name} holds Python objects, which are not opened.", _NO_OBJECTS)
    if there != math.prod(shape) * dtype.itemsize:
        raise DataError(
            f"{path}: {name} is {dtype} {shape} by its header, but has {there} bytes.", "Save it again by numpy.savez."
        )  # fmt: skip
