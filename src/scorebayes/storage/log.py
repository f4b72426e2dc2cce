"""Logs to which lines of JSON are appended. A program that was killed may leave the last line cut off."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, none where there is no file.

    What a kill or a full disk left of the last line is passed over; a damaged line before it is left out with a warning.
    """
    if not path.is_file():
        return []
    entries: list[dict[str, Any]] = []
    damaged: list[int] = []
    lines = [
        (number, line)
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1)
        if line.strip(b"\0\r\t ")
    ]
    for number, line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # also of bytes that are no UTF-8
            entry = None
        if isinstance(entry, dict):
            entries.append(entry)
        elif number < lines[-1][0]:
            damaged.append(number)
    if damaged:
        numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        warnings.warn(
            f"{path}: {len(damaged)} damaged lines are left out (line {numbers}); the weights do not depend on the log.",
            stacklevel=2,
        )
    return entries
