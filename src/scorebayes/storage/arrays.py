"""Named arrays in one file (NPZ), written whole and sealed where they belong to a run; nothing in them is executed."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorebayes.storage import sealed


def write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Compressed; the same arrays give the same bytes."""
    with sealed.replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, NDArray]:
    """ConfigError where the file is damaged or was changed."""
    content = sealed.read(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (
        AttributeError,
        LookupError,
        OSError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise sealed.damaged(path, error) from error
