"""The value of one tag as the standard says it is, or an error that names the tag.

Messages of the parser are never passed on: they may quote the value of any tag. Quoted are only values of tags that
describe pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom.datadict import dictionary_description, tag_for_keyword

from scorebayes.errors import DataError

CORRECT_OR_LEAVE_OUT: Final = "Correct the header, or leave the file out."
_QUOTED = 16  # characters of a value that a message shows


class Tags:
    """The tags of a file, or of one item of a sequence in it."""

    def __init__(self, path: Path, dataset: pydicom.Dataset, within: str = "") -> None:
        self.path = path
        self.dataset = dataset
        self.within = within

    def wrong(self, keyword: str, problem: str, remedy: str = CORRECT_OR_LEAVE_OUT) -> DataError:
        """An error about a tag: "FILE: Rows (0028,0010) is missing."."""
        return DataError(f"{self.path}: {named(keyword)}{self.within} {problem}.", remedy)

    def value(self, keyword: str) -> Any:
        """The value as parsed; None where the tag is missing or empty."""
        try:
            value = self.dataset.get(keyword)
        except Exception:  # the parser raises anything on a value it can't convert
            raise self.wrong(keyword, "cannot be read: its value is not of the kind it should be") from None
        if value is None or (isinstance(value, str | bytes | Sequence) and len(value) == 0):
            return None
        return value

    def whole(self, keyword: str, least: int, most: int, default: int | None = None) -> int:
        """One whole number. A missing one is the default, or an error where there is none."""
        value = self.value(keyword)
        if value is None:
            if default is not None:
                return default
            raise self.wrong(keyword, "is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            expected = f"a whole number from {least} to {most}" if least < most else str(least)
            raise self.wrong(keyword, f"is {shown(value)}, expected {expected}")
        return int(value)

    def number(self, keyword: str, several: bool = False) -> float | None:
        """A number, or the first of several where the tag may have them; None where it is missing or empty."""
        value = self.value(keyword)
        if value is None:
            return None
        listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        if listed and not several:
            raise self.wrong(keyword, f"is {shown(value)}, expected one number")
        first = value[0] if listed else value
        try:
            number = float(first)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong(keyword, f"is {shown(value)}, which is not a number")
        return number

    def word(self, keyword: str) -> str:
        """One word, in capitals; "" where the tag is missing or empty."""
        value = self.value(keyword)
        if value is not None and not isinstance(value, str):
            raise self.wrong(keyword, f"is {shown(value)}, expected one word")
        return (value or "").strip().upper()[:_QUOTED]

    def hint(self, keyword: str) -> str:
        """The same of a tag that may be missing, unreadable or of several words: "" then."""
        try:
            return self.word(keyword)
        except DataError:
            return ""

    def items(self, keyword: str) -> list[Tags]:
        """The items of a sequence; none where it is missing or empty."""
        value = self.value(keyword)
        if value is None:
            return []
        if not isinstance(value, pydicom.Sequence):
            raise self.wrong(keyword, "is not a sequence")
        return [Tags(self.path, item, f" in {named(keyword)}") for item in value]

    def of_frame(self, macro: str, *keywords: str) -> Tags:
        """Where the tags of a macro stand: in the functional groups of the one frame (C.7.6.16) if any is there, else
        beside the pixels."""
        for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
            found = [part for item in self.items(groups) for part in item.items(macro)]
            if len(found) > 1:
                raise self.wrong(
                    groups, f"has {len(found)} times {named(macro)}, but the file holds one image"
                )
            if any(keyword in part.dataset for part in found for keyword in keywords):
                return found[0]
        return self


def named(keyword: str) -> str:
    """A tag for people: "Window Center (0028,1050)"."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return f"{dictionary_description(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def shown(value: Any) -> str:
    """A value as a message quotes it: short, and never what looks like a name."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"{len(value)} values" if len(value) > 3 else ", ".join(shown(part) for part in value)
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str) and "^" not in value:
        return repr(value[:_QUOTED])
    return "text" if isinstance(value, str) else "not a number"
