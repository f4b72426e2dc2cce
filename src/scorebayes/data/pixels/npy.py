"""NPY and NPZ files: arrays that NumPy saved. Pickles are never opened."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.pixels.decoding import check_size, decoding
from scorebayes.data.pixels.files import require_file
from scorebayes.data.pixels.numbers import as_image, described, to_unit
from scorebayes.errors import DataError

MAX_NPZ_BYTES = 16 * 2**30
_NO_OBJECTS = "Save numbers, or text by array.astype(str)."

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (
        3,
        0,
    ): np.lib.format.read_array_header_2_0,  # differs in the encoding of field names, and records are refused
}


def read_npy(path: Path, file: BinaryIO, bits: int | None) -> NDArray[np.float32]:
    """Pixels [H, W] or [H, W, 3] of one image, float32 in [0, 1]."""
    mapped = _mapped(path, file)
    check_size(path, mapped.size)
    image = as_image(mapped, path)
    with decoding(path):
        return to_unit(np.array(image), path, bits)


def npy_bits(path: Path, file: BinaryIO) -> int:
    """8 or 16."""
    return 8 if _mapped(path, file).dtype.itemsize == 1 else 16


def _mapped(path: Path, file: BinaryIO) -> NDArray:
    """The array of an NPY file, of which nothing is read yet."""
    with decoding(path):
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise DataError(f"{path} is NPY version {version}, which is not read.", "Save it by numpy.save.")
        shape, fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject or dtype.names or dtype.kind not in "biuf":
            raise DataError(f"{path} holds {described(dtype)}, not grey values.", _NO_OBJECTS)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in an npz file. DataError if it is none, or would unpack beyond all bounds."""
    require_file(path)
    with decoding(path, "is not a readable npz file"), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_NPZ_BYTES:
        raise DataError(
            f"{path} would unpack to {unpacked / 2**30:.0f} GiB, which is too much.", "Leave it out."
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
    arrays: dict[str, NDArray] = {}
    with (
        decoding(path, "is not a readable npz file"),
        np.load(path, allow_pickle=False) as archive,
    ):
        for name in [*names, *(set(optional) & set(found))]:
            try:
                arrays[name] = archive[name]
            except ValueError as error:
                if "Object arrays" not in str(error):
                    raise
                raise DataError(
                    f"{path}: {name} holds Python objects, which are not opened.", _NO_OBJECTS
                ) from None
    return arrays
