"""Times that parts of a run took, in ``timings.json``: apart from what the parts learned, which is the same every time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from scorebayes.storage import sealed
from scorebayes.storage.atomic import write_atomically


def note_seconds(folder: Path, name: str, seconds: float) -> None:
    """Remember a time of a run directory under a name."""
    path = folder / "timings.json"
    sealed.require_inside(path)
    write_atomically(path, json.dumps({**_known(path), name: seconds}, indent=1) + "\n")


def seconds_of(folder: Path, name: str) -> float:
    """A time in seconds; NaN where it is not known."""
    found = _known(folder / "timings.json").get(name)
    return float(found) if isinstance(found, (int, float)) else math.nan


def _known(path: Path) -> dict[str, Any]:
    """Nothing where the file is absent or damaged: no answer depends on it."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
