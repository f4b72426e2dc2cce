"""A report may leave the house: where the data lie, and under whose name, does not."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any


def without_places(text: str, data: Mapping[str, Any]) -> str:
    """A text with the last name of each folder or file that the section [data] names by its whole path, and "~" for the home
    folder."""
    known = {place: re.split(r"[/\\]", place.rstrip("/\\"))[-1] for place in _places(data)}
    for place in sorted(known, key=len, reverse=True):
        for write in (str, html.escape, _in_json, _in_markdown):
            written, name = write(place), write(known[place])
            text = re.sub(rf"(?<![\w.~]){re.escape(written)}(?![\w-])", lambda _, name=name: name, text)  # type: ignore[misc]
    home = str(Path.home())
    return re.sub(rf"(?<![\w.]){re.escape(home)}(?=/)", "~", text) if home != "/" else text


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)


def _places(value: Any) -> Iterator[str]:
    """Absolute paths in a configuration, alone or behind a kind, as in ``folder:/data``."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _places(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _places(inner)
    elif isinstance(value, str):
        for text in (value, value.partition(":")[2]):
            if len(text) > 1 and (PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()):
                yield text.rstrip("/\\")
                return
