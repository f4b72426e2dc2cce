"""The paths that a table gives: written on another computer, in another form of Unicode, perhaps leading elsewhere."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from scorebayes.data.pixels.files import require_file
from scorebayes.errors import DataError

DEEPEST = 40  # folders that a moved folder may have been in


def names_below(root: Path, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The paths of a table as names below its folder ``root``, and what was guessed, in words.

    Absolute paths that lie below the root are made relative. If none of the others is on this computer, and most of the
    files are below the root when what all have in common is cut off, then the folder was moved, and that is noted.
    """
    names = [_posix(root, text) for text in texts]
    for base in (root.absolute(), root.resolve()):
        names = [_relative_to(base, name) for name in names]
    foreign = {name: PurePosixPath(name).parts for name in names if _is_absolute(name)}
    if not foreign or any(os.path.lexists(name) for name in foreign if "\0" not in name):
        return names, []
    try:
        common = PurePosixPath(os.path.commonpath([PurePosixPath(name).parent for name in foreign])).parts
    except ValueError:  # some of Windows, some not
        return names, []
    for cut in range(1, min(len(common), DEEPEST) + 1):
        moved = {name: "/".join(parts[cut:]) for name, parts in foreign.items()}
        if sum(_exists(root, name) for name in moved.values()) > len(moved) / 2:
            before = "/".join(common[:cut]).replace("//", "/")
            note = f"the paths begin with {before}, which is not on this computer; the files are taken from {root}."
            return [moved.get(name, name) for name in names], [note]
    return names, []


def inside(root: Path, name: str) -> Path:
    """The file of that name, which can be opened and lies below the root. DataError where it is not so."""
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"The path {name} points outside the data folder.")
    if "\0" in name:
        raise DataError(f"The path {name!r} contains a null character.")
    require_file(root / name, root)
    return root / name


def _posix(root: Path, text: str) -> str:
    """With the separators of Windows turned and in the disk's form of Unicode, if it does not exist otherwise."""
    name = PurePosixPath(text).as_posix()
    if "\\" in name and not _exists(root, name):
        name = PureWindowsPath(text).as_posix()
    decomposed = unicodedata.normalize("NFD", name)
    return decomposed if not _exists(root, name) and _exists(root, decomposed) else name


def _exists(root: Path, name: str) -> bool:
    return "\0" not in name and os.path.lexists(root / name)


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or bool(PureWindowsPath(name).drive)


def _relative_to(base: Path, name: str) -> str:
    path = PurePosixPath(name)
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else name
