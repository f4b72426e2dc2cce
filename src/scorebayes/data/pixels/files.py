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


def is_visible(name: str) -> bool:
    """Whether a file or folder is there for its content, not for a file manager, an archiver or a DICOM viewer."""
    return not name.startswith((".", "__MACOSX")) and name.lower() not in (
        "thumbs.db",
        "desktop.ini",
        "dicomdir",
    )


def files_below(root: Path, unreadable: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """All visible files below a folder, by name; links to folders are not followed.

    ``unreadable`` is called for a folder that cannot be opened; without it, this is a DataError.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be opened: {error.strerror}.", "Check the permissions.")

    for folder, below, files in os.walk(root, onerror=unreadable or refuse):
        below[:] = sorted(filter(is_visible, below))
        yield from (Path(folder, name) for name in sorted(filter(is_visible, files)))
