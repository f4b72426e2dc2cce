"""Atomic writes: a reader sees the old file or the new one, never half of it, even after a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name to write to while the block runs. ``path`` becomes that file at its end, and stays as it was if it fails."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(
            missing_ok=True
        )  # of a killed process; were it a link, its target must not be written to
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # as of any new file; some libraries make theirs private
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file of text (UTF-8) or bytes."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """New names in a folder reach the disk as well, where the file system can do this."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(number)
    except OSError:
        pass
    finally:
        os.close(number)
