"""Which files there are, and what each must be before a decoder sees it: there, regular, readable, not empty and inside
the data set.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from scorebayes.errors import DataError


def require_file(path: Path, root: Path | None = None) -> os.stat_result:
    """The status of a file that may be opened. Raises DataError naming the cause in all other cases.

    ``root``: links that lead out of this folder are refused, so that a foreign data set cannot make the
    program read other files of its user.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.", "Check the path, or complete the download.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}.", "Check the permissions.") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise DataError(f"{path} is {kind}, not a regular file.", "Leave it out.")
    if status.st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", "Copy or download it again.")
    if root is not None and not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path} is a link that points outside {root}.", "Copy the file into the data set.")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} cannot be opened: permission denied.", "Check the permissions.")
    return status


HIDDEN, SYSTEM, LINK = "hidden", "of the system", "a link to a folder"
_SYSTEM_NAMES = (
    *(
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "__macosx",
        "lost+found",
        "system volume information",
    ),
    *(
        "$recycle.bin",
        "recycler",
        "recycled",
        "#recycle",
        "@recycle",
        "@eadir",
        "@tmp",
        "#snapshot",
        "@snapshot",
    ),
    *(".ds_store", ".ipynb_checkpoints", ".spotlight-v100", ".fseventsd", ".git", "__pycache__"),
)


def why_passed_over(name: str) -> str | None:
    """Why a file or folder is not there for its content (HIDDEN or SYSTEM, a file manager's or an archiver's); else None."""
    if name.lower() in _SYSTEM_NAMES or name.startswith(("._", ".Trash", "__MACOSX")):
        return SYSTEM
    return HIDDEN if name.startswith(".") else None


def is_visible(name: str) -> bool:
    """Whether a file or folder is there for its content, not for a file manager or an archiver."""
    return why_passed_over(name) is None


def files_below(
    root: Path,
    unreadable: Callable[[OSError], None] | None = None,
    passed_over: Callable[[Path, str], None] | None = None,
) -> Iterator[Path]:
    """All visible files below a folder, by name; links to folders are not followed.

    ``unreadable`` is called for a folder that cannot be opened; without it, this is a DataError. ``passed_over`` is told
    of every hidden file or folder and every link to a folder, and why.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be opened: {error.strerror}.", "Check the permissions.")

    for folder, below, files in os.walk(root, onerror=unreadable or refuse):
        if passed_over is not None:
            for name in [*below, *files]:
                path = Path(folder, name)
                reason = why_passed_over(name) or (LINK if name in below and path.is_symlink() else None)
                if reason is not None:
                    passed_over(path, reason)
        below[:] = sorted(filter(is_visible, below))
        yield from (Path(folder, name) for name in sorted(filter(is_visible, files)))
