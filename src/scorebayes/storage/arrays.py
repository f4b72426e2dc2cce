"""Named arrays in one file (NPZ), written whole and sealed where they belong to a run; nothing in them is executed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorebayes.storage import sealed

LARGEST = 2_000_000_000  # bytes, unpacked


def write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Compressed; the same arrays give the same bytes."""
    with sealed.replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, NDArray]:
    """DataError where the file is damaged, ConfigError where it was changed."""
    content = sealed.read(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            if sum(member.file_size for member in members.infolist()) > LARGEST:
                raise ValueError(f"more than {LARGEST:,} bytes of arrays")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except Exception as error:  # NumPy lets Python's tokenizer and parser say what is wrong with a header
        raise sealed.damaged(path, error) from error
