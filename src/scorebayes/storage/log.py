"""Logs to which lines of JSON are appended. A program that was killed may leave the last line cut off.

Each line ends with a checksum of itself, so that a damaged one is not taken for what was written.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scorebayes.storage import sealed
from scorebayes.storage.atomic import write_atomically

CHECK = "check"


def append_to_log(path: Path, entry: Mapping[str, Any]) -> None:
    """Add a line. OSError if it cannot be written, ConfigError if the log is a link that leads out of a run."""
    sealed.require_inside(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(entry))


def write_log_anew(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Replace the log by these entries."""
    write_atomically(path, "".join(map(_line, entries)))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, none where there is no file.

    What a kill or a full disk left of the last line is passed over; a damaged line before it is left out with a warning.
    """
    if not path.is_file():
        return []
    entries: list[dict[str, Any]] = []
    damaged: list[int] = []
    *lines, cut = path.read_bytes().split(b"\n")
    for number, line in enumerate((*lines, cut), 1):
        if not line.strip(b"\0\r\t "):
            continue
        entry = _entry(line)
        if entry is not None:
            entries.append(entry)
        elif number <= len(lines):
            damaged.append(number)
    if damaged:
        numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        warnings.warn(
            f"{path}: {len(damaged)} damaged lines are left out (line {numbers}); the weights do not depend on the log.",
            stacklevel=2,
        )
    return entries


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps({**entry, CHECK: _checksum(entry)}) + "\n"


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line says, without its checksum (older logs have none); None where it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # also of bytes that are no UTF-8
        return None
    if not isinstance(entry, dict):
        return None
    check = entry.pop(CHECK, None)
    return entry if check in (None, _checksum(entry)) else None


def _checksum(entry: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(entry).encode()):08x}"
